"""A text to stream: a file, a folder of text files, a `datasets` name, the embedded world's, or a model's own.

Documents come one after the other and are never held together. In a file a blank line ends a document. `digest` is a
hash of the whole text (of a data set its fingerprint), so that what is computed from it can be cached.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mechedit.editors.contexts import STARTS
from mechedit.factworld.text import Writer
from mechedit.factworld.world import World
from mechedit.models.hooked import HookedModel
from reports.errors import InputError, first_line

__all__ = ["OWN", "Corpus", "embedded_corpus", "open_corpus", "own_corpus", "text_corpus", "windows"]

WORLD_DOCUMENTS = 1500
OWN = "the model's own text"  # the source of `own_corpus`


@dataclass(frozen=True)
class Corpus:
    """A text that can be streamed again and again.

    Attributes:
        source: As a reader knows it.
        digest: sha256 of the text.
        documents: A call that streams it from the start.
    """

    source: str
    digest: str
    documents: Callable[[], Iterator[str]]


def open_corpus(text: str | os.PathLike[str]) -> Corpus:
    """The text of a UTF-8 file, of the files of a folder (by name), or of a `datasets` name (`owner/name[:split]`).

    A data set has a column "text", or one column of texts only.

    Raises:
        InputError: There is none of these.
    """
    path = Path(text)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        if not files:
            raise InputError(f"text: expected a folder of text files, found none in {path}")
        return _files(str(path), files)
    if path.is_file():
        return _files(str(path), [path])
    return _dataset(os.fspath(text))


def text_corpus(texts: Iterable[str], *, source: str) -> Corpus:
    """Texts in memory, a document each.

    >>> corpus = text_corpus(["One.", "Two."], source="by hand")
    >>> list(corpus.documents())
    ['One.', 'Two.']
    """
    kept = tuple(texts)
    return Corpus(source, _digest(kept), lambda: iter(kept))


def embedded_corpus(*, documents: int = WORLD_DOCUMENTS, seed: int = 0) -> Corpus:
    """Text of the kind that the embedded models were trained on, by a generator that is the same everywhere."""
    writer = Writer(World(), random.Random(f"covariance:{seed}"))
    return text_corpus((writer.document().text for _ in range(documents)), source="the embedded world's text")


def own_corpus(model: HookedModel, tokens: int) -> Corpus:
    """About `tokens` tokens that `model` writes itself, from the 50 likeliest at each place: for want of a text."""
    length = min(128, (model.n_ctx or 256) // 2)
    starts = [STARTS[i % len(STARTS)] for i in range(tokens // length + 1)]
    texts = model.generate([model.plain_ids(start) for start in starts], max_new_tokens=length, top_k=50)
    return text_corpus((start + text for start, text in zip(starts, texts, strict=True)), source=OWN)


def windows(model: HookedModel, corpus: Corpus, *, length: int) -> Iterator[Tensor]:
    """The documents' ids in windows of at most `length` tokens."""
    for document in corpus.documents():
        yield from model.plain_ids(document).split(length)


# --- sources ------------------------------------------------------------------------------------------------


def _files(source: str, files: list[Path]) -> Corpus:
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())

    def documents() -> Iterator[str]:
        for file in files:
            yield from _paragraphs(file)

    return Corpus(source, total.hexdigest(), documents)


def _paragraphs(file: Path) -> Iterator[str]:
    lines: list[str] = []
    try:
        with file.open(encoding="utf-8-sig") as stream:
            for line in stream:
                if line.strip():
                    lines.append(line)
                elif lines:
                    yield "".join(lines).strip()
                    lines = []
    except UnicodeDecodeError as error:
        raise InputError(f"text: {file} is no UTF-8 text ({error.reason}); convert it first") from error
    if lines:
        yield "".join(lines).strip()


def _dataset(name: str) -> Corpus:
    import datasets

    base, _, split = name.partition(":")
    try:
        loaded: Any = datasets.load_dataset(base, split=split or "train")
    except Exception as error:  # `datasets` documents no common base of what it raises
        reason = first_line(error)
        raise InputError(
            f"text: expected a text file, a folder or a datasets name, found {name!r}: no such file ({reason})"
        ) from error
    columns = [
        n
        for n, feature in loaded.features.items()
        if getattr(feature, "dtype", "") in ("string", "large_string")
    ]
    if "text" not in columns and len(columns) != 1:
        raise InputError(f"text: expected a column 'text' in {name}, found {', '.join(loaded.column_names)}")
    column = "text" if "text" in columns else columns[0]
    digest = hashlib.sha256(f"{loaded._fingerprint} {column}".encode()).hexdigest()
    return Corpus(
        name, digest, lambda: (row[column] for row in loaded if row[column] and row[column].strip())
    )


def _digest(texts: Iterable[str]) -> str:
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()
