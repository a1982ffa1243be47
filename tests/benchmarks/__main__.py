"""`python -m tests.benchmarks nlka | edit | mega | choose | gradients | runs | report`: as lines or as JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from experiments.cli.options import Parser, count, subcommand
from experiments.cli.output import print_json
from experiments.cli.program import execute
from reports.errors import InputError
from tests.benchmarks.choose import bench_choose
from tests.benchmarks.edit import bench_edit
from tests.benchmarks.gradients import bench_gradients
from tests.benchmarks.mega import bench_mega
from tests.benchmarks.nlka import bench_nlka
from tests.benchmarks.nlka_curves import bench_curves
from tests.benchmarks.report import bench_report
from tests.benchmarks.runs import bench_runs
from tests.benchmarks.shapes import GPT2_SHAPES

PROGRAM = "python -m tests.benchmarks"


def nlka(options: argparse.Namespace) -> None:
    """Times certified attribution against full enumeration and its floor."""
    if options.curves:
        _print(options, bench_curves(options.curves, repeats=options.repeats))
        return
    exhaustive = not options.no_exhaustive
    _print(
        options,
        bench_nlka(shape=options.shape, top_k=options.top_k, repeats=options.repeats, exhaustive=exhaustive),
    )


def edit(options: argparse.Namespace) -> None:
    """Times ROME's search for v* against the plain loop over full forward passes."""
    _print(options, bench_edit(shape=options.shape, facts=options.facts))


def mega(options: argparse.Namespace) -> None:
    """Times a steered model against the plain one, and the fit of a map against POT's."""
    _print(options, bench_mega(fit=not options.no_fit))


def choose(options: argparse.Namespace) -> None:
    """Times MEGA's selection and fit against the forward passes that they cannot do without."""
    _print(options, bench_choose(model=options.model, facts=options.facts))


def gradients(options: argparse.Namespace) -> None:
    """Times the gradient probe against its two backward passes and against plain lists."""
    _print(options, bench_gradients(shape=options.shape, batches=options.batches))


def runs(options: argparse.Namespace) -> None:
    """Times ten thousand cases that do nothing: what a run folder costs, and what it keeps in memory."""
    _print(options, bench_runs(cases=options.cases))


def report(options: argparse.Namespace) -> None:
    """Times the drawing of a large circuit and the pages and index of many runs, and measures their memory."""
    if options.runs < 2:
        raise InputError(
            f"runs: expected at least 2, to see what a page leaves in memory, found {options.runs}"
        )
    _print(options, bench_report(runs=options.runs))


def _print(options: argparse.Namespace, result: dict[str, Any]) -> None:
    if options.json:
        print_json(result)
        return
    for key, value in result.items():
        print(f"{key}: {value}")


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description="Ratios within one run; seconds and memory.")
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK", parser_class=Parser)
    p = subcommand(commands, "nlka", nlka, f"{PROGRAM} nlka --json")
    p.add_argument("--shape", choices=tuple(GPT2_SHAPES), default="gpt2-small")
    p.add_argument("--top-k", type=count, default=300, help="neurons of each kind (default 300)")
    p.add_argument(
        "--no-exhaustive", action="store_true", help="leave out the enumeration, which takes minutes"
    )
    p.add_argument("--repeats", type=count, default=5, help="rounds that the medians are over (default 5)")
    p.add_argument(
        "--curves",
        type=Path,
        metavar="DIR",
        help="instead: cost against k, prompt length and depth on GPT-2-small's shape, as JSON and SVG into DIR",
    )
    p = subcommand(commands, "edit", edit, f"{PROGRAM} edit --json")
    p.add_argument("--shape", choices=tuple(GPT2_SHAPES), default="gpt2-small")
    p.add_argument("--facts", type=count, default=32, help="facts in one batch (default 32)")
    p = subcommand(commands, "mega", mega, f"{PROGRAM} mega --json")
    p.add_argument("--no-fit", action="store_true", help="leave out POT's fit, which takes minutes")
    p = subcommand(commands, "choose", choose, f"{PROGRAM} choose --model smollm2 --json")
    p.add_argument("--model", default="factworld", help="an embedded model, a folder or an id")
    p.add_argument("--facts", type=count, default=20, help="facts to choose by (default 20)")
    p = subcommand(commands, "gradients", gradients, f"{PROGRAM} gradients --json")
    p.add_argument("--shape", choices=("xlm-roberta-base", "small"), default="xlm-roberta-base")
    p.add_argument("--batches", type=count, default=4, help="of each loss (default 4)")
    p = subcommand(commands, "runs", runs, f"{PROGRAM} runs --json")
    p.add_argument("--cases", type=count, default=10_000, help="cases (default 10000)")
    p = subcommand(commands, "report", report, f"{PROGRAM} report --json")
    p.add_argument("--runs", type=count, default=50, help="run folders of the batch (default 50)")
    return parser


if __name__ == "__main__":
    sys.exit(execute(_parser(), None))
