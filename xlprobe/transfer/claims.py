"""The paper's claims (arXiv 2603.18863), answered by a study's numbers: "holds", "does not hold" or "not shown".

An answer needs enough cells and an interval that allows it (`xlprobe.transfer.verdict`); otherwise the answer is "not
shown": this study is too small, the claim may be right, and the evidence says what it would take. The thresholds are
ours [the abstract gives none] and stand in the evidence.

1. *Embedding distance alone does not predict whether a task improves or degrades.* Does not hold if the interval of
   Spearman's ρ between the change of retrieval and that of the score lies above 0 and the other pairs predict the
   held-out one better than their mean does (q² > 0, of at least three pairs); holds if the interval's upper end is
   below 0.5 (a quarter of the variance of ranks). Fewer than ten cells show nothing.
2. *Alignment and task gradients are often close to orthogonal.* A cell is near if the interval of its cosine lies in
   ±0.1 and within a third of what two useful gradients make (`xlprobe.transfer.orthogonal`), far if it lies outside,
   else open. Holds if more than half of the cells (Wilson) are near; does not hold if more than half are far. Cells
   whose gradients are mostly noise (halves below 0.5) are left out: noise is orthogonal to everything.
3. *Benefits vary by language and task.* Holds if, for one objective, the changes of two cells differ (95 % for all
   differences together, Bonferroni); does not hold if every such difference lies within 2 points, interval and all.
"""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist
from typing import Any

import pandas as pd

from reports.intervals import Z95, wilson
from xlprobe.transfer.orthogonal import SHARE, useful
from xlprobe.transfer.verdict import NOISE, NOT_SHOWN, ORTHOGONAL, decide, needed, takes

__all__ = ["claims"]

WEAK = 0.5  # of Spearman's ρ
FEWEST_CELLS, FEWEST_PAIRS = 10, 3
ALIKE = 0.02  # changes of score that differ by less are one change


def claims(cells: pd.DataFrame, predictors: pd.DataFrame) -> list[dict[str, str]]:
    """The claim, answer and evidence of each of the three.

    Args:
        cells: Frame pair, objective, task, delta_score, low, high, gradient_cosine, task_halves, align_halves, and
            where they are known cosine_low, cosine_high, n, task_batches, align_batches.
        predictors: The frame of `xlprobe.transfer.prediction.predict`.
    """
    return [_distance(predictors, cells["pair"].nunique()), _orthogonal(cells), _varies(cells)]


def _answered(claim: str, answer: str, evidence: str, more: str) -> dict[str, str]:
    return {
        "claim": claim,
        "answer": answer,
        "evidence": f"{evidence}; {more}" if answer == NOT_SHOWN else evidence,
    }


# -- distance --------------------------------------------------------------------------------------------------


def _distance(predictors: pd.DataFrame, n_pairs: int) -> dict[str, str]:
    claim = "Embedding distance alone does not predict whether a task improves or degrades"
    rows = predictors[predictors["predictor"] == "delta_retrieval"]
    if rows.empty:
        return {"claim": claim, "answer": NOT_SHOWN, "evidence": "retrieval was not measured"}
    row = rows.iloc[0]
    answer = NOT_SHOWN
    if row["n"] >= FEWEST_CELLS:
        if row["low"] > 0 and row["q2"] > 0 and n_pairs >= FEWEST_PAIRS:
            answer = "does not hold"
        else:
            answer = decide(row["low"], row["high"], holds=(-1.0, WEAK))
    rho, low, high, q2 = (f"{row[name]:+.2f}".replace("-", "−") for name in ("spearman", "low", "high", "q2"))
    evidence = (
        f"Spearman's ρ of the change of retrieval with the change of score {rho} [{low}, {high}], same sign in "
        f"{row['sign_agreement']:.0%} [{row['sign_low']:.0%}, {row['sign_high']:.0%}], leave-one-pair-out q² {q2}, "
        f"n = {row['n']:.0f} cells; asked: an interval above 0 with q² above 0, or one below {WEAK}"
    )
    return _answered(claim, answer, evidence, _cells_for(float(row["spearman"]), float(row["n"]), n_pairs))


def _cells_for(rho: float, n: float, n_pairs: int) -> str:
    """How many cells (or pairs) would answer, by Fisher's z: its error is 1/√(n − 3)."""
    if n < FEWEST_CELLS or math.isnan(rho):
        return f"it would take at least {FEWEST_CELLS} cells"
    z, weak = math.atanh(max(-0.999, min(0.999, rho))), math.atanh(WEAK)
    cells = max(float(FEWEST_CELLS), 3 + needed(Z95, [z, weak - z]))
    if cells <= n:  # ρ is clear, what it predicts is not
        return f"it would take held-out pairs that it predicts (q² above 0), of at least {FEWEST_PAIRS}"
    return takes(cells, "cells") + (f" of at least {FEWEST_PAIRS} pairs" if n_pairs < FEWEST_PAIRS else "")


# -- angles ----------------------------------------------------------------------------------------------------


def _orthogonal(cells: pd.DataFrame) -> dict[str, str]:
    claim = "Alignment and task gradients are often close to orthogonal"
    measured = cells.dropna(subset=["gradient_cosine"])
    clear = measured[(measured["task_halves"] >= NOISE) & (measured["align_halves"] >= NOISE)]
    left = f"; {len(measured) - len(clear)} cells are mostly noise and left out"
    if len(measured) < len(cells):
        left += f", {len(cells) - len(measured)} have no cosine"
    if not len(clear):
        return _answered(claim, NOT_SHOWN, "no cell has gradients above their noise" + left, _batches(cells))
    sides = [_side(row) for row in clear.to_dict("records")]
    near, far, n = sides.count("near"), sides.count("far"), len(sides)
    (low, high), (far_low, _) = wilson(near, n), wilson(far, n)
    answer = "holds" if low > 0.5 else "does not hold" if far_low > 0.5 else NOT_SHOWN
    evidence = f"|cosine| ≤ {ORTHOGONAL} in {near} of {n} cells, {near / n:.0%} [{low:.0%}, {high:.0%}]"
    if undecided := n - near - far:
        evidence += f", in {undecided} the interval holds that bound too"
    beside = clear.apply(useful, axis=1).median()
    evidence += f", and at most a third of what two useful gradients make (median {_two(beside)}"
    evidence += f"; the cells' {_two(clear['gradient_cosine'].abs().median())})"
    share = max(near, far) / n
    more = takes(
        max(n + 1, math.ceil(Z95**2 * ((0.5 / (share - 0.5)) ** 2 - 1)) if share > 0.5 else math.inf), "cells"
    )
    if undecided and share <= 0.5:
        more = "it would take narrower intervals of the cosines: more batches of each loss"
    return _answered(claim, answer, evidence + left, more)


def _side(cell: dict[Any, Any]) -> str:
    """Whether the cosine's whole interval is near 0, against what useful gradients make too, or far from it.

    In a table of an earlier version, which has no such columns, a cosine stands for itself.
    """
    yardstick = useful(cell)
    bound = ORTHOGONAL if math.isnan(yardstick) else max(0.0, min(ORTHOGONAL, SHARE * yardstick))
    low, high = (float(cell.get(name, cell["gradient_cosine"])) for name in ("cosine_low", "cosine_high"))
    if decide(low, high, near=(-bound, bound)) == "near":
        return "near"
    return "far" if low > bound or high < -bound else "open"


def _two(value: float) -> str:
    return f"{value:.2f}"


def _batches(cells: pd.DataFrame) -> str:
    """How many batches would lift the median cell above its noise."""
    known = [name for name in ("task_batches", "align_batches") if name in cells]
    if not len(cells) or not known:
        return "it would take more batches of each loss"
    return takes(float(cells[known].max(axis=1).median()), "batches of each loss")


# -- benefits --------------------------------------------------------------------------------------------------


def _varies(cells: pd.DataFrame) -> dict[str, str]:
    claim = "Benefits of alignment vary by language and task"
    known = cells.dropna(subset=["delta_score", "low", "high"])
    pairs = [
        (a, b)
        for _, group in known.groupby("objective", sort=False)
        for a, b in itertools.combinations(group.sort_values("delta_score").to_dict("records")[::-1], 2)
    ]
    if not pairs:
        evidence = f"no objective has two cells, n = {len(known)} cells"
        return _answered(
            claim, NOT_SHOWN, evidence, "it would take at least 2 pairs or tasks of one objective"
        )
    strict = NormalDist().inv_cdf(1 - 0.025 / len(pairs)) / Z95
    apart = [(a, b) for a, b in pairs if _between(a, b) > strict * _half(a, b)]
    if apart:
        a, b = max(apart, key=lambda pair: _between(*pair))
        evidence = f"{a['objective']}: {_change(a)} against {_change(b)}; {len(apart)} such pairs of cells"
        return _answered(claim, "holds", evidence, "")
    alike = all(_between(a, b) + _half(a, b) <= ALIKE for a, b in pairs)
    evidence = (
        f"no two changes of one objective differ for sure, n = {len(known)} cells; asked: a difference whose interval "
        f"leaves out 0, or all of them within {100 * ALIKE:.0f} points"
    )
    return _answered(claim, "does not hold" if alike else NOT_SHOWN, evidence, _text_for(pairs, strict))


def _text_for(pairs: list[tuple[dict[Any, Any], dict[Any, Any]]], strict: float) -> str:
    """How much test text would tell the likeliest pair apart, or all changes alike, whichever is less."""
    apart = min(needed(strict * _half(a, b), [_between(a, b)]) for a, b in pairs)
    alike = max(needed(_half(a, b), [ALIKE - _between(a, b)]) for a, b in pairs)
    times = min(apart, alike)
    sizes = [float(cell["n"]) for pair in pairs for cell in pair if "n" in cell]
    if sizes:
        return takes(times * sum(sizes) / len(sizes), "test sentences a cell")
    return takes(times, "times as many test sentences")


def _between(a: dict[Any, Any], b: dict[Any, Any]) -> float:
    return abs(float(a["delta_score"]) - float(b["delta_score"]))


def _half(a: dict[Any, Any], b: dict[Any, Any]) -> float:
    """Half the 95 % interval of the difference of two independent changes."""
    return math.hypot(*((float(cell["high"]) - float(cell["low"])) / 2 for cell in (a, b)))


def _change(cell: dict[Any, Any]) -> str:
    value, low, high = (100 * float(cell[key]) for key in ("delta_score", "low", "high"))
    text = f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]".replace("-", "−")
    return f"{cell['pair']}, {cell['task']} {text}"
