"""The editor of a run: by its name, with what it leaves open chosen on facts that are not measured."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from mechedit.data.facts import FactEdit
from mechedit.editors import MEGA, Editor, by_name
from mechedit.editors.registry import select
from mechedit.models.embedded import EMBEDDED
from mechedit.models.hooked import HookedModel
from mechedit.recipes.configurations import SETTINGS
from mechedit.recipes.known_facts import find_known
from mechedit.recipes.splits import selection_for
from reports.errors import InputError

__all__ = ["SELECTION", "chosen_editor", "named_editor"]

log = logging.getLogger(__name__)

SELECTION = 20  # facts by which a window, a gate and the like are chosen, none of them measured


def named_editor(options: Any, model: HookedModel) -> Editor:
    """The editor with the settings of `options`, before it chooses anything.

    Raises:
        InputError: The editor does not have one of the settings, or the model does not have the window.
    """
    # MEGA's control, which moves the mean alone, is a setting of it and no editor of its own.
    shift = options.editor == "mean_shift"
    editor = MEGA(estimator="shift", name="mean_shift") if shift else by_name(options.editor)
    given = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    fields = (
        {field.name for field in dataclasses.fields(editor)} if dataclasses.is_dataclass(editor) else {""}
    )
    if foreign := [name for name in given if name not in fields]:
        raise InputError(
            f"{foreign[0]}: {options.editor} has no such setting; leave --{foreign[0].replace('_', '-')} out"
        )
    if given:
        editor = dataclasses.replace(editor, **given)  # type: ignore[type-var]
    if isinstance(editor, MEGA) and editor.window != "auto":
        editor.layers(model)  # refuses a window outside of the model
    return editor


def chosen_editor(options: Any, model: HookedModel, facts: Sequence[FactEdit], *, data: str) -> Editor:
    """The editor with what it leaves open chosen on facts that are not measured."""
    editor = named_editor(options, model)
    if not editor.needs_selection:
        return editor
    if data or options.model in EMBEDDED:
        others = selection_for(facts, data, embedded=options.model, n=SELECTION, seed=options.seed)
        return select(editor, model, others)
    subjects = {fact.subject for fact in facts}
    known = find_known(model, limit=SELECTION + len(subjects), seed=options.seed)
    others = [fact for fact in known.facts if fact.subject not in subjects][:SELECTION]
    log.warning("%s is chosen on %d facts of the atlas that the model knows", editor.name, len(others))
    return select(editor, model, others)
