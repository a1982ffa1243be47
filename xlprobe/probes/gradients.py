"""Do a task and an alignment objective pull an encoder the same way? Cosines and norms of their mean gradients.

Over the shared encoder parameters alone (heads never; the embeddings are a group of their own and no part of the
"encoder" row), dropout off, both gradients averaged over many batches (`xlprobe.probes.gradient_stream`):

    cosine = g_task · g_align / ‖g_task‖ ‖g_align‖,   ratio = ‖g_align‖ / ‖g_task‖

for every cell (layer, group), every layer, every group and the encoder. Objectives that look at a layer two thirds up
(`sentence`, `token`) never reach the layers above it. Counted in, those layers would add to ‖g_task‖ alone and shrink
every cosine and ratio. So "encoder" and "group" sum over the cells that both losses reach; "whole" sums over all
blocks, reached or not, and "through" over the blocks up to a layer, in which objectives of unlike reach are compared
(`xlprobe.transfer.reach`). A cosine near 0 means nothing without its yardsticks, so each row also has:

- `task_halves`, `align_halves`: the cosine of two halves of the same loss's batches (averaged over all ways to
  halve). Far below 1, the mean gradients are mostly noise and every cosine is pulled to 0;
- `corrected`: the cosine with that pull taken out, g_task · g_align / √(p_task p_align), p an unbiased ‖E g‖²;
- `source_target`: the task's loss in the source against the target language, if target batches are given;
- `shuffled`: task against alignment with pairs that do not belong together; `align_shuffled`: alignment against that;
- `random_sd` = 1/√d: the spread of the cosine of random directions;
- `task_reach`, `align_reach`: the share of the row's parameters that each loss depends on;
- `task_batches`, `align_batches`: how many batches a mean needs to have a cosine of 0.95 with the true gradient.

Order: the first half of the alignment's batches, the task's, the second half. Each task batch is then dotted with half
of the alignment's mean, each later alignment batch with the task's mean: from these the interval (delta method, norms
held fixed), without another pass and without another buffer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor

from experiments.progress import bar
from reports.errors import InputError
from reports.intervals import Z95
from reports.missing import COLUMN
from reports.plot import Plot
from reports.results import Result
from reports.xl_figures import cosine_heatmap
from xlprobe.encoders.encoder import Encoder
from xlprobe.probes.first_order import first_order
from xlprobe.probes.gradient_stream import Layout, Loss, Mean, Moments, probing

__all__ = ["Gradients", "gradients", "mean_gradient"]

_CALLED = {
    "task": "task's loss",
    "align": "alignment's loss",
    "target": "loss in the target language",
    "shuffled": "loss on shuffled pairs",
}
ENOUGH = 0.95  # cosine with the true gradient that `*_batches` asks for


@dataclass(frozen=True, repr=False, eq=False)
class Gradients(Result):
    """The cosines, norms and yardsticks of two losses on one encoder.

    Attributes:
        cells: Frame scope ("cell" | "layer" | "group" | "encoder" | "whole" | "through"), layer and group (NA and "all"
            where summed over), numel, then the columns of `xlprobe.probes.gradients`; norms in loss units per weight
            unit; `missing` says why a value is nan.
        first_order: Frame relative_step, step, predicted, measured, symmetric (see `xlprobe.probes.first_order`).
        task: Name of the task's loss.
        alignment: Name of the alignment's loss.
        n: The number of batches of each loss.
        loss: Each loss's mean.
    """

    kind: ClassVar[str] = "gradients"

    cells: pd.DataFrame
    first_order: pd.DataFrame
    task: str
    alignment: str
    n: dict[str, int]
    loss: dict[str, float]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def encoder(self) -> dict[str, Any]:
        """The row of the encoder's cells that both losses reach (embeddings left out), by column.

        The row of all blocks is `scope("whole")`. Results of earlier versions have no such row: theirs is this one.
        """
        return dict(self.cells[self.cells["scope"] == "encoder"].iloc[0])

    def scope(self, name: str) -> pd.DataFrame:
        """The rows of one scope: cell, layer, group, encoder, whole or through.

        Raises:
            InputError: Another scope.
        """
        if name not in set(self.cells["scope"]):
            known = ", ".join(dict.fromkeys(self.cells["scope"]))
            raise InputError(f"scope: expected one of {known}, found {name!r}")
        return self.cells[self.cells["scope"] == name].reset_index(drop=True)

    def plot(self, ax: Axes | None = None) -> Plot:
        """Draw the cosine of every layer and group as a heat map."""
        drawn = cosine_heatmap(self.scope("cell"), ax=ax)
        return Plot(drawn, title=f"Cosine of the gradients of {self.task} and {self.alignment}")


def gradients(
    encoder: Encoder,
    *,
    task: Loss,
    alignment: Loss,
    target: Loss | Mean | None = None,
    shuffled: Loss | Mean | None = None,
    steps: Iterable[float] = (1e-3, 1e-2),
    progress: bool = True,
    provenance: dict[str, Any] | None = None,
) -> Gradients:
    """The cosines, norms and yardsticks of two losses on one encoder, which remains unchanged bit for bit.

    They are wrong where batches overlap or differ much in size: p, q and the interval take them for independent and
    alike.

    Args:
        encoder: The encoder whose parameters are shared.
        task: The task's loss, of at least 2 batches.
        alignment: The alignment's loss, of at least 2 batches, 4 for an interval.
        target: The task's loss on the target language, or its `mean_gradient` on this encoder.
        shuffled: The alignment's loss on pairs that do not belong together, or its `mean_gradient`.
        steps: Sizes of the first-order check, relative to ‖θ‖; none leaves the check out (its passes cost as much
            again as the gradients' forward passes).
        progress: Show a progress bar.
        provenance: What the result is to say of its origin.

    Raises:
        InputError: A loss with fewer than 2 batches, or one that is not finite (with the number of its batch).

    >>> from xlprobe.encoders.encoder import load_encoder
    >>> encoder = load_encoder("langworld", device="cpu")
    >>> batches = [encoder.encode([text]) for text in ("one", "two words", "three more words", "four")]
    >>> loss = Loss("norm", batches, lambda batch: encoder.forward(batch).square().mean())
    >>> grads = gradients(encoder, task=loss, alignment=loss, progress=False)
    >>> [round(float(grads.encoder[name]), 6) for name in ("cosine", "ratio")]
    [1.0, 1.0]
    """
    losses = {"task": task, "align": alignment, "target": target, "shuffled": shuffled}
    given = {name: loss for name, loss in losses.items() if isinstance(loss, Loss)}
    _check(given.values())
    layout = Layout.of(encoder.model, encoder.parameter_table())
    means = {name: Mean(layout, loss.name) for name, loss in given.items()}
    heads = [module for loss in given.values() for module in loss.modules]
    with probing(layout, encoder.model, *heads):
        _stream(given, means, progress=progress)
    means |= {name: mean for name, mean in losses.items() if isinstance(mean, Mean)}
    rows = _rows(layout, means)
    checked = first_order(layout, means, task, steps, modules=(encoder.model, *heads), progress=progress)
    return Gradients(
        rows,
        checked,
        task.name,
        alignment.name,
        n={name: mean.n for name, mean in means.items()},
        loss={name: math.fsum(mean.losses) / mean.n for name, mean in means.items()},
        provenance=provenance or {},
    )


def mean_gradient(encoder: Encoder, loss: Loss) -> Mean:
    """The mean gradient of one loss, to be a yardstick of several probes of the same encoder.

    Raises:
        InputError: As for `gradients`.
    """
    _check([loss])
    layout = Layout.of(encoder.model, encoder.parameter_table())
    mean = Mean(layout, loss.name)
    with probing(layout, encoder.model, *loss.modules):
        for batch in loss.batches:
            mean.add(loss.of(batch))
    return mean.close()


def _check(losses: Iterable[Loss]) -> None:
    for loss in losses:
        if len(loss.batches) < 2:
            raise InputError(
                f"{loss.name}: expected at least 2 batches to average over, found {len(loss.batches)}"
            )


def _stream(losses: dict[str, Loss], means: dict[str, Mean], *, progress: bool) -> None:
    """All batches in the order that the module's docstring gives."""
    align, task = means["align"], means["task"]
    half = len(losses["align"].batches) // 2
    total = sum(len(loss.batches) for loss in losses.values())
    with bar("gradients", total, progress=progress, unit="batch") as shown:

        def run(name: str, batches: Sequence[Any], against: Tensor | None = None) -> None:
            for batch in batches:
                means[name].add(losses[name].of(batch), against=against)
                shown.update()

        run("align", losses["align"].batches[:half])
        run("task", losses["task"].batches, align.flat if half else None)
        if half:
            task.scale_along(1 / half)
        task.close()
        run("align", losses["align"].batches[half:], task.flat)
        align.close()
        for name in losses.keys() - {"task", "align"}:
            run(name, losses[name].batches)
            means[name].close()


# -- from means to rows ---------------------------------------------------------------------------------------


def _rows(layout: Layout, means: dict[str, Mean]) -> pd.DataFrame:
    """The frame `cells`."""
    names = list(means)
    dots = {
        (a, b): layout.dots(means[a].flat, means[b].flat)
        for i, a in enumerate(names)
        for b in names[i:]
        if (a, b) not in (("target", "shuffled"), ("align", "target"))
    }
    reach = {name: means[name].reach() for name in ("task", "align")}
    shared = [all(sizes) for sizes in zip(*reach.values(), strict=True)]
    rows = []
    for scope, layer, group, cells in _scopes(layout.cells, shared):
        n = int(layout.cells["numel"].iloc[cells].sum())
        row: dict[str, Any] = {"scope": scope, "layer": layer, "group": group, "numel": n}
        row |= _row(means, {pair: float(dot[cells].sum()) for pair, dot in dots.items()}, cells)
        share = {name: sum(sizes[i] for i in cells) / n if n else math.nan for name, sizes in reach.items()}
        row |= {f"{name}_reach": value for name, value in share.items()}
        if not n:
            empty = [name for name, value in row.items() if isinstance(value, float) and math.isnan(value)]
            row[COLUMN] = "; ".join(f"{name}: both losses reach no parameter here" for name in empty)
        rows.append(row)
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def _scopes(cells: pd.DataFrame, shared: Sequence[bool]) -> list[tuple[str, int | None, str, list[int]]]:
    """Every scope as (scope, layer, group, the cells that it sums over); `shared`: the cells that both losses reach."""
    index = range(len(cells))
    scopes: list[tuple[str, int | None, str, list[int]]] = [
        ("cell", int(layer), str(group), [i])
        for i, layer, group in zip(index, cells["layer"], cells["group"], strict=True)
    ]
    for layer in dict.fromkeys(cells["layer"]):
        scopes.append(("layer", int(layer), "all", [i for i in index if cells["layer"].iloc[i] == layer]))
    groups = list(dict.fromkeys(map(str, cells["group"])))
    blocks = [i for i in index if cells["group"].iloc[i] != "embeddings"]
    of_group = {group: [i for i in index if cells["group"].iloc[i] == group] for group in groups}
    scopes += [("group", None, group, [i for i in of_group[group] if shared[i]]) for group in groups]
    scopes += [("encoder", None, "all", [i for i in blocks if shared[i]]), ("whole", None, "all", blocks)]
    scopes += [("whole", None, group, of_group[group]) for group in groups if group != "embeddings"]
    for layer in dict.fromkeys(cells["layer"].iloc[blocks]):
        scopes.append(("through", int(layer), "all", [i for i in blocks if cells["layer"].iloc[i] <= layer]))
    return scopes


def _row(means: dict[str, Mean], dots: dict[tuple[str, str], float], cells: list[int]) -> dict[str, Any]:
    norms = {name: math.sqrt(max(0.0, dots[name, name])) for name in means}
    moments = {name: mean.moments(cells, dots[name, name]) for name, mean in means.items()}

    def cosine(a: str, b: str) -> float:
        if a not in means or b not in means or not norms[a] * norms[b] > 0:
            return math.nan
        return dots[a, b] / (norms[a] * norms[b])

    task, align = moments["task"], moments["align"]
    signal = task.signal * align.signal if task.signal > 0 and align.signal > 0 else math.nan
    error = _error(means, cells) / (norms["task"] * norms["align"] or math.nan)
    value = cosine("task", "align")
    n = sum(int(means["task"].layout.cells["numel"].iloc[i]) for i in cells)
    row = {
        "cosine": value,
        "low": max(-1.0, value - Z95 * error) if math.isfinite(error) else math.nan,
        "high": min(1.0, value + Z95 * error) if math.isfinite(error) else math.nan,
        "corrected": dots["task", "align"] / math.sqrt(signal),
        "task_norm": norms["task"],
        "align_norm": norms["align"],
        "ratio": norms["align"] / norms["task"] if norms["task"] > 0 else math.nan,
        "task_halves": task.halves,
        "align_halves": align.halves,
        "source_target": cosine("task", "target"),
        "shuffled": cosine("task", "shuffled"),
        "align_shuffled": cosine("align", "shuffled"),
        "random_sd": 1 / math.sqrt(n) if n else math.nan,
        "task_batches": task.batches_for(ENOUGH),
        "align_batches": align.batches_for(ENOUGH),
    }
    return row | {COLUMN: _missing(row, means, norms, moments)}


def _missing(
    row: dict[str, float], means: dict[str, Mean], norms: dict[str, float], moments: dict[str, Moments]
) -> str:
    """Why the nan values of a row are nan: "column: reason; ..."."""
    needs: dict[str, tuple[str, ...]] = {
        "source_target": ("task", "target"),
        "shuffled": ("task", "shuffled"),
    }
    needs |= {"align_shuffled": ("align", "shuffled"), "task_halves": ("task",), "align_halves": ("align",)}
    reasons = []
    for column in (name for name, value in row.items() if math.isnan(value)):
        used = needs.get(column, ("task", "align"))
        if absent := [name for name in used if name not in means]:
            reason = f"no {_CALLED[absent[0]]} was given"
        elif zero := [name for name in used if not norms[name] > 0]:
            reason = f"the gradient of the {_CALLED[zero[0]]} is 0 here"
        elif column in ("low", "high"):
            reason = "an interval takes 2 batches of the task and 4 of the alignment"
        else:
            noisy = [name for name in used if not moments[name].signal > 0]
            reason = (
                f"the batches of the {_CALLED[noisy[0] if noisy else used[0]]} agree no more than by chance"
            )
        reasons.append(f"{column}: {reason}")
    return "; ".join(reasons)


def _error(means: dict[str, Mean], cells: list[int]) -> float:
    """Standard error of g_task · g_align: the spread of either side's batches along the other's mean."""
    total = 0.0
    for name in ("task", "align"):
        along = means[name].along
        if len(along) < 2:
            return math.nan
        total += float(torch.stack(along)[:, cells].sum(1).var()) / means[name].n
    return math.sqrt(total)
