"""Which part of a task's model is trained as an axis of a study: the whole model ("all"), or its head alone ("head").

Of two parts the first is the one of the study's cells, predictors and claims; the other stands beside it, in columns
`delta_score_PART`, `low_PART`, `high_PART`, `score_PART`, `baseline_PART` of the same cell, against its own baseline:
no alignment, the same part, the same seed. Gradients are the encoder's, whatever is trained.

The claim *training the head alone is the more robust* (of arXiv 2603.18863, as a digest of it has it; what robust
means is our choice): the harm of a cell is what alignment takes from the score, `max(0, −Δ)`. Holds if the mean harm of
the whole model less that of the head alone has a 95 % interval above 0 (percentile bootstrap over cells, ten at least);
does not hold if it lies below 0. Noise alone makes harm, the more the noisier a part is: that is part of its answer.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.answers import NOT_SHOWN, answer
from reports.errors import InputError
from xlprobe.transfer.verdict import needed, takes

__all__ = ["PARTS", "beside", "check_parts", "robustness", "score_key"]

PARTS = ("all", "head")
FEWEST_CELLS = 10
RESAMPLES = 4000
_SHOWN = ("delta_score", "low", "high", "score", "baseline")


def check_parts(parts: tuple[str, ...] | None) -> None:
    """Refuse other parts than those of `PARTS`, none, or one twice.

    Raises:
        InputError: Such a part.

    >>> check_parts(("all", "head"))
    """
    if parts is not None and (not parts or not set(parts) <= set(PARTS) or len(set(parts)) < len(parts)):
        raise InputError(f"train: expected all, head or both, each once, found {', '.join(parts) or 'none'}")


def score_key(pair: str, task: str, part: str, first: str) -> str:
    """Under which name a case keeps a score; that of the first part is the name of a study of one part.

    >>> score_key("en-de", "pos", "head", "all")
    'en-de/pos/head'
    """
    return f"{pair}/{task}" if part == first else f"{pair}/{task}/{part}"


def beside(effects: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The first part's effects with the other's beside them.

    Args:
        effects: Of each part, frame pair, objective, task and the columns of `effects_of`.
    """
    first, *rest = effects
    frame = effects[first]
    for part in rest:
        keys = ["pair", "objective", "task"]
        other = effects[part][[*keys, *_SHOWN]].rename(columns={name: f"{name}_{part}" for name in _SHOWN})
        frame = frame.merge(other, on=keys, how="left")
    return frame


def robustness(cells: pd.DataFrame) -> list[dict[str, str]]:
    """The claim, its answer and evidence, as one row; none where only one part was trained.

    >>> cells = pd.DataFrame({"delta_score": [-0.02] * 10, "delta_score_head": [0.0] * 10})
    >>> robustness(cells)[0]["answer"]
    'holds'
    """
    other = next((part for part in PARTS if f"delta_score_{part}" in cells), None)
    if other is None:
        return []
    claim = "Training the head alone is more robust to alignment than training the whole model"
    known = cells.dropna(subset=["delta_score", f"delta_score_{other}"])
    first, second = known["delta_score"].to_numpy(), known[f"delta_score_{other}"].to_numpy()
    whole, head = (first, second) if other == "head" else (second, first)
    if len(known) < 2:
        evidence = f"n = {len(known)} cells; it would take at least {FEWEST_CELLS} cells"
        return [{"claim": claim, "answer": NOT_SHOWN, "evidence": evidence}]
    saved = np.maximum(0, -whole) - np.maximum(0, -head)
    draws = np.random.default_rng(0).integers(len(saved), size=(RESAMPLES, len(saved)))
    low, high = np.quantile(saved[draws].mean(1), [0.025, 0.975])
    answered = answer((low, high)) if len(saved) >= FEWEST_CELLS else NOT_SHOWN
    evidence = (
        f"alignment takes {_points(np.maximum(0, -whole).mean())} points from the whole model and "
        f"{_points(np.maximum(0, -head).mean())} from the head alone, mean harm max(0, −Δ) of {len(saved)} cells: less "
        f"by {_signed(saved.mean())} [{_signed(low)}, {_signed(high)}]; mean change {_signed(whole.mean())} and "
        f"{_signed(head.mean())}, worst {_signed(whole.min())} and {_signed(head.min())}"
    )
    if answered == NOT_SHOWN:
        cells_needed = needed(float(high - low) / 2, [abs(float(saved.mean()))], n=len(saved))
        evidence += f"; {takes(max(FEWEST_CELLS, cells_needed), 'cells')}"
    return [{"claim": claim, "answer": answered, "evidence": evidence}]


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
