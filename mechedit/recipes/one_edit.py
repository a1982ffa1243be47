"""One fact edited on its own: the change as data, what it changes, and what its user has to know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechedit.anatomy.explain import Explanation
from mechedit.data.facts import FactEdit
from mechedit.editors import MEGA, SAKE, EditBook, Editor, WeightChange
from mechedit.editors.weights.weight_edit import WeightEditor
from mechedit.models.hooked import HookedModel
from reports.errors import InputError
from reports.files import occupied

__all__ = [
    "changed_layers",
    "check_folder",
    "check_keeping",
    "edit_warnings",
    "listed_layers",
    "made_change",
    "one_wording",
    "own_checks",
]

NOTHING = 1e-4  # logits by which the margin moves through rounding alone


def check_keeping(editor: Editor, *, checkpoint: str | None, change: str | None) -> None:
    """Refuses, before anything is computed, folders that this editor has nothing to write in.

    Raises:
        InputError: The editor changes no weight, or nothing at all that could be kept; or the folder is not empty.
    """
    weights = isinstance(editor, WeightEditor)
    if checkpoint is not None and not weights:
        advice = "; keep the edit by --save-change" if isinstance(editor, MEGA | SAKE) else ""
        raise InputError(f"save: {editor.name} changes no weight, so there is no checkpoint to write{advice}")
    if change is not None and not (weights or isinstance(editor, MEGA | SAKE)):
        raise InputError(
            f"save-change: {editor.name} writes no weight and steers nothing, so there is no change to keep"
        )
    for option, folder in (("save", checkpoint), ("save-change", change)):
        if folder is not None:
            check_folder(folder, option)


def check_folder(folder: str, option: str) -> None:
    """Refuses a folder that holds something.

    Raises:
        InputError: It does.
    """
    path = Path(folder)
    if occupied(path):
        raise InputError(f"{option}: expected a new or an empty folder, found {folder}; choose another")


def made_change(editor: Editor, model: HookedModel, fact: FactEdit) -> WeightChange | EditBook | None:
    """The edit of one fact as data; None of an editor that changes neither weights nor activations.

    >>> import mechedit as me
    >>> model, fact = me.load_model("factworld"), me.factworld.edits(1)[0]
    >>> made_change(me.editors.ROME(), model, fact).layers
    (0,)
    """
    if isinstance(editor, WeightEditor):
        return editor.change(model, [fact])
    if isinstance(editor, MEGA | SAKE):
        return EditBook.of(model, [editor.fit(model, fact)])
    return None


def changed_layers(settings: Mapping[str, Any]) -> str:
    """The layers that an editor's resolved settings change (`mechedit.editors.settings.resolved`), in words.

    >>> changed_layers({"name": "rome", "layer": 5}), changed_layers({"name": "mega", "window": [4, 7]})
    ('layer 5', 'layers 4 to 7')
    """
    span = settings.get("window") or settings.get("layers")
    if isinstance(span, list):
        return f"layer {span[0]}" if span[0] == span[-1] else f"layers {span[0]} to {span[-1]}"
    if "layer" in settings:
        return f"layer {settings['layer']}"
    if "targets" in settings:
        return f"{', '.join(settings['targets'])} of every layer"
    return "the last layer" if "forced" in settings else "no layer"


def listed_layers(layers: Sequence[int]) -> str:
    """Layers in words.

    >>> listed_layers([3, 4]), listed_layers([])
    ('layers 3, 4', 'no layer')
    """
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}" if layers else "no layer"


def own_checks(change: WeightChange | EditBook | None) -> list[str]:
    """What a steering edit has found out about itself."""
    if not isinstance(change, EditBook):
        return []
    (edit,) = change.edits.values()
    if "own_right" not in edit.choice:
        return []
    right, total = edit.choice["targets_right"]
    own = f"{edit.choice['own_right']:.0%} of its own prompts (gate open) give {edit.fact.target_new!r}"
    return [
        f"alpha {edit.alpha:g}: {own}; {right} of {total} targets of the form {edit.choice['target']!r} succeed"
    ]


def edit_warnings(
    editor: Editor, change: WeightChange | EditBook | None, explanation: Explanation, fact: FactEdit
) -> list[str]:
    """Whatever keeps the edit from being one: it does nothing, does not take, or was fitted on one wording alone."""
    row = explanation.texts.iloc[0]
    moved = float(row["margin_after"] - row["margin_before"])
    lines = []
    if not row["changed"] and row["ok"]:
        lines.append(f"the unedited model says {fact.target_new!r} already; there was nothing to edit")
    elif not row["changed"] and abs(moved) < NOTHING:
        lines.append(
            f"the edit does nothing: the model answers its own prompt as before; {_advice(editor, change)}"
        )
    elif not row["ok"]:
        lines.append(
            f"the edit does not take: the model still does not say {fact.target_new!r} on its own prompt (its margin "
            f"over {row['against']!r} moved by {moved:+.2f} logits to {row['margin_after']:+.2f}); "
            f"{_advice(editor, change)}"
        )
    lines += one_wording(editor, [fact])
    return lines


def one_wording(editor: Editor, facts: Sequence[FactEdit]) -> list[str]:
    """Says how many steering edits know one wording of their question alone, and how to give others."""
    if not isinstance(editor, MEGA | SAKE):
        return []
    alone = [fact for fact in facts if len(editor.plain_prompts(fact)) == 1]
    if not alone:
        return []
    of = "the edit is" if len(facts) == 1 else f"{len(alone)} of {len(facts)} edits are"
    said = f"{of} fitted on one prompt only, so that other wordings may not be edited"
    if getattr(editor, "prompts", None) == 1:
        return [f"{said} (prompts = 1)"]
    prompt = alone[0].prompt
    table = "{" + f'"{prompt}": ["… {{}} …", "… {{}} …"]' + "}"
    return [
        f"{said}: no paraphrase of {prompt!r} is known; give some by --set paraphrases=FILE.json, a file "
        f"that holds {table}"
    ]


def _advice(editor: Editor, change: WeightChange | EditBook | None) -> str:
    """What to try."""
    if isinstance(change, EditBook):
        (edit,) = change.edits.values()
        if edit.choice.get("own_right") == 0 or not edit.steers:
            return "none of its targets leads to the new object: take another --window, or a larger model"
        return f"see alpha ({edit.alpha:g}), window and gate (--alpha, --window, --threshold, --gate always)"
    if isinstance(change, WeightChange):
        return f"other settings by --set, which mechedit edit --editor {editor.name} --fields lists"
    return "take another editor"
