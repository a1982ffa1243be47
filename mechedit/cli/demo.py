"""`mechedit demo`: the main study, on the embedded world or on what a model knows of the real one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.cli.options import count
from experiments.cli.output import print_json
from mechedit.cli.options import PLACE, command
from mechedit.recipes.configurations import DemoConfig


def demo(options: argparse.Namespace) -> None:
    """The main study: on the embedded world, or with another model on the facts of the atlas that it knows."""
    config = DemoConfig(**{name: getattr(options, name) for name in (*PLACE, "limit", "selection", "seed")})
    from mechedit.recipes.configured_model import load
    from mechedit.recipes.demo import run_demo

    summary = run_demo(load(config), config, options.out, progress=not options.quiet)
    report = Path(options.out) / "report.html"
    if options.json:
        rows = {row["name"]: _flat(row) for row in summary["editors"]}
        print_json({**rows, "window": summary["window"], "n": summary["n"], "report": str(report)})
        return
    first, last = summary["window"]
    print(f"{summary['subtitle']}; steered: attention outputs of layers {first} to {last}")
    print(f"{'editor':<34}{'Acc':>7}{'Gen':>7}{'Spec':>7}{'mean':>7}   95 % interval")
    for row in summary["editors"]:
        cells = "".join(f"{row[key]['value']:>7.2f}" for key in ("acc", "gen", "spec", "mean"))
        print(f"{row['label']:<34}{cells}   {row['mean']['low']:.2f} to {row['mean']['high']:.2f}")
    print(f"report: {report}")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """An editor's row for JSON: bare values, with intervals beside them and the n of Acc."""
    cells = {key: cell for key, cell in row.items() if isinstance(cell, dict)}
    values = {key: cell["value"] for key, cell in cells.items()}
    return {
        **values,
        "n": cells["acc"]["n"],
        "intervals": {key: [c["low"], c["high"]] for key, c in cells.items()},
    }


def add(commands: Any) -> None:
    """`demo`."""
    p = command(commands, "demo", demo, "mechedit demo --out runs/demo")
    p.add_argument("--out", default="runs/demo", help="run folder (default runs/demo)")
    p.add_argument("--limit", type=count, default=40, help="facts to edit (default 40)")
    p.add_argument(
        "--selection", type=count, default=20, help="other facts that choose window and gate (default 20)"
    )
