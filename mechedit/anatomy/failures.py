"""Failures on purpose: an editor that works leaves nothing to contrast, so it is also run where it should not.

Each way changes one hyper-parameter of the editor, and only those that it has (the last one changes what is said):

| label | what changes |
|---|---|
| one step | a single evaluation of the loss |
| fewer steps | a third of the optimiser's steps, at least 1 |
| wrong layer | the layers at the other end of the model, as many |
| smaller clamp | a quarter of the largest change that is allowed |
| smaller alpha | half of the way that a steering edit goes |
| fewer demonstrations | none but the new fact itself |
| another subject | an edit by demonstrations says the new object of somebody else |

They are meant to fail, and on some facts not to: where a setting has both outcomes, nothing else tells its runs apart.
Whether one failed is measured, run by run, and a table names them by their label.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mechedit.data.facts import FactEdit, facts_hash
from mechedit.editors import Editor
from mechedit.editors.base import as_facts
from mechedit.editors.defaults import Tuned
from mechedit.models.hooked import HookedModel

__all__ = ["AS_SET", "Misdirected", "weakened"]

AS_SET = "as set"
_LAYERS = ("layer", "layers", "window")


@dataclass(frozen=True)
class Misdirected:
    """`editor`, told the new object of another subject of `facts`: of the same relation where there is one."""

    editor: Editor
    facts: Sequence[FactEdit] = field(repr=False, compare=False)
    digest: str = ""

    @property
    def name(self) -> str:
        """The editor's own."""
        return self.editor.name

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[HookedModel]:
        """The model edited for the other subjects."""
        with self.editor.apply(model, [self._elsewhere(fact) for fact in as_facts(facts)]) as edited:
            yield edited

    def _elsewhere(self, fact: FactEdit) -> FactEdit:
        others = [other for other in self.facts if other.subject != fact.subject]
        alike = [other for other in others if other.relation == fact.relation] or others
        place = [str(other.case_id) for other in alike]
        behind = next((i for i, case in enumerate(place) if case > str(fact.case_id)), 0)
        return dataclasses.replace(fact, subject=alike[behind].subject)


def weakened(editor: Editor, model: HookedModel, facts: Sequence[FactEdit] = ()) -> dict[str, Editor]:
    """By label, the ways in which `editor` can be made to fail on `model`; none for an editor without such fields.

    facts: whose subjects stand in for each other; with fewer than two subjects there is no "another subject".

    >>> import mechedit as me
    >>> model = me.load_model("factworld")
    >>> weakened(me.editors.MEGA(window=(5, 7), alpha=2.0), model)["wrong layer"].window
    (0, 2)
    """
    if not dataclasses.is_dataclass(editor):
        return {}
    names = {field.name for field in dataclasses.fields(editor)}
    layers = tuple(name for name in _LAYERS if name in names)
    ready: Any = editor.ready(model) if isinstance(editor, Tuned) else editor
    ways: dict[str, dict[str, Any]] = {}
    if isinstance(getattr(ready, "steps", None), int):
        ways["one step"] = {"steps": 1}
        ways["fewer steps"] = {"steps": max(1, ready.steps // 3)}
    for name in layers:
        ways["wrong layer"] = {name: _elsewhere(getattr(ready, name), model.shape.n_layers)}
    if isinstance(getattr(ready, "clamp", None), float):
        ways["smaller clamp"] = {"clamp": ready.clamp / 4}
    if isinstance(getattr(ready, "alpha", None), float):
        ways["smaller alpha"] = {"alpha": ready.alpha / 2}
    if isinstance(getattr(ready, "demonstrations", None), int):
        ways["fewer demonstrations"] = {"demonstrations": 0}
    found: dict[str, Editor] = {label: dataclasses.replace(ready, **change) for label, change in ways.items()}
    if "fewer demonstrations" in found and len({fact.subject for fact in facts}) > 1:
        found["another subject"] = Misdirected(ready, tuple(facts), facts_hash(facts))
    return found


def _elsewhere(place: Any, n_layers: int) -> Any:
    """As many layers at the end of the model that is farther away.

    >>> _elsewhere(2, 8), _elsewhere((5, 7), 8)
    (7, (0, 2))
    """
    first, last = place if isinstance(place, tuple) else (place, place)
    size = last - first
    moved = (n_layers - 1 - size, n_layers - 1) if first + last < n_layers - 1 else (0, size)
    return moved if isinstance(place, tuple) else moved[0]
