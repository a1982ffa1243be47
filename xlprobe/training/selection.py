"""Fine-tuning that keeps the best of its states by a development set, and ends when it rises no more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from experiments.cases import settings_digest
from reports.errors import InputError
from xlprobe.data.corpora import Labelled
from xlprobe.training.scores import SCORES

__all__ = ["Selection"]


@dataclass
class Selection:
    """Called after every step: each `check_every` steps the development set is scored, and the best weights are kept.

    Attributes:
        model: The task model, with `answers`.
        dev: The development set.
        check_every: Steps between two checks.
        patience: Checks in a row without a rise that end the training.
        metric: Which score decides (`xlprobe.training.scores`).
        checks: The scores so far.

    Raises:
        InputError: Another metric, numbers below 1, or no sentences.
    """

    model: Any
    dev: Labelled
    check_every: int = 50
    patience: int = 3
    metric: str = "accuracy"
    checks: list[float] = field(default_factory=list)
    waited: int = 0
    kept: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("check_every", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.metric not in SCORES:
            raise InputError(f"metric: expected one of {', '.join(SCORES)}, found {self.metric!r}")
        if not len(self.dev):
            raise InputError("dev: expected at least one sentence, found none")

    def __call__(self, step: int, loss: float) -> bool:
        """See `xlprobe.training.loop.Watch`."""
        if (step + 1) % self.check_every:
            return False
        self.model.eval()
        score = SCORES[self.metric](self.model.answers(self.dev, progress=False))
        self.model.train()
        if score > max(self.checks, default=-math.inf):
            self.waited, self.kept = 0, [parameter.detach().clone() for parameter in self._parameters()]
        else:
            self.waited += 1
        self.checks.append(score)
        return self.waited >= self.patience

    def facts(self) -> dict[str, Any]:
        """What the training depends on through it (`xlprobe.training.identity`)."""
        text = settings_digest(self.dev.words, self.dev.labels)
        return {
            "dev": text,
            "metric": self.metric,
            "check_every": self.check_every,
            "patience": self.patience,
        }

    def state(self) -> tuple[dict[str, Any], list[Tensor]]:
        """See `xlprobe.training.loop.Watch`."""
        return {"checks": self.checks, "waited": self.waited}, self.kept

    def load(self, facts: Mapping[str, Any], tensors: list[Tensor]) -> None:
        """See `xlprobe.training.loop.Watch`."""
        self.checks, self.waited, self.kept = list(facts["checks"]), int(facts["waited"]), tensors

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the best weights, if there was a check at all."""
        for parameter, best in zip(self._parameters(), self.kept, strict=bool(self.kept)):
            parameter.copy_(best.to(parameter.device))

    def _parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())
