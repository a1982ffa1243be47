"""What an editor is: a name, and `apply`, a context manager that yields the edited model.

Leaving the context, by any way, gives the model back as it was: weights bit for bit, and without a hook.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from mechedit.data.facts import FactEdit
from mechedit.models.hooked import HookedModel

__all__ = ["Editor", "NoEdit", "Reads", "as_facts", "derive", "lineage"]

M = TypeVar("M", bound="HookedModel")


class Editor(Protocol):
    """Every editor, and every control that stands beside one."""

    @property
    def name(self) -> str:
        """The name that reports show."""

    @property
    def needs_selection(self) -> bool:
        """Whether it has settings to choose first (`mechedit.editors.registry.select`)."""

    def apply(
        self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]
    ) -> AbstractContextManager[HookedModel]:
        """The model with the facts edited, for the length of the block.

        `model` itself is edited inside the block, as its repr shows (IKE alone leaves it and edits what it yields):
        measure what is to stand beside the edit before the block or after it.
        """


@runtime_checkable
class Reads(Protocol):
    """An editor whose edits depend on more than its fields, the model and the fact."""

    def reads(self, model: HookedModel) -> dict[str, Any]:
        """What it reads besides, as plain data; a key that is a field's stands in the place of the field's value."""


@dataclass(frozen=True)
class NoEdit:
    """The control that changes nothing: what every editor's scores are held against.

    >>> NoEdit().name
    'no_edit'
    """

    name: str = "no_edit"
    needs_selection = False

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[HookedModel]:
        """Yields the model itself."""
        yield model


def as_facts(facts: FactEdit | Sequence[FactEdit]) -> tuple[FactEdit, ...]:
    """One fact or several, as a tuple."""
    return (facts,) if isinstance(facts, FactEdit) else tuple(facts)


def derive(cls: type[M], model: HookedModel) -> M:
    """An edited model of class `cls` that shares everything with `model`: tokens, weights, active hooks, gates."""
    derived = cls.__new__(cls)
    derived.__dict__.update(model.__dict__, base=model)
    return derived


def lineage(model: HookedModel) -> Iterator[HookedModel]:
    """`model`, the model that it was derived from, and so on."""
    current: HookedModel | None = model
    while current is not None:
        yield current
        current = current.base
