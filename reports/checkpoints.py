"""The sections of a page about two checkpoints: which weights differ, and what both models answer."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.text import clip, visible

__all__ = ["FRAMES", "checkpoints"]

FRAMES = ("weights", "answers")
_ROWS = 60
_ROLES = {"rewrite": "the fact", "paraphrase": "paraphrase", "neighborhood": "neighbour"}


def checkpoints(frames: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Returns the tables of the section.

    Args:
        frames: weights and answers of a saved `CheckpointContrast`.

    >>> none = checkpoints({"weights": pd.DataFrame(), "answers": pd.DataFrame()})
    >>> none["weights"], none["more"]
    ([], 0)
    """
    weights = frames["weights"].to_dict("records")
    largest = sorted(weights, key=lambda row: -float(row["norm"]))[:_ROWS]
    kept = sorted(largest, key=weights.index)
    return {
        "weights": [_weight(row) for row in kept],
        "more": len(weights) - len(kept),
        "answers": [_answer(row) for row in frames["answers"].to_dict("records")],
    }


def _weight(row: dict[str, Any]) -> dict[str, str]:
    return {
        "module": clip(visible(str(row["module"])), 60),
        "layer": str(row["layer"]) if row["layer"] >= 0 else "",
        "shape": f"{row['rows']} × {row['columns']}",
        "rank": str(row["rank"]),
        "norm": f"{row['norm']:.4g}",
        "share": f"{100 * row['share']:.3g}",
        "largest": f"{row['largest']:.4g}",
    }


def _answer(row: dict[str, Any]) -> dict[str, str]:
    chances = {key: f"{100 * row[key]:.1f}" for key in row if key.startswith("p_")}
    texts = {key: clip(visible(str(row[key])), 160) for key in ("prompt", "before", "after")}
    return {"role": _ROLES.get(row["role"], str(row["role"])), **texts, **chances}
