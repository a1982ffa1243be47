"""A steering edit as data: one fact, the maps that move states towards its new object, the gate that opens them.

What acts where is decided by the tokens behind a prompt: none at its end, the beginning of the new object behind it
(`SteeringEdit.moves`). How it is put on a model: `mechedit.editors.steering.steer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch

from mechedit.data.facts import FactEdit
from mechedit.editors.steering.asked_gate import Gate
from mechedit.editors.steering.gates import AlwaysOn
from mechedit.editors.steering.sites import Heads, SiteName
from mechedit.editors.steering.transport import AffineMap
from mechedit.models.active import named

__all__ = ["Following", "Position", "SteeringEdit"]

Position = Literal["object", "prompt", "every"]


@dataclass(frozen=True, eq=False)
class Following:
    """What steers the token behind which the new object goes on.

    Attributes:
        tokens: The ids that stand behind the prompt: the beginning of the object.
        maps: The map of each steered layer.
        alpha: How far to go along the maps.
    """

    tokens: tuple[int, ...]
    maps: Mapping[int, AffineMap]
    alpha: float = 1.0

    def to(self, device: torch.device, dtype: torch.dtype) -> Following:
        """The same where a model's activations are."""
        return replace(self, maps={layer: fitted.to(device, dtype) for layer, fitted in self.maps.items()})


@dataclass(frozen=True, eq=False)
class SteeringEdit:
    """One edited fact as data.

    Attributes:
        fact: The fact.
        maps: The map of each steered layer, at the prompt's end.
        gate: Decides for which prompts it steers.
        alpha: How far to go along the maps.
        site: Where the state h is (`mechedit.editors.steering.sites`).
        heads: For the site "z", the heads of each layer.
        position: Steer the prompt's end and the new object's tokens ("object"), the prompt's end alone ("prompt"), or
            each new token too ("every").
        choice: How its settings were chosen, for the reader.
        following: With "object", what steers behind the first tokens of the object.
    """

    fact: FactEdit
    maps: Mapping[int, AffineMap]
    gate: Gate = field(default_factory=AlwaysOn)
    alpha: float = 1.0
    site: SiteName = "attn_out"
    heads: Mapping[int, Heads] = field(default_factory=dict)
    position: Position = "every"
    choice: Mapping[str, Any] = field(default_factory=dict)
    following: tuple[Following, ...] = ()

    def __repr__(self) -> str:
        layers = self.layers
        where = f"layers {layers[0]}–{layers[-1]}, {self.site}" if layers else "no layer"
        edit = named("steering", [(self.fact.rewrite_prompt, self.fact.target_new)])
        return f"SteeringEdit({edit}; {where}, alpha {self.alpha:g}, gate {type(self.gate).__name__})"

    def moved(self, behind: tuple[int, ...], maps: Mapping[int, AffineMap], alpha: float) -> SteeringEdit:
        """The edit with its maps: at the prompt's end, or behind tokens that the objects begin with alike."""
        if not behind:
            return replace(self, maps=maps, alpha=alpha)
        return replace(self, alpha=alpha, following=(Following(behind, maps, alpha),))

    def to(self, device: torch.device, dtype: torch.dtype) -> SteeringEdit:
        """The same edit with its maps where a model's activations are."""
        maps = {layer: fitted.to(device, dtype) for layer, fitted in self.maps.items()}
        return replace(self, maps=maps, following=tuple(f.to(device, dtype) for f in self.following))

    @cached_property
    def moves(self) -> Mapping[tuple[int, ...], SteeringEdit]:
        """What acts, by the tokens that stand behind the prompt: none at its end. Asked at every pass."""
        moves: dict[tuple[int, ...], SteeringEdit] = {(): self}
        for one in self.following:
            moves[one.tokens] = replace(self, maps=one.maps, alpha=one.alpha, following=())
        return {tokens: move for tokens, move in moves.items() if move.maps and move.alpha != 0}

    @property
    def layers(self) -> list[int]:
        """The steered ones, in order."""
        return sorted({*self.maps}.union(*(one.maps for one in self.following)))

    @property
    def failure(self) -> str:
        """What the edit has found out that it does not do; "" where it has found nothing."""
        new, right = self.fact.target_new, self.choice.get("own_right")
        if right == 0:
            succeeded = " of ".join(map(str, self.choice["targets_right"]))
            return (
                f"none of the edit's own prompts gives {new!r} ({succeeded} of its targets succeed): it will do "
                "nothing; take another window or model"
            )
        if right and self.choice.get("object_right") == 0:
            return f"behind none of the edit's own prompts the model goes on to the whole of {new!r}"
        return ""

    @property
    def steers(self) -> bool:
        """Whether it moves anything once its gate is open."""
        return bool(self.moves)
