"""Texts as padded ids with the word that each token belongs to: what every pass through an encoder takes.

A sentence is a text or a list of words. Words keep their number through tokenization, so a label or an alignment link
of word w lands on its first sub-word (or on all of them) without any matching of strings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from reports.errors import InputError

__all__ = ["Batch", "Sentence", "encode"]

Sentence = str | Sequence[str]  # a text, or the words of one


@dataclass(frozen=True, eq=False)
class Batch:
    """B sentences padded on the right to T tokens.

    input_ids, attention_mask [B, T]; word_ids [B, T]: the number of the token's word in its sentence, -1 at special
    tokens and padding. `batch[rows]` takes rows and cuts the padding that they no longer need.
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
        """[B, T] bool: tokens of the text, special tokens and padding left out."""
        return self.word_ids >= 0

    @property
    def firsts(self) -> Tensor:
        """[B, T] bool: the first sub-word of each word."""
        before = torch.nn.functional.pad(self.word_ids[:, :-1], (1, 0), value=-1)
        return self.content & (self.word_ids != before)

    @property
    def lengths(self) -> Tensor:
        """[B]: tokens of each sentence, special tokens included."""
        return self.attention_mask.sum(dim=1)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.word_ids.to(device))

    def chunks(self, size: int) -> Iterator[tuple[Tensor, Batch]]:
        """(rows [n], their batch) of up to `size` sentences of like length: little padding, every row once."""
        for rows in torch.argsort(self.lengths, stable=True).split(size):
            yield rows, self[rows]

    def __repr__(self) -> str:
        return f"Batch({len(self)} sentences, {self.input_ids.shape[1]} tokens wide)"


def encode(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Sentence], *, max_length: int) -> Batch:
    """The batch of `sentences`, cut off at `max_length` tokens, special tokens included."""
    if isinstance(sentences, str):
        raise InputError("sentences: expected a list of texts or of word lists, found one text; write [text]")
    if not sentences:
        raise InputError("sentences: expected at least one, found none")
    split = not isinstance(sentences[0], str)
    if any(isinstance(sentence, str) == split for sentence in sentences):
        raise InputError("sentences: expected all texts or all word lists, found both")
    encoded = tokenizer(
        [list(sentence) for sentence in sentences] if split else list(sentences),
        is_split_into_words=split,
        truncation=True,
        max_length=max_length,
        padding=True,
        padding_side="right",
        return_tensors="pt",
        return_token_type_ids=False,
    )
    numbers = [[-1 if word is None else word for word in encoded.word_ids(i)] for i in range(len(sentences))]
    return Batch(encoded["input_ids"], encoded["attention_mask"], torch.tensor(numbers))
