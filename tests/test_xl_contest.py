"""Predictors side by side: partial rank correlation against residuals by least squares, contests with known winners."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata, spearmanr

from xlprobe.transfer.contest import ceiling, contest, gradients_say_more
from xlprobe.transfer.prediction import PREDICTORS, correlations, partial_spearman, predict, spearman

PAIRS = ("de-en", "en-kk", "ja-kk", "ko-kk")


def naive_partial(x: np.ndarray, y: np.ndarray, pairs: np.ndarray) -> float:
    """The correlation of the residuals of ranks regressed on an intercept and dummies of the pairs."""
    names = sorted(set(pairs))
    design = np.column_stack([np.ones(len(x)), *[(pairs == name).astype(float) for name in names[1:]]])
    rests = []
    for values in (x, y):
        ranks = rankdata(values)
        rests.append(ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0])
    return float(np.corrcoef(*rests)[0, 1])


def cells(
    n: int = 64, *, strong: float = 1.0, weak: float = 0.0, noise: float = 1.0, seed: int = 0
) -> pd.DataFrame:
    """Cells whose score follows the gradient cosine by `strong`, similarity and retrieval by `weak`."""
    rng = np.random.default_rng(seed)
    gradient, gap, retrieval = rng.normal(size=(3, n))
    y = strong * gradient + weak * (gap + retrieval) + noise * rng.normal(size=n)
    frame = pd.DataFrame({"pair": [PAIRS[i % 4] for i in range(n)], "objective": "hictl", "task": "pos"})
    frame = frame.assign(gradient_cosine=gradient, delta_gap=gap, delta_retrieval=retrieval, delta_score=y)
    return frame.assign(low=y - 1.96 * noise, high=y + 1.96 * noise)


# -- given the pair ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_given_the_pair_it_is_the_correlation_of_residuals(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = rng.choice(PAIRS, size=30)
    x, y = rng.integers(8, size=30).astype(float), rng.normal(size=30)
    assert partial_spearman(x, y, pairs) == pytest.approx(naive_partial(x, y, pairs))
    assert partial_spearman(x, y, pairs) != pytest.approx(
        spearman(x, y)
    )  # the oracle would not take the plain one


def test_resamples_are_the_plain_and_the_partial_correlation_of_their_cells() -> None:
    rng = np.random.default_rng(0)
    x, y, pairs = rng.normal(size=20), rng.normal(size=20), np.array(PAIRS * 5)
    draws = rng.integers(20, size=(5, 20))
    for row, plain, partial in zip(
        draws, correlations(x, y, draws), correlations(x, y, draws, pairs), strict=True
    ):
        assert plain == pytest.approx(spearmanr(x[row], y[row]).statistic)
        assert partial == pytest.approx(naive_partial(x[row], y[row], pairs[row]))


def test_a_predictor_that_only_tells_pairs_apart_has_nothing_left_given_the_pair() -> None:
    """Score and predictor rise from pair to pair, and inside a pair they have nothing to do with each other."""
    rng = np.random.default_rng(0)
    level = np.repeat([0.0, 10, 20, 30], 12)
    frame = pd.DataFrame({"pair": np.repeat(PAIRS, 12)})
    frame = frame.assign(delta_gap=level + rng.normal(size=48), delta_score=level + rng.normal(size=48))
    row = predict(frame).iloc[0]
    assert row["low"] > 0.8
    assert row["partial_low"] < 0 < row["partial_high"]
    one_each = predict(frame.iloc[::12]).iloc[0]
    assert math.isnan(one_each["partial"])
    assert "does not vary within the pairs" in one_each["missing"]


def test_agreeing_counts_by_more_than_half() -> None:
    frame = pd.DataFrame(
        {"pair": list("aabb"), "agreeing": [0.9, 0.8, 0.2, 0.1], "delta_score": [1.0, 2, -1, -2]}
    )
    assert predict(frame).iloc[0]["sign_agreement"] == 1.0
    assert "agreeing" in PREDICTORS


# -- contests ------------------------------------------------------------------------------------------------


def test_the_stronger_predictor_wins_and_its_difference_is_that_of_scipys() -> None:
    frame = cells()
    rows = contest(frame)
    assert set(rows["predictor"]) == {"gradient_cosine"}
    assert (rows["low"] > 0).all()
    row = rows[rows["rival"] == "delta_gap"].iloc[0]
    sizes = [
        abs(spearmanr(frame[name], frame["delta_score"]).statistic)
        for name in ("gradient_cosine", "delta_gap")
    ]
    assert row["difference"] == pytest.approx(sizes[0] - sizes[1])


def test_a_predictor_that_is_right_the_wrong_way_round_wins_too() -> None:
    assert set(contest(cells(strong=-1.0))["predictor"]) == {"gradient_cosine"}


def test_two_equal_predictors_are_rarely_told_apart() -> None:
    apart = 0
    for seed in range(30):
        rows = contest(cells(48, strong=0.7, weak=0.7, seed=seed), best="gradient_cosine")
        row = rows[rows["rival"] == "delta_gap"].iloc[0]
        apart += bool(row["low"] > 0 or row["high"] < 0)
    assert apart <= 6  # 5 % of 30 is 1.5


def test_the_cells_that_it_would_take_tell_the_two_apart_about_as_often_as_asked() -> None:
    """New studies of the size that one large study asks for, drawn from the same truth."""
    asked = contest(cells(2000, strong=0.6, weak=0.25, seed=1), best="gradient_cosine").set_index("rival")
    n = round(asked.loc["delta_gap", "cells"])
    assert 30 < n < 300
    clear = [
        contest(cells(n, strong=0.6, weak=0.25, seed=seed), best="gradient_cosine").set_index("rival")
        for seed in range(100, 116)
    ]
    share = sum(rows.loc["delta_gap", "low"] > 0 for rows in clear) / 16
    assert 0.6 <= share <= 0.97
    few = [
        contest(cells(n // 4, strong=0.6, weak=0.25, seed=seed), best="gradient_cosine").set_index("rival")
        for seed in range(100, 116)
    ]
    assert sum(rows.loc["delta_gap", "low"] > 0 for rows in few) / 16 < 0.5  # a quarter of them does not


def test_more_noise_takes_more_cells() -> None:
    quiet, loud = (
        contest(cells(400, noise=noise), best="gradient_cosine").set_index("rival").loc["delta_gap", "cells"]
        for noise in (0.5, 2.0)
    )
    assert loud > 2 * quiet


def test_too_few_cells_and_predictors_that_do_not_vary_have_no_contest() -> None:
    assert contest(cells(2)).empty
    assert contest(cells().assign(delta_gap=0.0, delta_retrieval=0.0)).empty
    assert gradients_say_more(cells().drop(columns="gradient_cosine")) == []


# -- the claim -----------------------------------------------------------------------------------------------


def answer(frame: pd.DataFrame) -> str:
    return gradients_say_more(frame)[0]["answer"]


def test_the_claim_holds_does_not_hold_or_is_not_shown() -> None:
    assert answer(cells()) == "holds"
    assert answer(cells(strong=0.0, weak=2.0)) == "does not hold"
    unsure = gradients_say_more(cells(16, strong=0.3, weak=0.2))[0]
    assert unsure["answer"] == "not shown"
    assert "it would take about" in unsure["evidence"]
    assert answer(cells(9)) == "not shown"  # fewer than ten cells show nothing


def test_the_ceiling_is_the_share_of_variance_that_is_not_noise() -> None:
    """Changes that vary by 1 with a standard error of 1/2 are three quarters more than noise; noise alone is none."""
    rng = np.random.default_rng(0)
    truth, error = rng.normal(size=4000) * math.sqrt(0.75), 0.5
    measured = truth + error * rng.normal(size=4000)
    frame = pd.DataFrame(
        {"delta_score": measured, "low": measured - 1.96 * error, "high": measured + 1.96 * error}
    )
    assert ceiling(frame) == pytest.approx(0.75, abs=0.02)
    noise = pd.DataFrame({"delta_score": error * rng.normal(size=400)})
    noise = noise.assign(low=noise["delta_score"] - 1.96 * error, high=noise["delta_score"] + 1.96 * error)
    assert ceiling(noise) < 0.15
    assert math.isnan(ceiling(frame.assign(delta_score=0.0)))
