"""Which of several predictors of the change of score is the best, and how many cells it takes to tell.

On the cells that have all of them, by |ρ| (Spearman's, `xlprobe.transfer.prediction`): a predictor that is right the
wrong way round predicts too. Steps:

1. The best is the one with the largest |ρ|.
2. Against each rival: the difference of |ρ|, and its percentile bootstrap interval over cells, both in the same draws,
   because they share the cells' noise.
3. Power: studies of `SIMULATED` cells are drawn from the study's own cells, each with what was measured, the noise of
   its score included. Their differences have a mean and a spread, which falls as 1/√n: `cells` is the n at which an
   interval of 95 % leaves out 0 in 80 % of such studies.

The answer to *gradient similarity says more than embedding similarity and retrieval* [as a digest of the paper's text
has it] is the contest of `gradient_cosine` against `delta_gap` and `delta_retrieval`: holds if both intervals lie above
0, does not hold if one lies below.

Beside it stands the *ceiling*: of the changes' spread over cells only the share 1 − mean(standard error²)/variance is
more than the noise of test sentences and seeds, and no predictor can have a |ρ| above about its square root.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from reports.answers import NOT_SHOWN, answer
from reports.intervals import Z95
from xlprobe.transfer.prediction import PREDICTORS, correlations, scaled
from xlprobe.transfer.verdict import needed, takes

__all__ = ["ceiling", "contest", "gradients_say_more"]

FEWEST_CELLS = 10
SIMULATED = 256
RIVALS = ("delta_gap", "delta_retrieval")
_RESAMPLES = 2000
_STUDIES = 400
_POWER = 0.841621  # a normal variable is above −0.84 in 80 %


def contest(
    cells: pd.DataFrame, *, outcome: str = "delta_score", best: str | None = None, seed: int = 0
) -> pd.DataFrame:
    """Frame predictor, rival, difference, low, high, cells, n; one row a rival, the strongest first.

    Args:
        cells: Frame with the `outcome` and any of `PREDICTORS`; rows with a nan in one of them are left out.
        outcome: The column to predict.
        best: The predictor that is compared with the others; by default the one with the largest |ρ|.
        seed: Decides the draws.

    >>> cells = pd.DataFrame({"delta_score": range(12), "delta_gap": range(12), "norm_ratio": [1.0, 3.0, 2.0] * 4})
    >>> contest(cells)[["predictor", "rival", "n"]].to_dict("records")
    [{'predictor': 'delta_gap', 'rival': 'norm_ratio', 'n': 12}]
    """
    columns = ["predictor", "rival", "difference", "low", "high", "cells", "n"]
    names = [name for name in PREDICTORS if name in cells and cells[name].nunique() > 1]
    known = cells[[*names, outcome]].dropna()
    y, n = known[outcome].to_numpy(dtype=float), len(known)
    if n < 3 or len(names) < 2 or known[outcome].nunique() < 2:
        return pd.DataFrame(columns=columns)
    rng = np.random.default_rng(seed)
    draws = rng.integers(n, size=(_RESAMPLES, n))
    studies = rng.integers(n, size=(_STUDIES, SIMULATED))
    size = {name: _sizes(known[name], y, np.arange(n)[None])[0] for name in names}
    best = best or max(names, key=lambda name: np.nan_to_num(size[name]))
    if best not in names:
        return pd.DataFrame(columns=columns)
    own, far = (_sizes(known[best], y, rows) for rows in (draws, studies))
    rows = []
    for rival in sorted(names, key=lambda name: -np.nan_to_num(size[name])):
        if rival == best:
            continue
        low, high = np.nanquantile(own - _sizes(known[rival], y, draws), [0.025, 0.975])
        gaps = far - _sizes(known[rival], y, studies)
        cells_needed = needed(
            (Z95 + _POWER) * float(np.nanstd(gaps)), [abs(float(np.nanmean(gaps)))], n=SIMULATED
        )
        difference = size[best] - size[rival]
        rows.append((best, rival, float(difference), float(low), float(high), cells_needed, n))
    return pd.DataFrame(rows, columns=columns)


def gradients_say_more(cells: pd.DataFrame) -> list[dict[str, str]]:
    """The claim, its answer and evidence, as one row; none where gradients or distances were not measured.

    >>> cells = pd.DataFrame({"delta_score": range(12), "gradient_cosine": range(12), "delta_gap": [1.0, 3.0, 2.0] * 4})
    >>> gradients_say_more(cells)[0]["answer"]
    'holds'
    """
    rivals = [name for name in RIVALS if name in cells and cells[name].nunique() > 1]
    rows = (
        contest(cells[[*rivals, "delta_score", "gradient_cosine"]], best="gradient_cosine")
        if (rivals and "gradient_cosine" in cells)
        else pd.DataFrame()
    )
    if rows.empty:
        return []
    answered, n = NOT_SHOWN, int(rows["n"].iloc[0])
    if n >= FEWEST_CELLS:
        answered = answer(*zip(rows["low"], rows["high"], strict=True))
    told = "; ".join(
        f"than {_NAMES[row.rival]} by {_signed(row.difference)} [{_signed(row.low)}, {_signed(row.high)}]"
        for row in rows.itertuples()
    )
    evidence = f"|ρ| of the gradient cosine is larger {told}, n = {n} cells"
    share = ceiling(cells)
    if not math.isnan(share):
        evidence += f"; {share:.0%} of the changes' spread is more than noise"
    if answered == NOT_SHOWN:
        evidence += f"; {takes(max(FEWEST_CELLS, float(rows['cells'].max())), 'cells')}"
    claim = "Gradient similarity says more than embedding similarity and retrieval do"
    return [{"claim": claim, "answer": answered, "evidence": evidence}]


def ceiling(cells: pd.DataFrame) -> float:
    """The share of the changes' spread over cells that is more than their own noise, 0 to 1; nan where it is not known.

    >>> ceiling(pd.DataFrame({"delta_score": [0.0, 0.2], "low": [-0.1, 0.1], "high": [0.1, 0.3]})) > 0.8
    True
    """
    if not {"low", "high"} <= set(cells):
        return math.nan
    known = cells.dropna(subset=["delta_score", "low", "high"])
    spread = float(known["delta_score"].var())
    if not spread > 0:
        return math.nan
    error = ((known["high"] - known["low"]) / (2 * Z95)).pow(2).mean()
    return max(0.0, 1 - float(error) / spread)


def _sizes(values: pd.Series, y: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """|ρ| in each draw."""
    return np.abs(correlations(scaled(values), y, draws))


_NAMES = {
    "delta_gap": "that of the change of similarity",
    "delta_retrieval": "that of the change of retrieval",
}


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
