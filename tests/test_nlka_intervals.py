"""Intervals instead of exact scores, and targets of several tokens: against full enumeration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechedit.attribution.ranking.intervals as intervals_module
from mechedit.attribution import Attribution, attribute
from mechedit.attribution.passes import run_passes
from mechedit.attribution.ranking.intervals import Intervals, Spread
from mechedit.attribution.ranking.neurons import Sign
from mechedit.attribution.ranking.vocabulary_ranges import _memory, compute_spread
from mechedit.attribution.scores import inc_rows
from mechedit.models.hooked import HookedModel
from reports.errors import InputError
from tests.tiny import ARCHS, Arch, tiny_model

PROMPT, TARGET = "Anna Keller works as a", " teacher"
KEYS = {"mlp_neurons": ["layer", "neuron"], "attn_neurons": ["layer", "head", "dim", "pos"]}
SIGNS: tuple[Sign, ...] = ("promote", "suppress")
ROUNDING = 1e-6


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHEDIT_CACHE", str(tmp_path / "cache"))
    _memory.clear()


def assert_certified(rough: Attribution, full: Attribution, *, tolerance: float, k: int) -> None:
    """Every interval holds its exact score, none is too wide, and what is left out is not better by more than that."""
    turn = 1 if full.sign == "promote" else -1
    for unit, keys in KEYS.items():
        exact = getattr(full, unit).set_index(keys)["score"]
        found = getattr(rough, unit).set_index(keys)
        assert len(found) == min(k, len(exact))
        mine = exact[found.index]
        assert (found["high"] - found["low"]).max() <= tolerance
        assert (mine >= found["low"] - ROUNDING).all()
        assert (mine <= found["high"] + ROUNDING).all()
        left = turn * exact.drop(found.index)
        assert left.empty or left.max() <= (turn * mine).min() + tolerance + ROUNDING


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("arch", ARCHS)
def test_intervals_hold_the_exact_scores_and_the_ranking(arch: Arch, sign: Sign) -> None:
    model = tiny_model(arch)
    full = attribute(model, PROMPT, TARGET, top_k="all", sign=sign)
    for k, tolerance in ((1, 1e-2), (40, 1e-3), (40, 0.3), (10**6, 0.1)):
        rough = attribute(model, PROMPT, TARGET, top_k=k, sign=sign, tolerance=tolerance)
        assert_certified(rough, full, tolerance=tolerance, k=k)
        assert not rough.certificate["exact"]
        assert rough.certificate["width_max"] <= tolerance == rough.certificate["tolerance"]
    assert 0 < rough.certificate["vocabulary_share"] < 1


def test_the_comparison_fails_where_the_tail_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof hangs on what is left of the vocabulary: with nothing for it, scores fall outside."""
    model = tiny_model("gpt2")
    full = attribute(model, PROMPT, TARGET, top_k="all")
    monkeypatch.setattr(intervals_module._Units, "interval", _no_tail)
    rough = attribute(model, PROMPT, TARGET, top_k=40, tolerance=1e-3)
    with pytest.raises(AssertionError):
        assert_certified(rough, full, tolerance=1e-3, k=40)


def _no_tail(units: intervals_module._Units, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    inc = units.w_target - torch.log1p(units.linear + units.f)
    return inc, inc.clone()


@given(st.sampled_from([1e-4, 1e-2, 0.3, 3.0]), st.integers(0, 10_000))
@settings(max_examples=30)
def test_no_interval_misses_its_score(scale: float, seed: int) -> None:
    model = tiny_model("llama-gqa")
    one = run_passes(model, PROMPT, TARGET, tokens="first", biases="keep")[0][0]
    draw = torch.Generator().manual_seed(seed)
    vectors = scale * torch.randn(20, model.shape.d_model, generator=draw)
    log_p = one.acc.log_p.flatten(0, 1)
    base = torch.randint(len(log_p), (20,), generator=draw)
    exact = inc_rows(one.projection, vectors, base, log_p, target=one.target)
    bounds = Intervals(compute_spread(model.W_U), tolerance=0.05)(one, vectors, base)
    slack = 1e-5 * max(1.0, scale)
    assert (bounds[:, 0] - slack <= exact).all()
    assert (exact <= bounds[:, 1] + slack).all()


def test_the_spread_is_that_of_the_columns() -> None:
    W_U = tiny_model("gpt2-untied").W_U
    spread: Spread = compute_spread(W_U)
    centred = W_U.double() - W_U.double().mean(dim=1, keepdim=True)
    torch.testing.assert_close(spread.gram, centred @ centred.T, rtol=1e-5, atol=1e-4)
    assert float(spread.reach) == pytest.approx(float(centred.norm(dim=0).max()), rel=1e-5)


@pytest.mark.parametrize(
    ("option", "value"), [("tolerance", -1.0), ("tolerance", float("nan")), ("tokens", "all")]
)
def test_an_impossible_option_is_refused(option: str, value: object) -> None:
    with pytest.raises(InputError, match=option):
        attribute(tiny_model("gpt2"), PROMPT, TARGET, **{option: value})  # type: ignore[arg-type]


def test_intervals_are_refused_where_everything_is_enumerated() -> None:
    with pytest.raises(InputError, match="tolerance"):
        attribute(tiny_model("gpt2"), PROMPT, TARGET, method="exhaustive", tolerance=1e-3)


# ------------------------------------------------------------------------------------------ several tokens

LONG = " basketball in Berlin"


@pytest.mark.parametrize("arch", ["gpt2", "llama-gqa"])
def test_the_sum_over_tokens_is_that_of_one_attribution_a_token(arch: Arch) -> None:
    model = tiny_model(arch)
    whole = attribute(model, PROMPT, LONG, top_k="all", tokens="sum")
    passes, ids = run_passes(model, PROMPT, LONG, tokens="sum", biases="keep")
    assert len(passes) == len(ids) > 1
    assert whole.target_scored == "sum"
    assert whole.logp == pytest.approx(teacher_forced(model, PROMPT, ids), abs=1e-4)
    assert abs(whole.completeness_gap) < 1e-4
    first = attribute(model, PROMPT, LONG, top_k="all")
    rest = [one.acc.layers["score"] for one in passes[1:]]
    assert (whole.layers["score"] - first.layers["score"] - sum(rest[1:], rest[0])).abs().max() < 1e-6
    assert len(whole.attn_neurons) == len(first.attn_neurons) // len(first.ids) * (
        len(first.ids) + len(ids) - 1
    )


def teacher_forced(model: HookedModel, prompt: str, ids: tuple[int, ...]) -> float:
    """log p of all target tokens from one forward pass over prompt and target."""
    start = model.tokenize(prompt)
    whole = torch.cat([start, torch.tensor(ids)])[None]
    log_p = model.forward(whole, torch.ones_like(whole))[0].double().log_softmax(-1)
    return sum(float(log_p[len(start) - 1 + n, token]) for n, token in enumerate(ids))


@pytest.mark.parametrize("sign", SIGNS)
def test_the_certified_sum_is_that_of_full_enumeration(sign: Sign) -> None:
    model = tiny_model("llama-gqa")
    fast = attribute(model, PROMPT, LONG, top_k=30, tokens="sum", sign=sign)
    full = attribute(model, PROMPT, LONG, top_k=30, tokens="sum", sign=sign, method="exhaustive")
    for unit, keys in KEYS.items():
        a, b = getattr(fast, unit), getattr(full, unit)
        assert (a["score"] - b["score"]).abs().max() < 1e-6
        assert set(map(tuple, a[keys].to_numpy())) == set(map(tuple, b[keys].to_numpy()))
