"""The charts of a run: layer curves, heads, windows, neurons; tidy frame in, matplotlib axes out.

The look, and why, is `reports.look`'s. New and old object differ in colour *and* marker, before and after in dash
*and* filling; signed scores share one map, centred on 0 and symmetric: blue promotes, orange suppresses. NaN is not
zero: an undefined cell is hatched, an undefined point interrupts its line. Layers are drawn upward or to the right,
layer 0 first. Functions raise `InputError` for a frame that is empty, lacks a column, or names one point twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reports.colours import LIGHT
from reports.errors import InputError
from reports.look import DIVERGING, check, row, styled
from reports.text import clip, visible

__all__ = [
    "butterfly",
    "head_heatmap",
    "layer_curve",
    "layer_panels",
    "neuron_bar",
    "token_heatmap",
    "window_strip",
]

_MODULES = {"attn": "attention", "mlp": "MLP", "steer": "steering term", "steer_mlp": "steering term, MLP"}
_LINE_COLOURS = {"new": "new", "old": "old", "attn": "pos", "mlp": "neg", "steer": "new", "steer_mlp": "old"}
_WRITTEN = 120  # cells of a heat map that still have room for their value
Window: TypeAlias = "tuple[int, int] | None"


@styled
def layer_curve(frame: pd.DataFrame, ax: Axes | None = None, *, window: Window = None) -> Axes:
    """Draws score against layer: a line for each object and stage, or for each module.

    Objects differ in colour and marker, stages in dash and filling.

    Args:
        frame: layer, module, score (nats), one row a layer and line; optional object ("new" | "old"), stage
            ("before" | "after"), low and high (a band, drawn where both are finite). With `object` or `stage` the
            frame may
            hold one module only: use `layer_panels` for more.
        ax: The axes to draw into; None makes a figure.
        window: First and last (both included) of the layers to shade.

    >>> modules = ["attn", "attn", "mlp", "mlp"]
    >>> frame = pd.DataFrame({"layer": [0, 1, 0, 1], "module": modules, "score": [0.1, 2, 0, 1]})
    >>> [line.get_label() for line in layer_curve(frame).get_lines()][1:]
    ['attention', 'MLP']
    """
    keys = [key for key in ("object", "stage") if key in frame] or ["module"]
    check(frame, ("layer", "module", "score"), key=("layer", "module", *keys))
    if keys != ["module"] and frame["module"].nunique() > 1:
        raise InputError("frame: with object or stage, one module an axes; use layer_panels for several")
    axes = row(1, width=4.6)[0] if ax is None else ax
    _shade(axes, window)
    axes.axhline(0, color=LIGHT["muted"], linewidth=0.8, zorder=1)
    for names, group in frame.groupby(keys, sort=False, dropna=False):
        _line(axes, group.sort_values("layer"), dict(zip(keys, names, strict=True)))
    axes.set(xlabel="layer", ylabel="score (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=False, axis="x")
    if ax is None:
        axes.legend()
    return axes


@styled
def layer_panels(frame: pd.DataFrame, *, window: Window = None) -> list[Axes]:
    """Draws `layer_curve` for each module of `frame` side by side, on one scale, under one legend.

    >>> frame = pd.DataFrame({"layer": [0, 0], "module": ["mlp", "attn"], "score": [0.1, 2.0]})
    >>> [axes.get_title(loc="left") for axes in layer_panels(frame)]
    ['attention', 'MLP']
    """
    check(frame, ("layer", "module", "score"))
    present = list(dict.fromkeys(frame["module"]))
    modules = [m for m in _MODULES if m in present] + [m for m in present if m not in _MODULES]
    panels = row(len(modules), height=3.1, sharey=True)
    for axes, module in zip(panels, modules, strict=True):
        layer_curve(frame[frame["module"] == module], axes, window=window)
        axes.set_title(_MODULES.get(module, visible(str(module))))
        axes.label_outer()
    handles, labels = panels[0].get_legend_handles_labels()
    figure = panels[0].get_figure(root=True)
    if figure is not None:
        figure.legend(handles, labels, loc="outside upper left", ncols=4, handlelength=3)
    return panels


@styled
def head_heatmap(frame: pd.DataFrame, ax: Axes | None = None, *, limit: float | None = None) -> Axes:
    """Draws the score of every head, layer (upward) × head, on the diverging map centred on 0.

    Up to 120 cells carry their value; among more, those below a tenth of −`limit` carry a dot, which tells the signs
    apart in grey too.

    Args:
        frame: layer, head, score (nats), one row a head; a head without a row, or with NaN, is hatched.
        ax: The axes to draw into; None makes a figure.
        limit: The scale is ±`limit`; by default the largest |score|.

    >>> axes = head_heatmap(pd.DataFrame({"layer": [0, 0, 1], "head": [0, 1, 0], "score": [0.5, -1.0, 0.0]}))
    >>> axes.collections[0].get_clim()
    (-1.0, 1.0)
    """
    check(frame, ("layer", "head", "score"), key=("layer", "head"))
    matrix = frame.pivot_table(index="layer", columns="head", values="score", dropna=False, aggfunc="first")
    matrix = matrix.astype(float).reindex(index=_span(frame["layer"]), columns=_span(frame["head"]))
    axes = _heatmap(matrix, ax, limit=limit, labels=1.0)
    axes.invert_yaxis()
    axes.tick_params(length=0, rotation=0)
    axes.set(xlabel="head", ylabel="layer")
    return axes


@styled
def token_heatmap(frame: pd.DataFrame, tokens: Sequence[str], ax: Axes | None = None) -> Axes:
    """Draws the heat of tokens: a row a head, above them all heads together; a column a token.

    The map and the values in its cells are those of `head_heatmap`.

    Args:
        frame: layer, head, pos, score (nats), one row a head and place in `tokens`.
        tokens: The tokens of the prompt.
        ax: The axes to draw into; None makes a figure.

    >>> frame = pd.DataFrame({"layer": 0, "head": [1, 1], "pos": [0, 1], "score": [0.5, -1.0]})
    >>> [label.get_text() for label in token_heatmap(frame, ["In", " Paris"]).get_xticklabels()]
    ['In', '·Paris']
    """
    check(frame, ("layer", "head", "pos", "score"), key=("layer", "head", "pos"))
    wide = frame.pivot(index=["layer", "head"], columns="pos", values="score").astype(float)
    wide = wide.reindex(index=pd.MultiIndex.from_frame(frame[["layer", "head"]]).unique())
    wide = wide.reindex(columns=range(len(tokens)))
    names = ["all", *(f"L{layer} H{head}" for layer, head in wide.index)]
    matrix = pd.DataFrame(np.vstack([wide.sum(axis=0), wide]), index=names)
    axes = _heatmap(matrix, ax, labels=1.3)
    shown = range(0, len(tokens), _every(len(tokens)))
    labels = [clip(visible(tokens[pos], spaces=True), 16) for pos in shown]
    axes.set_xticks([pos + 0.5 for pos in shown], labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.tick_params(axis="y", rotation=0)
    axes.set(xlabel="", ylabel="")
    return axes


@styled
def window_strip(frame: pd.DataFrame, window: Window = None, *, ax: Axes | None = None) -> Axes:
    """Draws the candidate layer windows by their score, each a segment over its layers.

    Args:
        frame: first, last (both included), score.
        window: The chosen one, whose layers are shaded and whose segment is thick.
        ax: The axes to draw into; None makes a figure.

    >>> frame = pd.DataFrame({"first": [0, 1], "last": [1, 2], "score": [0.1, 0.9]})
    >>> axes = window_strip(frame, window=(1, 2))
    >>> axes.get_xlabel()
    'layer'
    """
    check(frame, ("first", "last", "score"), key=("first", "last"))
    axes = row(1, width=7.2, height=2.6)[0] if ax is None else ax
    _shade(axes, window)
    for first, last, score in zip(frame["first"], frame["last"], frame["score"], strict=True):
        chosen = window is not None and (first, last) == tuple(window)
        (line,) = axes.plot([first - 0.35, last + 0.35], [score, score], solid_capstyle="butt")
        if chosen:
            line.set(color=LIGHT["pos"], linewidth=4, zorder=4, label="chosen window")
        else:
            line.set(color=LIGHT["muted"], linewidth=1.6, alpha=0.75, label="other candidates")
    axes.set(xlabel="layer", ylabel="score")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    axes.grid(visible=False, axis="x")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    names = [name for name in ("chosen window", "other candidates") if name in handles]
    axes.legend([handles[name] for name in names], names, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return axes


@styled
def neuron_bar(frame: pd.DataFrame, ax: Axes | None = None, *, top: int = 20) -> Axes:
    """Draws the `top` rows with the largest |score| as bars, largest first: blue promotes, orange suppresses.

    Args:
        frame: score (nats) and `unit` (str), or the columns of an attribution frame (layer, neuron) or
            (layer, head, dim, pos), which are then joined by dots; with `promotes` (str) each label goes on with the
            tokens that the unit's output vector moves up most.
        ax: The axes to draw into; None makes a figure.
        top: Number of rows.

    >>> axes = neuron_bar(pd.DataFrame({"layer": [3, 5], "neuron": [7, 9], "score": [0.2, -0.4]}))
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['5.9', '3.7']
    """
    check(frame, ("score",))
    largest = frame.loc[frame["score"].abs().sort_values(ascending=False, kind="stable").index].head(top)
    labels = _units(largest)
    axes = row(1, width=4.8, height=0.9 + 0.2 * len(largest))[0] if ax is None else ax
    colours = [LIGHT["pos"] if score >= 0 else LIGHT["neg"] for score in largest["score"]]
    axes.barh(range(len(largest)), largest["score"], color=colours, height=0.7)
    axes.axvline(0, color=LIGHT["muted"], linewidth=0.8)
    axes.set_yticks(range(len(largest)), labels)
    axes.invert_yaxis()
    axes.set(xlabel="score (nats)")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    return axes


@styled
def butterfly(frame: pd.DataFrame, ax: Axes | None = None, *, top: int = 10) -> Axes:
    """Draws the `top` units that promote the target, to the right, against the `top` that suppress it, to the left.

    Both sides have one scale; a line has the two units of one rank, named at its ends.

    Args:
        frame: As for `neuron_bar`.
        ax: The axes to draw into; None makes a figure.
        top: Number of units of each sign.

    >>> axes = butterfly(pd.DataFrame({"unit": ["a", "b", "c"], "score": [0.2, -0.4, 0.3]}))
    >>> [text.get_text() for text in axes.texts]
    ['c', 'a', 'b']
    """
    check(frame, ("score",))
    sides = [
        frame[frame["score"] > 0].nlargest(top, "score"),
        frame[frame["score"] < 0].nsmallest(top, "score"),
    ]
    rows = max(map(len, sides))
    limit = float(frame["score"].abs().max()) or 1.0
    axes = row(1, width=7.2, height=0.9 + 0.24 * max(rows, 1))[0] if ax is None else ax
    for side, sign, colour in zip(sides, (1, -1), ("pos", "neg"), strict=True):
        bars = axes.barh(range(len(side)), side["score"], height=0.7, color=LIGHT[colour])
        if sign < 0:  # hollow and hatched: told apart in grey
            for bar in bars:
                bar.set(facecolor="none", edgecolor=LIGHT[colour], hatch="////")
        for y, (label, score) in enumerate(zip(_units(side), side["score"], strict=True)):
            end = score + sign * 0.03 * limit
            axes.text(end, y, label, va="center", ha="left" if sign > 0 else "right", fontsize=8)
    axes.axvline(0, color=LIGHT["muted"], linewidth=0.8)
    axes.set(xlabel="suppresses ← score (nats) → promotes", xlim=(-2.2 * limit, 2.2 * limit), yticks=[])
    axes.set_ylim(max(rows, 1) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    return axes


def _line(axes: Axes, group: pd.DataFrame, names: dict[str, Any]) -> None:
    """One line of `layer_curve`, and its band."""
    stage, module, thing = (names.get(name) for name in ("stage", "module", "object"))
    colour = LIGHT[_LINE_COLOURS.get(str(thing or module), "ink")]
    parts = [_MODULES.get(str(module), str(module))] if module is not None else []
    parts += [f"{thing} object"] if thing is not None else []
    parts += [str(stage)] if stage is not None else []
    axes.plot(  # not seaborn's lineplot, which draws straight across a NaN
        group["layer"].to_numpy(),
        group["score"].to_numpy(dtype=float),
        color=colour,
        label=", ".join(visible(part) for part in parts),
        linestyle="--" if stage == "before" else "-",
        marker="s" if thing == "old" or module == "mlp" else "o",
        markeredgecolor=colour,
        markerfacecolor=LIGHT["paper"] if stage == "before" else colour,
        zorder=3,
    )
    if {"low", "high"} <= set(group):
        layer, low, high = (group[name].to_numpy(dtype=float) for name in ("layer", "low", "high"))
        axes.fill_between(layer, low, high, color=colour, alpha=0.14, linewidth=0, zorder=2)


def _heatmap(matrix: pd.DataFrame, ax: Axes | None, *, limit: float | None = None, labels: float) -> Axes:
    """Draws the signed map of ±`limit`, by default the largest |value|: values where there is room, else dots.

    `labels`: inches that a new figure has for those below it.
    """
    bound = limit or float(np.nanmax(np.abs(matrix.to_numpy()), initial=0.0)) or 1.0
    width, height = min(7.2, 1.9 + 0.46 * matrix.shape[1]), min(7.0, labels + 0.3 * matrix.shape[0])
    axes = row(1, width=width, height=height)[0] if ax is None else ax
    axes.patch.set(hatch="////", edgecolor=LIGHT["muted"], linewidth=0)
    sns.heatmap(
        matrix,
        ax=axes,
        cmap=DIVERGING,
        vmin=-bound,
        vmax=bound,
        annot=_written(matrix) if matrix.size <= _WRITTEN else False,
        fmt="",
        annot_kws={"size": 7},
        linewidths=0.4 if matrix.size <= 1500 else 0,
        linecolor=LIGHT["paper"],
        rasterized=matrix.size > 3000,  # thousands of paths would make the page megabytes large
        cbar_kws={"label": "score (nats)", "pad": 0.02},
        xticklabels=_every(matrix.shape[1]),
        yticklabels=_every(matrix.shape[0]),
    )
    if matrix.size > _WRITTEN:
        _dot_negative(axes, matrix, bound)
    axes.grid(visible=False)
    return axes


def _written(matrix: pd.DataFrame) -> np.ndarray:
    """Two decimals with a true minus; what rounds to zero has no sign."""
    return np.array(
        [
            [f"{v + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "−") for v in row]
            for row in matrix.to_numpy()
        ]
    )


def _dot_negative(axes: Axes, matrix: pd.DataFrame, bound: float) -> None:
    rows, columns = np.nonzero(matrix.to_numpy() < -bound / 10)
    axes.scatter(
        columns + 0.5,
        rows + 0.5,
        s=2.5,
        color=LIGHT["paper"],
        edgecolors=LIGHT["ink"],
        linewidths=0.3,
        rasterized=matrix.size > 3000,
    )


def _shade(axes: Axes, window: tuple[int, int] | None) -> None:
    if window is not None:
        axes.axvspan(window[0] - 0.5, window[1] + 0.5, color=LIGHT["band"], linewidth=0, zorder=0)


def _units(frame: pd.DataFrame) -> list[str]:
    if "promotes" in frame:
        promoted = [
            clip(visible(str(tokens)), 28) if tokens == tokens else "" for tokens in frame["promotes"]
        ]
        units = _units(frame.drop(columns="promotes"))
        return [f"{unit}  {tokens}" if tokens else unit for unit, tokens in zip(units, promoted, strict=True)]
    if "unit" in frame:
        return [clip(visible(str(unit)), 32) for unit in frame["unit"]]
    columns = [name for name in ("layer", "head", "neuron", "dim", "pos") if name in frame]
    if not columns:
        raise InputError("frame: expected a column unit, or layer with neuron or head, found none of them")
    return [".".join(str(int(value)) for value in values) for values in frame[columns].to_numpy()]


def _span(column: pd.Series) -> range:
    return range(int(column.min()), int(column.max()) + 1)


def _every(n: int) -> int:
    return max(1, -(-n // 24))
