"""Scores as certified intervals, without most of the vocabulary.

At a base with p = softmax(logits) a unit with u = B v scores inc = u_t − log E_p[exp u]. With w = u − ū, ū the mean of
u over the vocabulary (a dot product with the mean column of B), and f(x) = exp(x) − 1 − x >= 0:

    inc = w_t − log(1 + E_p[w] + Σ_k p_k f(w_k))

w_t and E_p[w] are dot products. The sum is taken exactly over the tokens S = {k: p_k > τ} that the unit's own base
finds likely; the rest T is bounded. With β >= |w_k| for every k, and f(x) <= h x², h = f(β) / β² for x <= β:

    0 <= Σ_T p_k f(w_k) <= min(τ · h · (Σ_k w_k² − Σ_S w_k²),  p(T) · f(β))

1. Σ_k w_k² = ṽᵀ G ṽ, ṽ the normed vector and G the Gram matrix of W_U's centred columns; β = |ṽ| · the columns'
   largest norm. Neither knows a prompt: `ranges.vocabulary_spread` keeps them on disk.
2. τ = tolerance · (1 + E_p[w]) / (h Σ_k w_k²), rounded down to a power of 4: then the first bound is within the
   tolerance whatever S holds. The units of a base share its sets, likeliest tokens first.
3. A unit whose S is over a quarter of the vocabulary (a strong unit, or a base that has no favourites), and one whose
   interval came out too wide, are scored by `scores.inc_rows`: one pass over contiguous tokens is faster then.

No faster than exact scores, as measured on GPT-2-small's shape (`experiments/benchmarks/RESULTS.md`): it leaves out
about three quarters of the units' products with the vocabulary, gathering the rest from scattered columns takes as long
as it saves, and forward pass, bases and heads stay, more than half of what exact scores cost. β is loose: by
Cauchy–Schwarz about 30 standard deviations of w, where the largest |w_k| is 4.4.

Floating point: the ends are trusted to within the tolerance that exact scores have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechedit.attribution.passes import Pass
from mechedit.attribution.projection import BLOCK_BYTES, Projection
from mechedit.attribution.scores import inc_rows, segments

__all__ = ["Intervals", "Spread"]

_MOST = 0.25  # of the vocabulary: gathered tokens cost about twice what contiguous ones do
_LOW = 0.5  # below this the expectation has lost digits to cancellation


@dataclass(frozen=True, eq=False)
class Spread:
    """How W_U's columns spread: their `mean` [d_model], the Gram matrix `gram` [d_model, d_model] of the columns less
    their mean, and the largest norm of those, `reach` [1]."""

    mean: Tensor
    gram: Tensor
    reach: Tensor


class Intervals:
    """`certified.Score` whose intervals are at most `tolerance` nats wide; `spent` says what that took."""

    def __init__(self, spread: Spread, *, tolerance: float) -> None:
        self.spread, self.tolerance = spread, tolerance
        self._widths: list[Tensor] = []
        self._products = self._full = 0

    def spent(self) -> dict[str, Any]:
        """`width_max`, `width_mean` of the intervals (nats), `vocabulary_share`: products of a unit with a token, of
        all that exact scores of the same units take."""
        widths = torch.cat(self._widths)
        return {
            "width_max": float(widths.max()),
            "width_mean": float(widths.mean()),
            "vocabulary_share": self._products / self._full,
        }

    def __call__(self, one: Pass, vectors: Tensor, base: Tensor) -> Tensor:
        """[n, 2]: low and high of vectors [n, d_model] at rows `base` of the pass's flattened log p."""
        log_p = one.acc.log_p.flatten(0, 1)
        bounds = torch.full((len(base), 2), torch.nan, dtype=torch.float64, device=vectors.device)
        order = base.argsort(stable=True)
        units = _Units.of(one, self.spread, vectors[order], base[order], tolerance=self.tolerance)
        for begin, end, row in segments(base[order]):
            mine = torch.arange(begin, end, device=vectors.device)
            bounds[order[mine]] = self._narrow(one.projection, units.keep(mine), log_p[row].exp())
        left = bounds[:, 0].isnan().nonzero()[:, 0]
        if len(left):
            exact = inc_rows(one.projection, vectors[left], base[left], log_p, target=one.target)
            bounds[left] = exact[:, None].expand(-1, 2)
        self._products += len(left) * log_p.shape[1]
        self._full += len(base) * log_p.shape[1]
        self._widths.append((bounds[:, 1] - bounds[:, 0]).cpu())
        return bounds

    def _narrow(self, B: Projection, units: _Units, p: Tensor) -> Tensor:
        """[n, 2] of units at one base; nan where the whole vocabulary is needed."""
        bounds = torch.full((len(units.level), 2), torch.nan, dtype=torch.float64, device=p.device)
        least = p.kthvalue(max(1, int((1 - _MOST) * len(p)))).values
        rows = (torch.exp2(2 * units.level) >= least).nonzero()[:, 0]
        units, above = units.keep(rows), torch.ones_like(p, dtype=torch.bool)
        for level in units.level.unique().flip(0):  # the units that need fewest tokens first
            threshold = torch.exp2(2 * level)
            tokens = (above & (p > threshold)).nonzero()[:, 0]
            above &= p <= threshold
            units.add(B, tokens, p)
            self._products += len(rows) * len(tokens)
            low, high = units.interval(threshold, p[above].double().sum())
            done = (units.level == level) & (high - low <= self.tolerance) & units.sound()
            bounds[rows[done]] = torch.stack([low[done], high[done]], dim=1)
            following = (units.level < level).nonzero()[:, 0]
            rows, units = rows[following], units.keep(following)
        return bounds


@dataclass(frozen=True, eq=False)
class _Units:
    """What is known of units, and their sums so far over the tokens of S: `f` = Σ_S p f(w), `square` = Σ_S w²."""

    rows: Tensor  # ṽ [n, d_model]
    shift: Tensor  # ū [n, 1]
    w_target: Tensor
    linear: Tensor  # E_p[w]
    power: Tensor  # Σ_k w_k² over the whole vocabulary
    f_beta: Tensor
    h: Tensor
    level: Tensor  # log4 τ, a whole number
    f: Tensor
    square: Tensor

    @classmethod
    def of(cls, one: Pass, spread: Spread, vectors: Tensor, base: Tensor, *, tolerance: float) -> _Units:
        B: Projection = one.projection
        normed = B.normalise(vectors)
        shift = normed @ spread.mean
        rows = normed.to(B.dtype)
        linear = (vectors.double() * one.acc.means.flatten(0, 1)[base]).sum(dim=1) - shift
        power = ((rows @ spread.gram.to(B.dtype)) * rows).sum(dim=1).double()
        beta = normed.norm(dim=1) * spread.reach
        f_beta = torch.expm1(beta) - beta
        # towards β = 0 the quotient is 1/2; the series keeps it from 0/0
        h = torch.where(beta < 1e-3, 0.5 + beta / 6 + beta.square(), f_beta / beta.square().clamp(min=1e-12))
        tau = 0.99 * tolerance * (1 + linear).clamp(min=_LOW) / (h * power).clamp(min=1e-300)
        zero = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        return cls(
            rows=rows,
            shift=shift[:, None].to(B.dtype),
            w_target=normed @ B.W_U[:, one.target].double() - shift,
            linear=linear,
            power=power,
            f_beta=f_beta,
            h=h,
            level=(tau.clamp(1e-30, 1.0).log2() / 2).floor(),
            f=zero,
            square=zero.clone(),
        )

    def add(self, B: Projection, tokens: Tensor, p: Tensor) -> None:
        """The tokens into the sums, as many at a time as the memory budget allows; `p` [d_vocab]."""
        width = max(1, BLOCK_BYTES // (8 * max(B.W_U.shape[0], 3 * len(self.rows))))
        for some in tokens.split(width):
            w = torch.addmm(-self.shift, self.rows, B.W_U.T[some].to(B.dtype).T)
            self.square.add_(torch.linalg.vector_norm(w, dim=1).double().square())
            self.f.add_(torch.expm1(w).sub_(w) @ p[some])

    def interval(self, threshold: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
        """Low and high, where the tokens left have at most the probability `threshold` each and `mass` together."""
        left = (self.power - self.square).clamp(min=0) + 1e-6 * self.power
        rest = torch.minimum(threshold * self.h * left, mass * self.f_beta)
        sum_low = self.linear + self.f
        return self.w_target - torch.log1p(sum_low + rest), self.w_target - torch.log1p(sum_low)

    def sound(self) -> Tensor:
        """Units whose expectation is finite and lost no digits."""
        total = 1 + self.linear + self.f
        return torch.isfinite(total) & (total > _LOW)

    def keep(self, index: Tensor) -> _Units:
        """The units at these places."""
        return _Units(**{name: values[index] for name, values in vars(self).items()})
