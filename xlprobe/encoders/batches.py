"""Texts as padded ids with the word that each token belongs to: what every pass through an encoder takes.

A sentence is a text or a list of words. Words keep their number through tokenization, so a label or an alignment link
of word w lands on its first sub-word (or on all of them) without any matching of strings.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from experiments.progress import LONG, bar
from reports.errors import InputError

__all__ = [
    "SEPARATOR",
    "Batch",
    "Pooling",
    "Sentence",
    "Tokenized",
    "pooled",
    "require_pooling",
    "sentence_means",
    "word_means",
    "words_of",
]

SEPARATOR = "\x1e"  # the word between the two texts of a pair: the tokenizer's own separator stands there
Sentence = str | Sequence[str]  # a text, or the words of one
Pooling = Literal["mean", "first"]  # what stands for a sentence: the mean of its tokens, or its first token


@dataclass(frozen=True, eq=False)
class Batch:
    """B sentences padded on the right to T tokens.

    `batch[rows]` takes rows and cuts the padding that they no longer need.

    Attributes:
        input_ids: Token ids [B, T].
        attention_mask: 1 at tokens, 0 at padding [B, T].
        word_ids: The number of each token's word in its sentence [B, T], -1 at special tokens and padding.
    """

    input_ids: Tensor
    attention_mask: Tensor
    word_ids: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Batch:
        index = rows if isinstance(rows, slice) else torch.as_tensor(rows, device=self.input_ids.device)
        mask = self.attention_mask[index]
        width = int(mask.sum(dim=1).max()) if len(mask) else 0
        return Batch(self.input_ids[index, :width], mask[:, :width], self.word_ids[index, :width])

    @property
    def content(self) -> Tensor:
        """The tokens of the text [B, T], bool; special tokens and padding are left out."""
        return self.word_ids >= 0

    @property
    def firsts(self) -> Tensor:
        """The first sub-word of each word [B, T], bool."""
        before = torch.nn.functional.pad(self.word_ids[:, :-1], (1, 0), value=-1)
        return self.content & (self.word_ids != before)

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each sentence [B], special tokens included."""
        return self.attention_mask.sum(dim=1)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.word_ids.to(device))

    def chunks(self, size: int, *, label: str = "", progress: bool = False) -> Iterator[tuple[Tensor, Batch]]:
        """Batches of up to `size` sentences of like length, each with its rows [n]; every row comes once.

        With `progress`, a bar called `label` is shown where they take long.
        """
        with bar(label, len(self), progress=progress, delay=LONG, unit="sentence") as shown:
            for rows in torch.argsort(self.lengths, stable=True).split(size):
                yield rows, self[rows]
                shown.update(len(rows))

    def __repr__(self) -> str:
        return f"Batch({len(self)} sentences, {self.input_ids.shape[1]} tokens wide)"


def sentence_means(states: Tensor, batch: Batch) -> Tensor:
    """The mean state [..., B, d] of each sentence's tokens, special tokens left out, of states [..., B, T, d].

    >>> batch = Batch(*(torch.tensor([row]) for row in ([0, 7, 8, 2], [1, 1, 1, 1], [-1, 0, 0, -1])))
    >>> sentence_means(torch.tensor([[[9.0], [1.0], [3.0], [9.0]]]), batch).tolist()
    [[2.0]]
    """
    content = batch.content[:, :, None].to(states.device)
    return (states * content).sum(-2) / content.sum(-2).clamp(min=1)


def pooled(states: Tensor, batch: Batch, pooling: Pooling) -> Tensor:
    """One vector a sentence [..., B, d] of states [..., B, T, d]."""
    return states[..., 0, :] if pooling == "first" else sentence_means(states, batch)


def words_of(batch: Batch, pooling: Pooling) -> Tensor:
    """The word of each token that counts for it [B, T], −1 elsewhere: of all sub-words, or of the first alone."""
    return batch.word_ids if pooling == "mean" else batch.word_ids.where(batch.firsts, -1)


def require_pooling(pooling: str) -> None:
    """Refuse another pooling than those of `Pooling`.

    Raises:
        InputError: Another pooling.
    """
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling: expected mean or first, found {pooling!r}")


def word_means(states: Tensor, word_ids: Tensor) -> Tensor:
    """The mean state of each word's sub-words [..., B, W, d], nan for a word that was cut off, or that is none.

    Args:
        states: Hidden states [..., B, T, d].
        word_ids: The word of each token [B, T], −1 at special tokens and padding; W is the most words of a sentence.

    >>> states = torch.tensor([[[9.0], [1.0], [3.0], [5.0]]])
    >>> word_means(states, torch.tensor([[-1, 0, 0, 1]])).flatten().tolist()
    [2.0, 5.0]
    """
    words = torch.arange(int(word_ids.max()) + 1, device=word_ids.device)
    members = (word_ids[:, None] == words[:, None]).to(states.dtype)
    counts = members.sum(2, keepdim=True)
    # Divided by 1 and then masked, not by 0: the gradient of 0 / 0 would spoil those of all words.
    return (members @ states / counts.clamp(min=1)).masked_fill(counts == 0, torch.nan)


class Tokenized:
    """Sentences as token ids, each tokenized once: training meets the same sentence again and again.

    The first `LIMIT` sentences are kept; those that come after them are tokenized each time.
    """

    LIMIT = 50_000

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._known: dict[tuple[int, Hashable], tuple[Tensor, Tensor, int]] = {}

    def encode(self, sentences: Sequence[Sentence], *, max_length: int) -> Batch:
        """The batch of `sentences`, cut off at `max_length` tokens, special tokens included.

        Raises:
            InputError: One text instead of a list, no sentence, or texts and word lists together.
        """
        if isinstance(sentences, str):
            raise InputError(
                "sentences: expected a list of texts or of word lists, found one text; write [text]"
            )
        if not sentences:
            raise InputError("sentences: expected at least one, found none")
        split = not isinstance(sentences[0], str)
        if any(isinstance(sentence, str) == split for sentence in sentences):
            raise InputError("sentences: expected all texts or all word lists, found both")
        rows = self._tokenized(sentences, max_length)
        ids, numbers = [row[0] for row in rows], [row[1] for row in rows]
        pad = int(self.tokenizer.pad_token_id)
        return Batch(
            pad_sequence(list(ids), batch_first=True, padding_value=pad),
            pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            pad_sequence(list(numbers), batch_first=True, padding_value=-1),
        )

    def lost(self, sentences: Sequence[Sentence], *, max_length: int) -> list[int]:
        """How many tokens of each sentence are cut off."""
        return [row[2] for row in self._tokenized(sentences, max_length)]

    def _tokenized(self, sentences: Sequence[Sentence], max_length: int) -> list[tuple[Tensor, Tensor, int]]:
        """The rows of all sentences, known or new."""
        split = not isinstance(sentences[0], str)
        keys = [(max_length, tuple(sentence) if split else sentence) for sentence in sentences]
        fresh = list(dict.fromkeys(key for key in keys if key not in self._known))
        rows_of = dict(zip(fresh, self._rows([key[1] for key in fresh], max_length), strict=True))
        rows = [self._known.get(key) or rows_of[key] for key in keys]
        self._known.update(list(rows_of.items())[: max(0, self.LIMIT - len(self._known))])
        return rows

    def _marked(self, words: Sequence[str]) -> list[str]:
        """The words with the tokenizer's separator between the two texts of a pair."""
        mark = str(self.tokenizer.sep_token)
        return [mark if word == SEPARATOR else word for word in words]

    def _rows(self, sentences: Sequence[Any], max_length: int) -> list[tuple[Tensor, Tensor, int]]:
        """(token ids [T], word of each [T], tokens cut off) of every sentence, unpadded."""
        if not sentences:
            return []
        split = not isinstance(sentences[0], str)
        encoded = self.tokenizer(
            [self._marked(sentence) for sentence in sentences] if split else list(sentences),
            is_split_into_words=split,
            truncation=True,
            max_length=max_length,
            padding=False,
        )
        rows = []
        for i, ids in enumerate(encoded["input_ids"]):
            numbers = [-1 if word is None else word for word in encoded.word_ids(i)]
            behind = encoded.encodings[i].overflowing
            cut = sum(len(part.ids) - sum(part.special_tokens_mask) for part in behind)
            rows.append((torch.tensor(ids), torch.tensor(numbers), cut))
        return rows
