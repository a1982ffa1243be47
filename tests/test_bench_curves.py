"""The picture of the cost curves, from points alone."""

from __future__ import annotations

import pandas as pd

from tests.benchmarks.nlka_curves import AXES, plot_curves


def test_each_axis_has_its_panel_with_both_costs() -> None:
    rows = [
        {"axis": axis, "value": value, "seconds": 2.0 * value, "seconds_forward": 0.5 * value}
        for axis in AXES
        for value in (10, 100, 1000)
    ]
    figure = plot_curves(pd.DataFrame(rows))
    assert [ax.get_xlabel() for ax in figure.axes] == list(AXES.values())
    for ax in figure.axes:
        attribution, forward = (line.get_ydata().tolist() for line in ax.get_lines())
        assert attribution == [20.0, 200.0, 2000.0]
        assert forward == [5.0, 50.0, 500.0]
