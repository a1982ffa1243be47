"""How low a unit can score: a bound from moments, without a product with the vocabulary.

For a unit c · r at a base with probabilities p the vector over the vocabulary is u = c x, x = B r, and its score is
u_t − log E_p[e^u]. With S the `LIKELIEST` tokens of p, T the others, P and ε their probabilities,

    E_p[e^u] = P E_S[e^u] + ε E_T[e^u],    E[e^u] ≤ e^m (1 + s² φ(b)),    φ(b) = (e^b − 1 − b) / b²      (Bennett)

for a mean m, a variance s² (or more) and u ≤ m + b. Steps:

1. On S mean, variance and extremes of x are computed: a product of the rows with few columns of W_U.
2. On T the mean is what is left of E_p[x]. No token has more than p̄, the largest probability there, so that
   E_T[(x − a)²] ≤ (p̄ / ε) (q − Σ_S (x − a)²), where a is the mean of x over the whole vocabulary and q the sum of its
   squared deviations, and x ≤ a + R, where R = |r| · max_w |W_w − mean W|.
3. a, q and R of every row (`RowMoments`) are known from the mean and the covariance of W_U: once per model, with
   d_model columns instead of d_vocab. With the frozen σ of a prompt they are divided by σ, σ² and σ.

The bound scales: all that depends on the coefficient c is a few operations on numbers, for each source position too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mechedit.attribution.projection import Projection
from mechedit.models.hooked import HookedModel
from mechedit.models.outlets import Gain

__all__ = ["LIKELIEST", "RowMoments", "lowest_scores", "vocabulary_moments"]

#: Tokens that are looked at one by one.
LIKELIEST = 256
_ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-14}  # relative error of a product, with room to spare
_SLACK = 1e-4  # by which sums of squares are taken too large, for the same reason
_IN_MEMORY = 4  # how many models' moments are kept, the latest ones
_memory: dict[str, RowMoments] = {}


@dataclass(frozen=True, eq=False)
class RowMoments:
    """Of `((r − mean r) ⊙ γ) W_U` over the vocabulary: mean, sum of squared deviations, largest deviation (or more).

    Attributes:
        attn: Of the rows r of W_O [n_layers, n_heads · d_head, 3], fp64.
        mlp: Of the rows r of W_out [n_layers, d_mlp, 3].
    """

    attn: Tensor
    mlp: Tensor


def vocabulary_moments(model: HookedModel) -> RowMoments:
    """The model's `RowMoments`: from memory, or computed and kept."""
    factors = (model.attn_outlet(0).factor, model.mlp_outlet(0).factor, model.shape.logit_scale)
    key = f"{model.hash} {model.dtype} {model.final_norm.kind} {factors} {model.device}"
    if key not in _memory:
        _memory[key] = _moments(model)
        while len(_memory) > _IN_MEMORY:
            del _memory[next(iter(_memory))]
    return _memory[key]


def lowest_scores(
    coefficients: Tensor, u_target: Tensor, mean: Tensor, likeliest: Tensor, moments: Tensor, p: Tensor
) -> Tensor:
    """No unit `coefficients[i, j] · row i` scores lower than this [n, m], nats.

    Args:
        coefficients: c [n, m], fp64.
        u_target: x_t of each row [n], fp64.
        mean: E_p[x] of each row [n], fp64.
        likeliest: x of each row at the likeliest tokens [n, k].
        moments: a, q and R of each row [n, 3], fp64.
        p: Probabilities of the likeliest tokens, the highest first; behind them the next one's and that of all others
            together [k + 2], fp64.

    >>> W, r = torch.tensor([[3.0, 1.0, 0.0, -4.0]]).double(), torch.ones(1, 1).double()
    >>> p = torch.tensor([0.4, 0.3, 0.2, 0.1]).double()
    >>> x, likeliest = r @ W, (r @ W)[:, :2]
    >>> deviations = x - x.mean()
    >>> moments = torch.stack([x.mean(1), deviations.square().sum(1), deviations.abs().amax(1)], dim=1)
    >>> known = torch.cat([p[:3], p[2:].sum()[None]])
    >>> bound = lowest_scores(r, x[:, 0], x @ p, likeliest, moments, known)
    >>> exact = x[:, 0] - (x.exp() @ p).log()
    >>> bool(bound <= exact), bool(bound > exact - 1)
    (True, True)
    """
    a, q, largest = (column[:, None] for column in moments.unbind(1))
    of_each, p_next, rest = p[:-2], float(p[-2]), max(float(p[-1]), 1e-300)
    known = float(of_each.sum())
    weights = (of_each / known).to(likeliest)
    error = _ROUNDING[likeliest.dtype] * (a.abs() + largest)
    m = (likeliest @ weights).double()[:, None]
    s2 = ((likeliest.square() @ weights).double()[:, None] - m.square()).clamp(min=0)
    s2 = (s2 + 2 * error * (m.abs() + error)).sqrt().add(2 * error).square()
    low, high = (end.double()[:, None] for end in likeliest.aminmax(dim=1))
    m_rest = (mean[:, None] - known * m) / rest
    off = error * known / rest
    squares = (likeliest - a.to(likeliest)).square().sum(1).double()[:, None]
    second = p_next / rest * (q - squares).clamp(min=0)
    s2_rest = (second - (m_rest - a).abs().sub(off).clamp(min=0).square()).clamp(min=0)

    c, size = coefficients, coefficients.abs()
    above = torch.where(c >= 0, c * (high - m), c * (low - m)) + 2 * size * error
    ends = c * a + size * largest
    centre = torch.minimum(c * m_rest + size * off, ends)
    likely = c * m + size * error + _bennett(size.square() * s2, above)
    others = centre + _bennett(size.square() * s2_rest, ends - centre)
    return c * u_target[:, None] - torch.logaddexp(math.log(known) + likely, math.log(rest) + others)


@torch.no_grad()
def _moments(model: HookedModel) -> RowMoments:
    norm = model.final_norm
    unscaled = Projection(model.W_U, norm.weight.double(), norm.kind == "layer", None, sigma=1.0)
    mean, scatter, radius = _columns(unscaled)

    def of_rows(directions: Tensor, gain: Gain) -> Tensor:
        x = unscaled.normalise(gain(directions.to(mean.device)))
        squares = ((x.to(scatter.dtype) @ scatter).double() * x).sum(1)
        return torch.stack([x @ mean, squares * (1 + _SLACK), x.norm(dim=1) * radius], dim=1)

    layers = range(model.shape.n_layers)
    attn = [of_rows(model.W_O(n).flatten(0, 1), model.attn_outlet(n).frozen()) for n in layers]
    mlp = [of_rows(model.W_out(n), model.mlp_outlet(n).frozen()) for n in layers]
    return RowMoments(torch.stack(attn), torch.stack(mlp))


def _columns(projection: Projection) -> tuple[Tensor, Tensor, float]:
    """Of the columns W_w their mean [d], the sum of (W_w − mean)(W_w − mean)ᵀ [d, d], and the largest |W_w − mean|."""
    parts = [part.double().sum(1) for _, part in projection.chunks()]
    mean = torch.stack(parts).sum(0) / projection.W_U.shape[1]
    scatter, radius = torch.zeros(len(mean), len(mean), dtype=projection.dtype, device=mean.device), 0.0
    for _, part in projection.chunks():
        deviations = part - mean.to(part)[:, None]
        scatter += deviations @ deviations.T
        radius = max(radius, float(deviations.norm(dim=0).max()))
    return mean, scatter, radius * (1 + _SLACK)


def _bennett(s2: Tensor, b: Tensor) -> Tensor:
    """log(1 + s² φ(b)) for b >= 0, never too small and never infinite."""
    b = b.clamp(min=0)
    little = b < 0.1
    wide = torch.where(little, torch.ones_like(b), b)
    log_phi = torch.where(
        little,
        (0.5 + b / 6 + b.square() / 20).log(),  # what is left out of the series is less than b² / 120
        wide + torch.log1p(-(1 + wide) * torch.exp(-wide)) - 2 * wide.log(),
    )
    return torch.logaddexp(torch.zeros_like(b), s2.log() + log_phi)
