"""Real text as a laboratory: bitext to align on, tags and topics to learn and ask.

The text is a data folder's, English with one language a pair (`xlprobe.data.data_folder`), or that of any languages in
a table of files (`xlprobe.data.languages`). Tasks: `pos` (Universal Dependencies) and `topic` (SIB-200).

The pairs have no gold word links, so `token` uses the pretrained encoder's own (`xlprobe.training.links`), and
distances are by sentence only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from reports.errors import InputError
from xlprobe.data.corpora import Bitext, Labelled
from xlprobe.data.data_folder import DataFolder
from xlprobe.data.languages import LanguageTable
from xlprobe.data.tasks import Task
from xlprobe.encoders.encoder import Encoder
from xlprobe.training.cached_contrast import Vectors
from xlprobe.training.defaults import align_training, is_small, task_training
from xlprobe.training.links import argmax_links
from xlprobe.transfer.laboratory import SOURCE, TASKS, Laboratory, Sizes

__all__ = ["FileLab", "FileSizes"]

SMALL_LR = 1e-3
SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


@dataclass(frozen=True)
class FileSizes(Sizes):
    """Upper limits: a corpus that has fewer sentences gives all that it has.

    `train` and `test` hold for each task; `held_out` is taken out of PUD, so it decides what is left to be asked.
    Learning rates that are not named are those that suit the encoder: 1e-3 below 5 million parameters in blocks, else
    those of `xlprobe.training.defaults`.
    """

    bitext: int = 1000
    train: int = 3000
    test: int = 700
    held_out: int = 300
    align_steps: int = 120
    finetune_steps: int = 200
    head_steps: int = 100
    align_lr: float | None = None
    finetune_lr: float | None = None
    probe_batches: int = 24
    batch: int = 16

    def suited(self, encoder: Encoder) -> FileSizes:
        """The sizes with the learning rates that are not named chosen by the encoder's size."""
        small = is_small(encoder)
        align_lr = SMALL_LR if small else align_training(encoder, self.bitext).lr
        finetune_lr = SMALL_LR if small else task_training(encoder, self.train).lr
        return replace(self, align_lr=self.align_lr or align_lr, finetune_lr=self.finetune_lr or finetune_lr)


class FileLab(Laboratory):
    """See `xlprobe.transfer.laboratory.Laboratory`.

    Args:
        encoder: The pretrained encoder.
        source: The folder, whose held-out sentences must be as many as `sizes` says, or the table of languages.
        sizes: How much of each corpus a study takes, at most.
        seed: Decides which pairs are shuffled, and the masks of gradients.

    Raises:
        InputError: As `DataFolder` and `LanguageTable` do.
    """

    name = "real text"
    origin = DataFolder.origin

    def __init__(
        self,
        encoder: Encoder,
        source: DataFolder | LanguageTable,
        sizes: FileSizes | None = None,
        *,
        seed: int = 0,
    ) -> None:
        sizes = sizes or FileSizes(held_out=source.n_held_out)
        super().__init__(encoder, sizes.suited(encoder), seed=seed)
        self.text = source
        self.pairs = source.pairs
        self._linked: dict[str, Bitext] = {}

    @property
    def data(self) -> dict[str, Any]:
        """Every file's hash, and how much of it is used."""
        return {"source": self.text.origin, "files": self.text.hashes} | {
            key: value for key, value in super().data.items() if key != "source"
        }

    def source(self, pair: str) -> str:
        """See `Laboratory`."""
        return self.text.source(pair)

    def accepts(self, pair: str) -> bool:
        """See `Laboratory`."""
        return self.text.accepts(pair)

    def lacks(self, pair: str, task: str) -> str:
        """See `Laboratory`."""
        return self.text.lacks(pair, task)

    def _parallel(self, which: Literal["bitext", "held_out"], pair: str) -> Bitext:
        """Pairs with the pretrained encoder's own links, or the sentences held out for distances, without links."""
        if which == "held_out":
            return self.text.held_out(pair)
        if pair not in self._linked:
            vectors = Vectors(self.sizes.layer, self.sizes.pooling)
            self._linked[pair] = argmax_links(self.encoder, self._text(pair), vectors=vectors)
        return self._linked[pair]

    def _text(self, pair: str) -> Bitext:
        """Without the links, which take the encoder."""
        return self.text.bitext(pair)[: self.sizes.bitext]

    def _task(self, task: str, source: str = SOURCE) -> Task:
        """Its classes are those of all languages, so that any of them can be asked."""
        train = self._labelled("train", source, task)
        labels = {label for sentence in train.labels for label in sentence}
        for code in dict.fromkeys(code for pair in self.pairs for code in pair.split("-")):
            asked = self.text.asked(task, code) is not None
            if asked or self.text.learned(task, code) is not None:
                for which in SPLITS[: 2 if asked else 1]:
                    labels |= {label for tags in self._labelled(which, code, task).labels for label in tags}
        return Task(TASKS[task], train=train, test={}, labels=tuple(sorted(labels)))

    def _labelled(self, which: Literal["train", "test"], language: str, task: str) -> Labelled:
        """A target language without text to learn from gives its own loss (a yardstick) on what is asked."""
        code = self._code(language)
        corpus = self.text.learned(task, code) if which == "train" else None
        if corpus is None:
            corpus = self.text.asked(task, code)
        if corpus is None:
            raise InputError(f"data: {code} has no text for {task}; name its files in [languages.{code}]")
        n = self.sizes.train if which == "train" else self.sizes.test
        return Labelled(corpus.words[:n], corpus.labels[:n], corpus.ids[:n])

    def _code(self, language: str) -> str:
        """The language's code; `SOURCE` is the first pair's source language."""
        return self.text.source(self.pairs[0]) if language == SOURCE else language
