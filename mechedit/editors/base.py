"""What an editor is: a name, and `apply`, a context manager that yields the edited model.

Leaving the context, by any way, gives the model back as it was: weights bit for bit, and without a hook.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mechedit.data.facts import FactEdit
from mechedit.models.hooked import HookedModel

__all__ = ["Editor", "NoEdit", "as_facts", "derive"]

M = TypeVar("M", bound="HookedModel")


class Editor(Protocol):
    """Every editor, and every control that stands beside one."""

    @property
    def name(self) -> str:
        """As reports show it."""

    def apply(
        self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]
    ) -> AbstractContextManager[HookedModel]:
        """The model with the facts edited, for the length of the block."""


@dataclass(frozen=True)
class NoEdit:
    """The control that changes nothing: what every editor's scores are held against.

    >>> NoEdit().name
    'no_edit'
    """

    name: str = "no_edit"

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[HookedModel]:
        """Yields the model itself."""
        yield model


def as_facts(facts: FactEdit | Sequence[FactEdit]) -> tuple[FactEdit, ...]:
    """One fact or several, as a tuple."""
    return (facts,) if isinstance(facts, FactEdit) else tuple(facts)


def derive(cls: type[M], model: HookedModel) -> M:
    """An edited model of class `cls` that shares everything with `model`: tokens, weights, hooks that are on.

    Where `model` has gates (a steering edit), the derived one asks them too.
    """
    derived = cls.__new__(cls)
    derived.__dict__.update(model.__dict__)
    ask = getattr(model, "gate_fired", None)
    if ask is not None:
        derived.__dict__["gate_fired"] = lambda prompts, **options: ask(derived.encode(prompts), **options)
    return derived
