"""A task: what is learned in one language and asked in others, of words (tagging) or of texts (classification)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from reports.errors import InputError
from xlprobe.data.corpora import Labelled

__all__ = ["Kind", "Task"]

Kind = Literal["tagging", "classification"]


@dataclass(frozen=True, repr=False)
class Task:
    """What is learned in one language (`train`) and asked in others (`test`: language to sentences).

    Attributes:
        kind: "tagging" asks for a label of each word, "classification" for one of each text.
        train: The sentences to learn from.
        test: The sentences that are asked, by language.
        labels: The classes of the head; by default those of `train`.

    Raises:
        InputError: The training labels have fewer than two classes, or one that is not among `labels`, or a sentence
            has the wrong number of labels.
    """

    kind: Kind
    train: Labelled
    test: Mapping[str, Labelled]
    labels: tuple[str, ...] = ()

    def __repr__(self) -> str:
        asked = ", ".join(f"{name} {len(corpus):,}" for name, corpus in self.test.items()) or "none"
        return f"Task({self.kind}, {len(self.labels)} labels, {len(self.train):,} to learn, asked: {asked})"

    def __post_init__(self) -> None:
        classes = tuple(sorted({label for labels in self.train.labels for label in labels}))
        if len(classes) < 2:
            raise InputError(
                f"task: expected at least two classes to train on, found {', '.join(classes) or 'none'}"
            )
        if not self.labels:
            object.__setattr__(self, "labels", classes)
        if strange := sorted(set(classes) - set(self.labels)):
            raise InputError(f"labels: expected all classes of train, {strange[0]!r} is not among them")
        for name, corpus in {"train": self.train, **self.test}.items():
            if not len(corpus):
                raise InputError(f"task: {name} holds no sentences")
            for number, (words, labels) in enumerate(zip(corpus.words, corpus.labels, strict=True)):
                if len(labels) != (len(words) if self.kind == "tagging" else 1):
                    raise InputError(
                        f"task: {name}: sentence {number} has {len(labels)} labels for {len(words)} words ({self.kind})"
                    )
