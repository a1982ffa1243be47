"""The editor of a run: by its name, with what it leaves open chosen on facts that are not measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mechedit.data import atlas
from mechedit.data.facts import FactEdit, load_facts
from mechedit.data.joining import Space
from mechedit.editors import MEGA, Editor, by_name
from mechedit.editors.defaults import Tuned
from mechedit.editors.fields import settable, with_fields
from mechedit.editors.registry import select
from mechedit.models.embedded import EMBEDDED
from mechedit.models.hooked import HookedModel
from mechedit.recipes.configurations import SELECTION, SETTINGS
from mechedit.recipes.known_facts import find_known
from mechedit.recipes.splits import others_behind, selection_for
from reports.errors import InputError

__all__ = ["chosen_editor", "named", "named_editor"]

log = logging.getLogger(__name__)


def named_editor(options: Any, model: HookedModel) -> Editor:
    """The editor with the settings of `options`, before it chooses anything.

    Raises:
        InputError: The editor does not have one of the settings, one is given twice, or the model does not have the
            layer, window or head that it names.
    """
    # MEGA's control, which moves the mean alone, is a setting of it and no editor of its own.
    shift = options.editor == "mean_shift"
    editor = MEGA(estimator="shift", name="mean_shift") if shift else by_name(options.editor)
    given = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    more: dict[str, Any] = options.set or {}
    known = settable(editor)
    if foreign := [name for name in given if name not in known]:
        raise InputError(
            f"{foreign[0]}: {options.editor} has no such setting; leave --{foreign[0].replace('_', '-')} out"
        )
    if twice := [name for name in more if name in given]:
        raise InputError(f"set: {twice[0]} is given twice, as an option and by set; leave one out")
    editor = with_fields(editor, given | more)
    _check(editor, model)
    return editor


def named(model: HookedModel, name: str, fields: Mapping[str, Any]) -> Editor:
    """The editor called `name` with `fields`, as a recipe of several editors sets them, before it chooses anything.

    Raises:
        InputError: It has no such field, or the model no such layer, window or head.
    """
    editor = with_fields(by_name(name), fields)
    _check(editor, model)
    return editor


def _check(editor: Any, model: HookedModel) -> None:
    """Refuses layers and heads outside of the model before anything is measured."""
    if isinstance(editor, Tuned):
        editor.ready(model)
    if isinstance(editor, MEGA) and editor.window != "auto":
        editor.layers(model)
    gate_layer, heads = getattr(editor, "gate_layer", None), getattr(editor, "heads", None)
    for name, layers in (
        ("gate_layer", [gate_layer]),
        ("heads", heads if isinstance(heads, Mapping) else ()),
    ):
        for layer in layers:
            if layer is not None and not 0 <= layer < model.shape.n_layers:
                raise InputError(f"{name}: expected layers 0 to {model.shape.n_layers - 1}, found {layer}")
    for head in (head for own in heads.values() for head in own) if isinstance(heads, Mapping) else ():
        if not 0 <= head < model.shape.n_heads:
            raise InputError(f"heads: expected heads 0 to {model.shape.n_heads - 1}, found {head}")


def chosen_editor(
    options: Any, model: HookedModel, facts: Sequence[FactEdit], *, data: str, choose_on: str = ""
) -> Editor:
    """The editor with what it leaves open chosen on facts that are not measured.

    Args:
        options: The command's, or the recipe's.
        model: Unedited.
        facts: Those that are measured.
        data: The file that they are from, or "".
        choose_on: A file of facts to choose on; "": those behind `facts` in their file, the embedded world's, or, where
            there are not two of them, atlas facts that the model knows.

    Raises:
        InputError: As `named_editor`, and for facts to choose on that are too few or that nothing is chosen on.
    """
    editor = named_editor(options, model)
    if choose_on and not editor.needs_selection:
        raise InputError(
            f"data: {editor.name} chooses nothing on other facts, as it is set; leave --data out"
        )
    if not editor.needs_selection:
        return editor
    subjects = {fact.subject for fact in facts}
    if choose_on:
        given = load_facts(choose_on, space=options.space or "auto")
        others = [fact for fact in given if fact.subject not in subjects][:SELECTION]
        if len(others) < 2:
            raise InputError(
                f"data: expected at least 2 facts about other subjects to choose on, found {len(others)} in {choose_on}"
            )
        return select(editor, model, others)
    if options.model in EMBEDDED:
        others = selection_for(facts, data, embedded=options.model, n=SELECTION, seed=options.seed)
        return select(editor, model, others)
    if data:
        malformed: bool = getattr(options, "skip_malformed", False)
        space: Space = options.space or "auto"
        if others := others_behind(facts, data, n=SELECTION, space=space, skip_malformed=malformed):
            return select(editor, model, others)
        subjects |= {fact.subject for fact in load_facts(data, space=space, skip_malformed=malformed)}
    return select(editor, model, _of_the_atlas(model, subjects, editor.name, seed=options.seed))


def _of_the_atlas(model: HookedModel, subjects: set[str], name: str, *, seed: int) -> list[FactEdit]:
    """Facts of the atlas that the model knows, about none of `subjects`."""
    asked = [fact for fact in atlas.edits(None, seed) if fact.subject not in subjects]
    others = find_known(model, asked, limit=SELECTION).facts
    if len(others) < 2:
        raise InputError(
            f"data: expected at least 2 facts to choose on, found that {model.name} knows {len(others)} of the atlas'; "
            "give a file that holds some behind those that are measured, or --window 4-7 --gate always"
        )
    log.warning("%s is chosen on %d facts of the atlas that the model knows", name, len(others))
    return others
