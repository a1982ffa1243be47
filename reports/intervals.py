"""Intervals of what was measured on a sample.

Wilson's score interval for one proportion [E. B. Wilson, JASA 22 (1927), 209-212], the interval of a difference from
those of its two sides, and the percentile bootstrap of a mean over records [B. Efron, Ann. Statist. 7 (1979), 1-26].
"""

from __future__ import annotations

import math
import operator
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from reports.errors import InputError

__all__ = ["Z95", "bootstrap_mean", "difference_interval", "wilson"]

Z95 = 1.959964  # a normal variable is within ± so many standard errors in 95 %


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion, `(low, high)` as fractions in [0, 1].

    With p = successes / n and z the normal quantile of (1 + level) / 2:
    (p + z²/2n ± z·sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n). n = 0 gives (nan, nan).

    Wrong when the trials depend on each other (several prompts of one record): bootstrap over records instead.

    Raises:
        InputError: Not 0 <= successes <= n, or not 0 < level < 1.

    >>> low, high = wilson(5, 10)
    >>> round(low, 4), round(high, 4)
    (0.2366, 0.7634)
    """
    successes, n = operator.index(successes), operator.index(n)
    z = _quantile(level)
    if not 0 <= successes <= n:
        raise InputError(f"successes: expected 0 <= successes <= n, found {successes} of n = {n}")
    if n == 0:
        return math.nan, math.nan
    p = successes / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # at 0/n and n/n one bound is exactly 0 or 1; rounding must not push it outside or leave 1e-17 there
    low = 0.0 if successes == 0 else max(0.0, (middle - half) / scale)
    high = 1.0 if successes == n else min(1.0, (middle + half) / scale)
    return low, high


def difference_interval(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float]:
    """Interval `(low, high)` of second − first, from (value, low, high) of each: the square-and-add rule.

    With d = p₂ − p₁: low = d − sqrt((p₂ − l₂)² + (u₁ − p₁)²), high = d + sqrt((u₂ − p₂)² + (p₁ − l₁)²) [Newcombe,
    Statistics in Medicine 17 (1998) 873–890, method 10, where the two are Wilson's; Zou & Donner 2008 for any].
    Any NaN gives (nan, nan).

    Wrong when the two are not independent: of two runs on the same records it is too wide, as a rule.

    >>> low, high = difference_interval((48 / 80, *wilson(48, 80)), (56 / 70, *wilson(56, 70)))
    >>> round(low, 4), round(high, 4)
    (0.0524, 0.3339)
    """
    (p1, l1, u1), (p2, l2, u2) = first, second
    return p2 - p1 - math.hypot(p2 - l2, u1 - p1), p2 - p1 + math.hypot(u2 - p2, p1 - l1)


def bootstrap_mean(
    values: ArrayLike, *, seed: int = 0, n_resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval `(low, high)` of the mean of `values`.

    Draws `n_resamples` samples of n records with replacement and takes the (1 ∓ level)/2 quantiles of their means. The
    values are sorted first, so the interval depends on the records and the seed alone, not on their order. n = 0 or
    any NaN gives (nan, nan): a missing record is never dropped in silence.

    Wrong for few records: the interval is too narrow by about sqrt((n − 1)/n), and has no width at all for n = 1 or
    where all values agree; for a proportion use `wilson`.

    Args:
        values: One value a record [n].
        seed: Of the draws.
        n_resamples: Number of samples.
        level: Share of intervals that shall hold the mean.

    Raises:
        InputError: `values` is not one-dimensional, n_resamples < 1 or not 0 < level < 1.

    >>> bootstrap_mean([2.0, 2.0, 2.0])
    (2.0, 2.0)
    >>> low, high = bootstrap_mean([0.0, 1.0] * 50)
    >>> low < 0.5 < high
    True
    """
    _quantile(level)
    data = np.sort(np.asarray(values, dtype=np.float64))
    if data.ndim != 1:
        raise InputError(f"values: expected one dimension (a value a record), found shape {data.shape}")
    if n_resamples < 1:
        raise InputError(f"n_resamples: expected at least 1, found {n_resamples}")
    if data.size == 0 or np.isnan(data).any():
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // data.size)  # bounds the memory of the index array at 16 MB for any n
    means: list[np.ndarray] = []
    for start in range(0, n_resamples, rows):
        size = (min(rows, n_resamples - start), data.size)
        means.append(data[generator.integers(data.size, size=size)].mean(axis=1))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(max(low, data[0])), float(min(high, data[-1]))


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(f"level: expected a number between 0 and 1, found {level}; write 0.95 for 95 %")
    return NormalDist().inv_cdf((1 + level) / 2)
