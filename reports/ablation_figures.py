"""What ablating neurons does to log p: Δ against the number ablated, a line a ranking.

In the look of `reports.look`; lines differ in colour, dash and marker, so that one of them alone must do.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from reports.colours import LIGHT
from reports.errors import InputError
from reports.look import row, style
from reports.text import clip, visible

__all__ = ["ablation_curve", "ablation_panels"]

_LINES = (
    ("pos", "-", "o"),
    ("neg", "--", "s"),
    ("new", "-.", "^"),
    ("old", ":", "D"),
    ("ink", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("muted", (0, (2, 2)), "x"),
)
_COLUMNS = ("line", "k", "delta", "low", "high")


def ablation_curve(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draws the change of log p (nats) against the number of ablated neurons (log scale), its interval as a band.

    Args:
        frame: line, k, delta, low, high; one row a line and k. Bands are drawn where both ends are finite.
        ax: The axes to draw into; None makes a figure.

    Raises:
        InputError: A column is missing, a line has one k twice, or there are more lines than looks.

    >>> rows = [("top", 1, -0.2, -0.3, -0.1), ("top", 10, -2, -3, -1)]
    >>> axes = ablation_curve(pd.DataFrame(rows, columns=["line", "k", "delta", "low", "high"]))
    >>> [line.get_label() for line in axes.get_lines()][1:], axes.get_xscale()
    (['top'], 'log')
    """
    if missing := [name for name in _COLUMNS if name not in frame]:
        raise InputError(
            f"frame: expected a column {missing[0]!r}, found {', '.join(map(str, frame.columns))}"
        )
    if frame.empty or frame.duplicated(["line", "k"]).any():
        raise InputError(
            f"frame: expected one row for each line and k, found {len(frame)} rows; filter it first"
        )
    if frame["line"].nunique() > len(_LINES):
        raise InputError(f"frame: expected at most {len(_LINES)} lines, found {frame['line'].nunique()}")
    with style():
        axes = row(1, width=4.8, height=3.2)[0] if ax is None else ax
        axes.axhline(0, color=LIGHT["muted"], linewidth=0.8, zorder=1)
        for (name, points), (colour, dash, mark) in zip(
            frame.groupby("line", sort=False), _LINES, strict=False
        ):
            points = points.sort_values("k")
            k, delta, low, high = (points[column].to_numpy(dtype=float) for column in _COLUMNS[1:])
            label = clip(visible(str(name)), 30)
            axes.plot(k, delta, color=LIGHT[colour], linestyle=dash, marker=mark, label=label, zorder=3)
            axes.fill_between(k, low, high, color=LIGHT[colour], alpha=0.14, linewidth=0, zorder=2)
        ticks = np.unique(frame["k"].to_numpy(dtype=int))
        axes.set(xscale="log", xlabel="neurons ablated (k)", ylabel="Δ log p (nats)")
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=False, axis="x")
        if ax is None:
            axes.legend(handlelength=3)
    return axes


def ablation_panels(frame: pd.DataFrame) -> list[Axes]:
    """Draws `ablation_curve` for each value of the column `panel` side by side, on one scale, under one legend.

    >>> rows = [("FFN", "top", 1, -0.2, -0.3, -0.1), ("attention", "top", 1, -2, -3, -1)]
    >>> frame = pd.DataFrame(rows, columns=["panel", "line", "k", "delta", "low", "high"])
    >>> [axes.get_title(loc="left") for axes in ablation_panels(frame)]
    ['FFN', 'attention']
    """
    names = list(dict.fromkeys(frame["panel"]))
    with style():
        panels = row(len(names), height=3.3, sharey=True)
        for axes, name in zip(panels, names, strict=True):
            ablation_curve(frame[frame["panel"] == name], axes)
            axes.set_title(visible(str(name)))
            axes.label_outer()
        figure = panels[0].get_figure(root=True)
        if figure is not None:
            handles, labels = panels[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper left", ncols=3, handlelength=3)
    return panels
