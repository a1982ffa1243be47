"""The paper's claims (arXiv 2603.18863), answered by a study's numbers: "holds", "does not hold" or "not shown".

An answer needs an interval that allows it; otherwise the answer is "not shown": this study is too small, the
claim may be right. The thresholds are ours [the abstract gives none] and stand in the evidence.

1. *Embedding distance alone does not predict whether a task improves or degrades.* Does not hold if the interval of
   Spearman's ρ between the change of retrieval and that of the score lies above 0 and the other pairs predict the
   held-out one better than their mean does (q² > 0); holds if the interval's upper end is below 0.5 (a quarter of the
   variance of ranks).
2. *Alignment and task gradients are often close to orthogonal.* Holds if more than half of the cells (Wilson) have
   |cosine| ≤ 0.1; does not hold if fewer than half have. Cells whose gradients are mostly noise (halves below 0.5)
   are left out: noise is orthogonal to everything.
3. *Benefits vary by language and task.* Holds if, for one objective, two cells' intervals of the change of score do
   not overlap; does not hold if all intervals hold the mean change of all cells; else not shown.
"""

from __future__ import annotations

import itertools

import pandas as pd

from reports.intervals import wilson

__all__ = ["claims"]

ORTHOGONAL, NOISE, WEAK = 0.1, 0.5, 0.5


def claims(cells: pd.DataFrame, predictors: pd.DataFrame) -> list[dict[str, str]]:
    """The claim, answer and evidence of each of the three.

    Args:
        cells: Frame pair, objective, task, delta_score, low, high, gradient_cosine, task_halves, align_halves.
        predictors: The frame of `xlprobe.transfer.prediction.predict`.
    """
    return [_distance(predictors), _orthogonal(cells), _varies(cells)]


def _distance(predictors: pd.DataFrame) -> dict[str, str]:
    claim = "Embedding distance alone does not predict whether a task improves or degrades"
    rows = predictors[predictors["predictor"] == "delta_retrieval"]
    if rows.empty:
        return {"claim": claim, "answer": "not shown", "evidence": "retrieval was not measured"}
    row = rows.iloc[0]
    answer = "not shown"
    if row["low"] > 0 and row["q2"] > 0:
        answer = "does not hold"
    elif row["high"] < WEAK:
        answer = "holds"
    rho, low, high, q2 = (f"{row[name]:+.2f}".replace("-", "−") for name in ("spearman", "low", "high", "q2"))
    evidence = (
        f"Spearman's ρ of the change of retrieval with the change of score {rho} [{low}, {high}], same sign in "
        f"{row['sign_agreement']:.0%} [{row['sign_low']:.0%}, {row['sign_high']:.0%}], leave-one-pair-out q² {q2}, "
        f"n = {row['n']:.0f} cells; asked: an interval above 0 with q² above 0, or one below {WEAK}"
    )
    return {"claim": claim, "answer": answer, "evidence": evidence}


def _orthogonal(cells: pd.DataFrame) -> dict[str, str]:
    claim = "Alignment and task gradients are often close to orthogonal"
    clear = cells[(cells["task_halves"] >= NOISE) & (cells["align_halves"] >= NOISE)].dropna(
        subset=["gradient_cosine"]
    )
    near = int((clear["gradient_cosine"].abs() <= ORTHOGONAL).sum())
    low, high = wilson(near, len(clear))
    answer = "holds" if low > 0.5 else "does not hold" if high < 0.5 else "not shown"
    evidence = (
        f"|cosine| ≤ {ORTHOGONAL} in {near} of {len(clear)} cells, {near / len(clear):.0%} [{low:.0%}, {high:.0%}]"
        if len(clear)
        else "no cell has gradients above their noise"
    )
    left = len(cells) - len(clear)
    return {
        "claim": claim,
        "answer": answer,
        "evidence": evidence + f"; {left} cells are mostly noise and left out",
    }


def _varies(cells: pd.DataFrame) -> dict[str, str]:
    claim = "Benefits of alignment vary by language and task"
    known = cells.dropna(subset=["delta_score", "low", "high"])
    apart = [
        (a, b)
        for _, group in known.groupby("objective", sort=False)
        for a, b in itertools.permutations(group.to_dict("records"), 2)
        if a["low"] > b["high"]
    ]
    mean = known["delta_score"].mean()
    if apart:
        a, b = max(apart, key=lambda pair: pair[0]["delta_score"] - pair[1]["delta_score"])
        evidence = f"{a['objective']}: {_change(a)} against {_change(b)}; {len(apart)} such pairs of cells"
        return {"claim": claim, "answer": "holds", "evidence": evidence}
    within = bool(((known["low"] <= mean) & (known["high"] >= mean)).all()) and len(known) > 0
    evidence = f"no two intervals of one objective are apart, n = {len(known)} cells"
    return {"claim": claim, "answer": "does not hold" if within else "not shown", "evidence": evidence}


def _change(cell: dict[str, object]) -> str:
    value, low, high = (100 * float(str(cell[key])) for key in ("delta_score", "low", "high"))
    text = f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]".replace("-", "−")
    return f"{cell['pair']}, {cell['task']} {text}"
