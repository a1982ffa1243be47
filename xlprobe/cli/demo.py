"""`xlprobe demo`: the whole study on the embedded languages, small."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.cli.output import as_table, print_json
from xlprobe.cli.options import command, load


def demo(options: argparse.Namespace) -> None:
    """The whole study on the embedded languages at a small setting."""
    import torch

    from xlprobe.recipes.demo import run_demo
    from xlprobe.recipes.page import study_json

    torch.set_num_threads(1)  # the encoder is too small to gain by a second thread
    study = run_demo(load(options), options.out, seed=options.seed, progress=not options.quiet)
    report = Path(options.out) / "report.html"
    if options.json:
        print_json({**study_json(study), "report": str(report)})
        return
    columns = [
        "pair",
        "objective",
        "task",
        "delta_retrieval",
        "delta_score",
        "low",
        "high",
        "gradient_cosine",
    ]
    print(as_table(study.cells[columns]))
    for verdict in study.claims:
        print(f"{verdict['claim']}: {verdict['answer']}")
    print(f"report: {report}")


def add(commands: Any) -> None:
    """Add `demo` to the commands."""
    p = command(commands, "demo", demo, "xlprobe demo --out runs/demo-xl")
    p.add_argument("--out", default="runs/demo-xl", help="run folder (default runs/demo-xl)")
