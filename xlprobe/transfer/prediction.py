"""Does a measured quantity predict what alignment does to a task's score? Pure functions over the study's table.

A *cell* is a pair × objective × task: its change of score (mean over seeds, against no alignment with the same seed)
and what was measured. The predictors, side by side:

- `delta_gap_early`, `delta_gap`, `delta_gap_last`: change of similarity, the cosine of translations less that of random
  pairs, in the layer one third up, the one that is aligned, and the last;
- `delta_retrieval`, `delta_strong`, `delta_csls`, `delta_cka`: change of retrieval (weak, strong, weak by CSLS) and of
  linear CKA in the layer that is aligned;
- `gradient_cosine`, `norm_ratio`: of the two gradients before any training, where all objectives reach;
- `agreeing`: the share of the encoder's parameters that are without conflict before any training: those of the cells
  (layer × group) whose cosine is not below 0.

For each:

- Spearman's ρ with the change of score, and its percentile bootstrap interval over cells;
- `partial`: the same given the pair, with its interval: the correlation of what the pair's mean leaves of the ranks. A
  predictor that only tells pairs apart has none;
- sign agreement: the share of cells in which predictor and change have the same sign, with Wilson's interval (for a
  norm ratio the logarithm's sign: is the alignment's gradient the larger one? for `agreeing`: is it more than half?);
- leave one pair out: a line fitted on the other pairs' cells predicts this pair's; `q2` = 1 − Σ(y − ŷ)²/Σ(y − ȳ)² with
  ȳ the other pairs' mean, so q2 ≤ 0 means that the predictor is no better than knowing nothing.

Which of two predicts better is another question (`xlprobe.transfer.contest`). A known flaw: cells of one pair share an
encoder and a test set, so intervals over cells are somewhat too narrow.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from reports.errors import InputError
from reports.intervals import wilson
from reports.missing import explained

__all__ = [
    "PREDICTORS",
    "correlations",
    "leave_one_pair_out",
    "partial_spearman",
    "predict",
    "scaled",
    "spearman",
]

PREDICTORS = (
    "delta_retrieval",
    "delta_strong",
    "delta_csls",
    "delta_gap_early",
    "delta_gap",
    "delta_gap_last",
    "delta_cka",
    "gradient_cosine",
    "agreeing",
    "norm_ratio",
)
_RESAMPLES = 2000


def predict(cells: pd.DataFrame, *, outcome: str = "delta_score", seed: int = 0) -> pd.DataFrame:
    """What each predictor says of the change of score; one row a predictor.

    The columns are predictor, spearman, low, high, partial, partial_low, partial_high, sign_agreement, sign_low,
    sign_high, q2, n, missing.

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
        x, y = scaled(known[name]), known[outcome].to_numpy(dtype=float)
        pairs = known["pair"].to_numpy()
        (low, high), (partial_low, partial_high) = _interval(x, y, seed), _interval(x, y, seed, pairs)
        agreed = int((np.sign(x) == np.sign(y)).sum())
        sign_low, sign_high = wilson(agreed, len(x))
        rows.append(
            {
                "predictor": name,
                "spearman": spearman(x, y),
                "low": low,
                "high": high,
                "partial": partial_spearman(x, y, pairs),
                "partial_low": partial_low,
                "partial_high": partial_high,
                "sign_agreement": agreed / len(x) if len(x) else math.nan,
                "sign_low": sign_low,
                "sign_high": sign_high,
                "q2": leave_one_pair_out(x, y, pairs),
                "n": len(x),
            }
        )
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    few = frame["n"].map(lambda n: "fewer than 3 cells" if n < 3 else "one side does not vary")
    share = dict.fromkeys(("sign_agreement", "sign_low", "sign_high"), "no cell has both values")
    within = dict.fromkeys(
        ("partial", "partial_low", "partial_high"), "one side does not vary within the pairs"
    )
    whole = {"q2": "fewer than two pairs, or the outcome does not vary"}
    return explained(frame, dict.fromkeys(("spearman", "low", "high"), few) | within | share | whole)


def scaled(values: pd.Series) -> np.ndarray:
    """A predictor's values on the scale whose 0 parts the signs.

    >>> scaled(pd.Series([1.0, 1.0], name="norm_ratio")).tolist()
    [0.0, 0.0]
    """
    x = values.to_numpy(dtype=float)
    return np.log(x) if values.name == "norm_ratio" else x - 0.5 if values.name == "agreeing" else x


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's ρ, ties at their mean rank; nan where one side does not vary or n < 3.

    >>> float(spearman(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3])))
    1.0
    """
    return float(correlations(x, y, np.arange(len(x))[None])[0]) if len(x) >= 3 else math.nan


def partial_spearman(x: np.ndarray, y: np.ndarray, pairs: np.ndarray) -> float:
    """The correlation of what the means of the pairs leave of the ranks; nan where nothing is left, or n < 3.

    >>> x, pairs = np.array([1.0, 2.0, 8.0, 9.0]), np.array(list("aabb"))
    >>> float(partial_spearman(x, np.array([2.0, 1.0, 9.0, 8.0]), pairs))
    -1.0
    """
    return float(correlations(x, y, np.arange(len(x))[None], pairs)[0]) if len(x) >= 3 else math.nan


def correlations(
    x: np.ndarray, y: np.ndarray, draws: np.ndarray, pairs: np.ndarray | None = None
) -> np.ndarray:
    """Spearman's ρ of each resample of the cells [resamples], nan where it is undefined.

    Args:
        x: A predictor [cells].
        y: The outcome [cells].
        draws: The cells of each resample [resamples, n].
        pairs: Given the pair: the pair of each cell.
    """
    codes = np.zeros(len(x), dtype=int) if pairs is None else np.unique(pairs, return_inverse=True)[1]
    a, b = (_without_means(rankdata(values[draws], axis=1), codes[draws]) for values in (x, y))
    spread = (a * a).sum(1) * (b * b).sum(1)
    spread = np.where(spread > 1e-9, spread, np.nan)  # means of ranks are exact to about 1e-12
    return np.asarray((a * b).sum(1) / np.sqrt(spread))


def _without_means(ranks: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The ranks [resamples, n] less the mean of their group in the same resample."""
    n_groups = int(codes.max(initial=0)) + 1
    cell = codes + n_groups * np.arange(len(codes))[:, None]
    size = n_groups * len(codes)
    sums = np.bincount(cell.ravel(), ranks.ravel(), minlength=size)
    counts = np.bincount(cell.ravel(), minlength=size)
    return np.asarray(ranks - (sums / np.maximum(counts, 1))[cell])


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


def _interval(
    x: np.ndarray, y: np.ndarray, seed: int, pairs: np.ndarray | None = None
) -> tuple[float, float]:
    """Percentile bootstrap over cells; draws in which ρ is undefined are left out."""
    if len(x) < 3:
        return math.nan, math.nan
    draws = np.random.default_rng(seed).integers(len(x), size=(_RESAMPLES, len(x)))
    values = correlations(x, y, draws, pairs)
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
