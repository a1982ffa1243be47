"""The gates of many edits, asked at once.

Every gate's distance is Euclidean in some coordinates (`mechedit.editors.steering.gates`), so for each kind of gate
(layer, pooling, distance, encoder) the centres of all edits are stacked, and

1. one product `|s|² + |c|² − 2 s·c` finds the centres that could be within their threshold, rounding allowed for;
2. those few distances are computed again as `|s − c|`, from the two vectors alone.

What an edit's gate says therefore does not depend, to the last bit, on which other edits are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechedit.editors.steering.gates import AlwaysOn, CentredGate, Gate, HiddenGate, SentenceGate

__all__ = ["GateBank", "GateGroup"]

# How far the product may be off, as a share of |s|² + |c|²: fp32 loses 1e-7 a term, bf16 states come in as fp32.
_SLACK = 1e-5


@dataclass(frozen=True, eq=False)
class GateGroup:
    """The stacked gates of one kind.

    Attributes:
        gate: The first of them.
        owner: The edit that each centre belongs to [k].
        centres: In the gate's coordinates [k, d].
        thresholds: Of each centre's gate [k].
        squares: |c|² of each centre [k].
    """

    gate: CentredGate
    owner: Tensor
    centres: Tensor
    thresholds: Tensor
    squares: Tensor

    @classmethod
    def of(cls, members: Sequence[tuple[int, CentredGate]], device: torch.device) -> GateGroup:
        """The group of gates of one kind, each with the number of its edit."""
        gate = members[0][1]
        centres = torch.cat([gate.coordinates(g.centres.to(device).float()) for _, g in members])
        sizes = torch.tensor([len(g.centres) for _, g in members])
        owner = torch.tensor([i for i, _ in members]).repeat_interleave(sizes).to(device)
        thresholds = (
            torch.tensor([float(g.threshold) for _, g in members]).repeat_interleave(sizes).to(device)
        )
        return cls(gate, owner, centres, thresholds, centres.square().sum(1))

    def ratios(self, states: Tensor, n_edits: int) -> Tensor:
        """[n_edits, B] for states [B, d]: distance over threshold of the edits whose gate opens, else infinity."""
        s = self.gate.coordinates(states.float())
        size = s.square().sum(1)[:, None] + self.squares  # [B, k]
        within = size - 2 * s @ self.centres.T <= self.thresholds.square() + _SLACK * size
        row, centre = within.nonzero().unbind(1)
        ratio = (s[row] - self.centres[centre]).norm(dim=1) / self.thresholds[centre]
        best = s.new_full((n_edits * len(s),), torch.inf)
        best.scatter_reduce_(0, self.owner[centre] * len(s) + row, ratio, "amin")
        best = best.view(n_edits, len(s))
        return best.where(best <= 1, torch.inf)


class GateBank:
    """All gates of a list of edits.

    Attributes:
        n: How many there are.
        always: The numbers of the edits whose gate is always open.
        by_text: The groups that read the prompt's text.
        by_layer: The groups that read the input of a layer.
    """

    def __init__(self, gates: Sequence[Gate], device: torch.device) -> None:
        self.n = len(gates)
        self.always = [i for i, gate in enumerate(gates) if isinstance(gate, AlwaysOn)]
        kinds: dict[Any, list[tuple[int, CentredGate]]] = {}
        for i, gate in enumerate(gates):
            if isinstance(gate, HiddenGate):
                kinds.setdefault((gate.layer, gate.pool, gate.distance, id(gate.whitening)), []).append(
                    (i, gate)
                )
            elif isinstance(gate, SentenceGate):
                kinds.setdefault(gate.model, []).append((i, gate))
        groups = [GateGroup.of(members, device) for members in kinds.values()]
        self.by_text = [group for group in groups if isinstance(group.gate, SentenceGate)]
        self.by_layer: dict[int, list[GateGroup]] = {}
        for group in groups:
            if isinstance(group.gate, HiddenGate):
                self.by_layer.setdefault(group.gate.layer, []).append(group)

    def start(self, rows: int, device: torch.device) -> Tensor:
        """[n, rows]: 0 for the edits that are always open, infinity (closed) for those that have not looked yet."""
        ratios = torch.full((self.n, rows), torch.inf, device=device)
        ratios[self.always] = 0.0
        return ratios
