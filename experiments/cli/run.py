"""The command `run`: the experiment of a recipe, a grid of them, or a run done again."""

from __future__ import annotations

import argparse
import pkgutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.cli.options import count
from experiments.cli.output import print_json
from reports.errors import InputError

__all__ = ["add_arguments", "run"]

RAY_ALONE = ("workers", "address", "gpus_per_worker")


def run(options: argparse.Namespace, program: str) -> int:
    """Runs the experiment of a recipe, goes on with it, says what it would do, or does a run again.

    Args:
        options: What `add_arguments` has read.
        program: "module:function" that gives the experiments.

    Returns:
        The exit status.
    """
    recipe, settings = _split(options.words)
    _check_engine(options)
    if (recipe is None) == (options.again is None):
        raise InputError("recipe: expected one recipe, or a run folder behind --again")
    if options.again is not None:
        if settings or options.seed is not None or options.dry_run:
            raise InputError("again: the run is done as it was; leave settings, --seed and --dry-run out")
        return _again(options, program, _engine(options, program))
    assert recipe is not None
    from experiments.recipe import describe, read

    settings += [] if options.seed is None else [f"seed={options.seed}"]
    cells = read(recipe, pkgutil.resolve_name(program)(), settings=settings)
    results = []
    if options.dry_run:
        results = list(describe(cells))
        if not options.json:
            for cell, plan in zip(cells, results, strict=True):
                print("\n".join(_lines(cell.folder, cell.to_toml(), plan)))
    else:
        from experiments.runner import run_cells

        engine = _engine(options, program)
        out = Path(options.out or f"runs/{Path(recipe).stem}")
        for result in run_cells(cells, out, engine=engine, progress=not options.quiet):
            results.append(result)
            if not options.json:
                print(", ".join(f"{key} {value}" for key, value in result.items()))
    if options.json:
        print_json({"cells": results})
    return 0


def _check_engine(options: argparse.Namespace) -> None:
    """Refuses options that the engine which --engine names does not take."""
    given = [name for name in RAY_ALONE if getattr(options, name) is not None]
    if given and options.engine != "ray":
        raise InputError(
            f"{given[0].replace('_', '-')}: --engine local takes none: it is one process; say --engine ray too"
        )


def _engine(options: argparse.Namespace, program: str) -> Any:
    """What --engine names, with the options that only Ray takes."""
    from experiments.engine import Ray, local

    if options.engine != "ray":
        return local
    given = {name: getattr(options, name) for name in RAY_ALONE}
    return Ray(program, **{name: value for name, value in given.items() if value is not None})


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """The recipe, which is the first word that sets no key, and the settings."""
    recipe = next((word for word in words if "=" not in word), None)
    return recipe, [word for word in words if word != recipe]


def _lines(folder: str, toml: str, plan: dict[str, Any]) -> list[str]:
    size = plan["weights_bytes"]
    memory = (
        "unknown: the model is not on this machine"
        if size is None
        else f"{size / 1e6:,.0f} MB, and work space"
    )
    return [
        *([f"# {folder}"] if folder else []),
        toml.rstrip(),
        f"# cases: {plan['cases']}, edits: {plan['edits']}",
        f"# forward passes of scoring, one sequence each: {plan['sequences']}",
        f"# memory of the weights: {memory}",
        *(f"# {note}" for note in plan["notes"]),
        "",
    ]


def _again(options: argparse.Namespace, program: str, engine: Any) -> int:
    from experiments.runner import run_again

    out, experiments = Path(options.out) if options.out else None, pkgutil.resolve_name(program)()
    comparison = run_again(Path(options.again), out, experiments, engine=engine, progress=not options.quiet)
    status = 0 if comparison.reproduced else 1
    if options.json:
        print_json({**asdict(comparison), "reproduced": comparison.reproduced})
        return status
    print(f"{comparison.identical} of {comparison.n} cases are equal in every bit")
    print(f"largest difference {comparison.largest:.3g}, tolerance {comparison.tolerance:.3g}")
    for name in ("settings", "differing", "missing", "changed"):
        for text in getattr(comparison, name):
            print(f"{name}: {text}")
    print("reproduced" if comparison.reproduced else "not reproduced")
    return status


def add_arguments(p: argparse.ArgumentParser) -> None:
    """RECIPE.toml KEY=VALUE, --out, --dry-run, --again, --engine and what it takes."""
    p.set_defaults(seed=None)  # the recipe's, unless it is given
    p.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE.toml KEY=VALUE",
        help="TOML file whose key `experiment` says what is run, and keys of it on top, as limit=20",
    )
    p.add_argument("--out", help="run folder (default runs/ and the recipe's name); the same command goes on")
    p.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and what it will do"
    )
    p.add_argument("--again", metavar="RUN", help="do the run of this folder again and compare every case")
    p.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="who makes the cases: this process, or the workers of a Ray cluster (extra ray); the results are the same",
    )
    p.add_argument("--workers", type=count, help="of --engine ray: processes, a model each (default 2)")
    p.add_argument(
        "--address",
        help="of --engine ray: auto or HOST:PORT of a running cluster (default: one on this machine)",
    )
    p.add_argument(
        "--gpus-per-worker",
        type=float,
        help="of --engine ray: 0.5 puts two on one (default 1 where there are GPUs)",
    )
