"""`mechedit evaluate`: one editor on the facts of a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechedit.cli.editor import add_editor_options, chosen_editor, named_editor
from mechedit.cli.options import command, count, load
from mechedit.cli.output import as_table, print_json
from reports.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

MODES = {
    "single": "one at a time",
    "sequential": "one upon the other, scored when all are in",
    "batch": "all at once",
}


def evaluate(options: argparse.Namespace) -> None:
    """One editor on the facts of a file."""
    import mechedit as me
    from experiments.runs import RunFolder
    from mechedit.evaluation import baseline, check_facts
    from mechedit.facts import facts_hash
    from mechedit.ripple import check_tests
    from reports import page

    facts = me.load_facts(options.data, limit=options.limit, skip_malformed=options.skip_malformed)
    wanted = tuple(options.families.split(","))
    families = tuple(name for name in wanted if name != "ripple")
    if "ripple" in wanted:
        check_tests(facts)
    model = load(options)
    check_facts(model, facts, families=families or ("argmax",))
    references = _references(options)
    named_editor(options, model)  # refused before anything is measured or written
    unedited = baseline(model, facts)
    known = any(unedited.known)
    editor = (
        chosen_editor(options, model, facts, data=options.data) if known else named_editor(options, model)
    )
    config = {"command": "evaluate", "data": str(options.data), "families": list(wanted), "n": len(facts)}
    config |= {"editor": options.editor, "settings": repr(editor), "mode": options.mode}
    config |= {"references": str(options.references)} if options.references else {}
    source = {"source": str(options.data), "facts": facts_hash(facts)}
    facts_of = model.provenance(data=source, seeds={"all": options.seed})
    run = RunFolder.open(options.out, config, provenance=facts_of) if options.out else None
    result = me.evaluate(
        model,
        editor,
        facts,
        families=families or ("argmax",),
        mode=options.mode,
        references=references,
        seed=options.seed,
        progress=not options.quiet,
        run=run,
        unedited=unedited,
    )
    ripples = None
    if "ripple" in wanted:
        ripples = me.ripple(model, editor, facts, progress=not options.quiet, run=run)
    table = result.summary()
    if run is not None:
        run.write_result(result, "evaluation")
        if ripples is not None:
            run.write_result(ripples, "ripple")
        run.write_json("summary", _evaluation_summary(options, result, table, ripples))
        page.build(run.path)
        run.finish({"n_known": result.n_known, "n_total": result.n_total})
    _show(options, editor.name, result, table, ripples)
    if run is not None and not options.json:
        print(f"report: {run.path / 'report.html'}")


def _show(options: argparse.Namespace, name: str, result: Any, table: pd.DataFrame, ripples: Any) -> None:
    if options.json:
        scores = {
            row["metric"]: {k: row[k] for k in ("value", "low", "high", "n")}
            for row in table.to_dict("records")
        }
        known = {"n_known": result.n_known, "n_total": result.n_total, "mode": result.mode}
        more = {}
        if ripples is not None:
            more = {"ripple": {"outcomes": ripples.outcomes(), "axes": ripples.summary().to_dict("records")}}
        about = {"editor": name, "model": result.model, **known, "notes": list(result.notes)}
        print_json({**about, "scores": scores, **more})
        return
    print(f"{name} on {result.model}, {result.mode}: n known {result.n_known} of {result.n_total}")
    for note in result.notes:
        print(note)
    if result.n_known:
        print(as_table(table[["metric", "value", "low", "high", "n"]]))
    if ripples is not None:
        print("; ".join(f"{outcome} {n}" for outcome, n in ripples.outcomes().items()))
        print(as_table(ripples.summary()[["family", "metric", "value", "low", "high", "n", "n_tests"]]))


def _references(options: argparse.Namespace) -> dict[str, list[str]] | None:
    """The texts of --references: a JSON object, new object -> list of texts."""
    if options.references is None:
        return None
    import json

    try:
        found = json.loads(Path(options.references).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"references: expected a JSON file, found {options.references} ({reason})"
        ) from error
    texts = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(own, list) and own and all(isinstance(text, str) for text in own) for own in texts):
        raise InputError(f"references: {options.references}: expected an object, new object -> list of texts")
    return dict(found)


def _evaluation_summary(
    options: argparse.Namespace, result: Any, table: pd.DataFrame, ripples: Any
) -> dict[str, Any]:
    """What the report reads: fractions as cells of its table, what has another unit or n as notes."""
    rows = table.to_dict("records")
    cells = {
        row["metric"].lower(): {k: row[k] for k in ("value", "low", "high", "n")}
        for row in rows
        if row["metric"] not in ("GE", "RS")
    }
    notes = [f"n known {result.n_known} of {result.n_total}", *result.notes]
    notes += [
        f"{row['metric']} of the generated texts: {row['value']:.3f}{' bits' if row['metric'] == 'GE' else ''} "
        f"[{row['low']:.3f}, {row['high']:.3f}], n {row['n']}"
        for row in rows
        if row["metric"] in ("GE", "RS")
    ]
    if ripples is not None:
        counted = ", ".join(f"{outcome} {n}" for outcome, n in ripples.outcomes().items())
        notes.append(f"RippleEdits, outcomes of the facts: {counted}")
        notes += [
            f"{'RippleEdits' if row['family'] == 'ripple' else 'RippleEdits, read as SAKE does'}, {row['metric']}: "
            f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}], n {row['n']} facts, {row['n_tests']} tests"
            for row in ripples.summary().to_dict("records")
            if row["n_tests"]
        ]
    return {
        "title": f"{options.editor} on {options.model}",
        "subtitle": f"{result.n_total} edits from {Path(options.data).name}, {MODES[options.mode]}",
        "model": options.model,
        "n": result.n_known,
        "editors": [{"name": options.editor, "label": options.editor, **cells}],
        "notes": notes,
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
    add_editor_options(p)
    p.add_argument(
        "--data",
        required=True,
        help="facts of CounterFact, EasyEdit, zsRE or RippleEdits: a file or a datasets name",
    )
    p.add_argument("--limit", type=count, help="facts to edit (default: all)")
    p.add_argument("--skip-malformed", action="store_true", help="leave malformed records out and say which")
    p.add_argument("--mode", choices=tuple(MODES), default="single", help="how several facts are edited")
    p.add_argument(
        "--families",
        default="probability,argmax",
        help="of metrics: probability, argmax, token, doubt, generation, ripple",
    )
    p.add_argument("--references", help="JSON file, new object -> list of texts, for RS of generation")
    p.add_argument("--out", help="run folder; the same command again goes on")
