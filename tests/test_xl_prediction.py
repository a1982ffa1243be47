"""What predicts a score, the claims' answers, and conflict-aware weights, against scipy, hand values and TorchJD."""

from __future__ import annotations

import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torchjd.aggregation import CAGrad, PCGrad, UPGrad

from reports.errors import InputError
from xlprobe.training.conflict import AGGREGATORS, Aggregator, combine, weights_of
from xlprobe.transfer.claims import claims
from xlprobe.transfer.prediction import leave_one_pair_out, predict, spearman
from xlprobe.transfer.verdict import needed

PAIRS = ("de", "tr", "hi", "ru")


def cells(*, slope: float, noise: float = 1.0, seed: int = 0, n: int = 8) -> pd.DataFrame:
    """`n` cells a pair whose score follows the change of retrieval by `slope`, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=4 * n)
    y = slope * x + noise * rng.normal(size=4 * n)
    frame = pd.DataFrame({"pair": np.repeat(PAIRS, n), "objective": "token", "task": "pos"})
    frame = frame.assign(delta_retrieval=x, delta_score=y, low=y - 0.1, high=y + 0.1)
    return frame.assign(gradient_cosine=0.01, norm_ratio=2.0, task_halves=0.9, align_halves=0.8)


# -- prediction ----------------------------------------------------------------------------------------------


def test_spearman_equals_scipys_with_ties() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(5, size=40).astype(float), rng.integers(4, size=40).astype(float)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert math.isnan(spearman(np.ones(5), np.arange(5.0)))


def test_leave_one_pair_out_equals_fits_by_numpy() -> None:
    frame = cells(slope=1.0)
    missed = null = 0.0
    for pair in PAIRS:
        held = frame["pair"] == pair
        slope, level = np.polyfit(frame[~held]["delta_retrieval"], frame[~held]["delta_score"], 1)
        y = frame[held]["delta_score"]
        missed += ((y - level - slope * frame[held]["delta_retrieval"]) ** 2).sum()
        null += ((y - frame[~held]["delta_score"].mean()) ** 2).sum()
    got = leave_one_pair_out(*(frame[c].to_numpy() for c in ("delta_retrieval", "delta_score", "pair")))
    assert got == pytest.approx(1 - missed / null)


def test_a_predictor_is_found_and_a_useless_one_is_not() -> None:
    found = predict(cells(slope=3.0)).set_index("predictor").loc["delta_retrieval"]
    assert found["low"] > 0.5
    assert found["q2"] > 0.5
    assert found["sign_low"] > 0.5
    none = predict(cells(slope=0.0)).set_index("predictor").loc["delta_retrieval"]
    assert none["low"] < 0 < none["high"]
    assert none["q2"] < 0.2


def test_the_interval_of_a_null_predictor_holds_zero_about_as_often_as_it_says() -> None:
    held = [predict(cells(slope=0.0, seed=seed)).iloc[0][["low", "high"]] for seed in range(40)]
    assert 33 <= sum(low <= 0 <= high for low, high in held) <= 40


def test_norm_ratio_counts_by_its_logarithm_and_nan_rows_are_left_out_and_counted() -> None:
    frame = cells(slope=0.0).assign(norm_ratio=[2.0, 0.5] * 16, delta_score=[1.0, -1.0] * 16)
    frame.loc[0, "norm_ratio"] = math.nan
    row = predict(frame).set_index("predictor").loc["norm_ratio"]
    assert (row["sign_agreement"], row["n"]) == (1.0, 31)
    with pytest.raises(InputError, match="delta_f1"):
        predict(frame, outcome="delta_f1")


# -- claims --------------------------------------------------------------------------------------------------


def answers(frame: pd.DataFrame) -> list[str]:
    return [verdict["answer"] for verdict in claims(frame, predict(frame))]


def test_claims_hold_where_the_numbers_say_so() -> None:
    assert answers(cells(slope=0.0, n=20)) == ["holds", "holds", "holds"]


def test_claims_do_not_hold_where_the_numbers_deny_them() -> None:
    frame = cells(slope=3.0).assign(gradient_cosine=0.4)
    same = frame.assign(delta_score=frame["delta_retrieval"] * 1e-3, low=-0.005, high=0.005)
    assert answers(same) == ["does not hold", "does not hold", "does not hold"]
    wide = same.assign(low=-1.0, high=1.0)  # such intervals hold both answers
    assert answers(wide)[2] == "not shown"
    assert "test sentences" in claims(wide, predict(wide))[2]["evidence"]


def test_a_correlation_that_predicts_no_held_out_pair_does_not_deny_the_first_claim() -> None:
    """Within each pair the score falls with retrieval, between pairs it rises, once by leaps: ρ is high, q² is not."""
    frame = cells(slope=0.0, noise=0.0)
    x = np.repeat([0.0, 3, 6, 9], 8) + np.tile(np.linspace(-1, 1, 8), 4)
    frame = frame.assign(
        delta_retrieval=x, delta_score=np.repeat([0.0, 3, 6, 60], 8) + np.tile(np.linspace(1, -1, 8), 4)
    )
    row = predict(frame).iloc[0]
    assert row["low"] > 0 > row["q2"]
    assert claims(frame, predict(frame))[0]["answer"] == "not shown"


def test_claims_are_not_shown_by_a_study_that_is_too_small_or_too_noisy() -> None:
    frame = cells(slope=0.3, n=1).assign(task_halves=0.1)
    frame = frame.assign(low=frame["delta_score"] - 0.01, high=frame["delta_score"] - 0.009)
    frame = frame.assign(objective=list("abcd"))
    assert answers(frame) == ["not shown", "not shown", "not shown"]
    assert "4 cells are mostly noise" in claims(frame, predict(frame))[1]["evidence"]


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_cells_show_nothing(n: int) -> None:
    frame = cells(slope=0.0, n=1).head(n).assign(delta_score=[0.3, -0.2][:n], low=[-0.2, -0.7][:n])
    frame = frame.assign(high=frame["delta_score"] + 0.5, task_halves=0.1)
    verdicts = claims(frame, predict(frame))
    assert [verdict["answer"] for verdict in verdicts] == ["not shown"] * 3
    for verdict, asked in zip(
        verdicts, ("10 cells", "batches", "2" if n == 1 else "times as many"), strict=True
    ):
        assert "would take" in verdict["evidence"]
        assert asked in verdict["evidence"]


def test_a_difference_among_many_is_no_difference() -> None:
    """Noise alone: of 60 cells some two intervals of 95 % lie apart in nearly every draw, which shows nothing."""
    holds = overlaps = 0
    for seed in range(20):
        y = 0.05 * np.random.default_rng(seed).normal(size=60)
        frame = cells(slope=0.0, n=15).assign(delta_score=y, low=y - 0.098, high=y + 0.098, n=400)
        holds += answers(frame)[2] == "holds"
        overlaps += bool((y - 0.098).max() > (y + 0.098).min())
    assert overlaps >= 15
    assert holds <= 2


def test_cosines_whose_interval_holds_both_answers_are_open() -> None:
    frame = cells(slope=0.0, n=8).assign(cosine_low=-0.3, cosine_high=0.32)
    verdict = claims(frame, predict(frame))[1]
    assert verdict["answer"] == "not shown"
    assert "narrower intervals" in verdict["evidence"]
    assert answers(frame.assign(cosine_low=-0.05, cosine_high=0.07))[1] == "holds"
    assert answers(frame.assign(gradient_cosine=0.4, cosine_low=0.2, cosine_high=0.6))[1] == "does not hold"
    without = frame.assign(gradient_cosine=0.4, cosine_low=math.nan, cosine_high=math.nan)
    assert answers(without)[1] == "not shown"  # too few batches for an interval
    assert (
        answers(without.drop(columns=["cosine_low", "cosine_high"]))[1] == "does not hold"
    )  # a table of before


def test_a_rank_correlation_of_few_cells_shows_nothing() -> None:
    frame = cells(slope=-3.0, noise=0.0, n=1)
    row = predict(frame).iloc[0]
    assert row["high"] < 0  # four cells in order: the bootstrap is sure
    assert claims(frame, predict(frame))[0]["answer"] == "not shown"


def test_what_it_would_take_is_enough() -> None:
    """Oracle: an interval of a mean with the stated n lies on one side of 0, one with half of it does not."""
    rng = np.random.default_rng(0)
    x = rng.normal(0.1, 1.0, size=100)
    half = 1.96 * x.std(ddof=1) / 10
    n = needed(half, [abs(x.mean())], n=100)
    assert 1.96 * x.std(ddof=1) / math.sqrt(n) == pytest.approx(abs(x.mean()))
    assert 1.96 * x.std(ddof=1) / math.sqrt(n / 2) > abs(x.mean())
    assert math.isinf(needed(half, [-1.0, 0.0]))


# -- conflict-aware weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGGREGATORS)
def test_the_combined_step_is_torchjds_aggregation_of_the_jacobian(name: Aggregator) -> None:
    """Against TorchJD's own aggregator over the flat Jacobian, on a network with a frozen layer."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh()).double()
    body[2].bias.requires_grad_(False)
    heads = [nn.Linear(6, 1).double() for _ in range(2)]
    x = torch.randn(9, 5, dtype=torch.float64)
    # the second loss pulls against the first, so that there is a conflict to settle
    losses = [
        (1 - 3 * i) * heads[0](body(x)).sum() + 0.1 * heads[1](body(x)).square().sum() for i in range(2)
    ]
    open_ = [p for p in body.parameters() if p.requires_grad]
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(v, open_, retain_graph=True)]) for v in losses
    ]
    jacobian = torch.stack(rows)
    assert float(jacobian[0] @ jacobian[1]) < 0
    scale = float(jacobian.square().sum(1).mean().sqrt())
    theirs = {"upgrad": UPGrad(), "pcgrad": PCGrad(), "cagrad": CAGrad(c=0.5)}[name](
        (jacobian / scale).float()
    )
    combine(losses, list(body.parameters()), name).backward()
    mine = torch.cat([p.grad.flatten() for p in open_ if p.grad is not None])
    assert torch.allclose(mine / scale, theirs.double(), rtol=1e-3, atol=1e-4)
    plain = jacobian.sum(0) / scale
    assert not torch.allclose(mine / scale, plain, rtol=1e-3, atol=1e-3)  # the plain sum is told apart


def test_what_cannot_be_combined_is_refused() -> None:
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(InputError, match="frozen"):
        combine([x.sum()], [torch.ones(2)], "upgrad")
    with pytest.raises(InputError, match="aggregator"):
        combine([x.sum(), x.prod()], [x], "sum")  # type: ignore[arg-type]


def test_without_torchjd_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(InputError, match=r"upgrad needs TorchJD.*pip install 'mechedit\[conflict\]'"):
        weights_of("upgrad")
    with pytest.raises(InputError, match="expected one of upgrad, pcgrad, cagrad, found 'mgda'"):
        weights_of("mgda")  # type: ignore[arg-type]
