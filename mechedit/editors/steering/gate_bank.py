"""The gates of many edits, asked at once.

Gates of one kind (`kind` of the gate: layer, pooling, distance, encoder) are stacked into a `GateGroup`, which says

1. what it reads: the prompt's text or ids (`reads_text`), states at layers' inputs (`readings`), or both;
2. before the pass, from the text alone, which edits can still open (`screen`): where none can, no state is read, and no
   look ahead is made;
3. once the states are there, how near the prompts are (`ratios`).

A new kind of gate is a group with these four and a line in `GROUPS`.

Distances of the gates that have centres are Euclidean in some coordinates (`mechedit.editors.steering.gates`), so the
centres of all edits are stacked, and

1. one product `|s|² + |c|² − 2 s·c` finds the centres that could be within their threshold, rounding allowed for;
2. those few distances are computed again as `|s − c|`, from the two vectors alone.

What an edit's gate says therefore does not depend, to the last bit, on which other edits are there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from mechedit.editors.steering.asked_gate import AskedGate, Gate, names_subject, without_subject
from mechedit.editors.steering.gates import AlwaysOn, CentredGate, HiddenGate, Reading, SentenceGate
from reports.errors import InputError

__all__ = ["GROUPS", "Centres", "GateBank", "GateGroup", "PromptBatch"]

# How far the product may be off, as a share of |s|² + |c|²: fp32 loses 1e-7 a term, bf16 states come in as fp32.
_SLACK = 1e-5


@dataclass(eq=False)
class PromptBatch:
    """What gates may read of prompts before a pass.

    Attributes:
        ids: Of each prompt [T], −1 for a token that is not known (cached earlier, or given as an embedding).
        tokenizer: The model's own, or None.
    """

    ids: Sequence[Tensor]
    tokenizer: Any

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def texts(self) -> list[str]:
        """The prompts as text, without special tokens.

        Raises:
            InputError: There is no tokenizer, or not all of the tokens are known.
        """
        unknown = sum(int((ids < 0).sum()) for ids in self.ids)
        if self.tokenizer is None or unknown:
            what = "no tokenizer" if self.tokenizer is None else f"{unknown} tokens without an id"
            raise InputError(
                f"input_ids: expected those of the whole prompts, whose text a gate reads, found {what}; give ids, not "
                "embeddings, fill the cache while the edits are attached, or hand the whole prompt to generate()"
            )
        return [str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in self.ids]


class GateGroup(Protocol):
    """The gates of one kind, of `n` edits in all; B prompts."""

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The states that `ratios` needs."""

    @property
    def reads_text(self) -> bool:
        """Whether it needs the prompts' ids or texts."""

    def screen(self, prompts: PromptBatch) -> Tensor:
        """[n, B]: False where no state could open the edit's gate, or it is none of this group's."""

    def ratios(self, prompts: PromptBatch, states: Mapping[Reading, Tensor], possible: Tensor) -> Tensor:
        """[n, B] for states [B, d]: distance over threshold of the edits whose gate opens, else infinity."""


@dataclass(frozen=True, eq=False)
class Centres:
    """The centres of the gates of one kind, stacked.

    Attributes:
        gate: The first of them.
        owner: The edit that each centre belongs to [k].
        centres: In the gate's coordinates [k, d].
        thresholds: Of each centre's gate [k].
        squares: |c|² of each centre [k].
        n: How many edits there are, those with other gates included.
    """

    gate: CentredGate
    owner: Tensor
    centres: Tensor
    thresholds: Tensor
    squares: Tensor
    n: int

    @classmethod
    def of(cls, members: Sequence[tuple[int, CentredGate]], n: int, device: torch.device) -> Centres:
        """Of gates of one kind, each with the number of its edit."""
        gate = members[0][1]
        centres = torch.cat([gate.coordinates(g.centres.to(device).float()) for _, g in members])
        sizes = torch.tensor([len(g.centres) for _, g in members])
        owner = torch.tensor([i for i, _ in members]).repeat_interleave(sizes).to(device)
        thresholds = (
            torch.tensor([float(g.threshold) for _, g in members]).repeat_interleave(sizes).to(device)
        )
        return cls(gate, owner, centres, thresholds, centres.square().sum(1), n)

    def nearest(self, states: Tensor) -> Tensor:
        """[n, B] for states [B, d]: distance over threshold of the edits whose gate opens, else infinity."""
        s = self.gate.coordinates(states.to(self.centres))
        size = s.square().sum(1)[:, None] + self.squares  # [B, k]
        within = size - 2 * s @ self.centres.T <= self.thresholds.square() + _SLACK * size
        row, centre = within.nonzero().unbind(1)
        ratio = (s[row] - self.centres[centre]).norm(dim=1) / self.thresholds[centre]
        best = s.new_full((self.n * len(s),), torch.inf)
        best.scatter_reduce_(0, self.owner[centre] * len(s) + row, ratio, "amin")
        best = best.view(self.n, len(s))
        return best.where(best <= 1, torch.inf)

    def screen(self, prompts: PromptBatch) -> Tensor:
        """[n, B]: the edits of this group, for all prompts."""
        mine = torch.zeros(self.n, dtype=torch.bool, device=self.owner.device)
        mine[self.owner] = True
        return mine[:, None].expand(-1, len(prompts))


class _Always:
    """Gates that are open."""

    readings: tuple[Reading, ...] = ()
    reads_text = False

    def __init__(self, members: Sequence[tuple[int, AlwaysOn]], n: int, device: torch.device) -> None:
        self._open = torch.zeros(n, dtype=torch.bool, device=device)
        self._open[[i for i, _ in members]] = True

    def screen(self, prompts: PromptBatch) -> Tensor:
        return self._open[:, None].expand(-1, len(prompts))

    def ratios(self, prompts: PromptBatch, states: Mapping[Reading, Tensor], possible: Tensor) -> Tensor:
        return torch.zeros(possible.shape, device=possible.device).where(possible, torch.inf)


class _Hidden:
    """Gates that read one state."""

    reads_text = False

    def __init__(self, members: Sequence[tuple[int, HiddenGate]], n: int, device: torch.device) -> None:
        self.readings = members[0][1].readings
        self.centres = Centres.of(members, n, device)

    def screen(self, prompts: PromptBatch) -> Tensor:
        return self.centres.screen(prompts)

    def ratios(self, prompts: PromptBatch, states: Mapping[Reading, Tensor], possible: Tensor) -> Tensor:
        return self.centres.nearest(states[self.readings[0]])


class _Sentence:
    """Gates that read the text."""

    readings: tuple[Reading, ...] = ()
    reads_text = True

    def __init__(self, members: Sequence[tuple[int, SentenceGate]], n: int, device: torch.device) -> None:
        self._embed = members[0][1].embed
        self.centres = Centres.of(members, n, device)

    def screen(self, prompts: PromptBatch) -> Tensor:
        return self.centres.screen(prompts)

    def ratios(self, prompts: PromptBatch, states: Mapping[Reading, Tensor], possible: Tensor) -> Tensor:
        return self.centres.nearest(self._embed(prompts.texts))


class _Asked:
    """Gates that read the text and the states of all tokens."""

    reads_text = True

    def __init__(self, members: Sequence[tuple[int, AskedGate]], n: int, device: torch.device) -> None:
        self.readings = members[0][1].readings
        self._gates, self._n, self._device = dict(members), n, device

    def screen(self, prompts: PromptBatch) -> Tensor:
        possible = torch.zeros(self._n, len(prompts), dtype=torch.bool, device=self._device)
        for i, gate in self._gates.items():
            named = [names_subject(text, gate.names) for text in prompts.texts]
            possible[i] = torch.tensor(named, dtype=torch.bool, device=self._device)
        return possible

    def ratios(self, prompts: PromptBatch, states: Mapping[Reading, Tensor], possible: Tensor) -> Tensor:
        found = torch.full(possible.shape, torch.inf, device=possible.device)
        for i, gate in self._gates.items():
            for row in possible[i].nonzero()[:, 0].tolist():
                ids, text = prompts.ids[row], without_subject(prompts.texts[row], gate.names)
                score = gate.score(text or "", ids, states[self.readings[0]][row, : len(ids)])
                found[i, row] = gate.ratio(score)
        return found.where(found <= 1, torch.inf)


#: Who stacks the gates of a class: (members with the numbers of their edits, how many edits, device) -> group.
GROUPS: dict[type, Callable[[Any, int, torch.device], GateGroup]] = {
    AlwaysOn: _Always,
    HiddenGate: _Hidden,
    SentenceGate: _Sentence,
    AskedGate: _Asked,
}


class GateBank:
    """All gates of a list of edits.

    Attributes:
        n: How many there are.
        groups: Those of each kind.
    """

    def __init__(self, gates: Sequence[Gate], device: torch.device) -> None:
        self.n = len(gates)
        kinds: dict[Hashable, list[tuple[int, Gate]]] = {}
        for i, gate in enumerate(gates):
            kinds.setdefault((type(gate), gate.kind), []).append((i, gate))
        self.groups = [GROUPS[type(members[0][1])](members, self.n, device) for members in kinds.values()]

    @property
    def readings(self) -> tuple[Reading, ...]:
        """All states that some gate reads, from the lowest layer to the highest."""
        return tuple(sorted({reading for group in self.groups for reading in group.readings}))

    @property
    def reads_text(self) -> bool:
        """Whether some gate reads the prompts' text."""
        return any(group.reads_text for group in self.groups)
