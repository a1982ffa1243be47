"""`mechedit compare`: MEGA beside the other editors, its controls and its ablations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.cli.options import configured, count, count_or_none, counts
from experiments.cli.output import as_table, print_json
from mechedit.cli.options import PLACE, add_editors_set, add_space, command, over_recipe
from mechedit.recipes.configurations import ComparisonConfig


def compare(options: argparse.Namespace) -> None:
    """MEGA beside the other editors, its controls and its ablations, on the same facts."""
    config = _config(options)
    from mechedit.recipes.compare import run_comparison
    from mechedit.recipes.configured_model import load
    from reports.readable import metric_words

    result = run_comparison(load(config), config, options.out, progress=not options.quiet)
    report = Path(options.out) / "report.html"
    if options.json:
        known = {"n_known": result.n_known, "n_total": result.n_total, "report": str(report)}
        frames = {
            name: getattr(result, name).to_dict("records") for name in ("table", "seeds", "ripple", "choices")
        }
        print_json({"model": config.model, **known, **frames})
        return
    for part in ("editor", "ablation") if config.ablations else ("editor",):
        print(f"\n{part}s\n{as_table(result.wide(part).reset_index())}")
    words = metric_words(set(result.table["metric"]))
    print("\n" + "\n".join(f"{names}: {text}" for names, text in words.items()))
    print(f"n known {result.n_known} of {result.n_total}\nreport: {report}")


def _config(options: argparse.Namespace) -> ComparisonConfig:
    names = (*PLACE, "limit", "selection", "data", "text", "space", "ablation_facts", "ripple_facts", "seeds")
    lists = {
        name: tuple(part.strip() for part in text.split(",") if part.strip())
        for name in ("editors", "ablations")
        if (text := getattr(options, name)) is not None
    }
    config = configured(options, ComparisonConfig, names, experiment="compare", **lists)
    return over_recipe(config, options.set)


def _seeds(text: str) -> tuple[int, ...]:
    return counts(text, least=0)


def add(commands: Any) -> None:
    """`compare`."""
    p = command(
        commands,
        "compare",
        compare,
        "mechedit compare --recipe experiments/recipes/mega.toml --out runs/mega",
    )
    p.set_defaults(**dict.fromkeys(PLACE))  # the recipe's, unless they are given
    p.add_argument(
        "--recipe", help="TOML file with the keys of these options (experiments/recipes/mega.toml)"
    )
    p.add_argument("--editors", help="names, as mega,rome,no_edit (default: all)")
    p.add_argument("--ablations", help="names of MEGA's ablations (default: all; '' for none)")
    p.add_argument(
        "--limit", type=count, help="facts to edit, a seed (default 200); a larger one extends a run"
    )
    p.add_argument(
        "--selection", type=count, help="other facts, by which window and gates are chosen (default 20)"
    )
    p.add_argument("--seeds", type=_seeds, help="as 0,1,2 (the default)")
    p.add_argument("--ablation-facts", type=count, help="facts of the ablations (default 40)")
    p.add_argument(
        "--ripple-facts", type=count_or_none, help="facts of RippleEdits' axes (default 60; 0: none)"
    )
    p.add_argument(
        "--text", help="running text for KL and Top1: a file, a folder, a datasets name (default: own)"
    )
    add_editors_set(p)
    add_space(p)
    p.add_argument("--data", help="file of facts (default: the embedded world's own)")
    p.add_argument(
        "--out", default="runs/mega", help="run folder (default runs/mega); the same command goes on"
    )
