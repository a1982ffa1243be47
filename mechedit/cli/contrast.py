"""`mechedit contrast`: a checkpoint that any tool has edited, against the model that it was made of."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.output import as_table, print_json
from mechedit.cli.fact import add_fact_options, chosen_fact
from mechedit.cli.options import command, top_k

ROWS = 40  # of the table of weights
SCORE = "before, after: nats that the unit adds to log p of the object; score: after − before"


def contrast(options: argparse.Namespace) -> None:
    """Which weights of two checkpoints differ, what both answer, and the attribution before and after."""
    fact = chosen_fact(options)[0] if options.fact is not None else None
    from mechedit.anatomy.checkpoint_contrast import contrast_checkpoints
    from mechedit.recipes.configured_model import load
    from mechedit.recipes.contrast import write_contrast

    result = contrast_checkpoints(load(options), options.edited, fact, top_k=options.top_k)
    page = write_contrast(result, fact, options.out) if options.out is not None else None
    if options.json:
        frames = {
            name: getattr(result, name).to_dict("records")
            for name in ("weights", "answers", "layers", "heads")
        }
        about = {
            "base": result.base,
            "edited": result.edited,
            "n_weights": result.n_weights,
            "logp": result.logp,
        }
        where = {} if page is None else {"report": str(page)}
        print_json({**about, "notes": list(result.notes), **frames, **where})
        return
    print(result.title())
    for note in result.notes:
        print(note)
    if len(result.weights):
        columns = ["layer", "module", "rows", "columns", "rank", "norm", "share"]
        print(f"\nweights\n{as_table(result.weights[columns].head(ROWS))}")
    if len(result.answers):
        print(f"\nanswers\n{as_table(result.answers)}\n\n{SCORE}")
        for name in ("new", "old"):
            before, after = (result.logp[f"{name}_{when}"] for when in ("before", "after"))
            text = result.target_new if name == "new" else result.target_true
            print(f"\n{name} object {text!r}: log p {before:.4f} before, {after:.4f} after")
            for unit in ("layers", "heads", "mlp_neurons"):
                frame = getattr(result, unit)
                rows = frame[frame["object"] == name].drop(columns="object")
                print(f"{unit}\n{as_table(rows.reindex(rows['score'].abs().nlargest(5).index))}")
    if page is not None:
        print(f"report: {page}")


def add(commands: Any) -> None:
    """`contrast`."""
    p = command(
        commands,
        "contrast",
        contrast,
        "mechedit contrast --model gpt2 --edited ./merged --fact fact.json --out runs/contrast",
    )
    p.add_argument(
        "--edited",
        required=True,
        metavar="FOLDER",
        help="the edited checkpoint: a folder (or a Hugging Face id)",
    )
    add_fact_options(p, required=False)
    p.add_argument(
        "--top-k", type=top_k, default=300, help="neurons of either model that are scored (default 300)"
    )
    p.add_argument("--out", help="run folder for result and page")
