"""`xlprobe study`: the transfer study of a recipe."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from experiments.cli.options import configured
from experiments.cli.output import as_table, print_json
from reports.errors import InputError
from xlprobe.cli.options import command, names

OPTIONS = (
    "encoder",
    "device",
    "dtype",
    "attention",
    "seed",
    "trial",
    "data",
    "pairs",
    "objectives",
    "tasks",
    "train",
)


def study(options: argparse.Namespace) -> None:
    """Runs pair × objective × task × seed, or goes on with it; answers the paper's claims."""
    from xlprobe.recipes.page import study_json
    from xlprobe.recipes.study import run_study

    result, trial, report = run_study(_recipe(options), options.out, progress=not options.quiet)
    if options.json:
        tested = {} if trial is None else {"trial": trial.to_dict("records")}
        print_json({**study_json(result), **tested, "report": str(report)})
        return
    print(
        as_table(result.cells[["pair", "objective", "task", "delta_score", "low", "high", "delta_retrieval"]])
    )
    print(f"\n{as_table(result.predictors)}\n")
    for verdict in result.claims:
        print(f"{verdict['claim']}: {verdict['answer']} ({verdict['evidence']})")
    if trial is not None:
        print(
            f"\nadvice on held-out pairs\n{as_table(trial[['pair', 'task', 'way', 'delta_score', 'low', 'high']])}"
        )
    print(f"report: {report}")


def _recipe(options: argparse.Namespace) -> Any:
    """The recipe's configuration, with what the command line says on top."""
    from experiments import config
    from xlprobe.recipes.registry import experiments
    from xlprobe.recipes.study import StudyRecipe

    kind: Any = StudyRecipe
    if options.recipe:
        known, name = experiments(), config.read_table(options.recipe).get("experiment")
        kind = known[name].config if isinstance(name, str) and name in known else StudyRecipe
    keys = {key.name for key in fields(kind)}
    names = [name for name in OPTIONS if name in keys]
    if options.data is not None and "data" not in names:
        raise InputError('data: the embedded languages take none; a recipe of experiment = "real_text" does')
    return configured(options, kind, names, experiment=kind.experiment)


def add(commands: Any) -> None:
    """Add `study` to the commands."""
    p = command(commands, "study", study, "xlprobe study --recipe transfer.toml --out runs/transfer")
    p.set_defaults(**dict.fromkeys(OPTIONS))  # the recipe's, unless they are given
    p.add_argument("--recipe", help="TOML file (default: all pairs, objectives and tasks, three seeds)")
    p.add_argument(
        "--pairs", type=names, help="of the recipe's material, as en-de,ja-kk (default: the recipe's)"
    )
    p.add_argument("--objectives", type=names, help="as sentence,token (default: the recipe's)")
    p.add_argument("--tasks", type=names, help="as pos,topic (default: the recipe's)")
    p.add_argument(
        "--train", type=names, help="all, head or all,head: what fine-tuning trains (default: the recipe's)"
    )
    p.add_argument("--data", help="folder of a recipe on files (default: the recipe's, then MECHEDIT_DATA)")
    p.add_argument(
        "--trial",
        action="store_true",
        default=None,
        help="also test the advice on held-out pairs, in OUT-trial",
    )
    p.add_argument("--out", default="runs/transfer", help="run folder (default runs/transfer)")
