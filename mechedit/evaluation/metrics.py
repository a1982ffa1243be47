"""Metrics of an edit as pure functions: numbers in, numbers out; no model, no file.

Three families that are not comparable with each other:

- probability [kmeng01/rome, kmeng01/memit]: ES, EM, PS, PM, NS, NM, their `_acc` and S compare
  nll(o | x) = −(1/|o|) Σ_j log p(o_j | x, o_<j) of the new and of the true object;
- argmax [SAKE, arXiv 2503.01751]: Acc, Gen, Spec, DI, DII look at what is decoded next: as many tokens, teacher-forced,
  as tell the new object from the old one (`mechedit.models.deciding`), mostly one;
- token match [zjunlp/EasyEdit]: the share of the object's tokens that are the argmax, teacher-forced; locality is the
  share *unchanged* by the edit. One of three tokens reads as "33 % success", so each stands beside its strict form, in
  which all tokens must be right (`_all`).

A score of one prompt is 1.0, 0.0 or NaN; ties count as failures; NaN stays NaN. A record's value is the mean
over its prompts, a data set's the mean over its records, as a fraction (the literature prints it × 100).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from reports.errors import InputError

__all__ = [
    "below",
    "bootstrap_harmonic_mean",
]


def below(a: float, b: float) -> float:
    """1.0 if a < b strictly, else 0.0; NaN if either is NaN.

    ES and PS are `below(nll_new, nll_true)`, NS is `below(nll_true, nll_new)`.

    >>> below(0.5, 2.0), below(2.0, 2.0), below(float("nan"), 2.0)
    (1.0, 0.0, nan)
    """
    return math.nan if math.isnan(a) or math.isnan(b) else float(a < b)


def margin(nll_a: float, nll_b: float) -> float:
    """e^{−nll_a} − e^{−nll_b}, between −1 and 1: how much likelier a is, as geometric means per token.

    EM and PM are `margin(nll_new, nll_true)`, NM is `margin(nll_true, nll_new)`.

    >>> round(margin(math.log(2), math.log(4)), 12)
    0.25
    """
    return math.exp(-nll_a) - math.exp(-nll_b)


def starts_answer(token: str | None, answers: Iterable[str]) -> float:
    """1.0 if the decoded next token, stripped, is not empty and an answer starts with it; None gives NaN.

    Wrong for a token of part of a character, which decodes to a replacement mark and never matches, and too
    kind to a short token: "S" starts every answer in S. Case matters.

    >>> starts_answer(" Par", ["Paris"]), starts_answer(" ", ["Paris"]), starts_answer("Paris.", ["Paris"])
    (1.0, 0.0, 0.0)
    """
    if token is None:
        return math.nan
    stripped = token.strip()
    return float(stripped != "" and any(answer.strip().startswith(stripped) for answer in answers))


def kept_for_specificity(base_p_new: float, base_p_old: float) -> bool:
    """Whether Spec counts a neighbourhood prompt: not where the *unedited* model has p(new) > p(old).

    >>> kept_for_specificity(0.1, 0.3), kept_for_specificity(0.3, 0.1), kept_for_specificity(0.2, 0.2)
    (True, False, True)
    """
    return not base_p_new > base_p_old


def specific(gate_fired: bool | None, p_new: float, p_old: float) -> float:
    """1.0 if the gate is silent or p(new) < p(old) after the edit; no gate (None) is never silent.

    >>> specific(False, 0.9, 0.1), specific(True, 0.9, 0.1), specific(None, 0.1, 0.9)
    (1.0, 0.0, 1.0)
    """
    return 1.0 if gate_fired is False else below(p_new, p_old)


def unchanged(before: Sequence[int], after: Sequence[int]) -> float:
    """The share of places at which two models say the same token; NaN for no place.

    Raises:
        InputError: The lengths differ.

    >>> unchanged([5, 7, 9, 1], [5, 8, 9, 1]), unchanged([5], [5])
    (0.75, 1.0)
    """
    if len(before) != len(after):
        raise InputError(f"after: expected {len(before)} tokens as before, found {len(after)}")
    return sum(a == b for a, b in zip(before, after, strict=True)) / len(before) if before else math.nan


def harmonic_mean(values: Sequence[float]) -> float:
    """The value n / Σ 1/v; 0 if one value is 0, NaN if one is NaN or there is none. S takes data-set level ES, PS, NS.

    Raises:
        InputError: A value is negative.

    >>> round(harmonic_mean([1.0, 0.5, 0.25]), 6), harmonic_mean([1.0, 0.0, 1.0])
    (0.428571, 0.0)
    """
    if any(value < 0 for value in values):
        raise InputError(f"values: expected none below 0, found {min(values)}")
    if not values or any(math.isnan(value) for value in values):
        return math.nan
    return 0.0 if 0.0 in values else len(values) / sum(1 / value for value in values)


def bootstrap_harmonic_mean(
    values: ArrayLike, present: ArrayLike, *, seed: int = 0, n_resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the harmonic mean of columns' means.

    Whole records are drawn with replacement, so that what a record's metrics share is kept. A NaN that is present, or a
    column with nothing present, gives (nan, nan).

    Args:
        values: One value a record and metric [records, metrics].
        present: False where a record has no prompt of that kind [records, metrics]; the column's mean is then over the
            other records.
        seed: Of the draws.
        n_resamples: How many samples are drawn.
        level: Of the interval.

    >>> bootstrap_harmonic_mean([[1.0, 1.0, 0.5]] * 4, [[True, True, True]] * 4)
    (0.75, 0.75)
    """
    there = np.asarray(present, dtype=bool)
    table = np.where(there, np.asarray(values, dtype=np.float64), 0.0)
    if not len(table) or np.isnan(table).any() or not there.any(axis=0).all():
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(len(table), size=(n_resamples, len(table)))
    sums = np.stack([column[drawn].sum(axis=1) for column in table.T], axis=1)
    counts = np.stack([column[drawn].sum(axis=1) for column in there.T], axis=1)
    whole = counts.all(axis=1)  # a sample may miss every record that has one kind of prompt
    means = [harmonic_mean(row) for row in (sums[whole] / counts[whole]).tolist()]
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
