"""Charts of an alignment and transfer study, in the house style: tidy frame in, matplotlib axes out.

As in `reports.figures`: no pyplot state, colour never speaks alone (a second mark goes with it), NaN is hatched or
interrupts its line, and an interval is drawn wherever the frame has one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reports.colours import LIGHT
from reports.look import DIVERGING, check, row, style
from reports.text import visible

__all__ = [
    "angle_layers",
    "cosine_heatmap",
    "distance_curves",
    "loss_curve",
    "norm_curves",
    "outcome_scatter",
    "predictor_forest",
]

_GROUPS = ("query", "key", "value", "query_key_value", "output", "ffn_in", "ffn_out", "norms", "embeddings")
_GROUP_LABELS = {"query_key_value": "query, key, value", "ffn_in": "FFN in", "ffn_out": "FFN out"}
_COLOURS = ("pos", "neg", "new", "old", "ink", "muted")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))


def distance_curves(
    frame: pd.DataFrame, *, panel: str = "metric", line: str = "stage", titles: dict[str, str] | None = None
) -> list[Axes]:
    """Draws gap (matched − random) against layer: a panel for each value of `panel`, a line for each value of `line`.

    Args:
        frame: layer, gap, low, high and the two columns; one row a layer, panel and line.
        panel: The column that divides the rows among panels.
        line: The column that divides them among lines.
        titles: Titles of panels, by the value of `panel`.

    >>> frame = pd.DataFrame({"layer": [0, 1], "metric": "cosine", "stage": "pretrained", "gap": [0.1, 0.2]})
    >>> [axes.get_title(loc="left") for axes in distance_curves(frame.assign(low=0.0, high=0.3))]
    ['cosine']
    """
    check(frame, ("layer", "gap", "low", "high", panel, line), key=("layer", panel, line))
    names, lines = list(dict.fromkeys(frame[panel])), list(dict.fromkeys(frame[line]))
    with style():
        panels = row(len(names), width=max(4.6, min(9.6, 3.1 * len(names))), height=3.0)
        for axes, name in zip(panels, names, strict=True):
            axes.axhline(0, color=LIGHT["muted"], linewidth=0.8, zorder=1)
            for index, key in enumerate(lines):
                part = frame[(frame[panel] == name) & (frame[line] == key)].sort_values("layer")
                _curve(axes, part, "layer", "gap", index, visible(str(key)))
            axes.set_title(visible((titles or {}).get(str(name), str(name))))
            axes.set(xlabel="layer", ylabel="matched − random" if axes is panels[0] else "")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(panels, columns=5)
    return panels


def norm_curves(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draws the ratio of the two gradients' norms along training, on a log scale: a line for each value of `line`.

    Args:
        frame: step, line, ratio; optional low and high.
        ax: The axes to draw into; None makes a figure.

    >>> axes = norm_curves(pd.DataFrame({"step": [0, 10], "line": "sentence", "ratio": [2.0, 0.5]}))
    >>> axes.get_yscale()
    'log'
    """
    check(frame, ("step", "line", "ratio"), key=("step", "line"))
    with style():
        axes = row(1, width=4.8, height=3.0)[0] if ax is None else ax
        axes.axhline(1, color=LIGHT["muted"], linewidth=0.8, zorder=1)
        for index, name in enumerate(dict.fromkeys(frame["line"])):
            part = frame[frame["line"] == name].sort_values("step")
            _curve(axes, part, "step", "ratio", index, visible(str(name)))
        axes.set_yscale("log")
        axes.set(xlabel="steps of fine-tuning", ylabel="‖g align‖ / ‖g task‖")
        axes.legend()
    return axes


def loss_curve(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draws the loss of every step, and its running mean over a tenth of the steps (centred).

    Args:
        frame: step, loss.
        ax: The axes to draw into; None makes a figure.

    >>> axes = loss_curve(pd.DataFrame({"step": [1, 2, 3], "loss": [2.0, 1.0, 0.5]}))
    >>> axes.get_xlabel()
    'step'
    """
    check(frame, ("step", "loss"), key=("step",))
    with style():
        axes = row(1, width=7.2, height=3.0)[0] if ax is None else ax
        axes.plot(frame["step"], frame["loss"], color=LIGHT["muted"], linewidth=0.7, alpha=0.7)
        mean = frame["loss"].rolling(max(1, len(frame) // 10), center=True, min_periods=1).mean()
        axes.plot(frame["step"], mean, color=LIGHT["pos"], linewidth=1.8)
        axes.set(xlabel="step", ylabel="loss, nats")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


def cosine_heatmap(frame: pd.DataFrame, ax: Axes | None = None, *, value: str = "cosine") -> Axes:
    """Draws the cosine of every layer (upward) and parameter group, on a scale cut to the largest |cosine|.

    A cell whose interval (low, high) holds 0 has its number in brackets; one without a value is hatched.

    Args:
        frame: layer, group and the column `value`, one row a cell.
        ax: The axes to draw into; None makes a figure.
        value: The column of the cosines.

    >>> frame = pd.DataFrame({"layer": [1, 2], "group": "query", "cosine": [0.1, -0.2]})
    >>> [label.get_text() for label in cosine_heatmap(frame).get_xticklabels()]
    ['query']
    """
    check(frame, ("layer", "group", value), key=("layer", "group"))
    matrix = frame.pivot(index="layer", columns="group", values=value).sort_index()
    order = [g for g in _GROUPS if g in matrix] + [g for g in matrix if g not in _GROUPS]
    matrix = matrix[order].astype(float)
    bound = float(np.nanmax(np.abs(matrix.to_numpy()))) if matrix.notna().any(axis=None) else 1.0
    with style():
        size = (max(4.2, 1.6 + 0.62 * matrix.shape[1]), min(6.5, 1.3 + 0.33 * matrix.shape[0]))
        axes = row(1, width=size[0], height=size[1])[0] if ax is None else ax
        axes.patch.set(hatch="////", edgecolor=LIGHT["muted"], linewidth=0)
        sns.heatmap(
            matrix,
            ax=axes,
            cmap=DIVERGING,
            vmin=-bound or -1.0,
            vmax=bound or 1.0,
            annot=_written(matrix, frame) if matrix.size <= 130 else False,
            fmt="",
            annot_kws={"size": 7},
            linewidths=0.4,
            linecolor=LIGHT["paper"],
            cbar_kws={"label": "cosine of the gradients", "pad": 0.02},
        )
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(length=0, rotation=0)
        axes.set_xticklabels([str(_GROUP_LABELS.get(g, g)) for g in order], rotation=0)
        axes.set(xlabel="", ylabel="layer (0: embeddings)")
    return axes


def outcome_scatter(
    frame: pd.DataFrame,
    ax: Axes | None = None,
    *,
    x: str,
    y: str = "delta_score",
    xlabel: str = "",
    ylabel: str = "",
) -> Axes:
    """Draws one mark a study cell: a predictor against the change of the score; colour and marker name the objective.

    Args:
        frame: The columns `x` and `y`, objective, task (filled for the first task, hollow for the second); optional
            low and
            high: the interval of `y`.
        ax: The axes to draw into; None makes a figure.
        x: The column of the predictor.
        y: The column of the change.
        xlabel: By default the column's name; so is `ylabel`.
        ylabel: See `xlabel`.

    >>> frame = pd.DataFrame({"d": [0.1], "delta_score": [0.02], "objective": "tlm", "task": "pos"})
    >>> outcome_scatter(frame, x="d", xlabel="change of retrieval").get_xlabel()
    'change of retrieval'
    """
    check(frame, (x, y, "objective", "task"))
    tasks = list(dict.fromkeys(frame["task"]))
    with style():
        axes = row(1, width=5.6, height=3.4)[0] if ax is None else ax
        for zero in (axes.axhline, axes.axvline):
            zero(0, color=LIGHT["muted"], linewidth=0.8, zorder=1)
        for index, objective in enumerate(dict.fromkeys(frame["objective"])):
            for task in tasks:
                part = frame[(frame["objective"] == objective) & (frame["task"] == task)]
                if part.empty:
                    continue
                colour = LIGHT[_COLOURS[index % len(_COLOURS)]]
                look: dict[str, Any] = {"color": colour, "marker": _MARKERS[index % len(_MARKERS)]}
                look["markerfacecolor"] = colour if task == tasks[0] else LIGHT["paper"]
                name = f"{objective}, {task}"
                if {"low", "high"} <= set(part):
                    axes.vlines(part[x], part["low"], part["high"], color=colour, linewidth=0.8, alpha=0.5)
                axes.plot(part[x], part[y], linestyle="", label=visible(name), zorder=3, **look)
        axes.set(xlabel=visible(xlabel or x), ylabel=visible(ylabel or y))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return axes


def angle_layers(frame: pd.DataFrame, *, panel: str = "panel") -> list[Axes]:
    """Draws the cosine of task and alignment against layer, beside those that two useful gradients make.

    A panel for each value of `panel`. The shaded band is what counts as nearly orthogonal: a third of the smaller of
    the two useful cosines. A filled mark has its whole interval inside the band or outside of it, a hollow one not.

    Args:
        frame: layer, cosine, low, high, task_halves, source_target, bound, and the column `panel`; layer 0 is left out.
        panel: The column that divides the rows among panels.

    >>> frame = pd.DataFrame({"layer": [1, 2], "cosine": [0.0, 0.2], "low": [-0.1, 0.1], "high": [0.1, 0.3]})
    >>> frame = frame.assign(task_halves=0.9, source_target=0.6, bound=0.2, panel="hictl, tags")
    >>> [axes.get_title(loc="left") for axes in angle_layers(frame)]
    ['hictl, tags']
    """
    needed = ("layer", "cosine", "low", "high", "task_halves", "source_target", "bound", panel)
    check(frame, needed, key=("layer", panel))
    names = list(dict.fromkeys(frame[panel]))
    with style():
        panels = row(len(names), width=max(4.6, min(9.6, 1.2 + 2.8 * len(names))), height=3.2, sharey=True)
        for axes, name in zip(panels, names, strict=True):
            part = frame[(frame[panel] == name) & (frame["layer"] > 0)].sort_values("layer")
            x = part["layer"].to_numpy(dtype=float)
            bound = part["bound"].to_numpy(dtype=float)
            axes.fill_between(
                x, -bound, bound, color=LIGHT["muted"], alpha=0.22, linewidth=0, label="nearly orthogonal"
            )
            axes.axhline(0, color=LIGHT["muted"], linewidth=0.8, zorder=1)
            for index, (column, label) in enumerate(_USEFUL.items(), start=1):
                _curve(axes, part[["layer", column]], "layer", column, index, label)
            axes.vlines(x, part["low"], part["high"], color=LIGHT["pos"], linewidth=1.4, zorder=3)
            clear = (part["low"].abs() <= bound) & (part["high"].abs() <= bound)
            clear = (clear | (part["low"] > bound) | (part["high"] < -bound)).to_numpy()
            axes.plot(x, part["cosine"], color=LIGHT["pos"], linewidth=1.0, zorder=3)
            for shown, face in ((clear, LIGHT["pos"]), (~clear, LIGHT["paper"])):
                axes.plot(
                    x[shown],
                    part["cosine"].to_numpy()[shown],
                    "o",
                    color=LIGHT["pos"],
                    markerfacecolor=face,
                    zorder=4,
                )
            axes.plot([], [], "o-", color=LIGHT["pos"], label="task against alignment")
            axes.set_title(visible(str(name)))
            axes.set(xlabel="layer", ylabel="cosine of the gradients" if axes is panels[0] else "")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _degrees(panels[-1])
        _legend(panels, columns=4 if len(names) > 2 else 2)
    return panels


_USEFUL = {"task_halves": "task, two halves", "source_target": "task in both languages"}


def _degrees(axes: Axes) -> None:
    """The angles of the cosines on a second axis at the right."""
    low, high = axes.get_ylim()
    second = axes.twinx()
    shown = [
        a for a in (0, 30, 45, 60, 70, 80, 85, 90, 95, 100, 110, 120) if low <= np.cos(np.radians(a)) <= high
    ]
    second.set_ylim(low, high)
    second.set_yticks([float(np.cos(np.radians(a))) for a in shown], [f"{a}°" for a in shown])
    second.grid(visible=False)
    second.spines["right"].set_visible(True)


def predictor_forest(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draws each predictor's ρ with its interval, and below it the one that is left given the pair (a diamond).

    A mark whose interval lies on one side of 0 is filled, the others are hollow.

    Args:
        frame: label, spearman, low, high, partial, partial_low, partial_high; one row a predictor, in their order.
        ax: The axes to draw into; None makes a figure.

    >>> frame = pd.DataFrame({"label": ["retrieval"], "spearman": [0.5], "low": [0.1], "high": [0.8]})
    >>> frame = frame.assign(partial=0.1, partial_low=-0.3, partial_high=0.4)
    >>> [label.get_text() for label in predictor_forest(frame).get_yticklabels()]
    ['retrieval']
    """
    check(frame, ("label", "spearman", "low", "high", "partial", "partial_low", "partial_high"))
    marks = (
        ("spearman", "low", "high", "o", "pos", -0.14, "all cells"),
        ("partial", "partial_low", "partial_high", "D", "old", 0.2, "given the pair"),
    )
    with style():
        axes = row(1, width=6.4, height=1.1 + 0.36 * len(frame))[0] if ax is None else ax
        axes.axvline(0, color=LIGHT["muted"], linewidth=0.8, zorder=1)
        for value, low, high, marker, name, shift, label in marks:
            colour = LIGHT[name]
            for y, item in enumerate(frame.to_dict("records")):
                if not np.isfinite(item[value]):
                    continue
                clear = item[low] > 0 or item[high] < 0
                axes.plot([item[low], item[high]], [y + shift] * 2, color=colour, linewidth=1.4)
                face = colour if clear else LIGHT["paper"]
                axes.plot(
                    [item[value]], [y + shift], marker, markersize=5, color=colour, markerfacecolor=face
                )
            axes.plot([], [], marker, color=colour, linestyle="-", label=label)
        axes.set_yticks(range(len(frame)), [visible(str(label)) for label in frame["label"]])
        axes.set_ylim(len(frame) - 0.5, -0.5)
        axes.set_xlim(-1.05, 1.05)
        axes.set(xlabel="Spearman's ρ with the change of score")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return axes


def _curve(axes: Axes, part: pd.DataFrame, x: str, y: str, index: int, label: str) -> None:
    colour = LIGHT[_COLOURS[index % len(_COLOURS)]]
    xs, ys = (part[name].to_numpy(dtype=float) for name in (x, y))
    axes.plot(
        xs,
        ys,
        color=colour,
        linestyle=_DASHES[index % len(_DASHES)],
        marker=_MARKERS[index % len(_MARKERS)],
        label=label,
        zorder=3,
    )
    if {"low", "high"} <= set(part):
        low, high = (part[name].to_numpy(dtype=float) for name in ("low", "high"))
        axes.fill_between(xs, low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)


def _legend(panels: list[Axes], *, columns: int) -> None:
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure = panels[0].get_figure(root=True)
    if figure is not None:
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper left", ncols=columns, handlelength=3
        )


def _written(matrix: pd.DataFrame, frame: pd.DataFrame) -> np.ndarray:
    """Two decimals with a true minus, in brackets where the interval holds 0."""
    unsure = pd.DataFrame(False, index=matrix.index, columns=matrix.columns)
    if {"low", "high"} <= set(frame):
        held = frame.assign(held=(frame["low"] <= 0) & (frame["high"] >= 0))
        unsure = held.pivot(index="layer", columns="group", values="held").reindex_like(matrix).fillna(False)
    texts = matrix.map(
        lambda v: "" if v != v else f"{v + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "−")
    )
    return np.where(unsure.to_numpy(dtype=bool) & (texts != "").to_numpy(), "(" + texts + ")", texts)
