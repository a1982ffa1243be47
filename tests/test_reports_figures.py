"""Figures: what is drawn, that nothing leaks into matplotlib, and SVG fragments fit for a page."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from reports import figures, forests
from reports.colours import DARK, LIGHT, contrast
from reports.errors import InputError
from reports.inline import fragment
from tests import reports_example as example

FOREST = pd.DataFrame(
    {"label": ["a", "b"], "value": [0.5, math.nan], "low": [0.3, math.nan], "high": [0.7, math.nan]}
)
DRAWN: dict[str, Callable[[], Axes]] = {
    "layers": lambda: figures.layer_panels(example.contrast(), window=(5, 7))[0],
    "curve": lambda: figures.layer_curve(example.contrast().query("module == 'attn'")),
    "heads": lambda: figures.head_heatmap(example.heads()),
    "heat": lambda: figures.token_heatmap(example.looks()["token_heat"], [*example.HOSTILE[:9]]),
    "windows": lambda: figures.window_strip(example.windows(), (5, 7)),
    "neurons": lambda: figures.neuron_bar(example.neurons()),
    "forest": lambda: forests.forest(FOREST),
}


@functools.cache
def drawn(name: str) -> str:
    return fragment(DRAWN[name](), prefix="f9", title="<T>", description='a "quoted" one')


@pytest.mark.parametrize("name", DRAWN)
def test_same_bytes_whatever_the_users_settings_which_stay_as_they_were(name: str) -> None:
    loud: Any = {"font.size": 30, "axes.grid": False, "lines.linewidth": 9, "svg.fonttype": "path"}
    plain = drawn(name)
    with mpl.rc_context(loud):
        before = dict(mpl.rcParams)
        assert fragment(DRAWN[name](), prefix="f9", title="<T>", description='a "quoted" one') == plain
        assert dict(mpl.rcParams) == before
    pyplot = importlib.import_module("matplotlib.pyplot")
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("name", DRAWN)
def test_a_fragment_is_fit_for_a_page(name: str) -> None:
    svg = drawn(name)
    assert svg.startswith("<svg")
    assert "http" not in svg
    assert "xmlns" not in svg
    assert "DejaVu" not in svg
    assert '<title id="f9-title">&lt;T&gt;</title>' in svg
    assert svg.count(' id="') == svg.count(' id="f9-')
    assert svg.count("url(#") == svg.count("url(#f9-")
    assert "var(--ink" in svg


def test_curves_hold_the_values_and_break_at_nan() -> None:
    frame = pd.DataFrame(
        {"layer": [2, 0, 1], "module": "attn", "score": [3.0, 1.0, math.nan], "object": "new"}
    )
    line = figures.layer_curve(frame).get_lines()[1]
    assert np.array_equal(line.get_ydata(), [1.0, math.nan, 3.0], equal_nan=True)
    assert line.get_color() == LIGHT["new"]


def test_before_and_after_differ_without_colour() -> None:
    lines = figures.layer_curve(example.contrast().query("module == 'attn'")).get_lines()[1:]
    looks = {(line.get_linestyle(), line.get_marker(), str(line.get_markerfacecolor())) for line in lines}
    assert len(looks) == len(lines) == 4


def test_heatmap_is_centred_and_leaves_missing_heads_empty() -> None:
    frame = pd.DataFrame({"layer": [0, 0, 2], "head": [0, 1, 1], "score": [0.5, -2.0, math.nan]})
    mesh = figures.head_heatmap(frame).collections[0]
    assert mesh.get_clim() == (-2.0, 2.0)
    values: Any = np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=float), math.nan).reshape(3, 2)
    assert np.array_equal(values, [[0.5, -2.0], [math.nan] * 2, [math.nan] * 2], equal_nan=True)


def test_heat_of_tokens_keeps_the_order_of_heads_and_sums_them() -> None:
    frame = pd.DataFrame(
        {"layer": [7, 7, 2, 2], "head": 1, "pos": [0, 1, 1, 0], "score": [1.0, -2.0, 0.5, 0.0]}
    )
    axes = figures.token_heatmap(frame, ["a", " b"])
    values: Any = np.ma.asarray(axes.collections[0].get_array()).reshape(3, 2)
    assert np.array_equal(values, [[1.0, -1.5], [1.0, -2.0], [0.0, 0.5]])
    assert axes.collections[0].get_clim() == (-2.0, 2.0)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all", "L7 H1", "L2 H1"]


def test_a_large_heatmap_stays_small() -> None:
    rows = [(layer, head, math.sin(layer * head)) for layer in range(80) for head in range(64)]
    axes = figures.head_heatmap(pd.DataFrame(rows, columns=["layer", "head", "score"]))
    assert len(fragment(axes, prefix="f", title="large")) < 400_000


def test_neuron_bar_takes_the_largest_and_names_them() -> None:
    frame = pd.DataFrame({"unit": ["a", "b", "c"], "score": [0.1, -0.9, 0.5]})
    axes = figures.neuron_bar(frame, top=2)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c"]


def test_hostile_labels_stay_labels() -> None:
    units = [*example.HOSTILE, 'id="x" href="#y" url(#z)']
    svg = fragment(
        figures.neuron_bar(pd.DataFrame({"unit": units, "score": 1.0})), prefix="f", title="hostile"
    )
    assert "<script" not in svg
    assert 'id="x" href="#y" url(#z)' in svg
    assert "$x$" in svg
    assert "⟨U+202E⟩abc" in svg


@pytest.mark.parametrize(
    ("draw", "frame", "match"),
    [
        (figures.layer_curve, pd.DataFrame({"layer": [0], "score": [1.0]}), "'module'"),
        (figures.layer_curve, example.contrast(), "layer_panels"),
        (figures.layer_curve, pd.DataFrame({"layer": [0, 0], "module": "mlp", "score": 1.0}), "twice"),
        (figures.head_heatmap, example.heads().head(0), "at least one row"),
        (figures.head_heatmap, pd.concat([example.heads()] * 2), "twice"),
        (figures.neuron_bar, pd.DataFrame({"score": [1.0]}), "unit"),
        (forests.forest, pd.DataFrame({"label": ["a"], "value": [1.0]}), "'low'"),
        (figures.window_strip, pd.DataFrame({"first": [0], "last": [1]}), "'score'"),
    ],
)
def test_bad_frames_are_refused(
    draw: Callable[[pd.DataFrame], Axes], frame: pd.DataFrame, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        draw(frame)


@pytest.mark.parametrize("prefix", ["", "1a", "a b", 'a"'])
def test_bad_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(InputError, match="prefix"):
        fragment(forests.forest(FOREST), prefix=prefix, title="x")


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_data_colours_have_contrast(colours: dict[str, str]) -> None:
    for name in ("ink", "muted", "new", "old", "pos", "neg"):
        for ground in ("paper", "band"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    assert len(set(colours.values())) == len(colours)
    assert contrast("#999999", "#ffffff") < 4.5  # the measure can fail
