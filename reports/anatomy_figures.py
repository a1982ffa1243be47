"""Figures of an anatomy study: what changed by layer, editor by editor, and how much the editors share.

In the look of `reports.figures`: attention and MLP differ in colour and marker, signed cells share one map centred on
0, NaN is hatched.
"""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from reports.colours import LIGHT
from reports.figures import Window, layer_curve
from reports.forests import effect_forest
from reports.look import check, row, style, styled
from reports.text import clip, visible

__all__ = ["difference_curve", "difference_panels", "editor_grid", "overlap_heatmap", "success_forest"]

_OBJECTS = {"new": "new object", "old": "old object"}
_SHARE = LinearSegmentedColormap.from_list("mechedit_share", ["#f7f7f5", LIGHT["pos"]])


def difference_curve(frame: pd.DataFrame, ax: Axes | None = None, *, window: Window = None) -> Axes:
    """Draws success − failure against layer, one line a module, with its interval as a band.

    Args:
        frame: layer, module, difference, low, high (nats), one row a layer and module. The module "rest" (one value for
            the whole model) has no layer and is left out.
        ax: The axes to draw into; None makes a figure.
        window: First and last of the layers to shade.

    >>> frame = pd.DataFrame({"layer": [0, 1], "module": "attn", "difference": [0.1, 2], "low": 0, "high": 3})
    >>> difference_curve(frame).get_ylabel()
    'success − failure (nats)'
    """
    check(frame, ("layer", "module", "difference", "low", "high"))
    shown = frame.loc[frame["module"] != "rest", ["layer", "module", "difference", "low", "high"]]
    axes = layer_curve(shown.rename(columns={"difference": "score"}), ax, window=window)
    axes.set(ylabel="success − failure (nats)")
    return axes


def difference_panels(frame: pd.DataFrame, *, window: Window = None) -> list[Axes]:
    """Draws `difference_curve` of the new and of the old object side by side, on one scale, under one legend."""
    with style():
        panels = row(len(_OBJECTS), height=3.1, sharey=True)
        for axes, (name, label) in zip(panels, _OBJECTS.items(), strict=True):
            difference_curve(frame[frame["object"] == name], axes, window=window)
            axes.set_title(label)
            axes.label_outer()
        figure = panels[0].get_figure(root=True)
        if figure is not None:
            handles, labels = panels[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper left", ncols=4, handlelength=3)
    return panels


def editor_grid(frame: pd.DataFrame, *, window: Window = None) -> list[Axes]:
    """Draws `difference_curve` of every editor (a row) and object (a column), each row on a scale of its own.

    Args:
        frame: As for `difference_curve`, with the columns editor and object.
        window: First and last of the layers to shade.

    >>> rows = [("ft", name, "attn", layer, 0.5, 0.1, 0.9) for name in ("new", "old") for layer in (0, 1)]
    >>> frame = pd.DataFrame(rows, columns=["editor", "object", "module", "layer", "difference", "low", "high"])
    >>> [axes.get_title(loc="left") for axes in editor_grid(frame)]
    ['ft: new object', 'ft: old object']
    """
    editors = list(dict.fromkeys(frame["editor"]))
    with style():
        figure = Figure(figsize=(7.2, 0.5 + 1.55 * len(editors)))
        grid = figure.subplots(len(editors), len(_OBJECTS), squeeze=False, sharex=True, sharey="row")
        for line, editor in zip(grid, editors, strict=True):
            for axes, (name, label) in zip(line, _OBJECTS.items(), strict=True):
                chosen = frame[(frame["editor"] == editor) & (frame["object"] == name)]
                difference_curve(chosen, axes, window=window)
                axes.set_title(f"{clip(visible(str(editor)), 24)}: {label}")
                axes.set_ylabel("nats")
                axes.label_outer()
        handles = {
            label: handle
            for axes in grid.flat
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=4, handlelength=3)
    return list(grid.flat)


def overlap_heatmap(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draws the share of the top neurons that two editors have in common, in per cent; a missing pair is hatched.

    Args:
        frame: a, b, overlap (a fraction), one row a pair.
        ax: The axes to draw into; None makes a figure.

    >>> frame = pd.DataFrame({"a": ["ft", "ft"], "b": ["rome", "mega"], "overlap": [0.5, 0.25]})
    >>> [label.get_text() for label in overlap_heatmap(frame).get_xticklabels()]
    ['ft', 'rome', 'mega']
    """
    names = list(dict.fromkeys([*frame["a"], *frame["b"]]))
    matrix = pd.DataFrame(np.nan, index=names, columns=names)
    for a, b, overlap in zip(frame["a"], frame["b"], frame["overlap"], strict=True):
        matrix.loc[a, b] = matrix.loc[b, a] = 100 * overlap
    with style():
        size = 1.4 + 0.55 * len(names)
        axes = row(1, width=min(7.2, size + 1), height=min(6.0, size * 0.75))[0] if ax is None else ax
        axes.patch.set(hatch="////", edgecolor=LIGHT["muted"], linewidth=0)
        sns.heatmap(
            matrix,
            ax=axes,
            cmap=_SHARE,
            vmin=0,
            vmax=100,
            annot=True,
            fmt=".0f",
            annot_kws={"size": 8},
            linewidths=0.4,
            linecolor=LIGHT["paper"],
            cbar_kws={"label": "shared (per cent)", "pad": 0.02},
        )
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.tick_params(axis="x", rotation=30)
        axes.tick_params(axis="y", rotation=0)
        labels = [clip(visible(str(name)), 18) for name in names]
        axes.set_xticklabels(labels)
        axes.set_yticklabels(labels)
    return axes


@styled
def success_forest(frame: pd.DataFrame) -> list[Axes]:
    """Draws success against failure, a line an editor and a panel a claim, each panel on its own scale about 0.

    Args:
        frame: claim, editor, value, low, high: those claims of an anatomy study that are success − failure in nats. A
            line without a value (too few of one outcome) reads "undefined"; a claim without any value is left out.

    >>> frame = pd.DataFrame({"claim": "c", "editor": ["ft"], "value": [1.0], "low": [0.5], "high": [1.5]})
    >>> [axes.get_xlabel() for axes in success_forest(frame)]
    ['success − failure (nats)']
    """
    check(frame, ("claim", "editor", "value", "low", "high"), key=("claim", "editor"))
    some = frame.groupby("claim", sort=False)["value"].transform(lambda values: values.notna().any())
    shown = frame[some].rename(columns={"claim": "panel", "editor": "label"})
    panels = effect_forest(shown, xlabel="success − failure (nats)", shared=False)
    for axes, name in zip(panels, dict.fromkeys(shown["panel"]), strict=True):
        axes.set_title(textwrap.fill(visible(str(name)), 32))
    return panels
