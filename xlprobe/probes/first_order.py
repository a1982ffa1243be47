"""The first-order check: does one small alignment step change the task's loss as the gradients say it will?

A step θ → θ − η g_align changes the task's loss by −η g_task · g_align + O(η²). `first_order` takes the step for real
on the shared parameters, measures, and puts the weights back bit for bit. `measured` is the change of that step;
`symmetric` = (L(θ − η g) − L(θ + η g))/2 is free of the second order, so it must meet the prediction where it is exact,
and `measured − symmetric` is what the curvature adds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from experiments.progress import LONG, bar
from xlprobe.probes.gradient_stream import Layout, Loss, Mean, probing

__all__ = ["first_order"]


def first_order(
    layout: Layout,
    means: Mapping[str, Mean],
    task: Loss,
    steps: Iterable[float],
    *,
    modules: Iterable[nn.Module],
    progress: bool = False,
) -> pd.DataFrame:
    """Frame relative_step (‖η g_align‖ / ‖θ‖), step (η), predicted, measured, symmetric (changes of the task's loss).

    Each step is a row and takes two passes over the task's batches. The frame is empty for weights in half precision,
    which such a step would not move.

    Args:
        layout: The shared parameters.
        means: The closed means "task" and "align".
        task: The task's loss, on the same batches as its mean.
        steps: Lengths of the steps, relative to ‖θ‖.
        modules: The encoder and the heads.
        progress: Show a progress bar.
    """
    columns = ["relative_step", "step", "predicted", "measured", "symmetric"]
    wanted = [] if layout.parameters[0].dtype.itemsize < 4 else list(steps)
    gradient = means["align"].flat
    slope = float(layout.dots(means["task"].flat, gradient).sum())
    length = math.sqrt(float(layout.dots(gradient, gradient).sum()))
    if not wanted or length == 0:
        return pd.DataFrame(columns=columns, dtype="float64")
    weights = [parameter.detach().clone() for parameter in layout.parameters]
    size = math.sqrt(sum(float(weight.double().square().sum()) for weight in weights))
    before = math.fsum(means["task"].losses) / means["task"].n
    rows = []
    try:
        total = 2 * len(wanted) * len(task.batches)
        parts = bar("first-order check", total, progress=progress, delay=LONG, unit="batch")
        with probing(layout, *modules), torch.no_grad(), parts:
            for relative in wanted:
                step = relative * size / length
                forth, back = (_loss_at(layout, weights, gradient, eta, task, parts) for eta in (-step, step))
                rows.append((relative, step, -step * slope, forth - before, (forth - back) / 2))
    finally:
        with torch.no_grad():
            for parameter, weight in zip(layout.parameters, weights, strict=True):
                parameter.copy_(weight)
    return pd.DataFrame(rows, columns=columns)


def _loss_at(
    layout: Layout, weights: list[Tensor], gradient: Tensor, eta: float, task: Loss, parts: Any
) -> float:
    """The task's mean loss at θ + η g."""
    for parameter, weight, g in zip(layout.parameters, weights, layout.views(gradient), strict=True):
        parameter.copy_(weight + eta * g.to(weight.dtype))
    losses = []
    for batch in task.batches:
        losses.append(float(task.of(batch)))
        parts.update()
    return math.fsum(losses) / len(losses)
