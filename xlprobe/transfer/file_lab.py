"""Real text as a laboratory: Tatoeba to align on, Universal Dependencies and SIB-200 to learn and ask.

Each pair is English with one language of a data folder (`xlprobe.data.data_folder`). Tasks: `pos` (learned on English
EWT, asked on PUD) and `topic` (SIB-200); distances are taken on PUD's held-out sentences.

Tatoeba has no gold word links, so `token` uses the pretrained encoder's own (`xlprobe.training.links`), and distances
are by sentence only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from xlprobe.data.corpora import Bitext, Labelled
from xlprobe.data.data_folder import SOURCE, DataFolder
from xlprobe.data.tasks import Task
from xlprobe.encoders.encoder import Encoder
from xlprobe.training.links import argmax_links
from xlprobe.transfer.laboratory import TASKS, Laboratory, Sizes

__all__ = ["FileLab", "FileSizes"]


@dataclass(frozen=True)
class FileSizes(Sizes):
    """Upper limits: a corpus that has fewer sentences gives all that it has.

    `train` and `test` hold for each task; `held_out` is taken out of PUD, so it decides what is left to be asked.
    """

    bitext: int = 1000
    train: int = 3000
    test: int = 700
    held_out: int = 300
    align_steps: int = 120
    finetune_steps: int = 200
    head_steps: int = 100
    align_lr: float = 1e-3
    finetune_lr: float = 1e-3
    probe_batches: int = 24
    batch: int = 16


class FileLab(Laboratory):
    """See `xlprobe.transfer.laboratory.Laboratory`.

    Args:
        encoder: The pretrained encoder.
        source: The folder; its held-out sentences must be as many as `sizes` says.
        sizes: How much of each corpus a study takes, at most.
        seed: Decides which pairs are shuffled, and the masks of gradients.

    Raises:
        InputError: As `DataFolder` does.
    """

    name = "real text"
    origin = "UD EWT and PUD, Tatoeba, SIB-200"

    def __init__(
        self, encoder: Encoder, source: DataFolder, sizes: FileSizes | None = None, *, seed: int = 0
    ) -> None:
        super().__init__(encoder, sizes or FileSizes(held_out=source.n_held_out), seed=seed)
        self.source = source
        self.pairs = source.pairs
        self._linked: dict[str, Bitext] = {}

    @property
    def data(self) -> dict[str, Any]:
        """Every file's hash, and how much of it is used."""
        return {"source": self.origin, "files": self.source.hashes} | super().data

    def _parallel(self, which: Literal["bitext", "held_out"], pair: str) -> Bitext:
        """Tatoeba's pairs with the pretrained encoder's own links, or PUD's held-out sentences without links."""
        if which == "held_out":
            return self.source.held_out(pair)
        if pair not in self._linked:
            self._linked[pair] = argmax_links(self.encoder, self._text(pair))
        return self._linked[pair]

    def _text(self, pair: str) -> Bitext:
        """Without the links, which take the encoder."""
        return self.source.bitext(pair)[: self.sizes.bitext]

    def _task(self, task: str) -> Task:
        """Its classes are those of all languages, so that any of them can be asked."""
        languages = ("source", *(pair.split("-")[1] for pair in self.pairs))
        splits: tuple[Literal["train", "test"], ...] = ("train", "test")
        corpora = [self._labelled(split, language, task) for language in languages for split in splits]
        labels = {label for corpus in corpora for sentence in corpus.labels for label in sentence}
        return Task(TASKS[task], train=corpora[0], test={}, labels=tuple(sorted(labels)))

    def _labelled(self, which: Literal["train", "test"], language: str, task: str) -> Labelled:
        """Tags exist for learning in English alone: the target's own loss (a yardstick) is on what is asked."""
        code = SOURCE if language == "source" else language
        if task == "topic":
            corpus = self.source.topics(code) if which == "train" else self.source.topic_test(code)
        else:
            learned = which == "train" and code == SOURCE
            corpus = self.source.tagged if learned else self.source.tag_test(code)
        n = self.sizes.train if which == "train" else self.sizes.test
        return Labelled(corpus.words[:n], corpus.labels[:n], corpus.ids[:n])
