"""Parallel sentences and tasks of the embedded languages, in the types of `xlprobe.data.corpora`.

The hash of a sentence's source text decides its split, so sets to align on, to learn from, to ask and to measure
distances on never share a sentence, whoever draws them.
"""

from __future__ import annotations

import hashlib
import random
from functools import lru_cache
from typing import Literal, get_args

from reports.errors import InputError
from xlprobe.data.corpora import Bitext, Labelled
from xlprobe.data.tasks import Task
from xlprobe.langworld.grammar import Meaning, align_words, draw, realise
from xlprobe.langworld.lexicon import LANGUAGES, TOPICS

__all__ = ["Split", "bitext", "labelled", "meanings", "split_of", "task"]

Split = Literal["bitext", "train", "test", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)


def split_of(source: str) -> Split:
    """The split of a sentence, by the hash of its source text.

    >>> split_of("two birds sing .") in SPLITS
    True
    """
    return SPLITS[int.from_bytes(hashlib.sha256(source.encode()).digest()[:4], "big") % len(SPLITS)]


@lru_cache(maxsize=16)
def meanings(split: Split, n: int, *, seed: int = 0, named: bool = False) -> tuple[Meaning, ...]:
    """`n` different abstract sentences of a split, in names or not; every topic is as likely.

    Raises:
        InputError: No such split.
    """
    if split not in SPLITS:
        raise InputError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
    kind = ":named" if named else ""
    rng, drawn, seen = random.Random(f"{seed}:{split}{kind}"), list[Meaning](), set[str]()
    while len(drawn) < n:
        meaning = draw(rng.choice(tuple(TOPICS)), rng, named=named)
        text = " ".join(word.form for word in realise(meaning, "source"))
        if split_of(text) == split and text not in seen:
            seen.add(text)
            drawn.append(meaning)
    return tuple(drawn)


@lru_cache(maxsize=32)
def bitext(language: str, n: int, split: Split = "bitext", *, seed: int = 0) -> Bitext:
    """`n` pairs of the source and `language`, with gold links.

    Raises:
        InputError: No such language.

    >>> pairs = bitext("order", 3)
    >>> len(pairs), all(len(links) > 1 for links in pairs.links)
    (3, True)
    """
    _known(language)
    sides = [(realise(m, "source"), realise(m, language)) for m in meanings(split, n, seed=seed)]
    return Bitext(
        tuple(tuple(word.form for word in source) for source, _ in sides),
        tuple(tuple(word.form for word in target) for _, target in sides),
        tuple(tuple(align_words(source, target)) for source, target in sides),
    )


@lru_cache(maxsize=32)
def labelled(
    kind: Literal["pos", "topic"], language: str, n: int, split: Split, *, seed: int = 0
) -> Labelled:
    """`n` sentences of a language with a tag for each word (pos) or their topic (sentences in names).

    Raises:
        InputError: No such language.
    """
    _known(language)
    drawn = meanings(split, n, seed=seed, named=kind == "topic")
    written = [realise(meaning, language) for meaning in drawn]
    labels = [
        tuple(word.tag for word in words) if kind == "pos" else (meaning.topic,)
        for meaning, words in zip(drawn, written, strict=True)
    ]
    words = tuple(tuple(word.form for word in sentence) for sentence in written)
    return Labelled(words, tuple(labels), tuple(map(str, range(n))))


def task(kind: Literal["pos", "topic"], *, n_train: int = 1600, n_test: int = 400, seed: int = 0) -> Task:
    """A task that is learned in the source language and asked in all five.

    Raises:
        InputError: No such task.
    """
    if kind not in ("pos", "topic"):
        raise InputError(f"task: expected pos or topic, found {kind!r}")
    return Task(
        "tagging" if kind == "pos" else "classification",
        train=labelled(kind, "source", n_train, "train", seed=seed),
        test={name: labelled(kind, name, n_test, "test", seed=seed) for name in LANGUAGES},
    )


def _known(language: str) -> None:
    if language not in LANGUAGES:
        raise InputError(f"language: expected one of {', '.join(LANGUAGES)}, found {language!r}")
