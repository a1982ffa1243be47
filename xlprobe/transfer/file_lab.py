"""Real text as a laboratory: pairs, tasks, alignment, fine-tuning and scores for `xlprobe.transfer.study`.

Pairs of English with each language of a data folder (`xlprobe.data.data_folder`), aligned on Tatoeba; tasks `pos` (learned
on English EWT, asked on PUD) and `topic` (SIB-200); distances on PUD's held-out sentences. How an encoder is aligned,
trained and scored is `xlprobe.transfer.world_lab`'s: only the text is another.

Tatoeba has no gold word links, so `token` stands on the pretrained encoder's own (`xlprobe.training.links`), and distances are
by sentence only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from xlprobe.data.corpora import Bitext, Labelled
from xlprobe.data.data_folder import SOURCE, DataFolder
from xlprobe.data.tasks import Kind, Task
from xlprobe.encoders.encoder import Encoder
from xlprobe.training.links import argmax_links
from xlprobe.transfer.world_lab import Sizes, WorldLab

__all__ = ["FileLab", "FileSizes"]


@dataclass(frozen=True)
class FileSizes(Sizes):
    """As `Sizes`, at most: a corpus that has fewer sentences gives all that it has.

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


class FileLab(WorldLab):
    """See `xlprobe.transfer.laboratory.Laboratory`, whose methods these are.

    `source` is the folder; its held-out sentences must be as many as `sizes` says. Errors: `InputError` (see
    `DataFolder`).
    """

    def __init__(
        self, encoder: Encoder, source: DataFolder, sizes: FileSizes | None = None, *, seed: int = 0
    ) -> None:
        super().__init__(encoder, sizes or FileSizes(held_out=source.n_held_out), seed=seed)
        self.source = source
        self.name = "real text"
        self.pairs = source.pairs
        self._linked: dict[str, Bitext] = {}

    @property
    def data(self) -> dict[str, Any]:
        """Every file's hash, and how much of it is used."""
        return {"source": "UD EWT and PUD, Tatoeba, SIB-200", "files": self.source.hashes} | {
            "seed": self.seed,
            **asdict(self.sizes),
        }

    def held_out(self, pair: str) -> Bitext:
        """PUD's held-out sentences; no links."""
        return self.source.held_out(pair)

    def _parallel(self, which: str, pair: str) -> Bitext:
        """Tatoeba's pairs with the pretrained encoder's own links."""
        if pair not in self._linked:
            pairs = self.source.bitext(pair)[: self.sizes.bitext]
            self._linked[pair] = argmax_links(self.encoder, pairs)
        return self._linked[pair]

    def _task(self, task: str) -> Task:
        """Its classes are those of all languages, so that any of them can be asked."""
        languages = ("source", *(pair.split("-")[1] for pair in self.pairs))
        corpora = [self._labelled(which, name, task) for name in languages for which in ("train", "test")]
        labels = tuple(sorted({label for corpus in corpora for some in corpus.labels for label in some}))
        kind: Kind = "tagging" if task == "pos" else "classification"
        return Task(kind, train=corpora[0], test={}, labels=labels)

    def _labelled(self, which: str, language: str, task: str) -> Labelled:
        """Tags exist for learning in English alone: the target's own loss (a yardstick) is on what is asked."""
        code = SOURCE if language == "source" else language
        if task == "topic":
            corpus = self.source.topics(code) if which == "train" else self.source.topic_test(code)
        else:
            learned = which == "train" and code == SOURCE
            corpus = self.source.tagged if learned else self.source.tag_test(code)
        n = self.sizes.train if which == "train" else self.sizes.test
        return Labelled(corpus.words[:n], corpus.labels[:n], corpus.ids[:n])
