"""`xlprobe pretrain`: a small encoder of XLM-R's architecture from the text of a data folder."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.cli.options import count
from experiments.cli.output import print_json
from xlprobe.cli.options import command, write_page


def pretrain(options: argparse.Namespace) -> None:
    """Pre-trains a small encoder on the text of a data folder, by masked language modelling."""
    from experiments import config
    from xlprobe.recipes.real_text import RealTextRecipe, pretrain_on, pretraining_texts

    recipe = RealTextRecipe()
    if options.recipe:
        recipe = config.load(options.recipe, RealTextRecipe, experiment=RealTextRecipe.experiment)
    plan = recipe.pretrain
    training = replace(plan.training, steps=options.steps or plan.training.steps, seed=options.seed)
    data = replace(recipe, data=options.data or recipe.data).folder()
    model = pretrain_on(data, Path(options.out), replace(plan, training=training), progress=not options.quiet)
    page = write_page(options.out)
    if options.json:
        sentences = {language: len(texts) for language, texts in pretraining_texts(data).items()}
        print_json({"model": str(model), "sentences": sentences, "left_out": data.left_out, **page})
        return
    print(model)


def add(commands: Any) -> None:
    """Add `pretrain` to the commands."""
    example = "xlprobe pretrain --data ../shared/data --out runs/encoder"
    p = command(commands, "pretrain", pretrain, example, encoder=False)
    p.add_argument("--data", help="folder with ud, sib200 and tatoeba (default: MECHEDIT_DATA)")
    p.add_argument("--recipe", help="TOML file with the encoder's shape and training (default: the built-in)")
    p.add_argument("--steps", type=count, help="training steps (default: the recipe's)")
    p.add_argument(
        "--out", required=True, help="folder for checkpoint and model; the same command again goes on"
    )
