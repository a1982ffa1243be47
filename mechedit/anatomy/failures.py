"""Failures on purpose: an editor that always works leaves nothing to contrast, so it is also run where it should fail.

Each way changes one hyper-parameter of the editor, of those that it has (the last one changes the fact):

| label | what changes |
|---|---|
| one step | a single evaluation of the loss |
| fewer steps | a third of the optimiser's steps, at least 1 |
| wrong layer | the layers at the other end of the model, as many |
| smaller clamp | a quarter of the largest change that is allowed |
| smaller alpha | half of the way that a steering edit goes |
| fewer demonstrations | none but the new fact itself |
| another subject | an edit by demonstrations states the new object of another subject |

They are meant to fail, but not on every fact: where a setting has both outcomes, its runs differ in nothing else.
Whether a run failed is measured, and tables name the ways by their label.
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
from mechedit.editors.settings import plain, resolved
from mechedit.models.hooked import HookedModel

__all__ = ["AS_SET", "Misdirected", "weakened"]

AS_SET = "as set"
_LAYERS = ("layer", "layers", "window")


@dataclass(frozen=True)
class Misdirected:
    """`editor`, given the new object of another subject of `facts`: of the same relation where there is one.

    Attributes:
        editor: What edits.
        facts: Whose subjects stand in for each other.
        digest: sha256 of the facts, by which two of these differ.
    """

    editor: Editor
    facts: Sequence[FactEdit] = field(repr=False, compare=False)
    digest: str = ""

    @property
    def name(self) -> str:
        """The name of `editor`."""
        return self.editor.name

    @property
    def needs_selection(self) -> bool:
        """The editor's own."""
        return self.editor.needs_selection

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[HookedModel]:
        """The model edited for the other subjects."""
        with self.editor.apply(model, [self._elsewhere(fact) for fact in as_facts(facts)]) as edited:
            yield edited

    def reads(self, model: HookedModel) -> dict[str, Any]:
        """The editor's settings, and the facts."""
        return {"editor": resolved(self.editor, model), "facts": plain(self.facts)}

    def _elsewhere(self, fact: FactEdit) -> FactEdit:
        strangers = [stranger for stranger in self.facts if stranger.subject != fact.subject]
        alike = [stranger for stranger in strangers if stranger.relation == fact.relation] or strangers
        following = (stranger for stranger in alike if str(stranger.case_id) > str(fact.case_id))
        return dataclasses.replace(fact, subject=next(following, alike[0]).subject)


def weakened(editor: Editor, model: HookedModel, facts: Sequence[FactEdit] = ()) -> dict[str, Editor]:
    """By label, the ways in which `editor` can be made to fail on `model`; none for an editor without such fields.

    Args:
        editor: As set.
        model: Whose layers are counted, and whose defaults an editor takes.
        facts: Whose subjects stand in for each other; with fewer than two subjects there is no "another subject".

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
    weak: dict[str, Editor] = {label: dataclasses.replace(ready, **change) for label, change in ways.items()}
    if "fewer demonstrations" in weak and len({fact.subject for fact in facts}) > 1:
        weak["another subject"] = Misdirected(ready, tuple(facts), facts_hash(facts))
    return weak


def _elsewhere(place: Any, n_layers: int) -> Any:
    """As many layers at the end of the model that is farther away.

    >>> _elsewhere(2, 8), _elsewhere((5, 7), 8)
    (7, (0, 2))
    """
    first, last = place if isinstance(place, tuple) else (place, place)
    size = last - first
    moved = (n_layers - 1 - size, n_layers - 1) if first + last < n_layers - 1 else (0, size)
    return moved if isinstance(place, tuple) else moved[0]
