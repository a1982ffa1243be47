"""Steering edits: affine maps at the output of a sub-layer, opened by a gate, applied by hooks.

The edited model is the model itself with hooks attached: at each steered layer the state at a prompt's last token moves
by `α · P (M z + c)` (see `mechedit.editors.steering.transport`; where: `mechedit.editors.steering.sites`). With
`position="every"` the tokens behind it do, too, so that a text goes on being steered while it is generated and while
an object of several tokens is scored. The gate is read whenever a prompt's last token comes in, and kept for the tokens
that follow. Which tokens are a prompt's, however they come in, is said by `mechedit.editors.steering.passes`.

`Steering` holds what a pass needs and knows no library: `steer` hangs it into a TransformerLens bridge,
`mechedit.editors.steering.attach` into a plain `transformers` model.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from mechedit.data.facts import FactEdit
from mechedit.editors.base import derive, lineage
from mechedit.editors.steering.asked_gate import Gate
from mechedit.editors.steering.gate_bank import GateBank, GateGroup, PromptBatch
from mechedit.editors.steering.gates import AlwaysOn, Reading
from mechedit.editors.steering.passes import Incoming, Passes, follow, mean_state, to_the_left
from mechedit.editors.steering.sites import SITES, Heads, SiteName, part
from mechedit.editors.steering.transport import AffineMap
from mechedit.models.active import ActiveEdit, named, noted
from mechedit.models.batching import batches
from mechedit.models.bridged import Prompts
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import Hook, resid_pre
from reports.errors import InputError

__all__ = ["Position", "SteeredModel", "Steering", "SteeringEdit", "steer", "unsteered"]

log = logging.getLogger(__name__)

Position = Literal["every", "prompt"]


@dataclass(frozen=True, eq=False)
class SteeringEdit:
    """One edited fact as data.

    Attributes:
        fact: The fact.
        maps: The map of each steered layer.
        gate: Decides for which prompts it steers.
        alpha: How far to go along the maps.
        site: Where the state h is (`mechedit.editors.steering.sites`).
        heads: For the site "z", the heads of each layer.
        position: Steer each new token too ("every"), or the prompt's end alone ("prompt").
        choice: How its settings were chosen, for the reader.
    """

    fact: FactEdit
    maps: Mapping[int, AffineMap]
    gate: Gate = field(default_factory=AlwaysOn)
    alpha: float = 1.0
    site: SiteName = "attn_out"
    heads: Mapping[int, Heads] = field(default_factory=dict)
    position: Position = "every"
    choice: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        layers = sorted(self.maps)
        where = f"layers {layers[0]}–{layers[-1]}, {self.site}" if layers else "no layer"
        edit = named("steering", [(self.fact.rewrite_prompt, self.fact.target_new)])
        return f"SteeringEdit({edit}; {where}, alpha {self.alpha:g}, gate {type(self.gate).__name__})"

    def to(self, device: torch.device, dtype: torch.dtype) -> SteeringEdit:
        """The same edit with its maps where a model's activations are."""
        return replace(self, maps={layer: fitted.to(device, dtype) for layer, fitted in self.maps.items()})

    @property
    def steers(self) -> bool:
        """Whether it moves anything once its gate is open."""
        return bool(self.maps) and self.alpha != 0


@dataclass(eq=False)
class _Turn:
    """A steering's part in one pass.

    Attributes:
        new: What the pass brings in.
        rows: Those whose gates are read, on the CPU.
        prompts: The prompts of these rows.
        ratios: Of these rows, as far as gates were read [n_edits, rows].
        pending: Groups of gates that wait for states, with what the text leaves possible.
        states: What was read for them.
        places: (edit, rows, columns) that are steered.
        bases: For each place what a site's state is the sum of, by (layer, hook point).
        looks: Gates are read in the pass that runs.
        moves: The pass that runs is steered.
    """

    new: Incoming
    rows: Tensor
    prompts: PromptBatch
    ratios: Tensor
    pending: list[tuple[GateGroup, Tensor]] = field(default_factory=list)
    states: dict[Reading, Tensor] = field(default_factory=dict)
    places: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    bases: dict[tuple[int, str], list[Tensor]] = field(default_factory=dict)
    looks: bool = True
    moves: bool = True


class _Here(threading.local):
    """What a steering is at in one thread."""

    turn: _Turn | None = None
    muted = False
    ratios: Tensor | None = None


class Steering:
    """The active edits and the state of the pass that each thread is in.

    Attributes:
        edits: The edits, with their maps where the model is.
        bank: Their gates.
        key: Its name in the histories of caches.
        tokenizer: The model's own, for gates that read text; or None.
        passes: What it is told by, while it is attached.
    """

    passes: Passes

    def __init__(
        self, edits: Sequence[SteeringEdit], *, device: torch.device, dtype: torch.dtype, tokenizer: Any
    ) -> None:
        self.edits = tuple(edit.to(device, dtype) for edit in edits)
        self.bank = GateBank([edit.gate for edit in self.edits], device)
        self.key = uuid.uuid4().hex
        self.tokenizer = tokenizer
        self._device = device
        self._here = _Here()
        self._warned = False
        self._first = min((layer for edit in self.edits if edit.steers for layer in edit.maps), default=None)

    @property
    def muted(self) -> bool:
        """Nothing is steered in this thread; gates still say what they would do."""
        return self._here.muted

    @property
    def reads_text(self) -> bool:
        """Whether some gate reads the prompts' text."""
        return self.bank.reads_text

    @property
    def ratios(self) -> Tensor:
        """Of this thread's last prompts: distance over threshold of the open gates, else infinity [n_edits, B]."""
        if self._here.ratios is None:
            raise InputError("ratios: expected a pass over a prompt before, found none in this thread")
        return self._here.ratios

    def prompt_part(self) -> contextlib.AbstractContextManager[None]:
        """Around passes that bring in parts of prompts that go on: nothing is steered, no gate is read.

        The next pass behind the block is the prompt's again, even where it is a single token.
        """
        return self.passes.declare("part")

    def generated_tokens(self) -> contextlib.AbstractContextManager[None]:
        """Around passes that bring in several generated tokens at once, as a draft that is checked."""
        return self.passes.declare("generated")

    # -- a pass ------------------------------------------------------------------------------------------------

    def open(self, new: Incoming) -> bool:
        """Before a pass: reads the text; whether a gate reads a layer behind the first steered one."""
        rows = (new.ends >= 0).nonzero()[:, 0] if not new.replayed else new.ends[:0]
        history = new.history
        ids = [history.ids[row, : history.ends[row] + 1] for row in rows.tolist()]
        real = [history.real[row, : history.ends[row] + 1] for row in rows.tolist()]
        prompts = PromptBatch([i[kept] for i, kept in zip(ids, real, strict=True)], self.tokenizer)
        turn = _Turn(new, rows, prompts, torch.full((self.bank.n, len(rows)), torch.inf, device=self._device))
        self._here.turn = turn
        if not self.muted:
            history.winners.setdefault(self.key, torch.full((history.rows,), -1))
        if len(rows):
            self._ask(turn)
            self._decide(turn)
        if self.muted:  # nothing is steered, so that there is nothing to look ahead of
            turn.moves = False
            return False
        self._place(turn)
        readings = [reading for group, _ in turn.pending for reading in group.readings]
        return self._first is not None and any(reading.layer > self._first for reading in readings)

    @contextlib.contextmanager
    def look_ahead(self, wanted: bool) -> Iterator[None]:
        """Around a pass over the same columns that steers nothing; where it is `wanted`, gates are read in it."""
        turn = self._turn()
        assert turn is not None
        moves, turn.looks, turn.moves = turn.moves, wanted, False
        try:
            yield
        finally:
            turn.looks, turn.moves = not wanted, moves

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Around passes that are none of the caller's: nothing is read, nothing is steered."""
        before = self._here.muted, self._here.turn
        self._here.muted, self._here.turn = True, None
        try:
            yield
        finally:
            self._here.muted, self._here.turn = before

    def close(self) -> None:
        """After a pass."""
        self._here.turn = None

    def _turn(self) -> _Turn | None:
        if self._here.turn is None and not self.muted:
            raise InputError(
                "hf: expected its layers to run inside a pass of the model, found one run by itself "
                "(gradient checkpointing runs them again); steering does not know the prompt there"
            )
        return self._here.turn

    # -- the hooks ---------------------------------------------------------------------------------------------

    def look(self, layer: int, states: Tensor) -> None:
        """[B, T, d] at the input of `layer`: what gates read there, and what they say once they have all they need."""
        turn = self._turn()
        if turn is None or not turn.looks:
            return
        history, key = turn.new.history, (self.key, layer)
        if {Reading(layer, "mean"), Reading(layer, "all")} & {*self.bank.readings}:
            history.put_states(key, turn.new.first, states)
        if not turn.pending:
            return
        rows = turn.rows.to(states.device)
        turn.states[Reading(layer, "last")] = states[rows, turn.new.ends[turn.rows].to(states.device)]
        if key in history.states:
            kept, inside = _of_prompts(history.states[key], turn)
            turn.states[Reading(layer, "all")] = to_the_left(kept, inside)
            if Reading(layer, "mean") in self.bank.readings:
                turn.states[Reading(layer, "mean")] = mean_state(kept, inside)
        ready = [pair for pair in turn.pending if all(r in turn.states for r in pair[0].readings)]
        for group, possible in ready:
            self._join(turn, group.ratios(turn.prompts, turn.states, possible), possible)
        if ready:
            turn.pending = [pair for pair in turn.pending if pair not in ready]
            self._decide(turn)
            self._place(turn)

    def keep(self, layer: int, name: str, states: Tensor) -> None:
        """Remembers, where it steers, a residual stream that a site's state is made of."""
        turn = self._turn()
        if turn is not None and turn.moves:
            turn.bases[layer, name] = [states[rows, columns].detach() for _, rows, columns in turn.places]

    def move(self, layer: int, name: SiteName, states: Tensor) -> Tensor | None:
        """What is written at a site, [B, T, ...], moved where an edit is open."""
        turn = self._turn()
        if turn is None or not turn.moves:
            return None
        moved = None
        for place, (i, rows, columns) in enumerate(turn.places):
            edit = self.edits[i]
            if edit.site != name or layer not in edit.maps:
                continue
            moved = states.clone() if moved is None else moved
            bases = [turn.bases[layer, base][place] for base in SITES[name].base]
            moved[rows, columns] += _displacement(edit, layer, states[rows, columns], bases)
        return moved

    def points(self) -> list[tuple[str, Callable[[Tensor], Tensor | None]]]:
        """(hook point, function of its tensor), in order: within a layer gates decide before the first map."""
        read = sorted({reading.layer for reading in self.bank.readings})
        points: list[tuple[str, Callable[[Tensor], Tensor | None]]] = [
            (resid_pre(layer), partial(self.look, layer)) for layer in read
        ]
        used = {(layer, edit.site) for edit in self.edits if edit.steers for layer in edit.maps}
        for layer, name in sorted(used):
            site = SITES[name]
            points += [(f"blocks.{layer}.{base}", partial(self.keep, layer, base)) for base in site.base]
            points.append((f"blocks.{layer}.{site.write}", partial(self.move, layer, name)))
        return points

    # -- pieces ------------------------------------------------------------------------------------------------

    def _ask(self, turn: _Turn) -> None:
        """What the text alone says; groups that read states wait for them, unless it closes all of their gates."""
        for group in self.bank.groups:
            possible = group.screen(turn.prompts)
            if not group.readings:
                self._join(turn, group.ratios(turn.prompts, {}, possible), possible)
            elif bool(possible.any()):
                turn.pending.append((group, possible))

    def _join(self, turn: _Turn, ratios: Tensor, possible: Tensor) -> None:
        turn.ratios = torch.minimum(turn.ratios, ratios.to(turn.ratios).where(possible, torch.inf))

    def _decide(self, turn: _Turn) -> None:
        """The open edit with the smallest ratio; gates that have not looked yet count as closed."""
        history, rows = turn.new.history, turn.rows
        self._here.ratios = turn.ratios.new_full((self.bank.n, history.rows), torch.inf)
        self._here.ratios[:, rows.to(self._device)] = turn.ratios.detach()
        if not self.edits or self.muted:
            return
        best, winner = turn.ratios.min(0)
        winner = winner.where(best <= 1, -1).cpu()
        history.winners[self.key][rows] = winner
        opened = rows[winner >= 0]
        history.steered[opened] = torch.minimum(history.steered[opened], history.ends[opened])
        if not self._warned and bool(((turn.ratios <= 1).sum(0) > 1).any()):
            self._warned = True
            log.warning(
                "several edits claim one prompt: the nearest steers; SteeredModel.claims(prompts) lists them"
            )

    def _place(self, turn: _Turn) -> None:
        """Where in the pass which edit steers."""
        if self.muted:
            return
        new, turn.places = turn.new, []
        winners = new.history.winners[self.key]
        for i in sorted(set(winners.tolist()) - {-1}):
            if not self.edits[i].steers:
                continue
            mine = winners == i
            steered = torch.zeros(len(mine), new.length, dtype=torch.bool)
            ending = (mine & (new.ends >= 0)).nonzero()[:, 0]
            steered[ending, new.ends[ending]] = True
            if self.edits[i].position == "every" and new.generated is not None:
                steered |= new.generated & mine[:, None]
            rows, columns = steered.nonzero().to(self._device).unbind(1)
            if len(rows):
                turn.places.append((i, rows, columns))


def _displacement(edit: SteeringEdit, layer: int, written: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """What is added to states [n, ...] that are written at the edit's site."""
    heads = edit.heads.get(layer) if edit.site == "z" else None
    h = part(written, heads)
    for base in bases:
        h = h + base
    displacement = edit.alpha * edit.maps[layer].displacement(h)
    if heads is None:
        return displacement
    whole = torch.zeros_like(written)
    whole[:, list(heads)] = displacement.unflatten(1, (len(heads), -1))
    return whole


def _of_prompts(states: Tensor, turn: _Turn) -> tuple[Tensor, Tensor]:
    """States [n, T, d] of the prompts that end in this pass (NaN: not seen), and which are their own [n, T]."""
    history, rows = turn.new.history, turn.rows.to(states.device)
    columns = torch.arange(states.shape[1], device=states.device)
    inside = history.real[rows] & (columns <= history.ends[turn.rows].to(states.device)[:, None])
    return states[rows].where(inside[:, :, None], 0), inside


class SteeredModel(HookedModel):
    """A `HookedModel` under steering edits: the same interface, the same weights. Made by `steer`."""

    steering: Steering

    @property
    def edits(self) -> tuple[SteeringEdit, ...]:
        """The active edits."""
        return self.steering.edits

    def gate_fired(self, prompts: Prompts, *, batch_size: int = 64) -> list[bool]:
        """For each prompt whether the gate of an edit opens."""
        return (self._ratios(prompts, batch_size) <= 1).any(0).tolist()

    def claims(self, prompts: Prompts, *, batch_size: int = 64) -> pd.DataFrame:
        """Which edits claim which prompts: frame prompt (its index), case_id, ratio (distance over threshold), steers.

        Of the edits that claim one prompt the nearest, with the smallest ratio, steers.
        """
        ratios = self._ratios(prompts, batch_size)
        edit, prompt = (ratios <= 1).nonzero().unbind(1)
        nearest = ratios.min(0).indices
        frame = pd.DataFrame(
            {
                "prompt": prompt.tolist(),
                "case_id": [str(self.edits[i].fact.case_id) for i in edit.tolist()],
                "ratio": ratios[edit, prompt].tolist(),
                "steers": (nearest[prompt] == edit).tolist(),
            }
        )
        return frame.sort_values(["prompt", "ratio"], kind="stable", ignore_index=True)

    def _ratios(self, prompts: Prompts, batch_size: int) -> Tensor:
        ids = self.encode(prompts)
        ratios = torch.zeros(len(self.edits), len(ids), device=self.device)
        for batch in batches([len(prompt) for prompt in ids], batch_size):
            self.logits([ids[i] for i in batch], batch_size=batch_size)
            ratios[:, batch] = self.steering.ratios.to(ratios)
        return ratios


@contextlib.contextmanager
def steer(model: HookedModel, edits: Sequence[SteeringEdit]) -> Iterator[SteeredModel]:
    """`model` under the edits, for the length of the block; of several open gates the nearest edit steers.

    Inside the block `model` itself is steered too, as its repr shows.
    """
    steered = derive(SteeredModel, model)
    steered.steering = Steering(edits, device=model.device, dtype=model.dtype, tokenizer=model.tokenizer)
    hooks: list[Hook] = [(name, partial(_call, fn)) for name, fn in steered.steering.points()]
    facts = [(edit.fact.rewrite_prompt, edit.fact.target_new) for edit in edits]
    note = ActiveEdit(named("steering", facts), in_weights=False)
    with follow(model.hf, steered.steering) as passes, model.hooks(hooks), noted(model.hf, note):
        steered.steering.passes = passes
        yield steered


@contextlib.contextmanager
def unsteered(model: HookedModel) -> Iterator[None]:
    """No steering for the length of the block: editors are fitted on the model, not on what hooks add to it."""
    with contextlib.ExitStack() as stack:
        for edited in lineage(model):
            if isinstance(edited, SteeredModel):
                stack.enter_context(edited.steering.aside())
        yield


def _call(fn: Callable[[Tensor], Tensor | None], states: Tensor, hook: object) -> Tensor | None:
    return fn(states)
