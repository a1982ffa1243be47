"""The study on real text: a small encoder pre-trained on the text of a data folder, and the recipe that says how.

1. Pre-training (`pretrain_on`): masked language modelling on English EWT and both sides of Tatoeba, every sentence a
   row of its own, so there is no parallel signal. Languages are drawn as XLM-R's were, with probability ∝ n^0.3
   [Conneau et al., ACL 2020, section 3.1], here by repeating the smaller ones' sentences.
2. The study (`xlprobe.transfer.study`) on a `FileLab` of the same folder.

The text is a data folder's, or that of the user's own languages: `[languages.kk]` in the recipe names its files.

Such an encoder has seen some twenty thousand sentences where XLM-R saw billions: it shows how the instrument reads on
real text, never what XLM-R does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from experiments.runs import RunFolder
from reports.errors import InputError
from xlprobe.data.data_folder import DataFolder
from xlprobe.data.languages import LanguageFiles, LanguageTable
from xlprobe.data.tasks import Task
from xlprobe.encoders.encoder import Encoder
from xlprobe.recipes.page import ONE
from xlprobe.recipes.study import Material, StudyBase
from xlprobe.training.alignment import WORDS
from xlprobe.training.links import require_words
from xlprobe.training.loop import Training
from xlprobe.training.pretrain import Shape, pretrain
from xlprobe.transfer.file_lab import FileLab, FileSizes
from xlprobe.transfer.laboratory import TASKS
from xlprobe.transfer.study import gaps

__all__ = [
    "Pretraining",
    "RealTextRecipe",
    "balanced",
    "caution",
    "data_path",
    "encoder_folder",
    "pretrain_on",
    "pretraining_texts",
    "text_report",
]

ALPHA = 0.3
XLM_R = 278_000_000  # parameters of XLM-R base, embeddings included
JUDGED = ("tags: test", "topics: test", "distances")
_SHAPE = Shape(vocabulary=8000, d_model=128, n_layers=4, n_heads=4, d_ffn=512, positions=192, dropout=0.1)
_TRAINING = Training(steps=6500, batch=64, lr=1e-3, warmup=500, decay=0.6, weight_decay=0.01)


@dataclass(frozen=True)
class Pretraining:
    """The small encoder and its training.

    Attributes:
        shape: Its size.
        training: How it is trained on masked words.
    """

    shape: Shape = _SHAPE
    training: Training = _TRAINING


@dataclass(frozen=True)
class RealTextRecipe(StudyBase):
    """A study of files.

    Attributes:
        data: The folder; empty: MECHEDIT_DATA, or with `languages` the current folder.
        sizes: How much of it is used, at most.
        encoder: A folder or an id; empty: one is pre-trained on the folder's text.
        pretrain: The encoder that is pre-trained, and how.
        languages: The user's own files by language (`xlprobe.data.languages`), whose paths are relative to `data`.
        learn: With `languages`: the language in which tasks are learned; by default the source of each pair.
    """

    experiment: ClassVar[str] = "real_text"
    data: str = ""
    sizes: FileSizes = field(default_factory=FileSizes)
    pretrain: Pretraining = field(default_factory=Pretraining)
    languages: dict[str, LanguageFiles] | None = None
    learn: str | None = None

    def material(self, out: Path, *, progress: bool) -> Material:
        """See `StudyBase`."""
        data = self.folder()
        encoder = self.load(self.encoder or encoder_folder(data, out, self.pretrain, progress=progress))
        lab = FileLab(encoder, data, self.sizes, seed=self.seed)

        def describe() -> dict[str, Any]:
            left_out = gaps(lab, self.pairs or lab.pairs, self.tasks or lab.tasks)
            notes = [f"Left out, {gap}." for gap in left_out]
            notes += text_report(data, out, pretrained=not self.encoder)
            return {"notes": notes, "caution": caution(encoder)}

        return lab, describe

    def available(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """See `StudyBase`."""
        return self.folder().pairs, tuple(TASKS)

    def accepts(self, pair: str) -> bool:
        """See `StudyBase`."""
        return self.folder().accepts(pair)

    def lacks(self, pair: str, task: str) -> str:
        """See `StudyBase`."""
        return self.folder().lacks(pair, task)

    def read(self, pairs: Sequence[str], tasks: Sequence[str]) -> None:
        """See `StudyBase`."""
        data = self.folder()
        for pair in pairs:
            if any(name in WORDS for name in self.objectives):
                require_words(data.bitext(pair)[: self.sizes.bitext])
            data.bitext(pair)
            data.held_out(pair)
            for task in tasks:
                if not data.lacks(pair, task):
                    train, test = data.learned(task, data.source(pair)), data.asked(task, pair.split("-")[1])
                    assert train is not None  # as `lacks` says
                    assert test is not None
                    Task(TASKS[task], train=train, test={})

    def folder(self) -> DataFolder | LanguageTable:
        """The data: the table of languages where there is one, else the folder.

        Raises:
            InputError: There is none, or it lacks something.
        """
        return self._text

    @cached_property
    def _text(self) -> DataFolder | LanguageTable:
        """One instance, so that checks and run read each file once."""
        if self.languages:
            return LanguageTable(
                self.languages, root=self.data or ".", held_out=self.sizes.held_out, learn=self.learn
            )
        if self.learn is not None:
            raise InputError(
                "learn: a data folder's tasks are learned in English; give a table of languages to choose another"
            )
        return DataFolder(data_path(self.data), held_out=self.sizes.held_out)


def data_path(given: str | None) -> Path:
    """The data folder: the one given, otherwise MECHEDIT_DATA, itself or its folder `data`.

    Raises:
        InputError: Neither is there.
    """
    named = given or os.environ.get("MECHEDIT_DATA")
    if not named:
        raise InputError(
            "data: expected a folder with ud, sib200 and tatoeba; name it with --data, or in the environment as "
            "MECHEDIT_DATA"
        )
    path = Path(named)
    return path / "data" if not given and (path / "data").is_dir() else path


def pretraining_texts(data: DataFolder | LanguageTable) -> dict[str, list[str]]:
    """The sentences of each language for pre-training, once each: those of tags and both sides of the pairs.

    Sentences that a study asks or measures are not among them.
    """
    return data.pretraining()


def balanced(texts: Mapping[str, Sequence[str]], *, alpha: float = ALPHA) -> list[str]:
    """All texts in one list, those of small languages repeated until their share is about n^alpha / Σ n^alpha.

    The texts of the largest language come once, those of another round((n_largest / n)^(1 − alpha)) times.

    >>> balanced({"a": ["x"] * 100, "b": ["y"]}, alpha=0.5).count("y")
    10
    """
    most = max(map(len, texts.values()))
    return [
        text
        for sentences in texts.values()
        for _ in range(round((most / len(sentences)) ** (1 - alpha)))
        for text in sentences
    ]


def pretrain_on(
    data: DataFolder | LanguageTable, out: Path, plan: Pretraining, *, progress: bool = True
) -> Path:
    """Pre-train (or go on pre-training) in `out`; the folder of the finished encoder, `out/model`."""
    texts = balanced(pretraining_texts(data))
    return pretrain(texts, out, shape=plan.shape, training=plan.training, name="real text", progress=progress)


def encoder_folder(
    data: DataFolder | LanguageTable, out: str | Path, plan: Pretraining, *, progress: bool = True
) -> str:
    """The folder of the encoder of the study in `out`, pre-trained once, in `out`-encoder.

    Raises:
        InputError: That folder holds an encoder of another text or plan.
    """
    return str(pretrain_on(data, Path(f"{out}-encoder"), plan, progress=progress))


def text_report(data: DataFolder | LanguageTable, run_folder: str | Path, *, pretrained: bool) -> list[str]:
    """Notes for the page on the study's text; the whole table of overlap goes to `overlap.parquet` in the run folder.

    Args:
        data: The study's text.
        run_folder: The study's run folder.
        pretrained: The encoder was pre-trained on this text, which then belongs to the table.
    """
    texts = pretraining_texts(data) if pretrained else {}
    table = data.overlap(pretraining=[text for sentences in texts.values() for text in sentences])
    RunFolder(Path(run_folder), {}).write_frame("overlap", table)
    judged = table["a"].isin(JUDGED) | table["b"].isin(JUDGED)
    notes = [
        f"Text that judges (tests, distances): {int(table[judged]['shared'].sum())} of its sentences stand in another "
        f"set too, by hash of the normalised text; {sum(data.left_out.values())} were left out of what is learned.",
        f"Shared among what is learned: {_shared(table[~judged])}.",
        "Word links of “token” are the pretrained encoder's own (mutual argmax); the pairs have no others.",
        *(f"Distances of {pair}: {data.measured_on(pair)}." for pair in data.pairs),
    ]
    if pretrained:
        counts = ", ".join(f"{name} {len(sentences):,}" for name, sentences in texts.items())
        notes.insert(0, f"The encoder was pre-trained here, on so many sentences: {counts}. It is not XLM-R.")
    return notes


def caution(encoder: Encoder) -> str:
    """What this study cannot show, which depends on the size of its encoder."""
    size = sum(weight.numel() for weight in encoder.model.parameters())
    if size >= XLM_R // 2:
        return ONE
    return (
        f"The encoder is not XLM-R: {size / 1e6:.1f} million parameters in {encoder.n_layers} layers against "
        f"{XLM_R / 1e6:.0f} million in 12 of XLM-R base. This run shows how the instrument reads on real text; "
        "nothing in it says what holds for XLM-R."
    )


def _shared(table: pd.DataFrame) -> str:
    rows = table[table["shared"] > 0]
    return "; ".join(f"{row.a} and {row.b} {row.shared:,}" for row in rows.itertuples()) or "nothing"
