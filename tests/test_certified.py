"""The certified ranking against full enumeration: bounds that hold, equal sets, few evaluations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import mechedit.attribution.ranking.certified as certified_module
from mechedit.attribution import Attribution, attribute
from mechedit.attribution.ranking.certified import jensen_bound
from mechedit.attribution.ranking.neurons import Sign
from mechedit.attribution.ranking.suppress_bound import _memory, lowest_scores, vocabulary_moments
from mechedit.factworld import edits
from mechedit.models.hooked import HookedModel, load_model
from reports.errors import InputError
from tests.tiny import ARCHS, Arch, build, tiny_model

PROMPT, TARGET = "Anna Keller works as a", "teacher"
KEYS = {"mlp_neurons": ["layer", "neuron"], "attn_neurons": ["layer", "head", "dim", "pos"]}
SIGNS: tuple[Sign, ...] = ("promote", "suppress")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHEDIT_CACHE", str(tmp_path / "cache"))
    _memory.clear()


def inc(p: torch.Tensor, u: torch.Tensor, target: int) -> torch.Tensor:
    """The score by its formula, fp64."""
    return u[target] - torch.logsumexp(p.log() + u, dim=-1)


@given(st.integers(2, 30), st.sampled_from([1e-6, 1e-3, 1.0, 30.0, 1e3]), st.integers(0, 10_000))
def test_no_bound_is_ever_violated(size: int, scale: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    p = (3 * torch.randn(size, generator=draw, dtype=torch.float64)).softmax(-1)
    u = scale * torch.randn(size, generator=draw, dtype=torch.float64)
    target, mean = seed % size, (p * u).sum()
    exact = inc(p, u, target)
    slack = 1e-12 * max(1.0, scale)
    assert exact <= jensen_bound(u[target], mean) + slack


def moments_of(x: torch.Tensor) -> torch.Tensor:
    """Mean, sum of squared deviations and largest deviation of rows [n, V]."""
    deviations = x - x.mean(1, keepdim=True)
    return torch.stack([x.mean(1), deviations.square().sum(1), deviations.abs().amax(1)], dim=1)


def lowest(
    x: torch.Tensor, p: torch.Tensor, c: torch.Tensor, k: int, target: int, spread: float = 1
) -> torch.Tensor:
    """The bound from below of units c · x; the squares of the moments times `spread`."""
    order = p.argsort(descending=True)
    known = torch.cat([p[order][: k + 1], p[order][k:].sum()[None]])
    moments = moments_of(x) * torch.tensor([1, spread, 1]).double()
    return lowest_scores(c, x[:, target], x @ p, x[:, order[:k]], moments, known)


@given(
    st.integers(3, 60),
    st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 30.0, 1e3]),
    st.sampled_from([0.0, 0.3, 3.0, 20.0]),
    st.integers(0, 10_000),
)
def test_no_score_is_below_the_bound_from_moments(size: int, scale: float, sharp: float, seed: int) -> None:
    """Flat and sharp distributions, tiny and huge units of both signs."""
    draw = torch.Generator().manual_seed(seed)
    p = (sharp * torch.randn(size, generator=draw, dtype=torch.float64)).softmax(-1)
    x = torch.randn(4, size, generator=draw, dtype=torch.float64) + torch.randn(4, 1, generator=draw)
    c = scale * torch.randn(4, 3, generator=draw, dtype=torch.float64)
    target, k = seed % size, 1 + seed % (size - 2)
    exact = torch.stack(
        [torch.stack([inc(p, one * row, target) for one in of_row]) for row, of_row in zip(x, c, strict=True)]
    )
    bound = lowest(x, p, c, k, target)
    assert not bound.isnan().any()
    assert (bound <= exact + 1e-11 * max(1.0, scale)).all()


def test_the_bound_from_moments_fails_where_a_moment_is_too_small() -> None:
    x = torch.tensor([[0.0, 0.0, 0.0, 0.0, 2.0, -2.0]]).double()
    p = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.1, 0.1]).double()
    one = torch.ones(1, 1).double()
    exact = inc(p, x[0], 0)
    assert lowest(x, p, one, 3, 0).item() <= exact < lowest(x, p, one, 3, 0, spread=0.2).item()


def test_the_bound_oracle_fails_where_the_mean_is_wrong() -> None:
    p, u = torch.tensor([0.5, 0.5]).double(), torch.tensor([2.0, 0.0]).double()
    assert inc(p, u, 0) > jensen_bound(u[0], 2 * (p * u).sum())


def test_a_unit_that_moves_all_tokens_alike_is_bounded_exactly() -> None:
    x, p = torch.full((1, 5), 0.7, dtype=torch.float64), torch.full((5,), 0.2, dtype=torch.float64)
    assert lowest(x, p, torch.ones(1, 1).double(), 2, 0).item() == pytest.approx(0.0, abs=1e-12)


def assert_same_ranking(fast: Attribution, full: Attribution) -> None:
    """Equal scores rank for rank; equal sets but for units within rounding of the last score."""
    for unit, keys in KEYS.items():
        a, b = getattr(fast, unit), getattr(full, unit)
        assert len(a) == len(b)
        assert (a["score"] - b["score"]).abs().max() < 1e-6
        edge = b["score"].iloc[-1]
        clear = b[(b["score"] - edge).abs() > 1e-6]
        ranked = set(map(tuple, a[keys].to_numpy().tolist()))
        assert set(map(tuple, clear[keys].to_numpy().tolist())) <= ranked


def both(model: HookedModel, k: int, sign: Sign) -> tuple[Attribution, Attribution]:
    fast = attribute(model, PROMPT, TARGET, top_k=k, sign=sign, method="certified")
    return fast, attribute(model, PROMPT, TARGET, top_k=k, sign=sign, method="exhaustive")


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("arch", ARCHS)
def test_the_sets_are_those_of_full_enumeration(arch: Arch, sign: Sign) -> None:
    model = tiny_model(arch)
    for k in (1, 40, 300, 10**6):  # the last: more than there are
        assert_same_ranking(*both(model, k, sign))


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 30.0])
def test_tiny_and_huge_vectors(tmp_path: Path, scale: float, sign: Sign) -> None:
    """The same checkpoint with its value directions scaled: scores of 1e-6 nats, or of tens."""
    folder = build("llama-gqa", tmp_path)
    weights = load_file(folder / "model.safetensors")
    scaled = {n: w * (scale if "o_proj" in n or "down_proj" in n else 1) for n, w in weights.items()}
    save_file(scaled, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same_ranking(*both(load_model(folder), 60, sign))


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_precisions(tmp_path: Path, dtype: str, sign: Sign) -> None:
    model = load_model(build("gpt2", tmp_path), dtype=dtype)
    fast, full = both(model, 50, sign)
    assert_same_ranking(fast, full)
    assert fast.certificate["tolerance"] > 0


@pytest.mark.parametrize("sign", SIGNS)
def test_ties_are_handled(tmp_path: Path, sign: Sign) -> None:
    """Twin neurons: every second FFN neuron of every layer is a copy of its neighbour."""
    folder = build("gpt2", tmp_path)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "mlp.c_fc" in name:
            weight[..., 1::2] = weight[..., ::2].clone()
        elif name.endswith("mlp.c_proj.weight"):
            weight[1::2] = weight[::2].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    fast, full = both(load_model(folder), 21, sign)
    assert_same_ranking(fast, full)
    scores = full.mlp_neurons["score"].to_numpy()
    assert abs(scores[0] - scores[1]) < 1e-7


@pytest.mark.parametrize("name", ["factworld_gpt2", "factworld_llama"])
def test_trained_models_need_few_evaluations(name: str, request: pytest.FixtureRequest) -> None:
    model: HookedModel = request.getfixturevalue(name)
    for fact in edits(4, seed=11):
        promote = attribute(model, fact.rewrite_prompt, fact.target_true, top_k=100)
        assert promote.method == "certified"
        assert promote.certificate["exact"]
        assert max(promote.certificate["evaluated_by_kind"].values()) <= 120
        suppress = attribute(model, fact.rewrite_prompt, fact.target_true, top_k=100, sign="suppress")
        assert suppress.certificate["evaluated"] <= 0.2 * suppress.certificate["total"]


def test_a_bound_that_is_too_small_loses_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof hangs on the bound: with a wrong one the sets differ, and the comparison sees it."""
    model = tiny_model("gpt2")
    monkeypatch.setattr(certified_module, "jensen_bound", lambda u_target, mean: -(u_target - mean))
    fast, full = both(model, 20, "promote")
    with pytest.raises(AssertionError):
        assert_same_ranking(fast, full)


def test_moments_are_those_of_every_row_over_the_vocabulary() -> None:
    model = tiny_model("gpt2")
    found = vocabulary_moments(model)
    for layer, row, place in (
        (1, model.W_out(1)[5], found.mlp[1, 5]),
        (0, model.W_O(0)[2, 3], found.attn[0, 2 * 8 + 3]),
    ):
        r = row.double()
        x = ((r - r.mean()) * model.final_norm.weight.double()) @ model.W_U.double()
        mean, squares, largest = moments_of(x[None])[0]
        torch.testing.assert_close(place[0], mean, atol=1e-6, rtol=1e-5)
        assert squares <= place[1] <= squares * 1.01, layer
        assert largest <= place[2]
    assert vocabulary_moments(model) is found
    assert vocabulary_moments(tiny_model("gpt2-untied")) is not found


def test_few_likely_tokens_are_enough_and_moments_that_are_too_small_lose_neurons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("gpt2")
    monkeypatch.setattr(certified_module, "LIKELIEST", 2)
    pairs = [both(model, k, "suppress") for k in (5, 20, 60)]
    for pair in pairs:
        assert_same_ranking(*pair)
    (key,) = _memory
    _memory[key] = replace(_memory[key], mlp=0 * _memory[key].mlp, attn=0 * _memory[key].attn)
    fast = attribute(model, PROMPT, TARGET, top_k=60, sign="suppress")
    with pytest.raises(AssertionError):
        assert_same_ranking(fast, pairs[-1][1])


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="exhaustive, certified"):
        attribute(tiny_model("gpt2"), PROMPT, TARGET, method="guess")  # type: ignore[arg-type]
