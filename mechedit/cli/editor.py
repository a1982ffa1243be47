"""The editor of a command: by its name in the registry, with what it leaves open chosen on other facts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from experiments.cli.options import count
from mechedit.cli.options import layers
from mechedit.editors.steering import sites
from mechedit.editors.steering.mega import GateKind
from mechedit.editors.steering.steer import Position
from reports.errors import InputError

if TYPE_CHECKING:
    from mechedit.data.facts import FactEdit
    from mechedit.editors import Editor
    from mechedit.models.hooked import HookedModel

__all__ = ["GATES", "SELECTION", "SETTINGS", "SITES", "add_editor_options", "chosen_editor", "named_editor"]

GATES = get_args(GateKind)
SITES = tuple(name for name in sites.SITES if name != "z")  # z is what --heads steers
SETTINGS = ("window", "gate", "gate_model", "max_fpr", "site", "heads", "position")
SELECTION = 20  # facts by which a window, a gate and the like are chosen, none of them measured


def add_editor_options(parser: Any, *, default: str | None = "mega") -> None:
    """--editor, and what steering editors take; `parser` may be a group of options."""
    parser.add_argument(
        "--editor",
        default=default,
        help="ft, ft_l, lora, rome, memit, alphaedit, ike, sake, mega, mean_shift, no_edit"
        + (f" (default {default})" if default else ""),
    )
    parser.add_argument("--window", type=layers, help="layers that a steering editor steers, as 4-7, or auto")
    parser.add_argument("--gate", choices=GATES, help="what opens a steering editor (default hidden)")
    parser.add_argument("--gate-model", help="for --gate sentence: a sentence-transformers folder or id")
    parser.add_argument(
        "--max-fpr", type=float, help="share of foreign prompts that MEGA's gate may open for"
    )
    parser.add_argument("--site", choices=SITES, help="what MEGA steers (default attn_out)")
    parser.add_argument(
        "--heads", type=count, help="how many heads MEGA steers, named by the attribution (all)"
    )
    parser.add_argument(
        "--position", choices=get_args(Position), help="steer the prompt's end alone, or each new token too"
    )


def named_editor(options: Any, model: HookedModel) -> Editor:
    """The editor as asked for, before it chooses anything. Errors: `InputError` for an option that it does not have."""
    from mechedit.editors import MEGA, by_name

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
    from mechedit.recipes.splits import selection_for

    editor: Any = named_editor(options, model)
    if getattr(editor, "needs_selection", False):
        others = selection_for(facts, data, embedded=options.model, n=SELECTION, seed=options.seed)
        editor = editor.select(model, others)
    return editor
