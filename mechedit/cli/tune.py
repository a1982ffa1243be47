"""`mechedit tune`: an editor's hyper-parameters from a grid, on facts that are never evaluated."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.options import count
from experiments.cli.output import as_table, print_json
from mechedit.cli.options import add_set, add_space, command, literal
from reports.errors import InputError


def tune(options: argparse.Namespace) -> None:
    """Scores a grid of an editor's settings on facts that are never evaluated."""
    import torch

    from mechedit.data.facts import load_facts
    from mechedit.evaluation import tune as search
    from mechedit.recipes.configured_model import load

    torch.set_num_threads(1)  # as `mechedit demo`
    model = load(options)
    facts = (
        load_facts(options.data, limit=options.n, space=options.space or "auto")
        if options.data
        else search.selection_split(options.n)
    )
    fixed = {name: [value] for name, value in (options.set or {}).items()}
    if twice := [name for name in dict(options.grid) if name in fixed]:
        raise InputError(f"set: {twice[0]} is in the grid too; leave one out")
    grid = fixed | dict(options.grid)
    table = search.tune(model, options.editor, grid, facts=facts, progress=not options.quiet)
    if options.json:
        print_json(
            {"model": model.name, "editor": options.editor, "n": len(facts), "rows": table.to_dict("records")}
        )
        return
    print(as_table(table))


def setting(text: str) -> tuple[str, list[Any]]:
    """FIELD=VALUE;VALUE, values as in Python or TOML."""
    name, equals, values = text.partition("=")
    if not equals or not all(value.strip() for value in values.split(";")):
        raise argparse.ArgumentTypeError(f"expected FIELD=VALUE;VALUE, as layer=2;3, found {text!r}")
    return name, [literal(value) for value in values.split(";")]


def add(commands: Any) -> None:
    """`tune`."""
    p = command(commands, "tune", tune, "mechedit tune --editor rome --grid 'layer=2;3;4' 'clamp=2.0;4.0'")
    p.add_argument("--editor", required=True, help="ft, rome, memit, ... (mechedit.editors.NAMES)")
    p.add_argument("--grid", type=setting, nargs="+", required=True, help="FIELD=VALUE;VALUE for each field")
    p.add_argument("--n", type=count, default=40, help="facts to choose by (default 40)")
    add_set(p)
    add_space(p)
    p.add_argument("--data", help="facts of your own to choose by (default: the embedded world's)")
