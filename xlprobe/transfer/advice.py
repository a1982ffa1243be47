"""Which alignment to combine with a task, how strongly, and which layers to leave out: from gradients alone.

[choice] The abstract promises guidelines and gives none; these follow from a first-order argument, and
`experiments/recipes/advice.toml` tests them. On the encoder as it is before any training:

1. *Objective*: the one whose gradient's cosine with the task's is largest. If the interval of even that one lies below
   0, the advice is no alignment. If it holds 0, the objective is neutral: it may help, and should not harm.
2. *Weight* w = `SHARE` / ratio: the alignment's pull is at most that share of the task's, on any scale of the losses.
3. *Freeze* the layers whose own interval lies below 0 for this objective: there a step on the alignment undoes the
   task; the others are aligned.

The advice is wrong where gradients are mostly noise (low `halves`: take more batches), and beyond the first steps of
training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from reports.errors import InputError

__all__ = ["SHARE", "Advice", "advise"]

SHARE = 0.5  # of the task's gradient norm


@dataclass(frozen=True)
class Advice:
    """What to do, and why.

    Attributes:
        task: The task.
        objective: The objective to align by; "none" advises against alignment.
        weight: What the alignment's loss is multiplied by.
        layers: Layers to align.
        freeze: Layers to leave out.
        verdict: "agrees", "neutral" or "conflicts".
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
    """The advice from rows objective, pair, scope, layer, cosine, low, high, ratio; several pairs are averaged.

    Raises:
        InputError: No row of the whole encoder has a cosine.

    >>> rows = [("encoder", -1, 0.2, 0.1, 0.3), ("layer", 1, -0.2, -0.3, -0.1), ("layer", 2, 0.3, 0.2, 0.4)]
    >>> frame = pd.DataFrame(rows, columns=["scope", "layer", "cosine", "low", "high"])
    >>> advice = advise(frame.assign(objective="token", pair="de", ratio=2.0), task="pos")
    >>> advice.objective, advice.weight, advice.layers, advice.freeze, advice.verdict
    ('token', 0.25, (2,), (1,), 'agrees')
    """
    whole = _mean(gradients[gradients["scope"] == "encoder"], ["objective"])
    if whole.empty:
        raise InputError("gradients: expected rows of scope encoder with a cosine, found none")
    best = whole.sort_values("cosine", ascending=False, kind="stable").iloc[0]
    verdict = "agrees" if best["low"] > 0 else "conflicts" if best["high"] < 0 else "neutral"
    by_layer = gradients[(gradients["scope"] == "layer") & (gradients["objective"] == best["objective"])]
    layers = _mean(by_layer, ["layer"])
    against = layers["high"] < 0
    freeze = tuple(int(layer) for layer in layers.loc[against, "layer"])
    keep = tuple(int(layer) for layer in layers.loc[~against, "layer"])
    fact = f"cosine {best['cosine']:+.3f} [{best['low']:+.3f}, {best['high']:+.3f}], norm ratio {best['ratio']:.3g}"
    fact = f"{best['objective']} has the largest: {fact.replace('-', '−')}"
    if verdict == "conflicts":
        return Advice(task, "none", 0.0, (), (), verdict, fact + "; even it pulls against the task")
    return Advice(task, str(best["objective"]), SHARE / float(best["ratio"]), keep, freeze, verdict, fact)


def _mean(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean over pairs; the interval is that of a mean of independent estimates; ratios by their logarithm."""
    averages = []
    for names, group in rows.dropna(subset=["cosine"]).groupby(keys, sort=False):
        half = (group["high"] - group["low"]) / 2
        error = math.sqrt(float((half**2).sum())) / len(group)
        value = float(group["cosine"].mean())
        ratio = math.exp(float(group["ratio"].map(math.log).mean()))
        row = dict(zip(keys, names, strict=True))
        averages.append({**row, "cosine": value, "low": value - error, "high": value + error, "ratio": ratio})
    return pd.DataFrame(averages, columns=[*keys, "cosine", "low", "high", "ratio"])
