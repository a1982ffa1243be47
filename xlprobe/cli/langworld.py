"""`xlprobe langworld`: train, check and read the embedded languages."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.cli.options import Parser, count
from experiments.cli.output import as_table, print_json
from xlprobe.cli.options import command, load, write_page


def langworld_train(options: argparse.Namespace) -> None:
    """Trains the embedded encoder from nothing, on text of all five languages."""
    from xlprobe.langworld.train import train_langworld

    out = Path(options.out)
    model = train_langworld(out, steps=options.steps, seed=options.seed, progress=not options.quiet)
    page = write_page(options.out)
    if options.json:
        print_json({"model": str(model), **page})
        return
    print(model)


def langworld_check(options: argparse.Namespace) -> int:
    """Measures masked words and retrieval by language; status 1 where it falls short of its floor."""
    from xlprobe.langworld.check import check

    table = check(load(options), n=options.n)
    if options.json:
        print_json({row["language"]: row for row in table.to_dict("records")})
    else:
        print(as_table(table))
    return 0 if table["ok"].all() else 1


def langworld_show(options: argparse.Namespace) -> None:
    """Writes parallel sentences of the embedded languages."""
    from xlprobe.langworld.grammar import realise
    from xlprobe.langworld.lexicon import LANGUAGES
    from xlprobe.langworld.world import meanings

    drawn = meanings("held_out", options.n, seed=options.seed)
    texts = {
        name: [" ".join(word.form for word in realise(meaning, name)) for meaning in drawn]
        for name in LANGUAGES
    }
    if options.json:
        print_json(texts)
        return
    for i in range(options.n):
        for name in LANGUAGES:
            print(f"{name:<8}{texts[name][i]}")
        print()


def add(commands: Any) -> None:
    """Add `langworld train | check | show` to the commands."""
    world = commands.add_parser(
        "langworld", help="The embedded languages: train, check, show."
    ).add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    p = command(
        world, "train", langworld_train, "xlprobe langworld train --out runs/langworld", encoder=False
    )
    p.add_argument("--steps", type=count, help="training steps (default: the recipe's)")
    p.add_argument(
        "--out", required=True, help="folder for checkpoint and model; the same command again goes on"
    )
    p = command(world, "check", langworld_check, "xlprobe langworld check")
    p.add_argument("--n", type=count, default=300, help="sentences of each language (default 300)")
    p = command(world, "show", langworld_show, "xlprobe langworld show --n 3", encoder=False)
    p.add_argument("--n", type=count, default=5, help="sentences (default 5)")
