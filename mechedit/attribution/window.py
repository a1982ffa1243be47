"""Which run of layers stands out: the window of a steering edit."""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["best_window", "window_scores"]


def window_scores(differences: np.ndarray) -> pd.DataFrame:
    """Every contiguous run of layers: frame first, last, score, the run's sum above the mean of all layers.

    Without the mean every layer that is not negative would belong to the best run.

    Args:
        differences: A number a layer [n_layers].

    >>> window_scores(np.array([0.0, 3.0])).to_dict("list")
    {'first': [0, 0, 1], 'last': [0, 1, 1], 'score': [-1.5, 0.0, 1.5]}
    """
    excess = differences - differences.mean()
    runs = [(a, b) for a in range(len(excess)) for b in range(a, len(excess))]
    rows = [(a, b, float(excess[a : b + 1].sum())) for a, b in runs]
    return pd.DataFrame(rows, columns=["first", "last", "score"])


def best_window(differences: np.ndarray) -> tuple[int, int]:
    """First and last layer of the run with the highest of `window_scores`; the earliest, shortest of equal ones.

    Args:
        differences: A number a layer [n_layers].

    >>> best_window(np.array([0.1, 0.0, 0.2, 1.0, 1.5, 0.1]))
    (3, 4)
    """
    scores = window_scores(differences)
    best = scores.loc[scores["score"].idxmax()]
    return int(best["first"]), int(best["last"])
