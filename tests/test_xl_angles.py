"""Orthogonal to what: answers by hand, the claim beside its yardsticks, and the picture of both."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from reports import xl_figures
from reports.colours import LIGHT
from tests.xl_study_example import study as made_up_study
from xlprobe.transfer.claims import claims
from xlprobe.transfer.orthogonal import angles, useful
from xlprobe.transfer.prediction import predict


def rows(**given: Any) -> pd.DataFrame:
    """One row of a study's gradients, of layer 1."""
    row: dict[str, Any] = {"pair": "ja-kk", "objective": "hictl", "task": "pos", "scope": "layer", "layer": 1}
    row |= {"cosine": 0.05, "low": 0.03, "high": 0.07, "task_halves": 0.8, "source_target": 0.6}
    row |= {"shuffled": 0.0, "align_halves": 0.9, "random_sd": 0.001}
    return pd.DataFrame([row | given])


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ({}, "orthogonal"),  # a third of 0.6 is 0.2
        (
            {"source_target": 0.12},
            "open",
        ),  # of 0.12 it is 0.04, which the interval holds: 0.05 is no longer small
        ({"source_target": 0.06}, "with"),
        ({"cosine": -0.05, "low": -0.07, "high": -0.03, "source_target": 0.06}, "against"),
        ({"source_target": math.nan, "task_halves": 0.12}, "open"),
        ({"align_halves": 0.4}, "noise"),
        ({"low": math.nan, "high": math.nan}, "open"),
        ({"source_target": -0.2}, "with"),  # a yardstick of the wrong sign leaves no room
    ],
)
def test_a_cosine_is_small_only_against_what_useful_gradients_make(
    given: dict[str, float], answer: str
) -> None:
    assert angles(rows(**given))["answer"].tolist() == [answer]


def test_the_bound_is_a_third_of_the_smaller_yardstick_of_each_layer() -> None:
    gradients = made_up_study().gradients
    frame = angles(gradients)
    assert set(frame["layer"]) == {-1, 0, 1, 2, 3, 4}
    for row in frame.to_dict("records"):
        same = gradients["scope"].eq("encoder" if row["layer"] < 0 else "layer") & gradients["layer"].eq(
            row["layer"]
        )
        for key in ("pair", "objective", "task"):
            same &= gradients[key].eq(row[key])
        (source,) = gradients[same].to_dict("records")
        assert row["cosine"] == source["cosine"]
        assert row["bound"] == pytest.approx(min(source["task_halves"], source["source_target"]) / 3)
    assert math.isnan(useful({"task_halves": math.nan}))


def test_the_claim_says_nearly_orthogonal_only_beside_its_yardsticks() -> None:
    """The same small cosines: near 0 where the task in both languages makes 0.6, not where it makes 0.06."""
    rng = np.random.default_rng(0)
    cells = pd.DataFrame({"pair": list("abcd") * 5, "objective": "hictl", "task": "pos"})
    score = rng.normal(size=20)
    cells = cells.assign(
        delta_score=score, low=score - 1, high=score + 1, delta_retrieval=rng.normal(size=20)
    )
    cells = cells.assign(
        gradient_cosine=0.05, cosine_low=0.03, cosine_high=0.07, task_halves=0.9, align_halves=0.9
    )
    answers = []
    for yardstick in (0.6, 0.06):
        frame = cells.assign(source_target=yardstick)
        claim = claims(frame, predict(frame))[1]
        answers.append(claim["answer"])
        assert f"(median {yardstick:.2f}" in claim["evidence"]
    assert answers == ["holds", "does not hold"]


def test_the_picture_shows_band_yardsticks_and_which_marks_are_clear() -> None:
    frame = pd.concat(
        [rows(layer=1), rows(layer=2, low=-0.3, high=0.4), rows(layer=3, cosine=0.5, low=0.4, high=0.6)]
    )
    frame = pd.concat(
        [angles(frame).assign(panel="hictl, pos"), angles(rows(layer=0)).assign(panel="hictl, pos")]
    )
    (axes,) = xl_figures.angle_layers(frame)
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert np.asarray(lines["task, two halves"].get_ydata()).tolist() == [0.8] * 3
    assert np.asarray(lines["task in both languages"].get_ydata()).tolist() == [0.6] * 3
    marks = [line for line in axes.get_lines() if line.get_marker() == "o" and line.get_linestyle() == "None"]
    filled, hollow = (np.asarray(line.get_xdata()).tolist() for line in marks)
    assert (filled, hollow) == ([1.0, 3.0], [2.0])
    assert [to_hex(line.get_markerfacecolor()) for line in marks] == [LIGHT["pos"], LIGHT["paper"]]
    band = axes.collections[0].get_paths()[0].vertices
    assert np.abs(np.asarray(band)[:, 1]).max() == pytest.approx(0.2)


def test_predictors_stand_in_their_order_and_a_clear_one_is_filled() -> None:
    frame = pd.DataFrame(
        {"label": ["a", "b"], "spearman": [0.5, 0.1], "low": [0.2, -0.2], "high": [0.8, 0.4]}
    )
    axes = xl_figures.predictor_forest(
        frame.assign(partial=[0.1, math.nan], partial_low=-0.2, partial_high=0.3)
    )
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    points = [
        line for line in axes.get_lines() if line.get_marker() == "o" and len(np.asarray(line.get_xdata()))
    ]
    faces = [line.get_markerfacecolor() == line.get_color() for line in points]
    assert faces == [True, False]
    diamonds = [
        line for line in axes.get_lines() if line.get_marker() == "D" and len(np.asarray(line.get_xdata()))
    ]
    assert len(diamonds) == 1
