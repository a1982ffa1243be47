"""The command `report` of both command lines: a page of one run, an index over several, or two side by side."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from experiments.cli.output import print_json
from reports.errors import InputError

__all__ = ["add_arguments", "report"]

_FORMATS = ("html", "md", "pdf")  # of `reports.formats`, which would import matplotlib for a --help


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN [RUN ...], -o, --format, --compare."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder; a folder of runs or a pattern gives an index as well",
    )
    parser.add_argument(
        "-o",
        "--out",
        help="page to write (default: report.FORMAT in the run folder, or in the folder of the runs)",
    )
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        help="html, md with pictures beside it, or pdf (default: by --out, else html)",
    )
    parser.add_argument("--compare", action="store_true", help="two runs side by side, on one page")


def report(options: argparse.Namespace, program: str) -> None:
    """Writes the report that `options` describes and prints its path; an incomplete run is named on standard error."""
    made = make(options)
    if options.json:
        print_json(made)
        return
    print(made["report"])
    for run in made.get("runs", ()):
        if run["state"] != "complete":
            print(f"{program}: {run['name']}: {run['state']}: {run['reason']}", file=sys.stderr)


def make(options: argparse.Namespace) -> dict[str, Any]:
    """Writes the report that `options` describes.

    Returns:
        {"report": path}, with "runs" (name, state, reason, page) where it is an index.

    Raises:
        InputError: The runs are none, the suffix of --out is not the format's, or --compare has another number of runs
            than two; as `reports.batch`, `reports.compare` and `reports.formats` otherwise.
    """
    from reports import batch, compare, formats, overview

    kind = _format(options)
    out = None if options.out is None else Path(options.out)
    runs = [Path(run) for run in options.runs]
    if options.compare:
        if len(runs) != 2:
            raise InputError(f"runs: expected two runs to compare, found {len(runs)}")
        beside = Path(os.path.commonpath([run.resolve().parent for run in runs]))
        return {"report": str(compare.build(runs[0], runs[1], out or beside / f"compare.{kind}"))}
    if len(runs) == 1 and runs[0].is_dir() and overview.is_run(runs[0]):
        formats.check(kind)
        return {"report": str(formats.save(overview.render(runs[0]), out or runs[0] / f"report.{kind}"))}
    made = batch.build(runs, out, format=kind, progress=not options.quiet)
    keys = ("name", "state", "reason", "page")
    return {"report": str(made.index), "runs": [{k: getattr(e, k) for k in keys} for e in made.entries]}


def _format(options: argparse.Namespace) -> str:
    """--format, else the suffix of --out, else html."""
    suffix = Path(options.out).suffix.lower().removeprefix(".") if options.out else ""
    kind: str = options.format or (suffix if options.out else "html")
    if kind not in _FORMATS or (options.out and suffix != kind):
        wanted = f".{options.format}" if options.format else " or ".join(f".{name}" for name in _FORMATS)
        raise InputError(f"out: expected a name that ends in {wanted}, found {options.out}")
    return kind
