"""`xlprobe study`: the transfer study of a recipe."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from reports.errors import InputError
from xlprobe.cli.options import as_table, command, load, print_json

if TYPE_CHECKING:
    from xlprobe.real_text import Recipe
    from xlprobe.world_lab import WorldLab


def study(options: argparse.Namespace) -> None:
    """Runs pair × objective × task × seed, or goes on with it; answers the paper's claims."""
    from experiments import config
    from xlprobe.conflict import AGGREGATORS, weights_of
    from xlprobe.demo import study_json, write_page
    from xlprobe.real_text import Recipe
    from xlprobe.transfer import transfer_study
    from xlprobe.trial import advice_trial

    recipe = config.load(options.recipe, Recipe) if options.recipe else Recipe()
    if options.trial:
        weights_of(AGGREGATORS[0])  # an extra that is missing is said before hours of work
    laboratory, more = material(recipe, options)
    plan = recipe.study
    found = transfer_study(laboratory, plan, options.out, progress=not options.quiet)
    title = "What alignment does to transfer"
    report = write_page(found, options.out, model=repr(laboratory.encoder), title=title, **more())
    trial = None
    if options.trial:
        where = f"{options.out}-trial"
        trial = advice_trial(laboratory, found, where, seeds=plan.seeds, progress=not options.quiet)
    if options.json:
        tested = {} if trial is None else {"trial": trial.to_dict("records")}
        print_json({**study_json(found), **tested, "report": str(report)})
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


def material(recipe: Recipe, options: argparse.Namespace) -> tuple[WorldLab, Any]:
    """The recipe's laboratory, and a function whose result is what `write_page` is to say of it."""
    from xlprobe.data_folder import DataFolder
    from xlprobe.file_lab import FileLab
    from xlprobe.real_text import caution, data_path, encoder_folder, text_report
    from xlprobe.world_lab import WorldLab

    options.encoder = options.encoder or recipe.encoder or None
    if recipe.laboratory == "langworld":
        if options.data or recipe.data:
            raise InputError(
                'data: the embedded languages take none; a recipe with laboratory = "files" does'
            )
        options.encoder = options.encoder or "langworld"
        return WorldLab(load(options), seed=options.seed), dict
    data = DataFolder(data_path(options.data or recipe.data), held_out=recipe.sizes.held_out)
    own = options.encoder is None
    if own:
        options.encoder = encoder_folder(data, options.out, recipe.pretrain, progress=not options.quiet)
    encoder = load(options)

    def said() -> dict[str, Any]:
        return {
            "notes": text_report(data, options.out, pretrained=own),
            "caution": caution(encoder),
        }

    return FileLab(encoder, data, recipe.sizes, seed=options.seed), said


def add(commands: Any) -> None:
    """`study`."""
    p = command(commands, "study", study, "xlprobe study --recipe transfer.toml --out runs/transfer")
    p.set_defaults(encoder=None)  # the recipe's, if it names one
    p.add_argument("--recipe", help="TOML file (default: all pairs, objectives and tasks, three seeds)")
    p.add_argument("--data", help="folder of a recipe on files (default: the recipe's, then MECHEDIT_DATA)")
    p.add_argument(
        "--trial", action="store_true", help="also test the advice on held-out pairs, in OUT-trial"
    )
    p.add_argument("--out", default="runs/transfer", help="run folder (default runs/transfer)")
