"""Forest plots: a value and its interval on a line each, so that what differs can be told from what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.colours import LIGHT
from reports.look import check, row, style, styled
from reports.text import clip, visible

__all__ = ["effect_forest", "forest", "forest_panels", "paired_forest"]


@styled
def forest(frame: pd.DataFrame, ax: Axes | None = None, *, xlabel: str = "") -> Axes:
    """Draws a point and its interval on each line, first row on top; one without a finite value reads "undefined".

    Args:
        frame: label (str), value, low, high.
        ax: The axes to draw into; None makes a figure.
        xlabel: The axis's label.

    >>> frame = pd.DataFrame({"label": ["a", "b"], "value": [0.5, 0.9], "low": [0.3, 0.8], "high": [0.7, 1]})
    >>> axes = forest(frame)
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['a', 'b']
    """
    check(frame, ("label", "value", "low", "high"))
    axes = row(1, width=4.8, height=0.9 + 0.28 * len(frame))[0] if ax is None else ax
    for y, item in enumerate(frame.itertuples(index=False)):
        if not np.isfinite(item.value):
            where = axes.get_yaxis_transform()
            axes.text(0.02, y, "undefined", transform=where, va="center", color=LIGHT["muted"])
            continue
        axes.plot([item.low, item.high], [y, y], color=LIGHT["pos"], linewidth=1.6, solid_capstyle="butt")
        axes.plot([item.value], [y], marker="o", color=LIGHT["pos"], markersize=6)
    axes.set_yticks(range(len(frame)), [clip(visible(str(label)), 40) for label in frame["label"]])
    axes.set_ylim(len(frame) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=xlabel)
    return axes


@styled
def forest_panels(frame: pd.DataFrame) -> list[Axes]:
    """Draws `forest` for each value of the column `panel`, side by side on one scale of 0 to 100 per cent.

    Args:
        frame: panel, label, value, low, high, the last three as fractions; every panel has the same labels.

    >>> frame = pd.DataFrame({"panel": ["Acc", "Gen"], "label": "a", "value": 0.5, "low": 0.4, "high": 0.6})
    >>> [axes.get_title(loc="left") for axes in forest_panels(frame)]
    ['Acc', 'Gen']
    """
    check(frame, ("panel", "label", "value", "low", "high"))
    names = list(dict.fromkeys(frame["panel"]))
    rows = int(frame.groupby("panel").size().max())
    panels = row(len(names), height=1.05 + 0.25 * rows, sharey=True)
    for axes, name in zip(panels, names, strict=True):
        part = frame[frame["panel"] == name]
        scaled = part.assign(**{column: 100 * part[column] for column in ("value", "low", "high")})
        forest(scaled, axes, xlabel="per cent")
        axes.set(xlim=(-5, 105), xticks=[0, 50, 100])
        axes.set_title(visible(str(name)))
        axes.label_outer()
    return panels


@styled
def paired_forest(frame: pd.DataFrame) -> list[Axes]:
    """Draws `forest_panels` of two runs: the first filled, round and blue, the second hollow, square and orange.

    Args:
        frame: panel, label, run, value, low, high, the last three as fractions; `run` has one or two values.

    >>> frame = pd.DataFrame({"panel": "Acc", "label": "a", "run": ["x", "y"], "value": 0.5, "low": 0.4, "high": 0.6})
    >>> [text.get_text() for text in paired_forest(frame)[0].get_figure().legends[0].get_texts()]
    ['x', 'y']
    """
    check(frame, ("panel", "label", "run", "value", "low", "high"), key=("panel", "label", "run"))
    panels_of, labels, runs = (list(dict.fromkeys(frame[key])) for key in ("panel", "label", "run"))
    looks = (("pos", "o", LIGHT["pos"], -0.16), ("neg", "s", LIGHT["paper"], 0.16))
    panels = row(len(panels_of), height=1.3 + 0.36 * len(labels), sharey=True)
    for axes, name in zip(panels, panels_of, strict=True):
        for run, (colour, marker, face, shift) in zip(runs, looks, strict=False):
            points = frame[(frame["panel"] == name) & (frame["run"] == run) & frame["value"].notna()]
            y = np.array([labels.index(label) + shift for label in points["label"]])
            axes.hlines(y, 100 * points["low"], 100 * points["high"], color=LIGHT[colour], linewidth=1.5)
            look: dict[str, Any] = {"color": LIGHT[colour], "marker": marker, "markerfacecolor": face}
            axes.plot(100 * points["value"], y, linestyle="", label=visible(str(run)), zorder=3, **look)
        axes.set(xlim=(-5, 105), xticks=[0, 50, 100], xlabel="per cent", ylim=(len(labels) - 0.5, -0.5))
        axes.set_title(visible(str(name)))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(labels)), [clip(visible(str(label)), 40) for label in labels])
    figure = panels[0].get_figure(root=True)
    if figure is not None:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return panels


def effect_forest(frame: pd.DataFrame, *, xlabel: str = "points", shared: bool = True) -> list[Axes]:
    """Draws effects with their intervals, a line each, a panel for each value of `panel`, zero in the middle.

    A point whose interval lies on one side of 0 is filled, the others are hollow.

    Args:
        frame: panel, label, value, low, high.
        xlabel: The label of each axis.
        shared: Whether all panels have one scale.

    >>> frame = pd.DataFrame({"panel": "POS", "label": ["a"], "value": [1.0], "low": [0.5], "high": [1.5]})
    >>> [axes.get_title(loc="left") for axes in effect_forest(frame)]
    ['POS']
    """
    check(frame, ("panel", "label", "value", "low", "high"))
    names = list(dict.fromkeys(frame["panel"]))
    labels = list(dict.fromkeys(frame["label"]))
    with style():
        panels = row(
            len(names), width=min(9.6, 3.0 + 2.6 * len(names)), height=1.0 + 0.24 * len(labels), sharey=True
        )
        for axes, name in zip(panels, names, strict=True):
            part = frame[frame["panel"] == name].set_index("label")
            axes.axvline(0, color=LIGHT["muted"], linewidth=0.8, zorder=1)
            for y, label in enumerate(labels):
                if label in part.index:
                    _effect(axes, y, part.loc[label])
            axes.set_title(visible(str(name)))
            axes.set(xlabel=xlabel)
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(labels)), [clip(visible(str(label)), 40) for label in labels])
        panels[0].set_ylim(len(labels) - 0.5, -0.5)
        limits = [max(map(abs, axes.get_xlim())) for axes in panels]
        for axes, panel_limit in zip(panels, limits, strict=True):
            limit = max(limits) if shared else panel_limit
            axes.set_xlim(-limit, limit)
    return panels


def _effect(axes: Axes, y: int, item: Any) -> None:
    if not np.isfinite(item["value"]):
        axes.text(
            0.02, y, "undefined", transform=axes.get_yaxis_transform(), va="center", color=LIGHT["muted"]
        )
        return
    clear = item["low"] > 0 or item["high"] < 0
    colour = LIGHT["pos"] if item["value"] >= 0 else LIGHT["neg"]
    axes.plot([item["low"], item["high"]], [y, y], color=colour, linewidth=1.5, solid_capstyle="butt")
    face = colour if clear else LIGHT["paper"]
    axes.plot([item["value"]], [y], marker="o", markersize=5.5, color=colour, markerfacecolor=face, zorder=3)
