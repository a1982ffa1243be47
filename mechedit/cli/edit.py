"""`mechedit edit`: one fact edited, shown, explained, kept."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.output import print_json
from mechedit.cli.editor import add_editor_options
from mechedit.cli.fact import add_fact_options, chosen_fact
from mechedit.cli.options import command
from reports.errors import InputError


def edit(options: argparse.Namespace) -> None:
    """Edits one fact and shows what the model writes before and after."""
    fact, data = chosen_fact(options)
    from mechedit.anatomy.explain import explain
    from mechedit.recipes.configured_model import load
    from mechedit.recipes.editor_choice import chosen_editor

    model = load(options)
    editor = chosen_editor(options, model, [fact], data=data)
    explanation = explain(model, editor, fact, neighbours=3 if options.explain else 0)
    if options.save is not None:
        with editor.apply(model, [fact]) as edited:
            keep = getattr(edited, "save_pretrained", None)
            if keep is None:
                raise InputError(f"save: {editor.name} changes no weight, so there is no checkpoint to write")
            keep(options.save)
    if options.out is not None:
        explanation.save(options.out)
    if options.json:
        rows = explanation.texts.to_dict("records")
        for row in rows:
            row["helped"] = explanation.helped(row["role"], row["index"]).to_dict("records")
            row["overruled"] = explanation.overruled(row["role"], row["index"]).to_dict("records")
        print_json({"editor": editor.name, "model": model.name, "subject": fact.subject, "prompts": rows})
        return
    lines = explanation.lines() if options.explain else [line.splitlines()[0] for line in explanation.lines()]
    print("\n".join(lines))


def add(commands: Any) -> None:
    """`edit`."""
    p = command(commands, "edit", edit, "mechedit edit --editor rome --fact world --explain")
    add_editor_options(p)
    add_fact_options(p, required=True)
    p.add_argument(
        "--explain", action="store_true", help="also what promoted the new object and what overruled it"
    )
    p.add_argument("--save", help="folder for the edited checkpoint, which plain transformers loads")
    p.add_argument("--out", help="folder to save the explanation in")
