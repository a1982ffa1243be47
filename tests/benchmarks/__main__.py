"""`python -m tests.benchmarks NAME`: as lines or as JSON; `--model` takes real weights instead of a random shape."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from experiments.cli.options import Parser, count, subcommand
from experiments.cli.output import print_json
from experiments.cli.program import execute
from reports.errors import InputError
from tests.benchmarks.choose import bench_choose
from tests.benchmarks.edit import bench_edit
from tests.benchmarks.gpu import bench_gpu
from tests.benchmarks.gpu_table import page
from tests.benchmarks.gradients import bench_gradients
from tests.benchmarks.many import bench_many
from tests.benchmarks.measure import bench_measure
from tests.benchmarks.mega import bench_mega
from tests.benchmarks.nlka import bench_nlka
from tests.benchmarks.nlka_curves import bench_curves
from tests.benchmarks.report import bench_report
from tests.benchmarks.runs import bench_runs
from tests.benchmarks.shapes import GPT2_SHAPES, LLAMA_SHAPES

PROGRAM = "python -m tests.benchmarks"
PAGE = Path("docs/benchmarks.md")


def nlka(options: argparse.Namespace) -> None:
    """Times certified attribution against full enumeration, a forward pass and its floors."""
    if options.curves:
        _print(options, bench_curves(options.curves, repeats=options.repeats))
        return
    result = bench_nlka(
        **_which(options),
        top_k=options.top_k,
        sign=options.sign,
        repeats=options.repeats,
        exhaustive=not options.no_exhaustive,
        dtype=options.dtype,
    )
    _print(options, result)


def many(options: argparse.Namespace) -> None:
    """Times attribute_many against one by one and against its floor."""
    result = bench_many(
        **_which(options),
        top_k=options.top_k,
        prompts=options.prompts,
        repeats=options.repeats,
        dtype=options.dtype,
    )
    _print(options, result)


def edit(options: argparse.Namespace) -> None:
    """Times ROME's search for v* against the plain loop over full forward passes."""
    _print(options, bench_edit(**_which(options), facts=options.facts))


def mega(options: argparse.Namespace) -> None:
    """Times a steered model against the plain one, and the fit of a map against POT's."""
    _print(options, bench_mega(**_which(options), fit=not options.no_fit))


def choose(options: argparse.Namespace) -> None:
    """Times MEGA's selection and fit against the forward passes that they cannot do without."""
    _print(options, bench_choose(model=options.model, facts=options.facts))


def measure(options: argparse.Namespace) -> None:
    """Times evaluate by editor, and anatomy, a fact, against the forward passes that they cannot do without."""
    _print(options, bench_measure(model=options.model, facts=options.facts))


def gradients(options: argparse.Namespace) -> None:
    """Times the gradient probe against its two backward passes and against plain lists."""
    _print(options, bench_gradients(shape=options.shape, model=options.model, batches=options.batches))


def gpu(options: argparse.Namespace) -> None:
    """Times attribution, ROME and MEGA on one device, and writes what docs/benchmarks.md's table is made of."""
    result = bench_gpu(device=options.device, tiny=options.tiny)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _print(options, result)


def table(options: argparse.Namespace) -> None:
    """Puts the table of a GPU's results, or that there are none, into docs/benchmarks.md."""
    results = json.loads(options.results.read_text(encoding="utf-8")) if options.results else None
    options.page.write_text(page(options.page.read_text(encoding="utf-8"), results), encoding="utf-8")


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


def _which(options: argparse.Namespace) -> dict[str, Any]:
    return {"shape": options.shape, "model": options.model, "device": options.device}


def _print(options: argparse.Namespace, result: dict[str, Any]) -> None:
    if options.json:
        print_json(result)
        return
    for key, value in result.items():
        print(f"{key}: {value}")


def _decoder(parser: Any) -> None:
    """What a benchmark of a decoder measures."""
    parser.add_argument("--shape", choices=(*GPT2_SHAPES, *LLAMA_SHAPES), default="gpt2-small")
    parser.add_argument(
        "--model", default="", help="real weights instead: an embedded model, a folder or an id"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description="Ratios within one run; seconds and memory.")
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK", parser_class=Parser)
    p = subcommand(commands, "nlka", nlka, f"{PROGRAM} nlka --json")
    _decoder(p)
    p.add_argument("--top-k", type=count, default=300, help="neurons of each kind (default 300)")
    p.add_argument("--sign", choices=("promote", "suppress"), default="promote")
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
    p = subcommand(commands, "many", many, f"{PROGRAM} many --model smollm2 --json")
    _decoder(p)
    p.add_argument("--top-k", type=count, default=30, help="neurons of each kind (default 30)")
    p.add_argument("--prompts", type=count, default=16, help="prompts together (default 16)")
    p.add_argument("--repeats", type=count, default=3, help="rounds that the medians are over (default 3)")
    p = subcommand(commands, "edit", edit, f"{PROGRAM} edit --json")
    _decoder(p)
    p.add_argument("--facts", type=count, default=32, help="facts in one batch (default 32)")
    p = subcommand(commands, "mega", mega, f"{PROGRAM} mega --json")
    _decoder(p)
    p.add_argument("--no-fit", action="store_true", help="leave out POT's fit, which takes minutes")
    for name, function, facts in (("choose", choose, 20), ("measure", measure, 4)):
        p = subcommand(commands, name, function, f"{PROGRAM} {name} --model smollm2 --json")
        p.add_argument("--model", default="factworld", help="an embedded model, a folder or an id")
        p.add_argument("--facts", type=count, default=facts, help=f"facts (default {facts})")
    p = subcommand(commands, "gradients", gradients, f"{PROGRAM} gradients --json")
    p.add_argument("--shape", choices=("xlm-roberta-base", "small"), default="xlm-roberta-base")
    p.add_argument("--model", default="", help="real weights instead: langworld, a folder or an id")
    p.add_argument("--batches", type=count, default=4, help="of each loss (default 4)")
    p = subcommand(commands, "gpu", gpu, f"{PROGRAM} gpu --device cpu --tiny --json")
    p.add_argument("--device", default="cuda")
    p.add_argument(
        "--tiny", action="store_true", help="small random shapes: the same code in a minute of a CPU"
    )
    p.add_argument("--out", type=Path, metavar="FILE", help="the results as JSON")
    p = subcommand(commands, "table", table, f"{PROGRAM} table --results gpu.json")
    p.add_argument(
        "--results", type=Path, metavar="FILE", help="of gpu --out (left out: that none were measured)"
    )
    p.add_argument("--page", type=Path, default=PAGE, help=f"where the table is (default {PAGE})")
    p = subcommand(commands, "runs", runs, f"{PROGRAM} runs --json")
    p.add_argument("--cases", type=count, default=10_000, help="cases (default 10000)")
    p = subcommand(commands, "report", report, f"{PROGRAM} report --json")
    p.add_argument("--runs", type=count, default=50, help="run folders of the batch (default 50)")
    return parser


if __name__ == "__main__":
    sys.exit(execute(_parser(), None))
