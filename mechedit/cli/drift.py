"""`mechedit drift`: does an edited model keep to the new object while it writes on?"""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.options import count
from experiments.cli.output import as_table, print_json
from mechedit.cli.editor import add_editor_options
from mechedit.cli.options import add_space, command
from mechedit.data.facts import load_facts
from mechedit.factworld import edits


def drift(options: argparse.Namespace) -> None:
    """Lets an edited model write on, and reads whether it returns to the old object; beside the unedited model."""
    facts = (
        load_facts(options.data, limit=options.limit, space=options.space or "auto")
        if options.data
        else edits(options.limit)
    )
    from mechedit.editors import NoEdit
    from mechedit.evaluation.drift import drift as write
    from mechedit.recipes.configured_model import load
    from mechedit.recipes.editor_choice import chosen_editor

    model = load(options)
    editors = [chosen_editor(options, model, facts, data=options.data)]
    if options.editor != "no_edit":
        editors.append(NoEdit())
    result = write(
        model, editors, facts, length=options.length, seed=options.seed, progress=not options.quiet
    )
    if options.out is not None:
        result.save(options.out)
    table = result.summary()
    if options.json:
        print_json({"model": model.name, "n": len(facts), "editors": table.to_dict("records")})
        return
    print(as_table(table))
    if options.out is not None:
        print(f"saved: {options.out}")


def add(commands: Any) -> None:
    """`drift`."""
    p = command(commands, "drift", drift, "mechedit drift --editor rome --limit 10 --length 60")
    add_editor_options(p)
    add_space(p)
    p.add_argument("--data", default="", help="file of facts (default: the embedded world's own)")
    p.add_argument("--limit", type=count, default=20, help="facts to edit, one at a time (default 20)")
    p.add_argument("--length", type=count, default=100, help="tokens to write about each (default 100)")
    p.add_argument("--out", help="folder to save the texts in")
