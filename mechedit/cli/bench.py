"""`mechedit bench`: ratios within one run."""

from __future__ import annotations

import argparse
from typing import Any

from mechedit.cli.options import Parser, command, count
from mechedit.cli.output import print_json


def bench_nlka(options: argparse.Namespace) -> None:
    """Times certified attribution against full enumeration and its floor."""
    from experiments.benchmarks.nlka import bench_nlka as bench

    result = bench(shape=options.shape, top_k=options.top_k, exhaustive=not options.no_exhaustive)
    if options.json:
        print_json(result)
        return
    for key, value in result.items():
        print(f"{key}: {value}")


def bench_edit(options: argparse.Namespace) -> None:
    """Times ROME's search for v* against the plain loop over full forward passes."""
    from experiments.benchmarks.edit import bench_edit as bench

    result = bench(shape=options.shape, facts=options.facts)
    if options.json:
        print_json(result)
        return
    for key, value in result.items():
        print(f"{key}: {value}")


def add(commands: Any) -> None:
    """`bench nlka | edit`."""
    bench = commands.add_parser("bench", help="Ratios within one run: nlka, edit.").add_subparsers(
        required=True, metavar="COMMAND", parser_class=Parser
    )
    p = command(bench, "nlka", bench_nlka, "mechedit bench nlka --json", model=False)
    p.add_argument("--shape", choices=("gpt2-small", "gpt2-medium", "gpt2-xl"), default="gpt2-small")
    p.add_argument("--top-k", type=count, default=300, help="neurons of each kind (default 300)")
    p.add_argument(
        "--no-exhaustive", action="store_true", help="leave out the enumeration, which takes minutes"
    )
    p = command(bench, "edit", bench_edit, "mechedit bench edit --json", model=False)
    p.add_argument("--shape", choices=("gpt2-small", "gpt2-medium", "gpt2-xl"), default="gpt2-small")
    p.add_argument("--facts", type=count, default=32, help="facts in one batch (default 32)")
