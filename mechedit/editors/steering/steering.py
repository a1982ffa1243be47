"""What a forward pass under steering edits needs: whose gates have opened, and what moves where.

`Steering` knows no library: `mechedit.editors.steering.steer` hangs it into a TransformerLens bridge,
`mechedit.editors.steering.attach` into a plain `transformers` model. The gate is read whenever a prompt's last token
comes in, and kept for the tokens that follow. Which tokens are a prompt's, however they come in, is said by
`mechedit.editors.steering.passes`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mechedit.editors.steering.gate_bank import GateBank, GateGroup, PromptBatch
from mechedit.editors.steering.gates import Reading
from mechedit.editors.steering.passes import GatesRead, Incoming, Passes, mean_state, to_the_left
from mechedit.editors.steering.sites import SITES, SiteName, part
from mechedit.editors.steering.steering_edit import SteeringEdit
from mechedit.models.hooking import resid_pre
from reports.errors import InputError

__all__ = ["Steering"]

log = logging.getLogger(__name__)


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
        places: (what moves them, rows, columns) that are steered.
        bases: For each place what a site's state is the sum of, by (layer, hook point).
        looks: Gates are read in the pass that runs.
        moves: The pass that runs is steered.
        ends: The pass that runs ends where the last gate has read.
    """

    new: Incoming
    rows: Tensor
    prompts: PromptBatch
    ratios: Tensor
    pending: list[tuple[GateGroup, Tensor]] = field(default_factory=list)
    states: dict[Reading, Tensor] = field(default_factory=dict)
    places: list[tuple[SteeringEdit, Tensor, Tensor]] = field(default_factory=list)
    bases: dict[tuple[int, str], list[Tensor]] = field(default_factory=dict)
    looks: bool = True
    moves: bool = True
    ends: bool = False


class _Here(threading.local):
    """What a steering is at in one thread."""

    turn: _Turn | None = None
    muted = False
    gates_alone = False
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
        self._first = min(
            (layer for edit in self.edits if edit.steers for layer in edit.layers), default=None
        )
        self.last_read = max((reading.layer for reading in self.bank.readings), default=-1)

    @property
    def muted(self) -> bool:
        """Nothing is steered in this thread; gates still say what they would do."""
        return self._here.muted

    @property
    def reads_text(self) -> bool:
        """Whether text is read: by some gate the prompts', by some edit what follows them."""
        return self.bank.reads_text or any(edit.following for edit in self.edits)

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

    @contextlib.contextmanager
    def gates_alone(self) -> Iterator[None]:
        """Around a pass of this thread of which only `ratios` is asked: it ends where the gates have read."""
        before, self._here.gates_alone = self._here.gates_alone, True
        try:
            with contextlib.suppress(GatesRead):
                yield
        finally:
            self._here.gates_alone = before

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
        if self._here.gates_alone:
            turn.ends = True
            if not turn.pending:
                raise GatesRead
        if self.muted:  # nothing is steered, so that there is nothing to look ahead of
            turn.moves = False
            return False
        self._place(turn)
        readings = [reading for group, _ in turn.pending for reading in group.readings]
        return self._first is not None and any(reading.layer > self._first for reading in readings)

    @contextlib.contextmanager
    def look_ahead(self, wanted: bool, *, last: bool) -> Iterator[None]:
        """Around a pass over the same columns that steers nothing; where it is `wanted`, gates are read in it.

        The `last` to read ends it.
        """
        turn = self._turn()
        assert turn is not None
        moves, ends, turn.looks, turn.moves, turn.ends = turn.moves, turn.ends, wanted, False, last
        try:
            yield
        finally:
            turn.looks, turn.moves, turn.ends = not wanted, moves, ends
        if wanted and self._here.gates_alone:
            raise GatesRead

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
        if turn.pending:
            self._read(turn, layer, states)
        if turn.ends and layer == self.last_read:
            raise GatesRead

    def _read(self, turn: _Turn, layer: int, states: Tensor) -> None:
        """What the gates that wait are told by the states of a layer, and what they decide once they have all."""
        history, key = turn.new.history, (self.key, layer)
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
        for place, (edit, rows, columns) in enumerate(turn.places):
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
        used = {(layer, edit.site) for edit in self.edits if edit.steers for layer in edit.layers}
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
            mine = winners == i
            for tokens, edit in self.edits[i].moves.items():
                steered = _behind(new, mine, tokens) if tokens else _at_the_end(new, mine)
                if edit.position == "every" and new.generated is not None:
                    steered |= new.generated & mine[:, None]
                rows, columns = steered.nonzero().to(self._device).unbind(1)
                if len(rows):
                    turn.places.append((edit, rows, columns))


def _at_the_end(new: Incoming, mine: Tensor) -> Tensor:
    """Which columns [B, T] of a pass are the ends of prompts, of the rows of a mask [B]."""
    steered = torch.zeros(len(mine), new.length, dtype=torch.bool)
    ending = (mine & (new.ends >= 0)).nonzero()[:, 0]
    steered[ending, new.ends[ending]] = True
    return steered


def _behind(new: Incoming, mine: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Which columns [B, T] of a pass are the last of `tokens` where these stand right behind a prompt."""
    steered = torch.zeros(len(mine), new.length, dtype=torch.bool)
    history = new.history
    for row in mine.nonzero()[:, 0].tolist() if new.generated is not None else ():
        behind = int(history.ends[row]) + 1
        columns = behind + history.real[row, behind:].nonzero()[: len(tokens), 0].cpu()
        if len(columns) < len(tokens) or int(columns[-1]) < new.first:
            continue
        column = int(columns[-1]) - new.first
        if new.generated[row, column] and history.ids[row, columns].tolist() == [*tokens]:  # type: ignore[index]
            steered[row, column] = True
    return steered


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
    rows, columns = turn.rows.to(states.device), torch.arange(states.shape[1], device=states.device)
    real, ends = (x.to(states.device) for x in (turn.new.history.real, turn.new.history.ends))
    inside = real[rows] & (columns <= ends[rows][:, None])
    return states[rows].where(inside[:, :, None], 0), inside
