"""`mechedit evaluate`: one editor on the facts of a file."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from experiments.cli.options import count
from experiments.cli.output import as_table, print_json
from experiments.config import BEGUN
from mechedit.cli.editor import add_editor_options
from mechedit.cli.options import add_space, command
from mechedit.recipes.configurations import MODES, EvaluationConfig


def evaluate(options: argparse.Namespace) -> None:
    """One editor on the facts of a file."""
    given = {
        field.name: getattr(options, field.name) for field in fields(EvaluationConfig) if field.name != BEGUN
    }
    config = EvaluationConfig(**given | {"families": tuple(options.families.split(","))})
    from mechedit.recipes.evaluate import run_evaluation

    result, ripples = run_evaluation(config, options.out, progress=not options.quiet)
    _show(options, result, ripples)


def _show(options: argparse.Namespace, result: Any, ripples: Any) -> None:
    from mechedit.recipes.one_edit import changed_layers
    from reports.readable import metric_words

    table, name = result.summary(), result.editor
    if options.json:
        scores = {
            row["metric"]: {k: row[k] for k in ("value", "low", "high", "n")}
            for row in table.to_dict("records")
        }
        known = {"n_known": result.n_known, "n_total": result.n_total, "mode": result.mode}
        tests = {}
        if ripples is not None:
            tests = {"ripple": {"outcomes": ripples.outcomes(), "axes": ripples.summary().to_dict("records")}}
        where = {} if options.out is None else {"report": str(Path(options.out) / "report.html")}
        about = {"editor": name, "model": result.model, **known, "notes": list(result.notes)}
        about |= {"changed": changed_layers(result.provenance.get("settings", {})), **where}
        print_json({**about, "scores": scores, **tests})
        return
    print(f"{name} on {result.model}, {result.mode}: n known {result.n_known} of {result.n_total}")
    print(f"changed by each edit: {changed_layers(result.provenance.get('settings', {}))}")
    for note in result.notes:
        print(note)
    if result.n_known:
        measured, missing = table[table["n"] > 0], table.loc[table["n"] == 0, "metric"]
        print(as_table(measured[["metric", "value", "low", "high", "n"]]))
        if len(missing):
            print(f"not measured, as no fact has the prompts: {', '.join(missing)}")
        print("\n".join(f"{names}: {text}" for names, text in metric_words(set(measured["metric"])).items()))
    if ripples is not None:
        print("; ".join(f"{outcome} {n}" for outcome, n in ripples.outcomes().items()))
        print(as_table(ripples.summary()[["family", "metric", "value", "low", "high", "n", "n_tests"]]))
    if options.out is not None:
        print(f"report: {Path(options.out) / 'report.html'}")


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
    p.add_argument(
        "--limit",
        type=count,
        help="facts to edit (default: all); the same command with a larger one extends a finished run",
    )
    add_space(p)
    p.add_argument("--skip-malformed", action="store_true", help="leave malformed records out and say which")
    p.add_argument("--mode", choices=tuple(MODES), default="single", help="how several facts are edited")
    p.add_argument(
        "--families",
        default="probability,argmax,doubt,subject",
        help="of metrics: probability, argmax, doubt, subject (the default), token, generation, ripple",
    )
    p.add_argument("--references", help="JSON file, new object -> list of texts, for RS of generation")
    p.add_argument(
        "--text", help="running text for KL and Top1: a file, a folder, a datasets name (default: own)"
    )
    p.add_argument(
        "--out", help="run folder; the same command again goes on, with a larger --limit it extends"
    )
