"""The charts and the page of a study: complete, safe, the same each time, and refused where a table is not one."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh

from experiments.runs import RunFolder
from reports import forests, xl_figures, xl_page
from reports.errors import InputError, IntegrityError
from reports.inline import fragment
from tests import xl_study_example as example
from tests.test_reports_page import Outline, addresses
from xlprobe.recipes.page import study_json, write_page

HOSTILE = "<script>alert(1)</script>\u202e$x$"


def run(folder: Path, hostile: str = "") -> Path:
    RunFolder.open(folder, {"seeds": 2}, provenance={"seeds": {"0": 0}})
    write_page(example.study(hostile), folder, model="made up", title="A study")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("study") / "run")


# -- charts ------------------------------------------------------------------------------------------------------


def test_curves_have_a_line_for_each_stage_and_nan_interrupts_it() -> None:
    rows = [(layer, "cosine", stage, 0.1 * layer) for layer in range(3) for stage in ("before", "after")]
    frame = pd.DataFrame(rows, columns=["layer", "metric", "stage", "gap"])
    frame = frame.assign(low=frame["gap"] - 0.1, high=frame["gap"] + 0.1)
    frame.loc[2, "gap"] = np.nan
    (axes,) = xl_figures.distance_curves(frame)
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert {"before", "after"} <= set(lines)
    assert np.isnan(np.asarray(lines["before"].get_ydata(), dtype=float)[1])
    assert lines["before"].get_linestyle() != lines["after"].get_linestyle()  # colour never speaks alone


def test_heatmap_shows_each_cosine_and_brackets_what_may_be_zero() -> None:
    frame = pd.DataFrame({"layer": [1, 2], "group": "query", "cosine": [0.5, -0.1]})
    axes = xl_figures.cosine_heatmap(frame.assign(low=[0.4, -0.2], high=[0.6, 0.1]))
    (mesh,) = (c for c in axes.collections if isinstance(c, QuadMesh))
    assert np.asarray(mesh.get_array()).ravel().tolist() == [0.5, -0.1]
    assert [text.get_text() for text in axes.texts] == ["0.50", "(−0.10)"]


def test_an_effect_is_filled_only_where_its_interval_is_on_one_side() -> None:
    frame = pd.DataFrame({"panel": "pos", "label": ["a", "b"], "value": [1.0, 0.2]})
    (axes,) = forests.effect_forest(frame.assign(low=[0.5, -0.5], high=[1.5, 0.9]))
    points = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert points[0].get_markerfacecolor() == points[0].get_color()
    assert points[1].get_markerfacecolor() != points[1].get_color()
    assert axes.get_xlim()[0] == -axes.get_xlim()[1]


def test_scatter_has_every_cell_once() -> None:
    cells = example.study().cells
    axes = xl_figures.outcome_scatter(cells, x="delta_retrieval")
    drawn = sum(
        len(np.asarray(line.get_xdata())) for line in axes.get_lines() if line.get_linestyle() == "None"
    )
    assert drawn == len(cells)


@pytest.mark.parametrize(
    ("draw", "match"),
    [
        (lambda f: xl_figures.cosine_heatmap(f.head(0)), "at least one row"),
        (lambda f: xl_figures.cosine_heatmap(pd.concat([f, f])), "filter it first"),
        (lambda f: xl_figures.norm_curves(f), "'step'"),
    ],
)
def test_bad_frames_are_refused(draw, match) -> None:  # type: ignore[no-untyped-def]
    frame = pd.DataFrame({"layer": [1], "group": ["query"], "cosine": [0.1]})
    with pytest.raises(InputError, match=match):
        draw(frame)


def test_charts_leave_matplotlib_alone() -> None:
    before = dict(mpl.rcParams)
    axes = xl_figures.norm_curves(pd.DataFrame({"step": [0, 9], "line": "tlm", "ratio": [2.0, 0.5]}))
    assert fragment(axes, prefix="n", title="norms").startswith("<svg")
    assert dict(mpl.rcParams) == before


# -- page --------------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_needs_nothing(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    outline = Outline(text)
    assert outline.faults == []
    assert addresses(text) == []
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    sections = (
        "claims",
        "effects",
        "distances",
        "gradients",
        "prediction",
        "advice",
        "not-done",
        "provenance",
    )
    assert set(sections) <= set(ids)
    assert (
        text.count("<svg") == 1 + 4 + 8 + 4 + 1 + 1
    )  # effects, pairs, objective × task, angles, scatter, forest
    assert "nan" not in " ".join(outline.words).split()
    assert len(text.encode()) < 3_000_000


def test_the_page_says_what_the_tables_say(folder: Path) -> None:
    words = " ".join(Outline((folder / "report.html").read_text(encoding="utf-8")).words)
    for verdict in example.study().claims:
        assert verdict["evidence"] in words
    row = example.study().cells.iloc[0]
    assert f"{100 * row['delta_score']:+.1f}".replace("-", "−") in words


def test_the_same_files_give_the_same_bytes(folder: Path) -> None:
    before = (folder / "report.html").read_bytes()
    assert xl_page.build(folder).read_bytes() == before


def test_hostile_names_stay_names(tmp_path: Path) -> None:
    text = (run(tmp_path / "run", HOSTILE) / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "\u202e" not in text


def test_what_is_no_study_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"summary\.json"):
        xl_page.build(tmp_path)
    broken = run(tmp_path / "run")
    (broken / "cells.parquet").unlink()
    with pytest.raises(IntegrityError, match="cells"):
        xl_page.build(broken)


def test_json_has_everything_the_demo_promises() -> None:
    found = study_json(example.study())
    cell = found["pairs"]["source-words"]["sentence"]
    assert {"delta_retrieval", "tasks"} <= cell.keys()
    task = cell["tasks"]["pos"]
    assert {"delta_score", "interval", "n", "gradient_cosine", "cosine_interval", "yardsticks"} <= task.keys()
    assert len(task["yardsticks"]) == 6
    assert "shuffled" in found["pairs"]["source-words"]
