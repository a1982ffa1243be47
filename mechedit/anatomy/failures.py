"""Failures on purpose: an editor that works leaves nothing to contrast, so it is also run where it should not.

Each way changes one hyper-parameter of the editor, and only those that it has:

| label | what changes |
|---|---|
| fewer steps | a third of the optimiser's steps, at least 1 |
| wrong layer | the layers at the other end of the model, as many |
| smaller clamp | a quarter of the largest change that is allowed |
| smaller alpha | half of the way that a steering edit goes |
| fewer demonstrations | none but the new fact itself |

They are meant to fail, and on some facts not to: where a setting has both outcomes, nothing else tells its runs apart.
Whether one failed is measured, run by run, and a table names them by their label.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mechedit.editors.defaults import resolve

if TYPE_CHECKING:
    from mechedit.editors import Editor
    from mechedit.model import HookedModel

__all__ = ["AS_SET", "weakened"]

AS_SET = "as set"
_LAYERS = ("layer", "layers", "window")


def weakened(editor: Editor, model: HookedModel) -> dict[str, Editor]:
    """By label, the ways in which `editor` can be made to fail on `model`; none for an editor without such fields.

    >>> import mechedit as me
    >>> model = me.load_model("factworld")
    >>> weakened(me.editors.MEGA(window=(5, 7), alpha=2.0), model)["wrong layer"].window
    (0, 2)
    """
    if not dataclasses.is_dataclass(editor):
        return {}
    names = {field.name for field in dataclasses.fields(editor)}
    table = getattr(editor, "DEFAULTS", None)
    layers = tuple(name for name in _LAYERS if name in names)
    ready: Any = resolve(editor, model, table, layers=layers) if table else editor
    ways: dict[str, dict[str, Any]] = {}
    if isinstance(getattr(ready, "steps", None), int):
        ways["fewer steps"] = {"steps": max(1, ready.steps // 3)}
    for name in layers:
        ways["wrong layer"] = {name: _elsewhere(getattr(ready, name), model.shape.n_layers)}
    if isinstance(getattr(ready, "clamp", None), float):
        ways["smaller clamp"] = {"clamp": ready.clamp / 4}
    if isinstance(getattr(ready, "alpha", None), float):
        ways["smaller alpha"] = {"alpha": ready.alpha / 2}
    if isinstance(getattr(ready, "demonstrations", None), int):
        ways["fewer demonstrations"] = {"demonstrations": 0}
    return {label: dataclasses.replace(ready, **change) for label, change in ways.items()}


def _elsewhere(place: Any, n_layers: int) -> Any:
    """As many layers at the end of the model that is farther away.

    >>> _elsewhere(2, 8), _elsewhere((5, 7), 8)
    (7, (0, 2))
    """
    first, last = place if isinstance(place, tuple) else (place, place)
    size = last - first
    moved = (n_layers - 1 - size, n_layers - 1) if first + last < n_layers - 1 else (0, size)
    return moved if isinstance(place, tuple) else moved[0]
