"""`mechedit faithfulness`: NLKA and its peers judged by really taking their neurons out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.cli.options import configured, count, counts
from experiments.cli.output import as_table, print_json
from mechedit.cli.options import add_space, command
from mechedit.recipes.configurations import FaithfulnessConfig


def faithfulness(options: argparse.Namespace) -> None:
    """Whose neurons carry the answer: NLKA and its peers judged by ablation."""
    config = _config(options)
    from mechedit.recipes.configured_model import load_each
    from mechedit.recipes.faithfulness import run_faithfulness

    study = run_faithfulness(load_each(config), config, options.out, progress=not options.quiet)
    report = Path(options.out) / "report.html"
    if options.json:
        print_json(
            {
                "n": study.n,
                "left_out": study.left_out,
                "ablated": study.ablated,
                "draws": study.draws,
                "curve": study.curve.to_dict("records"),
                "differences": study.differences.to_dict("records"),
                "report": str(report),
            }
        )
        return
    for (model, kind), group in study.curve.groupby(["model", "kind"], sort=False):
        wide = group.pivot(index="method", columns="k", values="delta").loc[list(group["method"].unique())]
        print(f"{model}, {kind}: change of log p (nats) by k, n = {study.n[model]}, {study.ablated} ablation")
        print(f"{as_table(wide.reset_index())}\n")
    lost = study.differences[~study.differences["better"].isin(["", "nlka"])]
    for row in lost.to_dict("records"):
        print(
            f"{row['model']}, {row['kind']}, k = {row['k']}: {row['peer']} beats nlka by {row['delta']:.3f} nats"
        )
    print(f"report: {report}")


def _config(options: argparse.Namespace) -> FaithfulnessConfig:
    names = ("limit", "ks", "draws", "mean_over", "data", "space", "seed", "device", "dtype")
    models = options.model
    if models is not None:
        models = tuple(name.strip() for name in models.split(","))
    return configured(options, FaithfulnessConfig, names, experiment="faithfulness", models=models)


def add(commands: Any) -> None:
    """`faithfulness`."""
    p = command(
        commands,
        "faithfulness",
        faithfulness,
        "mechedit faithfulness --recipe experiments/recipes/faithfulness.toml --out runs/faithfulness",
    )
    p.set_defaults(model=None, seed=None, device=None, dtype=None)  # the recipe's, unless they are given
    p.add_argument("--recipe", help="TOML file with the keys of these options")
    p.add_argument("--limit", type=count, help="facts (default 100); a larger one extends a run")
    p.add_argument("--ks", type=counts, help="how many neurons, as 1,3,10,30,100 (the default)")
    p.add_argument("--draws", type=count, help="random sets for each fact and k (default 5)")
    p.add_argument(
        "--mean-over",
        type=int,
        help="set neurons to their mean over so many other facts (default 0: to zero)",
    )
    add_space(p)
    p.add_argument("--data", help="file of facts (default: the embedded world's own)")
    p.add_argument(
        "--out",
        default="runs/faithfulness",
        help="run folder (default runs/faithfulness); the same command goes on",
    )
