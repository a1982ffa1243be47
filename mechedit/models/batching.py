"""Which prompts run together: of like length, so that little of a batch is padding.

A fact's prompts are mostly short, a doubt put before one is eight times as long: in one padded batch nearly all work
would be spent on padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports.errors import InputError

__all__ = ["batches", "token_batches"]

#: The longest of a batch may be this many times as long as its shortest.
STRETCH = 2


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of sequences of these lengths, shortest first, in batches.

    A batch has at most `batch_size` of them, the longest at most twice as long as the shortest. Every index comes once.

    Raises:
        InputError: `batch_size` is below 1.

    >>> list(batches([6, 50, 5, 7], batch_size=2))
    [[2, 0], [3], [1]]
    """
    if batch_size < 1:
        raise InputError(f"batch_size: expected 1 or more, found {batch_size}")
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == batch_size or lengths[i] > STRETCH * lengths[batch[0]]):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def token_batches(shapes: Sequence[tuple[int, int]], max_tokens: int) -> Iterator[list[int]]:
    """Indices of items of these shapes, shortest first, in batches of at most `max_tokens` tokens, padding included.

    An item that is larger by itself is a batch of its own.

    Args:
        shapes: (sequences, tokens of the longest) of each item.
        max_tokens: Tokens of a batch with all of its sequences padded to the longest.

    Raises:
        InputError: `max_tokens` is below 1.

    >>> list(token_batches([(1, 6), (1, 8), (2, 6), (1, 50)], max_tokens=20))
    [[0, 2], [1], [3]]
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens: expected 1 or more, found {max_tokens}")
    batch: list[int] = []
    rows = 0
    for i in sorted(range(len(shapes)), key=lambda i: shapes[i][1]):
        n, length = shapes[i]
        if batch and ((rows + n) * length > max_tokens or length > STRETCH * shapes[batch[0]][1]):
            yield batch
            batch, rows = [], 0
        batch.append(i)
        rows += n
    if batch:
        yield batch
