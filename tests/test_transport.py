"""The Gaussian map: POT's `LinearTransport` as the oracle, moments, degenerate input."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechedit.editors.steering.transport import gaussian_map, mean_shift, span
from reports.errors import InputError


def clouds(n: int, m: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mix = [torch.randn(d, d, generator=draw, dtype=torch.float64) / d**0.5 for _ in range(2)]
    source = torch.randn(n, d, generator=draw, dtype=torch.float64) @ mix[0]
    return source, torch.randn(m, d, generator=draw, dtype=torch.float64) @ mix[1] + 1.0


def pot(source: torch.Tensor, target: torch.Tensor, states: torch.Tensor, reg: float) -> np.ndarray:
    transport = ot.da.LinearTransport(reg=reg)
    transport.fit(Xs=source.numpy(), Xt=target.numpy())
    return np.asarray(transport.transform(Xs=states.numpy()))


@pytest.mark.parametrize(("n", "m", "d"), [(40, 50, 12), (9, 7, 32), (1, 3, 8), (30, 30, 30)])
@pytest.mark.parametrize("reg", [1e-2, 0.5, 10.0])
def test_full_rank_equals_pot(n: int, m: int, d: int, reg: float) -> None:
    source, target = clouds(n, m, d, seed=n)
    states = torch.randn(20, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    moved = gaussian_map(source, target, reg=reg)(states)
    np.testing.assert_allclose(moved.numpy(), pot(source, target, states, reg), atol=1e-8, rtol=0)


def test_the_oracle_fails_on_another_regularisation() -> None:
    source, target = clouds(9, 7, 32, seed=0)
    moved = gaussian_map(source, target, reg=1e-2)(source)
    assert np.abs(moved.numpy() - pot(source, target, source, 2e-2)).max() > 1e-4


def test_off_the_span_nothing_moves() -> None:
    source, target = clouds(5, 5, 40, seed=2)
    fitted = gaussian_map(source, target, reg=1e-2)
    draw = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    outside = draw - fitted.basis @ (fitted.basis.T @ draw)
    base = source[0]
    torch.testing.assert_close(fitted(base + outside) - fitted(base), outside, atol=1e-12, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(2, 20), st.integers(0, 1000))
def test_the_mean_arrives(n: int, m: int, d: int, seed: int) -> None:
    source, target = clouds(n, m, d, seed)
    moved = gaussian_map(source, target, reg=1e-2)(source)
    torch.testing.assert_close(moved.mean(0), target.mean(0), atol=1e-9, rtol=0)


def test_large_regularisation_is_the_mean_shift() -> None:
    source, target = clouds(12, 12, 8, seed=4)
    far = gaussian_map(source, target, reg=1e9)(source)
    torch.testing.assert_close(far, mean_shift(source, target)(source), atol=1e-6, rtol=0)
    near = gaussian_map(source, target, reg=1e-2)(source)
    assert (near - mean_shift(source, target)(source)).abs().max() > 1e-2


def test_equal_source_and_target_are_a_no_op() -> None:
    source, _ = clouds(6, 6, 10, seed=5)
    assert gaussian_map(source, source).displacement(source).abs().max() < 1e-12
    assert torch.equal(mean_shift(source, source)(source), source)


def test_alpha_and_rank_are_used() -> None:
    source, target = clouds(10, 10, 16, seed=6)
    full = gaussian_map(source, target)
    torch.testing.assert_close(full(source, alpha=0.5) - source, 0.5 * (full(source) - source))
    assert gaussian_map(source, target, rank=2).basis.shape == (16, 2)
    assert full.basis.shape == (16, 16)


def test_the_span_is_no_larger_than_the_samples_allow() -> None:
    source, target = clouds(3, 4, 50, seed=7)
    mean, basis = span(torch.cat([source, target]))
    assert basis.shape == (50, 6)
    torch.testing.assert_close(basis.T @ basis, torch.eye(6, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(mean, torch.cat([source, target]).mean(0))


def test_fp32_states_are_solved_in_fp64() -> None:
    source, target = clouds(9, 9, 12, seed=8)
    single = gaussian_map(source.float(), target.float())
    assert single.matrix.dtype == torch.float64
    assert single(source.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("source", "target", "options", "word"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), {}, "width"),
        (torch.ones(3), torch.ones(2, 3), {}, "shape"),
        (torch.ones(0, 3), torch.ones(2, 3), {}, "n >= 1"),
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), {}, "NaN"),
        (torch.ones(2, 3), torch.ones(2, 3), {"reg": 0.0}, "reg"),
        (torch.ones(2, 3), torch.ones(2, 3), {"rank": 0}, "rank"),
    ],
)
def test_bad_input_is_named(
    source: torch.Tensor, target: torch.Tensor, options: dict[str, float], word: str
) -> None:
    with pytest.raises(InputError, match=word):
        gaussian_map(source, target, **options)  # type: ignore[arg-type]
