"""The edits that are in force on a model: what its repr shows, and what a checkpoint of it would not hold.

They are noted on the Hugging Face module, which an edited model and the one it was derived from share: an edit in force
is one of both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from reports.text import clip

__all__ = ["ActiveEdit", "active_edits", "named", "noted"]


@dataclass(frozen=True)
class ActiveEdit:
    """An edit in force.

    Attributes:
        text: What it is, in a few words.
        in_weights: Whether it is written into the weights, so that a checkpoint holds it.
    """

    text: str
    in_weights: bool


def active_edits(hf: nn.Module) -> list[ActiveEdit]:
    """Those on a Hugging Face module, the first edit first."""
    edits: list[ActiveEdit] = hf.__dict__.setdefault("_mechedit_edits", [])
    return edits


@contextlib.contextmanager
def noted(hf: nn.Module, edit: ActiveEdit) -> Iterator[None]:
    """Notes an edit for the length of the block."""
    edits = active_edits(hf)
    edits.append(edit)
    try:
        yield
    finally:
        del edits[max(i for i, known in enumerate(edits) if known is edit)]


def named(editor: str, edits: list[tuple[str, str]]) -> str:
    """An editor and what it edits, in a few words.

    Args:
        editor: Its name.
        edits: (prompt with its subject, new object) of each fact.

    >>> named("rome", [("The Eiffel Tower is in", "Rome")]), named("memit", [("a", "b")] * 40)
    ("rome: 'The Eiffel Tower is in' → 'Rome'", 'memit: 40 facts')
    """
    if len(edits) != 1:
        return f"{editor}: {len(edits)} facts"
    ((prompt, new),) = edits
    return f"{editor}: {clip(prompt, 60)!r} → {new!r}"
