"""Steering edits: affine maps at the output of a sub-layer, opened by a gate, applied by hooks.

The edited model is the model itself with hooks attached: at each steered layer the state at the *last* position moves
by `α · P (M z + c)` (see `mechedit.editors.steering.transport`; where: `mechedit.editors.steering.sites`). In a prompt
the last position is the prompt's end; with the KV cache each new token is last in its turn, so a text goes on being
steered while it is generated and while an object of several tokens is scored (or, with `position="prompt"`, is not).
The gate is read once, in the pass over the prompt, and kept for the tokens that follow.

`Steering` holds what a pass needs and knows no library: `steer` hangs it into a TransformerLens bridge,
`mechedit.editors.steering.attach` into a plain `transformers` model.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from mechedit.data.facts import FactEdit
from mechedit.editors.base import derive, lineage
from mechedit.editors.steering.gate_bank import GateBank
from mechedit.editors.steering.gates import AlwaysOn, Gate, HiddenGate
from mechedit.editors.steering.sites import SITES, Heads, SiteName, part
from mechedit.editors.steering.transport import AffineMap
from mechedit.models.batching import batches
from mechedit.models.bridged import Prompts
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import Hook, resid_pre

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

    def to(self, device: torch.device, dtype: torch.dtype) -> SteeringEdit:
        """The same edit with its maps where a model's activations are."""
        return replace(self, maps={layer: fitted.to(device, dtype) for layer, fitted in self.maps.items()})

    @property
    def steers(self) -> bool:
        """Whether it moves anything once its gate is open."""
        return bool(self.maps) and self.alpha != 0


class Steering:
    """The active edits and the state of the pass they are in.

    Attributes:
        edits: The edits, with their maps where the model is.
        bank: Their gates.
        winner: Which edit steers each row of the batch, −1 for none [B].
        ratios: Distance over threshold of the open gates, infinity for closed ones [n_edits, B].
        muted: Nothing is steered; gates still decide.
    """

    winner: Tensor
    ratios: Tensor

    def __init__(
        self, edits: Sequence[SteeringEdit], *, device: torch.device, dtype: torch.dtype, tokenizer: Any
    ) -> None:
        self.edits = tuple(edit.to(device, dtype) for edit in edits)
        self.bank = GateBank([edit.gate for edit in self.edits], device)
        self.muted = False
        self._tokenizer = tokenizer
        self._device = device
        self._in_prompt = False  # gates may decide
        self._fresh = True  # in a pass over a prompt
        self._looking = False  # in a pass that only decides gates
        self._warned = False
        self._mask: Tensor | None = None
        self._bases: dict[tuple[int, str], Tensor] = {}
        self._winners: list[int] = []
        first = min((layer for edit in self.edits if edit.steers for layer in edit.maps), default=None)
        self._looks_ahead = first is not None and any(layer > first for layer in self.bank.by_layer)

    # -- the hooks -------------------------------------------------------------------------------------------

    def begin(self, module: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each pass of the Hugging Face model, whoever calls it: a pass over a prompt decides the gates anew.

        A gate that reads a layer behind the first steered one is decided by a pass of its own, without steering.
        """
        cache = kwargs.get("past_key_values")
        if self._looking:
            self._in_prompt = True
            return
        self._fresh = cache is None or cache.get_seq_length() == 0
        self._in_prompt = self._fresh and not self._looks_ahead
        if not self._fresh:
            return
        ids: Tensor = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        self._mask = _token_mask(kwargs.get("attention_mask"), ids)
        self.ratios = self.bank.start(len(ids), self._device)
        for group in self.bank.by_text:
            self._join(group.ratios(group.gate.embed(self._texts(ids)).to(self._device), self.bank.n))  # type: ignore[union-attr]
        self._decide()
        if self._looks_ahead:
            self._looking = True
            try:
                module(*args, **{**kwargs, "past_key_values": None, "use_cache": False})
            finally:
                self._looking = self._in_prompt = False

    def look(self, layer: int, states: Tensor) -> None:
        """In a prompt's pass, [B, T, d] at the input of `layer`: how near is it to the edits whose gate reads it?"""
        if not self._in_prompt:
            return
        for group in self.bank.by_layer[layer]:
            assert isinstance(group.gate, HiddenGate)
            pooled = states[:, -1] if group.gate.pool == "last" else self._mean(states)
            self._join(group.ratios(pooled, self.bank.n))
        self._decide()

    def keep(self, layer: int, name: str, states: Tensor) -> None:
        """Remembers the last position of a residual stream that a site's state is made of."""
        self._bases[layer, name] = states[:, -1].detach()

    def move(self, layer: int, name: SiteName, states: Tensor) -> Tensor | None:
        """What is written at a site, [B, T, ...], with the last position moved where an edit is open."""
        if self._looking or self.muted:
            return None
        moved = None
        for i in self._winners:
            edit = self.edits[i]
            silent = edit.position == "prompt" and not self._fresh
            if edit.site != name or layer not in edit.maps or edit.alpha == 0 or silent:
                continue
            rows = (self.winner == i).nonzero()[:, 0]
            moved = states.clone() if moved is None else moved
            moved[rows, -1] += self._displacement(edit, layer, rows, states[rows, -1])
        return moved

    def points(self) -> list[tuple[str, Callable[[Tensor], Tensor | None]]]:
        """(hook point, function of its tensor), in order: within a layer gates decide before the first map."""
        points: list[tuple[str, Callable[[Tensor], Tensor | None]]] = [
            (resid_pre(layer), partial(self.look, layer)) for layer in sorted(self.bank.by_layer)
        ]
        used = {(layer, edit.site) for edit in self.edits if edit.steers for layer in edit.maps}
        for layer, name in sorted(used):
            site = SITES[name]
            points += [(f"blocks.{layer}.{base}", partial(self.keep, layer, base)) for base in site.base]
            points.append((f"blocks.{layer}.{site.write}", partial(self.move, layer, name)))
        return points

    # -- pieces ----------------------------------------------------------------------------------------------

    def _displacement(self, edit: SteeringEdit, layer: int, rows: Tensor, written: Tensor) -> Tensor:
        heads = edit.heads.get(layer) if edit.site == "z" else None
        h = part(written, heads)
        for base in SITES[edit.site].base:
            h = h + self._bases[layer, base][rows]
        displacement = edit.alpha * edit.maps[layer].displacement(h)
        if heads is None:
            return displacement
        whole = torch.zeros_like(written)
        whole[:, list(heads)] = displacement.unflatten(1, (len(heads), -1))
        return whole

    def _join(self, ratios: Tensor) -> None:
        self.ratios = torch.minimum(self.ratios, ratios)

    def _decide(self) -> None:
        """The open edit with the smallest ratio; gates that have not looked yet count as closed."""
        if not self.edits:
            return
        best, winner = self.ratios.min(0)
        self.winner = winner.where(best <= 1, -1)
        self._winners = [i for i in self.winner.unique().tolist() if i >= 0]
        if not self._warned and bool(((self.ratios <= 1).sum(0) > 1).any()):
            self._warned = True
            log.warning(
                "several edits claim one prompt: the nearest steers; SteeredModel.claims(prompts) lists them"
            )

    def _mean(self, states: Tensor) -> Tensor:
        assert self._mask is not None
        weights = self._mask.to(states)[:, :, None]
        return (states * weights).sum(1) / weights.sum(1)

    def _texts(self, ids: Tensor) -> list[str]:
        assert self._mask is not None
        rows = zip(ids, self._mask.bool(), strict=True)
        return [str(self._tokenizer.decode(row[kept], skip_special_tokens=True)) for row, kept in rows]


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
    """`model` under the edits, for the length of the block; of several open gates the nearest edit steers."""
    steered = derive(SteeredModel, model)
    steered.steering = Steering(edits, device=model.device, dtype=model.dtype, tokenizer=model.tokenizer)
    handle = model.hf.register_forward_pre_hook(steered.steering.begin, with_kwargs=True)
    hooks: list[Hook] = [(name, partial(_call, fn)) for name, fn in steered.steering.points()]
    try:
        with model.hooks(hooks):
            yield steered
    finally:
        handle.remove()


@contextlib.contextmanager
def unsteered(model: HookedModel) -> Iterator[None]:
    """No steering for the length of the block: editors are fitted on the model, not on what hooks add to it."""
    steerings = [edited.steering for edited in lineage(model) if isinstance(edited, SteeredModel)]
    before = [steering.muted for steering in steerings]
    try:
        for steering in steerings:
            steering.muted = True
        yield
    finally:
        for steering, muted in zip(steerings, before, strict=True):
            steering.muted = muted


def _call(fn: Callable[[Tensor], Tensor | None], states: Tensor, hook: object) -> Tensor | None:
    return fn(states)


def _token_mask(mask: Tensor | None, ids: Tensor) -> Tensor:
    """[B, T], 1 on real tokens, of a mask [B, T], of an additive causal one [B, 1, T, T], or of none."""
    if mask is None:
        return torch.ones_like(ids)
    return mask if mask.ndim == 2 else (mask[:, 0, -1] == 0).long()
