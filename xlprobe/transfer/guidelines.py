"""Guidelines from a study: which loss for which task, what to freeze, when to leave it, what to train, what to look at.

[choice] The paper's abstract promises guidelines; these lines are what a study's own tables allow. Each has the figure
that it stands on and the condition under which it was found, and is `shown` only where an interval allows it:

1. *loss*: the objective with the largest mean change over the pairs. Shown if its interval lies above 0 and, where
   there is the control, above the control's change too: what wrong pairs give as well is no alignment.
2. *freeze*: the layers that the advice from gradients leaves out (`xlprobe.transfer.advice`). Never shown: no study
   here has trained with them frozen.
3. *leave*: the pairs on which that objective takes from the score. Shown if an interval lies below 0 (95 % for all
   pairs together, Bonferroni).
4. *train*: the whole model or its head alone, of two trained parts the one from which alignment takes less
   (`xlprobe.transfer.trained`), over all tasks.
5. *look at*: the predictor with the largest |ρ|, over all tasks. Shown if the interval of its ρ lies on one side of 0
   and so does that of its lead over each rival (`xlprobe.transfer.contest`).

The interval of a mean over pairs is that of independent cells, or that of the pairs' spread, whichever is wider.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import pandas as pd

from reports.intervals import Z95
from xlprobe.transfer.advice import Advice
from xlprobe.transfer.verdict import needed, takes

__all__ = ["guidelines", "mean_change"]

_TASKS = {"pos": "tags", "topic": "topics"}
COLUMNS = ("task", "question", "guideline", "shown", "figure", "condition")


def guidelines(
    cells: pd.DataFrame,
    *,
    advice: dict[str, Advice],
    contest: pd.DataFrame,
    predictors: pd.DataFrame,
    robustness: list[dict[str, str]],
    condition: str,
) -> pd.DataFrame:
    """Frame task ("" for all), question, guideline, shown, figure, condition; a row each line.

    Args:
        cells: Frame of `Study.cells`, the control too.
        advice: The advice from gradients, by task.
        contest: Frame of `Study.contest`.
        predictors: Frame of `Study.predictors`.
        robustness: The claim of `xlprobe.transfer.trained.robustness`, if there is one.
        condition: What was studied, in words.
    """
    lines: list[dict[str, Any]] = []
    for task in dict.fromkeys(cells["task"]):
        of_task = cells[cells["task"] == task]
        best, loss = _loss(of_task)
        lines += [
            line | {"task": str(task)} for line in (loss, _freeze(advice[str(task)]), _leave(of_task, best))
        ]
    for line in (_train(robustness), _look(contest, predictors)):
        lines += [line | {"task": ""}] if line else []
    return pd.DataFrame([line | {"condition": condition} for line in lines], columns=list(COLUMNS))


def mean_change(cells: pd.DataFrame) -> tuple[float, float, float]:
    """The mean change of score of some cells, with its interval.

    >>> cells = pd.DataFrame({"delta_score": [0.1, 0.1], "low": [0.0, 0.0], "high": [0.2, 0.2]})
    >>> [round(value, 3) for value in mean_change(cells)]
    [0.1, 0.029, 0.171]
    """
    n, value = len(cells), float(cells["delta_score"].mean())
    errors = (cells["high"] - cells["low"]) / (2 * Z95)
    error = math.sqrt(float((errors**2).sum())) / n
    if n > 1:
        error = max(error, float(cells["delta_score"].std()) / math.sqrt(n))
    return value, value - Z95 * error, value + Z95 * error


def _loss(cells: pd.DataFrame) -> tuple[str, dict[str, Any]]:
    """The objective with the largest mean change, and its line."""
    tried = cells[cells["objective"] != "shuffled"]
    changes = {str(name): mean_change(group) for name, group in tried.groupby("objective", sort=False)}
    best = max(changes, key=lambda name: changes[name][0])
    value, low, high = changes[best]
    control = cells[cells["objective"] == "shuffled"]
    figure = f"mean change {_points(value, low, high)} over {_pairs(cells['pair'].nunique())}"
    shown, pairs = low > 0, cells["pair"].nunique()
    n_pairs = needed(value - low, [value], n=pairs)
    if len(control):
        base, base_low, base_high = mean_change(control)
        gap = math.hypot(high - value, base_high - base)
        shown = shown and value - base > gap
        n_pairs = max(n_pairs, needed(gap, [value - base], n=pairs))
        figure += f"; wrong pairs {_points(base, base_low, base_high)}"
    if others := [f"{name} {_points(*changes[name])}" for name in changes if name != best]:
        figure += f"; {', '.join(others)}"
    task = _name(cells)
    if shown:
        return best, _line("loss", f"For {task}, align by {best}.", True, figure)
    if value > 0:  # both spreads of a mean over pairs fall with their number, only one with test sentences
        figure += f"; {takes(n_pairs, 'pairs')}"
    guideline = f"For {task}, no loss is shown to help; the best guess is {best}."
    return best, _line("loss", guideline, False, figure)


def _freeze(advice: Advice) -> dict[str, Any]:
    task = _TASKS.get(advice.task, advice.task)
    if not advice.freeze:
        return _line("freeze", f"For {task}, no layer is shown to need freezing.", False, advice.reason)
    layers = ", ".join(map(str, advice.freeze))
    guideline = f"For {task} with {advice.objective}, freeze layers {layers} first; that it helps is a guess."
    return _line("freeze", guideline, False, advice.reason)


def _leave(cells: pd.DataFrame, objective: str) -> dict[str, Any]:
    """Where the best objective takes from the score."""
    tried = cells[cells["objective"] == objective].dropna(subset=["delta_score", "low", "high"])
    strict = NormalDist().inv_cdf(1 - 0.025 / max(1, len(tried))) / Z95
    harmed = tried[tried["high"] + (strict - 1) * (tried["high"] - tried["delta_score"]) < 0]
    task = _name(cells)
    shown = harmed if len(harmed) else tried.nsmallest(1, "delta_score")
    figure = "; ".join(
        f"{row.pair} {_points(row.delta_score, row.low, row.high)}" for row in shown.itertuples()
    )
    if len(harmed):
        names = ", ".join(map(str, harmed["pair"]))
        return _line(
            "leave", f"For {task}, leave {objective} on {names}: it takes from the score.", True, figure
        )
    return _line(
        "leave", f"For {task}, no pair is shown to be harmed by {objective}.", False, f"lowest {figure}"
    )


def _train(robustness: list[dict[str, str]]) -> dict[str, Any] | None:
    if not robustness:
        return None
    answer, evidence = (robustness[0][key] for key in ("answer", "evidence"))
    part = {"holds": "the head alone", "does not hold": "the whole model"}.get(answer)
    if part is None:
        return _line(
            "train",
            "Neither the head alone nor the whole model is shown to be the more robust.",
            False,
            evidence,
        )
    return _line("train", f"Train {part}: alignment takes less from it.", True, evidence)


def _look(contest: pd.DataFrame, predictors: pd.DataFrame) -> dict[str, Any] | None:
    if contest.empty:
        return None
    best = str(contest["predictor"].iloc[0])
    row = predictors.set_index("predictor").loc[best]
    clear = bool((row["low"] > 0 or row["high"] < 0) and (contest["low"] > 0).all())
    rival = contest.iloc[0]
    figure = (
        f"ρ {_signed(row['spearman'])} [{_signed(row['low'])}, {_signed(row['high'])}] over {row['n']:.0f} cells; |ρ| "
        f"larger than that of {rival['rival']} by {_signed(rival['difference'])} [{_signed(rival['low'])}, "
        f"{_signed(rival['high'])}]"
    )
    if clear:
        return _line("look at", f"To guess what alignment will do, look at {best}.", True, figure)
    figure += f"; {takes(float(rival['cells']), 'cells')}"
    return _line("look at", f"No predictor is shown to be the best; the best guess is {best}.", False, figure)


def _line(question: str, guideline: str, shown: bool, figure: str) -> dict[str, Any]:
    return {"question": question, "guideline": guideline, "shown": shown, "figure": figure}


def _name(cells: pd.DataFrame) -> str:
    task = str(cells["task"].iloc[0])
    return _TASKS.get(task, task)


def _pairs(n: int) -> str:
    return f"{n} pair{'s' if n > 1 else ''}"


def _points(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
