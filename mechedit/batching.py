"""Which prompts run together: of like length, so that little of a batch is padding.

A fact's prompts are mostly short, a doubt put before one is eight times as long: in one padded batch nearly all work
would be spent on padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports.errors import InputError

__all__ = ["batches"]

STRETCH = 2  # the longest of a batch may be this many times as long as its shortest


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of sequences of these lengths, shortest first, in batches: at most `batch_size` of them, the longest at
    most twice as long as the shortest. Every index comes once.

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
