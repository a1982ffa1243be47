"""`xlprobe bench`: ratios within one run."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.options import Parser, count
from experiments.cli.output import print_json
from xlprobe.cli.options import command


def bench_gradients(options: argparse.Namespace) -> None:
    """Times the gradient probe against its two backward passes and against plain lists."""
    from tests.benchmarks.gradients import bench_gradients as bench

    result = bench(shape=options.shape, batches=options.batches)
    if options.json:
        print_json(result)
        return
    for key, value in result.items():
        print(f"{key}: {value}")


def add(commands: Any) -> None:
    """`bench gradients`."""
    bench = commands.add_parser("bench", help="Ratios within one run: gradients.").add_subparsers(
        required=True, metavar="COMMAND", parser_class=Parser
    )
    p = command(bench, "gradients", bench_gradients, "xlprobe bench gradients --json", encoder=False)
    p.add_argument("--shape", choices=("xlm-roberta-base", "small"), default="xlm-roberta-base")
    p.add_argument("--batches", type=count, default=4, help="of each loss (default 4)")
