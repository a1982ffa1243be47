"""A task: what is learned in one language and asked in others, of words (tagging) or of texts (classification)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from reports.errors import InputError
from xlprobe.data.corpora import Labelled

__all__ = ["Kind", "Task"]

Kind = Literal["tagging", "classification"]


@dataclass(frozen=True)
class Task:
    """What is learned in one language (`train`) and asked in others (`test`: language to sentences).

    labels: the classes of the head; empty: those of `train`. Errors: `InputError` where the training labels have fewer
    than two classes, or one that is not among `labels`, or a sentence the wrong number.
    """

    kind: Kind
    train: Labelled
    test: Mapping[str, Labelled]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        found = tuple(sorted({label for some in self.train.labels for label in some}))
        if len(found) < 2:
            raise InputError(
                f"task: expected at least two classes to train on, found {', '.join(found) or 'none'}"
            )
        if not self.labels:
            object.__setattr__(self, "labels", found)
        if strange := sorted(set(found) - set(self.labels)):
            raise InputError(f"labels: expected all classes of train, {strange[0]!r} is not among them")
        for name, corpus in {"train": self.train, **self.test}.items():
            if not len(corpus):
                raise InputError(f"task: {name} holds no sentences")
            for number, (words, own) in enumerate(zip(corpus.words, corpus.labels, strict=True)):
                if len(own) != (len(words) if self.kind == "tagging" else 1):
                    raise InputError(
                        f"task: {name}: sentence {number} has {len(own)} labels for {len(words)} words ({self.kind})"
                    )
