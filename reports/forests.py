"""Forest plots: a value and its interval on a line each, so that what differs can be told from what does not."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.colours import LIGHT
from reports.look import check, row, styled
from reports.text import clip, visible

__all__ = ["forest", "forest_panels"]


@styled
def forest(frame: pd.DataFrame, ax: Axes | None = None, *, xlabel: str = "") -> Axes:
    """A point and its interval on each line, first row on top; a row without a finite value says "undefined".

    `frame`: label (str), value, low, high.

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
    """`forest` for each value of the column `panel`, side by side on one scale of 0 to 100 per cent.

    `frame`: panel, label, value, low, high, the last three as fractions; every panel has the same labels.

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
