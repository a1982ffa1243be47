"""`mechedit edit`: one fact edited, shown, explained, kept."""

from __future__ import annotations

import argparse
import logging
import shlex
from typing import Any

from experiments.cli.output import print_json
from mechedit.cli.editor import add_editor_options
from mechedit.cli.fact import add_fact_options, chosen_fact
from mechedit.cli.options import command
from reports.errors import InputError

log = logging.getLogger(__name__)


def edit(options: argparse.Namespace) -> None:
    """Edits one fact and shows what the model writes before and after."""
    if options.fields:
        _fields(options)
        return
    if options.fact is None:
        raise InputError("fact: expected --fact, the fact to edit (or --fields alone), found none")
    fact, data = chosen_fact(options)
    from mechedit.anatomy.explain import explain
    from mechedit.recipes import one_edit
    from mechedit.recipes.configured_model import load
    from mechedit.recipes.editor_choice import chosen_editor, named_editor

    model = load(options)
    one_edit.check_keeping(named_editor(options, model), checkpoint=options.save, change=options.save_change)
    editor = chosen_editor(options, model, [fact], data=data, choose_on=options.data)
    change = one_edit.made_change(editor, model, fact)
    explanation = explain(
        model,
        editor,
        fact,
        neighbours=3 if options.explain else 0,
        edited=None if change is None else change.apply(model),
    )
    written: dict[str, str] = {}
    if options.save is not None:
        with change.apply(model) as edited:  # type: ignore[union-attr]  # a weight editor's (check_keeping)
            edited.save_pretrained(options.save)  # type: ignore[union-attr]
        written["save"] = options.save
    if options.save_change is not None:
        change.save(options.save_change)  # type: ignore[union-attr]
        written["save_change"] = options.save_change
    if options.out is not None:
        explanation.save(options.out)
        written["out"] = options.out
    warnings = one_edit.edit_warnings(editor, change, explanation, fact)
    for line in warnings:
        log.warning("%s: %s", editor.name, line)
    _show(options, explanation, change, written, warnings)


def _show(
    options: argparse.Namespace, explanation: Any, change: Any, written: dict[str, str], warnings: list[str]
) -> None:
    from mechedit.recipes.one_edit import changed_layers, listed_layers, own_checks

    layers = [] if change is None else list(change.layers)
    if options.json:
        rows = explanation.texts.to_dict("records")
        for row in rows:
            row["helped"] = explanation.helped(row["role"], row["index"]).to_dict("records")
            row["overruled"] = explanation.overruled(row["role"], row["index"]).to_dict("records")
        about = {"editor": explanation.editor, "model": explanation.model, "subject": explanation.subject}
        print_json({**about, "prompts": rows, "layers": layers, "written": written, "warnings": warnings})
        return
    lines = explanation.lines() if options.explain else [line.splitlines()[0] for line in explanation.lines()]
    print("\n".join(lines))
    said = changed_layers(explanation.provenance["settings"])
    print(f"changed: {said if change is None else listed_layers(layers)} ({change or explanation.editor})")
    for line in own_checks(change):
        print(line)
    for line in warnings:
        print(f"WARNING: {line}")
    for option, path in written.items():
        print(f"written: {path} ({WRITTEN[option].format(path=shlex.quote(path))})")
    if options.save is not None:
        print(f"next: mechedit contrast {_compared(options)}")
    if options.save_change is not None:
        where = f"--model {shlex.quote(options.model)} --edited {shlex.quote(options.save_change)}"
        prompt = shlex.quote(str(explanation.texts.loc[0, "prompt"]))
        print(
            f"next: mechedit attribute {where} --prompt {prompt} --target {shlex.quote(explanation.target_new)}"
        )


def _compared(options: argparse.Namespace) -> str:
    """The options by which the saved checkpoint is contrasted with the model."""
    case = [] if options.case is None else ["--case", options.case]
    return shlex.join(["--model", options.model, "--edited", options.save, "--fact", options.fact, *case])


#: What lies in the folder of an option.
WRITTEN = {
    "save": "the edited checkpoint",
    "save_change": "the change alone",
    "out": "the explanation; its page: mechedit report {path}",
}


def _fields(options: argparse.Namespace) -> None:
    """--fields: what --set can set, and its value on the model."""
    from mechedit.editors.fields import field_table
    from mechedit.recipes.configured_model import load
    from mechedit.recipes.editor_choice import named_editor

    model = load(options)
    rows = field_table(named_editor(options, model), model)
    if options.json:
        print_json({"editor": options.editor, "model": model.name, "fields": rows})
        return
    print(f"fields of {options.editor} on {model.name}, to be set by --set FIELD=VALUE")
    for row in rows:
        value = "none" if row["value"] is None else row["value"]
        print(f"  {row['field']} = {value}  [{row['takes']}]  {row['about']}".rstrip())


def add(commands: Any) -> None:
    """`edit`."""
    p = command(commands, "edit", edit, "mechedit edit --editor rome --fact world --explain")
    add_editor_options(p)
    add_fact_options(p, required=False)
    p.add_argument(
        "--fields",
        action="store_true",
        help="list the editor's fields with their values for --model, and do nothing else",
    )
    p.add_argument(
        "--data",
        default="",
        help="facts by which window, gate and the like are chosen (default: the others of --fact's file where it has "
        "20, else the embedded world's, or atlas facts that the model knows)",
    )
    p.add_argument(
        "--explain", action="store_true", help="also what promoted the new object and what overruled it"
    )
    p.add_argument("--save", help="folder for the edited checkpoint, which plain transformers loads")
    p.add_argument(
        "--save-change",
        metavar="FOLDER",
        help="folder for the change alone, which mechedit attribute --edited reads",
    )
    p.add_argument("--out", help="folder to save the explanation in")
