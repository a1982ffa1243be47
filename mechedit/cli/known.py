"""`mechedit known`: the facts that a model knows, as a file to edit from."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from experiments.cli.options import count
from experiments.cli.output import print_json
from mechedit.cli.options import add_space, command
from mechedit.data.facts import check_writable, load_facts, save_facts


def known(options: argparse.Namespace) -> None:
    """Asks the model every fact, and writes those that it answers."""
    check_writable(options.out, data=options.data)
    facts = None if options.data is None else load_facts(options.data, space=options.space or "auto")
    from mechedit.recipes.configured_model import load
    from mechedit.recipes.known_facts import find_known

    model = load(options)
    found = find_known(model, facts, limit=options.limit, seed=options.seed, progress=not options.quiet)
    save_facts(found.facts, options.out)
    relations = Counter(fact.relation or "(none given)" for fact in found.facts)
    if options.json:
        print_json(
            {
                "known": len(found.facts),
                "asked": found.n_asked,
                "relations": dict(relations),
                "out": options.out,
            }
        )
        return
    print(f"{model.name}: {found.said}, {', '.join(f'{name} {n}' for name, n in relations.most_common())}")
    print(f"written: {options.out}; next: mechedit evaluate --model {options.model} --data {options.out}")


def add(commands: Any) -> None:
    """`known`."""
    p = command(commands, "known", known, "mechedit known --model smollm2 --limit 40 --out known.json")
    p.add_argument("--data", help="file of facts to ask (default: the atlas, real facts of 16 relations)")
    add_space(p)
    p.add_argument("--limit", type=count, help="stop when so many are known (default: ask all)")
    p.add_argument("--out", default="known.json", help="file to write (default known.json)")
