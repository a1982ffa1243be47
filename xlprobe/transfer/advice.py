"""Which alignment to combine with a task, how strongly, and which layers to leave out: from gradients alone.

[choice] The abstract promises guidelines and gives none; these follow from a first-order argument, and
`experiments/recipes/advice.toml` tests them. On the encoder as it is before any training:

1. *Objective*: the one whose gradient's cosine with the task's is largest, over the blocks that all objectives reach
   (`xlprobe.transfer.reach`). If the interval of even that one lies below 0, the advice is no alignment. If it lies
   within ±0.1, the objective is neutral: it may help, and should not harm.
2. *Weight* w = `SHARE` / ratio: the alignment's pull is at most that share of the task's where both reach, on any scale
   of the losses.
3. *Freeze* the layers whose own interval lies below 0 for this objective: there a step on the alignment undoes the
   task; the others are aligned.

Where gradients are mostly noise, or the interval holds more than one answer, the verdict is "not shown"
(`xlprobe.transfer.verdict`): the objective is then the best guess and no more. The advice is wrong beyond the first
steps of training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from reports.errors import InputError
from xlprobe.transfer.reach import common_rows
from xlprobe.transfer.verdict import NOISE, NOT_SHOWN, ORTHOGONAL, decide, needed, takes

__all__ = ["SHARE", "Advice", "advise"]

SHARE = 0.5  # of the task's gradient norm
_ABOVE = math.ulp(0.0)  # an interval that ends at 0 holds it
_ANSWERS = {"agrees": (_ABOVE, 1.0), "conflicts": (-1.0, -_ABOVE), "neutral": (-ORTHOGONAL, ORTHOGONAL)}
_YARDSTICKS = ("task_halves", "align_halves", "task_batches", "align_batches", "n_task", "n_align")
_BATCHES = "batches of each loss"


@dataclass(frozen=True)
class Advice:
    """What to do, and why.

    Attributes:
        task: The task.
        objective: The objective to align by; "none" advises against alignment.
        weight: What the alignment's loss is multiplied by.
        layers: Layers to align.
        freeze: Layers to leave out.
        verdict: "agrees", "neutral", "conflicts" or "not shown".
        reason: One sentence with the numbers.
    """

    task: str
    objective: str
    weight: float
    layers: tuple[int, ...]
    freeze: tuple[int, ...]
    verdict: str
    reason: str


def advise(gradients: pd.DataFrame, *, task: str) -> Advice:
    """The advice from rows of one task; several pairs are averaged.

    Args:
        gradients: Frame objective, pair, scope, layer, cosine, low, high, ratio, and where they are known task_halves,
            align_halves, task_batches, align_batches, n_task, n_align, task_reach, align_reach.
        task: The task's name.

    Raises:
        InputError: No row of the encoder has a cosine.

    >>> rows = [("encoder", -1, 0.2, 0.1, 0.3), ("layer", 1, -0.2, -0.3, -0.1), ("layer", 2, 0.3, 0.2, 0.4)]
    >>> frame = pd.DataFrame(rows, columns=["scope", "layer", "cosine", "low", "high"])
    >>> advice = advise(frame.assign(objective="token", pair="de", ratio=2.0), task="pos")
    >>> advice.objective, advice.weight, advice.layers, advice.freeze, advice.verdict
    ('token', 0.25, (2,), (1,), 'agrees')
    """
    rows, depth = common_rows(gradients)
    compared = _mean(rows, ["objective"])
    whole = _mean(gradients[gradients["scope"] == "encoder"], ["objective"])
    if whole.empty or compared.empty:
        raise InputError("gradients: expected rows of scope encoder with a cosine, found none")
    name = str(compared.sort_values("cosine", ascending=False, kind="stable").iloc[0]["objective"])
    best = whole[whole["objective"] == name].iloc[0]
    verdict = NOT_SHOWN if _noisy(best) else decide(best["low"], best["high"], **_ANSWERS)
    by_layer = gradients[(gradients["scope"] == "layer") & (gradients["objective"] == name)]
    layers = _mean(by_layer, ["layer"])
    against = (layers["high"] < 0) & ~layers.apply(_noisy, axis=1).astype(bool)
    freeze = tuple(int(layer) for layer in layers.loc[against, "layer"])
    keep = tuple(int(layer) for layer in layers.loc[~against, "layer"])
    fact = f"{name} has the largest: {_fact(best)}"
    other = compared[compared["objective"] == name].iloc[0]
    if depth and other["cosine"] != best["cosine"]:
        where = f"over layers 1 to {depth}, which all objectives reach"
        fact = f"{name} has the largest {where} ({_signed(other['cosine'])}): {_fact(best)} over all that it reaches"
    if verdict == NOT_SHOWN:
        fact += f"; not shown, {_more(best)}"
    if verdict == "conflicts":
        return Advice(task, "none", 0.0, (), (), verdict, fact + "; even it pulls against the task")
    return Advice(task, name, SHARE / float(best["ratio"]), keep, freeze, verdict, fact)


def _noisy(row: pd.Series) -> bool:
    """Whether either gradient is mostly noise; one whose halves are not known is taken at its word."""
    return any(row[name] < NOISE for name in ("task_halves", "align_halves"))


def _more(row: pd.Series) -> str:
    """What it would take to show it."""
    batches = max(row["task_batches"], row["align_batches"])
    if _noisy(row):
        return "the gradients are mostly noise" + (
            "" if math.isnan(batches) else f": {takes(batches, _BATCHES)}"
        )
    size, half = abs(row["cosine"]), (row["high"] - row["low"]) / 2
    n = max(row["n_task"], row["n_align"])
    times = needed(half, [size, ORTHOGONAL - size])
    return takes(times, "times as many batches") if math.isnan(n) else takes(times * n, _BATCHES)


def _fact(row: pd.Series) -> str:
    interval = f"[{_signed(row['low'])}, {_signed(row['high'])}]"
    return f"cosine {_signed(row['cosine'])} {interval}, norm ratio {row['ratio']:.3g}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _mean(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean over pairs; the interval is that of a mean of independent estimates; ratios by their logarithm."""
    averages = []
    for names, group in rows.dropna(subset=["cosine"]).groupby(keys, sort=False):
        half = (group["high"] - group["low"]) / 2
        error = math.sqrt(float((half**2).sum())) / len(group)
        value = float(group["cosine"].mean())
        ratio = math.exp(float(group["ratio"].map(math.log).mean()))
        row = dict(zip(keys, names, strict=True))
        row |= {name: float(group[name].mean()) if name in group else math.nan for name in _YARDSTICKS}
        averages.append({**row, "cosine": value, "low": value - error, "high": value + error, "ratio": ratio})
    return pd.DataFrame(averages, columns=[*keys, "cosine", "low", "high", "ratio", *_YARDSTICKS])
