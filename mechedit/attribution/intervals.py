"""Scores as certified intervals, without most of the vocabulary.

At a base with p = softmax(logits) a unit with u = B v scores inc = u_t − log E_p[exp u]. With w = u − ū, ū the mean of
u over the vocabulary (a dot product with the mean column of B), and f(x) = exp(x) − 1 − x >= 0:

    inc = w_t − log(1 + E_p[w] + Σ_k p_k f(w_k))

w_t and E_p[w] are dot products. The sum is taken over the tokens S that the bases find likely, exactly; the rest T
is bounded. With β >= |w_k| for k in T, and f(x) <= h x², h = f(β) / β² for x <= β:

    0 <= Σ_T p_k f(w_k) <= min(max_T p · h · (Σ_k w_k² − Σ_S w_k²),  p(T) · f(β))

1. Σ_k w_k² = ṽᵀ G ṽ, ṽ the normed vector and G the Gram matrix of W_U's centred columns; β = |ṽ| · max_T of the
   columns' norms. Neither knows a prompt: `ranges.vocabulary_spread` keeps them on disk.
2. S grows, the likeliest tokens first, all units together; a unit leaves once its interval is `tolerance` wide.
3. What the whole vocabulary did not narrow (a sum that cancels) is scored by `scores.inc_rows`.

Floating point: the ends are trusted to within the tolerance that exact scores have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mechedit.attribution.projection import Projection
from mechedit.attribution.scores import inc_rows, segments

if TYPE_CHECKING:
    from mechedit.attribution.passes import Pass

__all__ = ["Intervals", "Spread"]

_FIRST = 1024  # tokens of the first block; the next ones double what has been seen
_LOW = 0.5  # below this the expectation has lost digits to cancellation


@dataclass(frozen=True, eq=False)
class Spread:
    """How W_U's columns spread: their `mean` [d_model], the Gram matrix `gram` [d_model, d_model] of the columns less
    their mean, and those columns' `norms` [d_vocab]."""

    mean: Tensor
    gram: Tensor
    norms: Tensor


@dataclass(frozen=True, eq=False)
class _Order:
    """The tokens of a pass, likeliest first over all bases, in blocks; for each block and base what lies behind it."""

    tokens: list[Tensor]
    p: list[Tensor]  # [n_bases, block]
    mass: Tensor  # [n_blocks, n_bases] of the tokens behind the block
    peak: Tensor  # their largest p
    norm: list[float]  # their columns' largest norm


class Intervals:
    """`certified.Score` whose intervals are at most `tolerance` nats wide; `spent` says what that took."""

    def __init__(self, spread: Spread, *, tolerance: float) -> None:
        self.spread, self.tolerance = spread, tolerance
        self._orders: dict[int, _Order] = {}
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
        if id(one) not in self._orders:
            self._orders[id(one)] = _order(one, self.spread)
        order = base.argsort(stable=True)
        bounds = torch.empty(len(base), 2, dtype=torch.float64, device=vectors.device)
        for rows in order.split(4096):
            bounds[rows] = self._narrow(one, vectors[rows], base[rows])
        self._widths.append((bounds[:, 1] - bounds[:, 0]).cpu())
        return bounds

    def _narrow(self, one: Pass, vectors: Tensor, base: Tensor) -> Tensor:
        order, B = self._orders[id(one)], one.projection
        units = _Units.of(one, self.spread, vectors, base)
        bounds = torch.full((len(base), 2), torch.nan, dtype=torch.float64, device=vectors.device)
        open_rows = torch.arange(len(base), device=vectors.device)
        self._full += len(base) * B.W_U.shape[1]
        for n, (tokens, p) in enumerate(zip(order.tokens, order.p, strict=True)):
            units.add(B.W_U.T[tokens].to(B.dtype), p)
            self._products += len(open_rows) * len(tokens)
            low, high = units.interval(order.mass[n], order.peak[n], order.norm[n])
            done = (high - low <= self.tolerance) & units.sound()
            bounds[open_rows[done]] = torch.stack([low[done], high[done]], dim=1)
            open_rows, units = open_rows[~done], units.keep(~done)
            if not len(open_rows):
                return bounds
        log_p = one.acc.log_p.flatten(0, 1)
        exact = inc_rows(B, vectors[open_rows], base[open_rows], log_p, target=one.target)
        bounds[open_rows] = exact[:, None].expand(-1, 2)
        self._products += len(open_rows) * B.W_U.shape[1]
        return bounds


@dataclass(frozen=True, eq=False)
class _Units:
    """Units sorted by `base`, and their sums so far: `f` = Σ_S p f(w), `square` = Σ_S w²."""

    rows: Tensor  # ṽ [n, d_model]
    shift: Tensor  # ū [n, 1]
    base: Tensor
    w_target: Tensor
    linear: Tensor  # E_p[w]
    power: Tensor  # Σ_k w_k² over the whole vocabulary
    length: Tensor  # |ṽ|
    f: Tensor
    square: Tensor

    @classmethod
    def of(cls, one: Pass, spread: Spread, vectors: Tensor, base: Tensor) -> _Units:
        B: Projection = one.projection
        normed = B.normalise(vectors)
        shift = normed @ spread.mean
        rows = normed.to(B.dtype)
        zero = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        return cls(
            rows=rows,
            shift=shift[:, None].to(B.dtype),
            base=base,
            w_target=normed @ B.W_U[:, one.target].double() - shift,
            linear=(vectors.double() * one.acc.means.flatten(0, 1)[base]).sum(dim=1) - shift,
            power=((rows @ spread.gram.to(B.dtype)) * rows).sum(dim=1).double(),
            length=normed.norm(dim=1),
            f=zero,
            square=zero.clone(),
        )

    def add(self, columns: Tensor, p: Tensor) -> None:
        """The block's tokens into the sums: `columns` [block, d_model] of W_U, `p` [n_bases, block]."""
        w = torch.addmm(-self.shift, self.rows, columns.T)
        self.square.add_(torch.linalg.vector_norm(w, dim=1).double().square())
        f = torch.expm1(w).sub_(w)
        for begin, end, row in segments(self.base):
            self.f[begin:end] += f[begin:end] @ p[row]

    def interval(self, mass: Tensor, peak: Tensor, norm: float) -> tuple[Tensor, Tensor]:
        """Low and high: the tokens left have this `mass` and largest p (`peak`) by base, and columns this long."""
        beta = self.length * norm
        f_beta = torch.expm1(beta) - beta
        # towards β = 0 the quotient is 1/2; the series keeps it from 0/0
        h = torch.where(beta < 1e-3, 0.5 + beta / 6 + beta.square(), f_beta / beta.square().clamp(min=1e-12))
        left = (self.power - self.square).clamp(min=0) + 1e-6 * self.power
        rest = torch.minimum(peak[self.base] * h * left, mass[self.base] * f_beta)
        rest = torch.where(mass[self.base] > 0, rest, torch.zeros_like(rest))
        sum_low = self.linear + self.f
        return self.w_target - torch.log1p(sum_low + rest), self.w_target - torch.log1p(sum_low)

    def sound(self) -> Tensor:
        """Rows whose expectation is finite and lost no digits."""
        total = 1 + self.linear + self.f
        return torch.isfinite(total) & (total > _LOW)

    def keep(self, mask: Tensor) -> _Units:
        """The rows of the mask."""
        return _Units(**{name: values[mask] for name, values in vars(self).items()})


def _order(one: Pass, spread: Spread) -> _Order:
    """Tokens by the sum of their probabilities over the bases, in blocks that double what has been seen."""
    p = one.acc.log_p.flatten(0, 1).exp()
    order = p.sum(dim=0).argsort(descending=True)
    sizes = [min(_FIRST, len(order))]
    while sum(sizes) < len(order):
        sizes.append(min(sum(sizes), len(order) - sum(sizes)))
    tokens = list(order.split(sizes))
    blocks = [p[:, block] for block in tokens]
    # behind the last block nothing is left
    behind = [torch.zeros(len(p), dtype=torch.float64, device=p.device)]
    peak = [torch.zeros_like(behind[0])]
    norm = [0.0]
    for block, ids in zip(blocks[:0:-1], tokens[:0:-1], strict=True):
        behind.insert(0, behind[0] + block.sum(dim=1).double())
        peak.insert(0, torch.maximum(peak[0], block.amax(dim=1).double()))
        norm.insert(0, max(norm[0], float(spread.norms[ids].max())))
    return _Order(tokens, blocks, torch.stack(behind), torch.stack(peak), norm)
