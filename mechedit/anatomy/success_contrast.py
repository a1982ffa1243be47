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

__all__ = ["Contrast", "average", "contrast", "interval"]

Array = np.ndarray
N_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Contrast:
    """Means of success and failure [D], and the same of every draw of facts [draws, D].

    n_success, n_failure: runs; facts_success, facts_failure: facts with at least one such run.
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
        """success − failure [D]."""
        return self.success - self.failure

    @cached_property
    def drawn(self) -> Array:
        """The difference of every draw [draws, D]."""
        return self.drawn_success - self.drawn_failure

    def enough(self, least: int) -> bool:
        """Whether both outcomes came on at least so many facts."""
        return min(self.facts_success, self.facts_failure) >= least


def contrast(
    features: Array,
    success: Array,
    fact: Array,
    *,
    n_facts: int,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> Contrast:
    """The contrast of runs: features [R, D], success [R] (bool), fact [R] (0 to n_facts − 1).

    The same seed and n_facts draw the same facts, so contrasts of several editors on the same facts are drawn together.

    >>> one = contrast(np.array([[1.0], [3.0], [0.5]]), np.array([True, True, False]), np.array([0, 1, 0]), n_facts=2)
    >>> one.difference.tolist(), one.n_success, one.facts_failure
    ([1.5], 2, 1)
    """
    weights = np.random.default_rng(seed).multinomial(
        n_facts, np.full(n_facts, 1 / n_facts), size=n_resamples
    )
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
    return Contrast(*means, *draws, *runs, *facts)


def average(contrasts: Sequence[Contrast]) -> Contrast:
    """The mean of several contrasts that were drawn together (the same facts and seed), each weighing the same.

    So an editor that only fails is not set against one that only succeeds. Counts are sums over the contrasts for
    runs, the largest for facts.
    """
    means = [
        np.mean([getattr(one, name) for one in contrasts], axis=0)
        for name in ("success", "failure", "drawn_success", "drawn_failure")
    ]
    runs = [sum(getattr(one, name) for one in contrasts) for name in ("n_success", "n_failure")]
    facts = [max(getattr(one, name) for one in contrasts) for name in ("facts_success", "facts_failure")]
    return Contrast(*means, *runs, *facts)


def interval(draws: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Low and high [D] of draws [draws, D]; NaN where more than one in ten of the draws is not defined.

    >>> low, high = interval(np.linspace(0, 1, 101)[:, None])
    >>> round(float(low[0]), 6), round(float(high[0]), 6)
    (0.025, 0.975)
    """
    known = np.isfinite(draws).all(axis=1)
    if known.mean() < 0.9:
        return np.full(draws.shape[1], np.nan), np.full(draws.shape[1], np.nan)
    tail = (1 - level) / 2
    low, high = np.quantile(draws[known], [tail, 1 - tail], axis=0)
    return low, high
