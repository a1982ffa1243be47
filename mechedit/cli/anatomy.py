"""`mechedit anatomy`: attribution after an edit, success against failure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.cli.options import configured, count
from experiments.cli.output import as_table, print_json
from mechedit.cli.options import PLACE, add_editors_set, add_space, command, over_recipe
from mechedit.recipes.configurations import AnatomyConfig


def anatomy(options: argparse.Namespace) -> None:
    """What an edit that succeeds changes inside the model, and one that fails does not."""
    config = _config(options)
    from mechedit.recipes.anatomy import run_anatomy
    from mechedit.recipes.configured_model import load

    study = run_anatomy(load(config), config, options.out, progress=not options.quiet)
    report = Path(options.out) / "report.html"
    if options.json:
        print_json(
            {
                "model": config.model,
                "n": study.n,
                "window": study.window,
                "skipped": study.skipped,
                "outcomes": study.outcomes.to_dict("records"),
                "claims": study.claims.to_dict("records"),
                "agreement": study.agreement.to_dict("records"),
                "overlap": study.overlap.to_dict("records"),
                "report": str(report),
            }
        )
        return
    print(as_table(study.outcomes[["editor", "setting", "n", "n_success", "n_strict", "gained", "lost"]]))
    for row in study.claims.to_dict("records"):
        print(f"\n{row['claim']} ({row['editor']}): {row['answer']}\n  {row['evidence']}")
    first, last = study.window or (None, None)
    print(f"\nwindow: {'none' if first is None else f'layers {first} to {last}'}\nreport: {report}")


def _config(options: argparse.Namespace) -> AnatomyConfig:
    names = (*PLACE, "limit", "selection", "data", "space", "seed")
    editors = options.editors
    if editors is not None:
        editors = tuple(name.strip() for name in editors.split(","))
    config = configured(options, AnatomyConfig, names, experiment="anatomy", editors=editors)
    return over_recipe(config, options.set)


def add(commands: Any) -> None:
    """`anatomy`."""
    p = command(
        commands,
        "anatomy",
        anatomy,
        "mechedit anatomy --model factworld --editors ft,rome,mega --limit 60 --out runs/anatomy",
    )
    p.set_defaults(**dict.fromkeys((*PLACE, "seed")))  # the recipe's, unless they are given
    p.add_argument(
        "--recipe", help="TOML file with the keys of these options (experiments/recipes/anatomy.toml)"
    )
    p.add_argument("--editors", help="names, as ft,rome,memit,ike,sake,mega (the default)")
    p.add_argument("--limit", type=count, help="facts to edit (default 60); a larger one extends a run")
    p.add_argument("--selection", type=count, help="other facts, by which the window is chosen (default 20)")
    add_editors_set(p)
    add_space(p)
    p.add_argument("--data", help="file of facts (default: the embedded world's own)")
    p.add_argument(
        "--out", default="runs/anatomy", help="run folder (default runs/anatomy); the same command goes on"
    )
