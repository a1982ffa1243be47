"""`mechedit evaluate`: one editor on the facts of a file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechedit.cli.options import command, count, layers, load
from mechedit.cli.output import as_table, print_json
from reports.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from mechedit.editors import Editor
    from mechedit.facts import FactEdit
    from mechedit.model import HookedModel

EDITORS = ("mega", "mean_shift", "no_edit")
SELECTION = 20  # facts by which a window is chosen, none of them evaluated


def evaluate(options: argparse.Namespace) -> None:
    """One editor on the facts of a file."""
    import mechedit as me
    from experiments.runs import RunFolder
    from mechedit.editors import MEGA
    from mechedit.evaluation import baseline, check_facts
    from mechedit.facts import facts_hash
    from reports import page

    facts = me.load_facts(options.data, limit=options.limit)
    families = tuple(options.families.split(","))
    model = load(options)
    check_facts(model, facts, families=families)
    editor = _editor(options, model)
    unedited = baseline(model, facts)
    if any(unedited.known) and isinstance(editor, MEGA) and editor.needs_selection:
        editor = editor.select(model, _selection(options, facts))
    config = {"command": "evaluate", "data": str(options.data), "families": list(families), "n": len(facts)}
    config |= {"editor": options.editor, "settings": repr(editor)}
    source = {"source": str(options.data), "facts": facts_hash(facts)}
    facts_of = model.provenance(data=source, seeds={"all": options.seed})
    run = RunFolder.open(options.out, config, provenance=facts_of) if options.out else None
    result = me.evaluate(
        model, editor, facts, families=families, progress=not options.quiet, run=run, unedited=unedited
    )
    table = result.summary()
    if run is not None:
        run.write_result(result, "evaluation")
        run.write_json("summary", _evaluation_summary(options, result, table))
        page.build(run.path)
        run.finish({"n_known": result.n_known, "n_total": result.n_total})
    if options.json:
        scores = {
            row["metric"]: {k: row[k] for k in ("value", "low", "high", "n")}
            for row in table.to_dict("records")
        }
        known = {"n_known": result.n_known, "n_total": result.n_total}
        print_json(
            {
                "editor": editor.name,
                "model": model.name,
                **known,
                "notes": list(result.notes),
                "scores": scores,
            }
        )
        return
    print(f"{editor.name} on {model.name}: n known {result.n_known} of {result.n_total}")
    for note in result.notes:
        print(note)
    if result.n_known:
        print(as_table(table[["metric", "value", "low", "high", "n"]]))
    if run is not None:
        print(f"report: {run.path / 'report.html'}")


def _editor(options: argparse.Namespace, model: HookedModel) -> Editor:
    """The editor as asked for, before it chooses anything."""
    from mechedit.editors import MEGA, NoEdit

    if options.editor == "no_edit":
        return NoEdit()
    mega = MEGA(window=options.window, gate=options.gate, name=options.editor)
    if mega.window != "auto":
        mega.layers(model)  # refuses a window outside of the model
    return replace(mega, estimator="shift") if options.editor == "mean_shift" else mega


def _selection(options: argparse.Namespace, facts: Sequence[FactEdit]) -> list[FactEdit]:
    """Facts that are not evaluated, for the editor to choose by: the world's own, or those behind `--limit`."""
    import mechedit as me

    if options.model in ("factworld", "factworld-llama"):
        return me.factworld.edits(SELECTION, seed=options.seed + 1, skip=facts)
    subjects = {fact.subject for fact in facts}
    more = me.load_facts(options.data, limit=len(facts) + 4 * SELECTION)
    rest = [fact for fact in more if fact.subject not in subjects][:SELECTION]
    if len(rest) < 2:
        raise InputError(
            f"data: {options.data} holds no facts beyond the {len(facts)} that are evaluated, and MEGA's window and "
            "gate are chosen on others; take a smaller --limit, or give --window and --gate always"
        )
    return rest


def _evaluation_summary(options: argparse.Namespace, result: Any, table: pd.DataFrame) -> dict[str, Any]:
    """What the report reads."""
    cells = {
        row["metric"].lower(): {k: row[k] for k in ("value", "low", "high", "n")}
        for row in table.to_dict("records")
    }
    shown = {key: cells[key] for key in ("acc", "gen", "spec", "es", "ps", "ns", "s") if key in cells}
    return {
        "title": f"{options.editor} on {options.model}",
        "subtitle": f"{result.n_total} edits from {Path(options.data).name}, one at a time",
        "model": options.model,
        "n": result.n_known,
        "editors": [{"name": options.editor, "label": options.editor, **shown}],
        "notes": [f"n known {result.n_known} of {result.n_total}", *result.notes],
        "not_done": ["Controls (no edit, gate alone, mean shift, random layers) are not part of this run."],
    }


def add(commands: Any) -> None:
    """`evaluate`."""
    p = command(
        commands,
        "evaluate",
        evaluate,
        "mechedit evaluate --editor mega --data edits.json --limit 20 --out runs/x",
    )
    p.add_argument("--editor", choices=EDITORS, default="mega")
    p.add_argument(
        "--data", required=True, help="CounterFact in its own or EasyEdit's schema: a file or a datasets name"
    )
    p.add_argument("--limit", type=count, help="facts to edit (default: all)")
    p.add_argument("--window", type=layers, default="auto", help="layers to steer, as 4-7 (default auto)")
    p.add_argument("--gate", choices=("hidden", "always"), default="hidden")
    p.add_argument("--families", default="probability,argmax", help="of metrics: probability, argmax, doubt")
    p.add_argument("--out", help="run folder; the same command again goes on")
