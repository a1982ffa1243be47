"""The embedded languages as a laboratory: four pairs, gold links, no sentence in two sets.

Each pair is the source language with one target. Tasks: `pos` (tags of words, on first sub-words) and `topic` (of a
sentence, from the mean state). Text for alignment, task, test and distances never shares a sentence
(`xlprobe.langworld.world`).
"""

from __future__ import annotations

from typing import Literal

from xlprobe.data.corpora import Bitext, Labelled
from xlprobe.data.tasks import Task
from xlprobe.encoders.encoder import Encoder
from xlprobe.langworld import world
from xlprobe.langworld.lexicon import LANGUAGES
from xlprobe.transfer.laboratory import SOURCE, TASKS, Laboratory, Sizes

__all__ = ["WorldLab"]


class WorldLab(Laboratory):
    """See `xlprobe.transfer.laboratory.Laboratory`; the grammar, the seed and the sizes decide every sentence."""

    name = "langworld"
    origin = "the embedded languages"
    pairs = tuple(f"source-{name}" for name in LANGUAGES if name != "source")

    def __init__(self, encoder: Encoder, sizes: Sizes | None = None, *, seed: int = 0) -> None:
        super().__init__(encoder, sizes or Sizes(), seed=seed)

    def _parallel(self, which: Literal["bitext", "held_out"], pair: str) -> Bitext:
        return world.bitext(pair.split("-")[1], getattr(self.sizes, which), which, seed=self.seed)

    def _task(self, task: str, source: str = SOURCE) -> Task:
        return Task(TASKS[task], train=self._labelled("train", source, task), test={})

    def _labelled(self, which: Literal["train", "test"], language: str, task: str) -> Labelled:
        kind: Literal["pos", "topic"] = "pos" if task == "pos" else "topic"
        return world.labelled(kind, language, getattr(self.sizes, which), which, seed=self.seed)
