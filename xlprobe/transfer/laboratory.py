"""What a transfer study needs of its material: an encoder, pairs, tasks, and how they are aligned, trained and scored.

The study (`xlprobe.transfer.study`) knows this interface alone, so the embedded languages, real text and a user's own data
go through the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from xlprobe.encoders.encoder import Encoder
from xlprobe.probes.distances import Parallel
from xlprobe.probes.gradient_stream import Loss

__all__ = ["Joint", "Laboratory", "Score"]


@dataclass(frozen=True)
class Score:
    """Right answers and questions of each test sentence: accuracy is Σ hits / Σ counts.

    >>> Score((2.0, 1.0), (4.0, 1.0)).accuracy
    0.6
    """

    hits: tuple[float, ...]
    counts: tuple[float, ...]
    macro_f1: float = float("nan")

    @property
    def accuracy(self) -> float:
        """Micro accuracy over all questions."""
        return sum(self.hits) / sum(self.counts)


@dataclass(frozen=True)
class Joint:
    """Fine-tuning with an alignment objective beside the task, one step on both: how the two are combined.

    `aggregator` "sum" adds `weight` times the alignment's loss; "upgrad", "pcgrad" and "cagrad" let TorchJD settle
    conflicts (`xlprobe.training.conflict`). Layers in `frozen` (0: the embeddings) are not trained.
    """

    objective: str
    pair: str
    weight: float = 0.1
    aggregator: str = "sum"
    frozen: tuple[int, ...] = ()


class Laboratory(Protocol):
    """The material of a study. Everything is decided by its arguments and the seed: asked again, it gives the same."""

    @property
    def name(self) -> str:
        """Of the material, for titles and provenance."""

    @property
    def encoder(self) -> Encoder:
        """The pretrained encoder; no method changes it."""

    @property
    def pairs(self) -> Sequence[str]:
        """Names of the language pairs."""

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the tasks."""

    @property
    def data(self) -> dict[str, Any]:
        """Sources and hashes of all text, for provenance."""

    def held_out(self, pair: str) -> Parallel:
        """Parallel text that no other method uses."""

    def aligned(self, pair: str, objective: str, *, seed: int, shuffled: bool = False) -> Encoder:
        """A copy of the encoder, aligned on the pair; `shuffled` with translations that do not belong together."""

    def finetuned(self, encoder: Encoder, task: str, *, seed: int, joint: Joint | None = None) -> Any:
        """A model of the task on a copy of `encoder`, trained on the source language; it has an `encoder`."""

    def score(self, model: Any, task: str, pair: str) -> Score:
        """Zero-shot: the model on the pair's target language."""

    def task_loss(self, encoder: Encoder, task: str, *, pair: str | None = None) -> Loss:
        """The task's loss on the source language, or on the pair's target language; its head is trained on the frozen
        encoder first (a random head's gradients say nothing)."""

    def alignment_loss(self, encoder: Encoder, pair: str, objective: str, *, shuffled: bool = False) -> Loss:
        """The objective's loss on the pair's bitext."""
