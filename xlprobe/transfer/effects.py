"""The change of a score that a study makes: by test sentence, and its mean over seeds with an interval."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from reports.intervals import Z95
from reports.missing import explained
from xlprobe.transfer.laboratory import Score

__all__ = ["effects_of", "paired_differences"]


def paired_differences(with_: Score, without: Score) -> list[float]:
    """The values (h_i − h'_i) / mean count of the test sentences; their mean is the difference of the accuracies.

    >>> paired_differences(Score((2.0, 1.0), (4.0, 1.0)), Score((1.0, 1.0), (4.0, 1.0)))
    [0.4, 0.0]
    """
    mean = sum(with_.counts) / len(with_.counts)
    return [(a - b) / mean for a, b in zip(with_.hits, without.hits, strict=True)]


def effects_of(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean change over seeds: pair, objective, task, delta_score, low, high, score, baseline, seed_sd, n, seeds."""
    rows = []
    for (pair, objective, task), group in scores.groupby(["pair", "objective", "task"], sort=False):
        by_sentence = np.mean(np.array(group["by_sentence"].tolist()), axis=0)
        value, seeds = float(group["delta"].mean()), len(group)
        spread = float(group["delta"].std()) if seeds > 1 else math.nan
        error = math.sqrt(
            float(by_sentence.var(ddof=1)) / len(by_sentence) + np.nan_to_num(spread) ** 2 / seeds
        )
        row = {"pair": pair, "objective": objective, "task": task, "delta_score": value}
        rows.append(
            {
                **row,
                "low": value - Z95 * error,
                "high": value + Z95 * error,
                "score": float(group["score"].mean()),
                "baseline": float(group["baseline"].mean()),
                "seed_sd": spread,
                "n": len(by_sentence),
                "seeds": seeds,
            }
        )
    return explained(pd.DataFrame(rows), {"seed_sd": "one seed has no spread"})
