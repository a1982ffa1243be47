"""How much of the text reaches the encoder: what is cut off at its length, and what its tokenizer leaves nothing of.

Labels, links and scores are placed by the number of each word (`Batch.word_ids`), so a word without a token costs its
own label and no other. Such words are counted here, and whoever uses the text says so once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from xlprobe.encoders.batches import Sentence
from xlprobe.encoders.encoder import Encoder

__all__ = ["Coverage", "coverage", "heed"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coverage:
    """What an encoder sees of some sentences.

    Attributes:
        cut: Numbers of the sentences that are longer than the encoder.
        empty: Numbers of the sentences of which the tokenizer leaves nothing.
        n: The number of sentences.
        words: The number of words, of sentences that are given as words.
        words_cut: How many of them are cut off as a whole.
        words_empty: Of how many the tokenizer leaves nothing (zero-width and control characters).
    """

    cut: tuple[int, ...]
    empty: tuple[int, ...]
    n: int
    words: int
    words_cut: int
    words_empty: int

    def note(self, what: str, *, max_length: int) -> str:
        """One line on what is lost of `what`; empty where nothing is."""
        parts = []
        if self.cut:
            lost = f", {self.words_cut} of {self.words} words are lost" if self.words else ""
            parts.append(f"{len(self.cut)} of {self.n} sentences are cut off at {max_length} tokens{lost}")
        if self.words_empty:
            parts.append(f"the tokenizer leaves nothing of {self.words_empty} of {self.words} words")
        if self.empty:
            parts.append(f"the tokenizer leaves nothing of {len(self.empty)} of {self.n} sentences")
        return f"{what}: {'; '.join(parts)}" if parts else ""


def coverage(encoder: Encoder, sentences: Sequence[Sentence]) -> Coverage:
    """What `encoder` sees of `sentences`.

    >>> from xlprobe.encoders.encoder import load_encoder
    >>> seen = coverage(load_encoder("langworld", device="cpu"), [["one"] * 400, ["a", "dog"]])
    >>> seen.cut, seen.words, seen.words_cut > 0
    ((0,), 402, True)
    """
    batch, lost = encoder.encode(sentences), encoder.lost(sentences)
    last = batch.word_ids.max(1).values.tolist()
    there = batch.firsts.sum(1).tolist()
    words = words_cut = words_empty = 0
    for i, sentence in enumerate(sentences):
        if isinstance(sentence, str):
            continue
        absent = len(sentence) - there[i]
        behind = len(sentence) - 1 - last[i] if lost[i] else 0
        words, words_cut, words_empty = (
            words + len(sentence),
            words_cut + behind,
            words_empty + absent - behind,
        )
    return Coverage(
        tuple(i for i, tokens in enumerate(lost) if tokens),
        tuple(i for i, n in enumerate(there) if not n),
        len(sentences),
        words,
        words_cut,
        words_empty,
    )


def heed(encoder: Encoder, sentences: Sequence[Sentence], what: str) -> Coverage:
    """The coverage, said in the log where something is lost."""
    seen = coverage(encoder, sentences)
    if note := seen.note(what, max_length=encoder.max_length):
        logger.warning("%s", note)
    return seen
