"""Does a measured quantity predict what alignment does to a task's score? Pure functions over the study's table.

A *cell* is a pair × objective × task: its change of score (mean over seeds, against no alignment with the same seed)
and what was measured. For each predictor:

- Spearman's ρ with the change of score, and its percentile bootstrap interval over cells;
- sign agreement: the share of cells in which predictor and change have the same sign, with Wilson's interval (for a
  norm ratio the logarithm's sign: is the alignment's gradient the larger one?);
- leave one pair out: a line fitted on the other pairs' cells predicts this pair's; `q2` = 1 − Σ(y − ŷ)²/Σ(y − ȳ)² with
  ȳ the other pairs' mean, so q2 ≤ 0 means that the predictor is no better than knowing nothing.

A known flaw: cells of one pair share an encoder and a test set, so intervals over cells are somewhat too narrow.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from reports.errors import InputError
from reports.intervals import wilson
from reports.missing import explained

__all__ = ["PREDICTORS", "leave_one_pair_out", "predict", "spearman"]

PREDICTORS = ("delta_retrieval", "delta_gap", "gradient_cosine", "norm_ratio")
_RESAMPLES = 2000


def predict(cells: pd.DataFrame, *, outcome: str = "delta_score", seed: int = 0) -> pd.DataFrame:
    """Frame predictor, spearman, low, high, sign_agreement, sign_low, sign_high, q2, n, missing; one row a predictor.

    Args:
        cells: Frame pair, the `outcome` and any of `PREDICTORS`; rows with a nan are left out, of n too.
        outcome: The column to predict.
        seed: Decides the bootstrap.

    Raises:
        InputError: `cells` lacks the outcome.

    >>> cells = pd.DataFrame({"pair": list("aabbccdd"), "delta_score": range(-3, 5), "delta_gap": range(-3, 5)})
    >>> predict(cells)[["predictor", "spearman", "q2", "n"]].to_dict("records")
    [{'predictor': 'delta_gap', 'spearman': 1.0, 'q2': 1.0, 'n': 8}]
    """
    if outcome not in cells:
        raise InputError(f"cells: expected a column {outcome!r}, found {', '.join(map(str, cells.columns))}")
    rows = []
    for name in PREDICTORS:
        if name not in cells:
            continue
        known = cells[["pair", name, outcome]].dropna()
        x, y = known[name].to_numpy(dtype=float), known[outcome].to_numpy(dtype=float)
        x = np.log(x) if name == "norm_ratio" else x
        low, high = _interval(x, y, seed)
        agreed = int((np.sign(x) == np.sign(y)).sum())
        sign_low, sign_high = wilson(agreed, len(x))
        rows.append(
            {
                "predictor": name,
                "spearman": spearman(x, y),
                "low": low,
                "high": high,
                "sign_agreement": agreed / len(x) if len(x) else math.nan,
                "sign_low": sign_low,
                "sign_high": sign_high,
                "q2": leave_one_pair_out(x, y, known["pair"].to_numpy()),
                "n": len(x),
            }
        )
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    few = frame["n"].map(lambda n: "fewer than 3 cells" if n < 3 else "one side does not vary")
    share = dict.fromkeys(("sign_agreement", "sign_low", "sign_high"), "no cell has both values")
    pairs = "fewer than two pairs, or the outcome does not vary"
    return explained(frame, dict.fromkeys(("spearman", "low", "high"), few) | share | {"q2": pairs})


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's ρ, ties at their mean rank; nan where one side does not vary or n < 3.

    >>> float(spearman(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3])))
    1.0
    """
    if len(x) < 3:
        return math.nan
    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan


def leave_one_pair_out(x: np.ndarray, y: np.ndarray, pairs: np.ndarray) -> float:
    """The q2 of the module's docstring, nan for fewer than two pairs."""
    missed = null = 0.0
    names = list(dict.fromkeys(pairs.tolist()))
    if len(names) < 2:
        return math.nan
    for name in names:
        held, rest = pairs == name, pairs != name
        slope, level = _line(x[rest], y[rest])
        missed += float(((y[held] - (level + slope * x[held])) ** 2).sum())
        null += float(((y[held] - y[rest].mean()) ** 2).sum())
    return 1 - missed / null if null > 0 else math.nan


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ (y - y.mean())) / spread if spread > 0 else 0.0
    return slope, float(y.mean()) - slope * float(x.mean())


def _interval(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float]:
    """Percentile bootstrap over cells; draws in which ρ is undefined are left out."""
    if len(x) < 3:
        return math.nan, math.nan
    draws = np.random.default_rng(seed).integers(len(x), size=(_RESAMPLES, len(x)))
    a, b = (rankdata(values[draws], axis=1) for values in (x, y))
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (a, b))
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    values = (a * b).sum(1)[scale > 0] / scale[scale > 0]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
