"""`mechedit bench`: ratios within one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.cli.options import Parser, count
from experiments.cli.output import print_json
from mechedit.cli.options import command


def bench_nlka(options: argparse.Namespace) -> None:
    """Times certified attribution against full enumeration and its floor."""
    if options.curves:
        from tests.benchmarks.nlka_curves import bench_curves

        _print(options, bench_curves(options.curves, repeats=options.repeats))
        return
    from tests.benchmarks.nlka import bench_nlka as bench

    exhaustive = not options.no_exhaustive
    result = bench(shape=options.shape, top_k=options.top_k, repeats=options.repeats, exhaustive=exhaustive)
    _print(options, result)


def bench_mega(options: argparse.Namespace) -> None:
    """Times a steered model against the plain one, and the fit of a map against POT's."""
    from tests.benchmarks.mega import bench_mega as bench

    result = bench(fit=not options.no_fit)
    _print(options, result)


def bench_edit(options: argparse.Namespace) -> None:
    """Times ROME's search for v* against the plain loop over full forward passes."""
    from tests.benchmarks.edit import bench_edit as bench

    result = bench(shape=options.shape, facts=options.facts)
    _print(options, result)


def bench_runs(options: argparse.Namespace) -> None:
    """Times ten thousand cases that do nothing: what a run folder costs, and what it keeps in memory."""
    from tests.benchmarks.runs import bench_runs as bench

    _print(options, bench(cases=options.cases))


def bench_report(options: argparse.Namespace) -> None:
    """Times the drawing of a large circuit and the pages and index of many runs, and measures their memory."""
    from reports.errors import InputError
    from tests.benchmarks.report import bench_report as bench

    if options.runs < 2:
        raise InputError(
            f"runs: expected at least 2, to see what a page leaves in memory, found {options.runs}"
        )
    _print(options, bench(runs=options.runs))


def _print(options: argparse.Namespace, result: dict[str, Any]) -> None:
    if options.json:
        print_json(result)
        return
    for key, value in result.items():
        print(f"{key}: {value}")


def add(commands: Any) -> None:
    """`bench nlka | edit | mega | runs | report`."""
    bench = commands.add_parser(
        "bench", help="Ratios within one run: nlka, edit, mega; seconds and memory: runs, report."
    ).add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    p = command(bench, "nlka", bench_nlka, "mechedit bench nlka --json", model=False)
    p.add_argument("--shape", choices=("gpt2-small", "gpt2-medium", "gpt2-xl"), default="gpt2-small")
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
    p = command(bench, "mega", bench_mega, "mechedit bench mega --json", model=False)
    p.add_argument("--no-fit", action="store_true", help="leave out POT's fit, which takes minutes")
    p = command(bench, "edit", bench_edit, "mechedit bench edit --json", model=False)
    p.add_argument("--shape", choices=("gpt2-small", "gpt2-medium", "gpt2-xl"), default="gpt2-small")
    p.add_argument("--facts", type=count, default=32, help="facts in one batch (default 32)")
    p = command(bench, "runs", bench_runs, "mechedit bench runs --json", model=False)
    p.add_argument("--cases", type=count, default=10_000, help="cases (default 10000)")
    p = command(bench, "report", bench_report, "mechedit bench report --json", model=False)
    p.add_argument("--runs", type=count, default=50, help="run folders of the batch (default 50)")
