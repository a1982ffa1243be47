"""Success against failure, with intervals over facts: arrays in, arrays out; no model.

For runs r with features x_r (what changed by the edit), success s_r and fact f_r:

    difference = mean of x over the successes − mean of x over the failures

Intervals: percentile bootstrap *over facts*: whole facts are drawn, with all of their runs, because the runs of one
fact (several editors, several settings) are not independent. A draw in which all runs succeed or all fail has no
difference and is left out; where that is more than one in ten there is no interval (NaN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["SuccessContrast", "average", "interval", "success_contrast"]

Array = np.ndarray
N_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class SuccessContrast:
    """Means of the features over successes and over failures, and the same of every draw of facts.

    Attributes:
        success: Mean over the successes [D].
        failure: Mean over the failures [D].
        drawn_success: The former of every draw [draws, D].
        drawn_failure: The latter of every draw [draws, D].
        n_success: Runs that succeeded.
        n_failure: Runs that failed.
        facts_success: Facts with at least one run that succeeded.
        facts_failure: Facts with at least one run that failed.
    """

    success: Array
    failure: Array
    drawn_success: Array
    drawn_failure: Array
    n_success: int
    n_failure: int
    facts_success: int
    facts_failure: int

    @cached_property
    def difference(self) -> Array:
        """Success − failure [D]."""
        return self.success - self.failure

    @cached_property
    def drawn(self) -> Array:
        """The difference of every draw [draws, D]."""
        return self.drawn_success - self.drawn_failure

    def enough(self, least: int) -> bool:
        """Whether both outcomes occurred on at least so many facts."""
        return min(self.facts_success, self.facts_failure) >= least


def success_contrast(
    features: Array, success: Array, fact: Array, *, n_facts: int, seed: int = 0
) -> SuccessContrast:
    """The contrast of R runs.

    The same seed and n_facts draw the same facts, so contrasts of several editors on the same facts are drawn together.

    Args:
        features: What changed in each run [R, D].
        success: Whether each run succeeded [R].
        fact: Which fact each run is about [R], 0 to n_facts − 1.
        n_facts: Facts that are drawn from.
        seed: Of the draws.

    >>> success, fact = np.array([True, True, False]), np.array([0, 1, 0])
    >>> contrast = success_contrast(np.array([[1.0], [3.0], [0.5]]), success, fact, n_facts=2)
    >>> contrast.difference.tolist(), contrast.n_success, contrast.facts_failure
    ([1.5], 2, 1)
    """
    chances = np.full(n_facts, 1 / n_facts)
    weights = np.random.default_rng(seed).multinomial(n_facts, chances, size=N_RESAMPLES)
    means, draws, runs, facts = [], [], [], []
    for outcome in (True, False):
        rows = success == outcome
        counts = np.bincount(fact[rows], minlength=n_facts).astype(float)
        sums = np.zeros((n_facts, features.shape[1]))
        np.add.at(sums, fact[rows], features[rows])
        with np.errstate(invalid="ignore"):
            means.append(sums.sum(0) / counts.sum())
            draws.append((weights @ sums) / (weights @ counts)[:, None])
        runs.append(int(rows.sum()))
        facts.append(int((counts > 0).sum()))
    return SuccessContrast(*means, *draws, *runs, *facts)


def average(contrasts: Sequence[SuccessContrast]) -> SuccessContrast:
    """The mean of several contrasts that were drawn together (the same facts and seed), each weighing the same.

    No editor's failures are thus compared with another's successes. Counts of runs are summed, of facts the largest
    is taken.
    """
    means = [
        np.mean([getattr(each, name) for each in contrasts], axis=0)
        for name in ("success", "failure", "drawn_success", "drawn_failure")
    ]
    runs = [sum(getattr(each, name) for each in contrasts) for name in ("n_success", "n_failure")]
    facts = [max(getattr(each, name) for each in contrasts) for name in ("facts_success", "facts_failure")]
    return SuccessContrast(*means, *runs, *facts)


def interval(draws: Array) -> tuple[Array, Array]:
    """Low and high [D] of the 95 % interval of draws [draws, D]; NaN where over one in ten of them is not defined.

    >>> low, high = interval(np.linspace(0, 1, 101)[:, None])
    >>> round(float(low[0]), 6), round(float(high[0]), 6)
    (0.025, 0.975)
    """
    known = np.isfinite(draws).all(axis=1)
    if known.mean() < 0.9:
        return np.full(draws.shape[1], np.nan), np.full(draws.shape[1], np.nan)
    tail = (1 - 0.95) / 2
    low, high = np.quantile(draws[known], [tail, 1 - tail], axis=0)
    return low, high
