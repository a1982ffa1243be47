"""`mechedit edit`: one fact edited, shown, explained, kept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechedit.cli.editor import add_editor_options, chosen_editor
from mechedit.cli.options import command, load
from mechedit.cli.output import print_json
from reports.errors import InputError

if TYPE_CHECKING:
    from mechedit.facts import FactEdit


def edit(options: argparse.Namespace) -> None:
    """Edits one fact and shows what the model writes before and after."""
    from mechedit.explain import explain

    fact, data = _fact(options)
    model = load(options)
    editor = chosen_editor(options, model, [fact], data=data)
    found = explain(model, editor, fact, neighbours=3 if options.explain else 0)
    if options.save is not None:
        with editor.apply(model, [fact]) as edited:
            keep = getattr(edited, "save_pretrained", None)
            if keep is None:
                raise InputError(f"save: {editor.name} changes no weight, so there is no checkpoint to write")
            keep(options.save)
    if options.out is not None:
        found.save(options.out)
    if options.json:
        rows = found.texts.to_dict("records")
        for row in rows:
            row["helped"] = found.helped(row["role"], row["index"]).to_dict("records")
            row["overruled"] = found.overruled(row["role"], row["index"]).to_dict("records")
        print_json({"editor": editor.name, "model": model.name, "subject": fact.subject, "prompts": rows})
        return
    lines = found.lines() if options.explain else [line.splitlines()[0] for line in found.lines()]
    print("\n".join(lines))


def _fact(options: argparse.Namespace) -> tuple[FactEdit, str]:
    """The fact of --fact, and its file: a JSON object of `FactEdit`'s fields, a file, or "world"; --case picks one."""
    from mechedit.facts import FactEdit, load_facts
    from mechedit.factworld import edits

    text = options.fact.strip()
    if text.startswith("{"):
        try:
            return FactEdit(**json.loads(text)), ""
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"fact: expected an object with subject, prompt, target_true, target_new ({reason})"
            ) from error
    found = edits(20, seed=options.seed) if text == "world" else load_facts(Path(text))
    chosen = [fact for fact in found if options.case in (None, str(fact.case_id))]
    if not chosen:
        ids = ", ".join(str(fact.case_id) for fact in found[:5])
        raise InputError(f"case: expected a case_id of {text}, as {ids}, found {options.case!r}")
    return chosen[0], "" if text == "world" else text


def add(commands: Any) -> None:
    """`edit`."""
    p = command(commands, "edit", edit, "mechedit edit --editor rome --fact world --explain")
    add_editor_options(p)
    p.add_argument(
        "--fact",
        required=True,
        help='a JSON object {"subject": ..., "prompt": "... {} ...", "target_true": ..., "target_new": ...}, '
        "a file of facts, or world: one of the embedded world",
    )
    p.add_argument("--case", help="case_id in the file (default: its first)")
    p.add_argument(
        "--explain", action="store_true", help="also what promoted the new object and what overruled it"
    )
    p.add_argument("--save", help="folder for the edited checkpoint, which plain transformers loads")
    p.add_argument("--out", help="folder to save the explanation in")
