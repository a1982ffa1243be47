"""`xlprobe study`: the transfer study of a recipe."""

from __future__ import annotations

import argparse
from typing import Any

from xlprobe.cli.options import as_table, command, load, print_json


def study(options: argparse.Namespace) -> None:
    """Runs pair × objective × task × seed, or goes on with it; answers the paper's claims."""
    from experiments import config
    from xlprobe.conflict import AGGREGATORS, weights_of
    from xlprobe.demo import study_json, write_page
    from xlprobe.transfer import StudyConfig, transfer_study
    from xlprobe.trial import advice_trial
    from xlprobe.world_lab import WorldLab

    plan = config.load(options.recipe, StudyConfig) if options.recipe else StudyConfig()
    if options.trial:
        weights_of(AGGREGATORS[0])  # an extra that is missing is said before hours of work
    encoder = load(options)
    laboratory = WorldLab(encoder, seed=options.seed)
    found = transfer_study(laboratory, plan, options.out, progress=not options.quiet)
    report = write_page(found, options.out, model=repr(encoder), title="What alignment does to transfer")
    trial = None
    if options.trial:
        where = f"{options.out}-trial"
        trial = advice_trial(laboratory, found, where, seeds=plan.seeds, progress=not options.quiet)
    if options.json:
        more = {} if trial is None else {"trial": trial.to_dict("records")}
        print_json({**study_json(found), **more, "report": str(report)})
        return
    print(
        as_table(found.cells[["pair", "objective", "task", "delta_score", "low", "high", "delta_retrieval"]])
    )
    print(f"\n{as_table(found.predictors)}\n")
    for verdict in found.claims:
        print(f"{verdict['claim']}: {verdict['answer']} ({verdict['evidence']})")
    if trial is not None:
        print(
            f"\nadvice on held-out pairs\n{as_table(trial[['pair', 'task', 'way', 'delta_score', 'low', 'high']])}"
        )
    print(f"report: {report}")


def add(commands: Any) -> None:
    """`study`."""
    p = command(commands, "study", study, "xlprobe study --recipe transfer.toml --out runs/transfer")
    p.add_argument("--recipe", help="TOML file (default: all pairs, objectives and tasks, three seeds)")
    p.add_argument(
        "--trial", action="store_true", help="also test the advice on held-out pairs, in OUT-trial"
    )
    p.add_argument("--out", default="runs/transfer", help="run folder (default runs/transfer)")
