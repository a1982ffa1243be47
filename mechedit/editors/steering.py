"""Steering edits: affine maps at attention outputs, opened by a gate, applied by hooks.

The edited model is the model itself with hooks on: at each steered layer the attention output at the *last* position
becomes `a + α · P (M z + c)` (see `mechedit.transport`). In a prompt the last position is the prompt's end;
with the KV cache each new token is last in its turn, so a text goes on being steered while it is generated and
while an object of several tokens is scored. The gate is read once, in the pass over the prompt, and kept for
the tokens that follow.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mechedit.facts import FactEdit
from mechedit.gates import AlwaysOn, Gate
from mechedit.hooking import Hook
from mechedit.model import HookedModel
from mechedit.states import resid_pre
from mechedit.transport import AffineMap

__all__ = ["FINAL", "SteeredModel", "SteeringEdit", "site", "steer", "unsteered"]

# A map's place behind the last layer: the residual stream before the final norm. It is moved by what is added to the
# last layer's MLP output, so that the account of the residual stream still adds up; and at the prompt's end only: the
# map goes to the state that says the new object's first token, which would be said again and again.
FINAL = sys.maxsize


def site(layer: int) -> str:
    """The hook point that is steered: the attention's output, before it is added to the residual stream."""
    return f"blocks.{layer}.hook_attn_out"


@dataclass(frozen=True, eq=False)
class SteeringEdit:
    """One edited fact as data: a map for each steered layer (or FINAL), a gate, and how far to go (`alpha`)."""

    fact: FactEdit
    maps: Mapping[int, AffineMap]
    gate: Gate = field(default_factory=AlwaysOn)
    alpha: float = 1.0

    def to(self, device: torch.device, dtype: torch.dtype) -> SteeringEdit:
        """The same edit with its maps where a model's activations are."""
        maps = {layer: fitted.to(device, dtype) for layer, fitted in self.maps.items()}
        return SteeringEdit(self.fact, maps, self.gate, self.alpha)


class SteeredModel(HookedModel):
    """A `HookedModel` under steering edits: the same interface, the same weights. Made by `steer`."""

    edits: tuple[SteeringEdit, ...]
    _steerings: tuple[SteeredModel, ...]  # all that are on, this one last
    _winner: Tensor  # [B]: which edit steers each row of the batch, -1 for none
    _ratios: list[Tensor | None]
    _before_mlp: Tensor  # [B, d]: the last layer's residual stream, where FINAL is steered
    _at_prompt: bool  # in a pass over a prompt, not over a token behind it
    _in_prompt: bool  # gates may decide
    _looking: bool  # in a pass that only decides gates

    @classmethod
    def over(cls, model: HookedModel, edits: Sequence[SteeringEdit]) -> SteeredModel:
        """Shares everything with `model`."""
        steered = cls.__new__(cls)
        steered.__dict__.update(model.__dict__)
        steered.__dict__.pop("gate_fired", None)  # of an earlier steering edit: this one asks its own gates
        steered._steerings = (*getattr(model, "_steerings", ()), steered)
        steered._looking = False
        steered.edits = tuple(edit.to(model.device, model.dtype) for edit in edits)
        return steered

    def begin(self, module: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each pass of the Hugging Face model, whoever calls it: a pass over a prompt decides the gates anew.

        A gate that reads a layer behind the first steered one is decided by a pass of its own, without steering.
        """
        cache = kwargs.get("past_key_values")
        self._at_prompt = cache is None or cache.get_seq_length() == 0
        if self._looking or not self._at_prompt:
            self._in_prompt = self._looking
            return
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        unseen = torch.zeros(len(ids), 1)
        self._ratios = [edit.gate.ratio(unseen) if edit.gate.layer is None else None for edit in self.edits]
        self._winner = self._decide(len(ids))
        if self._looks_ahead:
            self._looking = True
            try:
                module(*args, **{**kwargs, "past_key_values": None, "use_cache": False})
            finally:
                self._looking = False
        self._in_prompt = not self._looks_ahead

    @property
    def _looks_ahead(self) -> bool:
        steered = [layer for edit in self.edits for layer in edit.maps]
        return bool(steered) and any(layer > min(steered) for layer in self._gate_layers())

    def gate_fired(self, prompts: Sequence[str], *, batch_size: int = 64) -> list[bool]:
        """For each prompt whether some edit's gate opens."""
        fired: list[bool] = []
        ids = self.encode(prompts)
        for start in range(0, len(ids), batch_size):
            self.logits(ids[start : start + batch_size], batch_size=batch_size)
            fired += (self._winner >= 0).tolist()
        return fired

    def hook_points(self) -> list[Hook]:
        """Gates first: within a layer they must have decided before the first map."""
        looks = [(resid_pre(layer), partial(self._look, layer)) for layer in self._gate_layers()]
        layers = sorted({layer for edit in self.edits for layer in edit.maps} - {FINAL})
        moves: list[Hook] = [(site(layer), partial(self._move, layer)) for layer in layers]
        if any(FINAL in edit.maps for edit in self.edits):
            last = f"blocks.{self.shape.n_layers - 1}"
            moves += [
                (f"{last}.hook_resid_mid", self._note),
                (f"{last}.hook_mlp_out", partial(self._move, FINAL)),
            ]
        return [*looks, *moves]

    def _gate_layers(self) -> list[int]:
        return sorted({edit.gate.layer for edit in self.edits if edit.gate.layer is not None})

    def _look(self, layer: int, states: Tensor, hook: object) -> None:
        """In a prompt's pass: how near is it to each edit whose gate reads this layer?"""
        if not self._in_prompt:
            return
        for i, edit in enumerate(self.edits):
            if edit.gate.layer == layer:
                self._ratios[i] = edit.gate.ratio(states[:, -1])
        self._winner = self._decide(len(states))

    def _decide(self, rows: int) -> Tensor:
        """The open edit with the smallest ratio; gates that have not looked yet count as closed."""
        closed = torch.full((rows,), torch.inf)
        ratios = torch.stack([closed if ratio is None else ratio.float().cpu() for ratio in self._ratios])
        best, winner = ratios.min(0)
        return winner.where(best <= 1, -1)

    def _note(self, states: Tensor, hook: object) -> None:
        self._before_mlp = states[:, -1]

    def _move(self, layer: int, states: Tensor, hook: object) -> Tensor | None:
        """What a sub-layer adds [B, T, d], with the last position moved where an edit is open."""
        if self._looking or (layer == FINAL and not self._at_prompt):
            return None
        moved = None
        for i, edit in enumerate(self.edits):
            rows = (self._winner == i).nonzero()[:, 0].to(states.device)
            if layer not in edit.maps or not len(rows) or edit.alpha == 0:
                continue
            moved = states.clone() if moved is None else moved
            here = states[rows, -1]
            seen = here + self._before_mlp[rows] if layer == FINAL else here
            moved[rows, -1] = here + edit.alpha * edit.maps[layer].displacement(seen)
        return moved


@contextlib.contextmanager
def steer(model: HookedModel, edits: Sequence[SteeringEdit]) -> Iterator[SteeredModel]:
    """`model` under the edits, for the length of the block; of several open gates the nearest edit steers."""
    steered = SteeredModel.over(model, edits)
    handle = model.hf.register_forward_pre_hook(steered.begin, with_kwargs=True)
    try:
        with model.hooks(steered.hook_points()):
            yield steered
    finally:
        handle.remove()


@contextlib.contextmanager
def unsteered(model: HookedModel) -> Iterator[None]:
    """No steering for the length of the block: an editor of weights fits the weights, not what hooks add to them."""
    steerings: tuple[SteeredModel, ...] = getattr(model, "_steerings", ())
    before = [steering._looking for steering in steerings]
    try:
        for steering in steerings:
            steering._looking = True
        yield
    finally:
        for steering, looking in zip(steerings, before, strict=True):
            steering._looking = looking
