"""`mechedit factworld`: train, check and export the embedded world."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.cli.options import Parser, count
from experiments.cli.output import as_table, print_json
from mechedit.cli.options import command


def factworld_train(options: argparse.Namespace) -> None:
    """Trains an embedded model from nothing."""
    from mechedit.factworld.train import Recipe, train

    recipe = Recipe(
        arch=options.arch, seed=options.seed, **({"steps": options.steps} if options.steps else {})
    )
    print(train(recipe, Path(options.out), progress=not options.quiet))


def factworld_check(options: argparse.Namespace) -> int:
    """Measures what an embedded model knows; status 1 where it falls short of its floors."""
    from mechedit.factworld.check import check
    from mechedit.recipes.configured_model import load

    table = check(load(options), n=options.n)
    if options.json:
        print_json({row["check"]: row for row in table.to_dict("records")})
    else:
        print(as_table(table))
    return 0 if table["ok"].all() else 1


def factworld_export(options: argparse.Namespace) -> None:
    """Writes edits of the world in a published schema."""
    from mechedit.factworld import export

    n = export(options.out, schema=options.schema, limit=options.limit, seed=options.seed)
    print(f"{n} edits in {options.out}")


def add(commands: Any) -> None:
    """`factworld train | check | export`."""
    world = commands.add_parser("factworld", help="The embedded world: train, check, export.").add_subparsers(
        required=True, metavar="COMMAND", parser_class=Parser
    )
    p = command(
        world, "train", factworld_train, "mechedit factworld train --arch llama --out runs/llama", model=False
    )
    p.add_argument("--arch", choices=("gpt2", "llama"), default="gpt2")
    p.add_argument("--steps", type=count, help="training steps (default: the recipe's)")
    p.add_argument(
        "--out", required=True, help="folder for checkpoint and model; the same command again goes on"
    )
    p = command(world, "check", factworld_check, "mechedit factworld check --model factworld-llama")
    p.add_argument(
        "--n", type=count, default=500, help="cases of each kind; 500 or more: every fact (default 500)"
    )
    p = command(
        world,
        "export",
        factworld_export,
        "mechedit factworld export --schema counterfact --limit 100 --out edits.json",
        model=False,
    )
    p.add_argument("--schema", choices=("counterfact", "ripple", "easyedit"), default="counterfact")
    p.add_argument("--limit", type=count, default=100, help="edits (default 100)")
    p.add_argument("--out", required=True, help="JSON file to write")
