"""Ranking of value neurons without the vocabulary: the same top k as full enumeration, and a proof that it is.

With σ frozen the logits are linear in the residual. For a unit v at a base with p = softmax(logits), u = B v and
μ = E_p[u], the score is inc = u_t − log E_p[exp u], and

    inc ≤ u_t − μ = v · g,   g = B_t − Σ_k p_k B_k                                        (Jensen)
    inc ≥ u_t − log(((β − μ) e^α + (μ − α) e^β) / (β − α))   for u within [α, β]          (chord of exp)

1. One product with the vocabulary gives B_t, μ's direction Σ_k p_k B_k and so g for all bases of all layers.
2. A bound of a unit is then a dot product with its direction, times its coefficient.
3. Units are scored exactly, over the vocabulary, in the order of their bound, some at a time over all layers
   together, until no bound that is left reaches the k-th best exact score: the top k is certified.

The range of a row over the vocabulary does not depend on the prompt, but for the factor 1/σ: `vocabulary_ranges`
finds it once per model and keeps it on disk (`ranges.py`). "promote" needs the Jensen bound alone.

Floating point: a bound is trusted to within `MARGIN` nats; scores closer to each other than that may change places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechedit.attribution.neurons import Ranked, Ranking, Sign
from mechedit.attribution.projection import Projection
from mechedit.attribution.scores import inc_rows
from mechedit.attribution.terms import LayerTerms, SubLayer

__all__ = ["MARGIN", "Ranges", "certified", "chord_bound", "jensen_bound"]

#: How far, in nats, a bound may be off by rounding.
MARGIN = 1e-6
_SHARE = 12  # once the first k are done, k // _SHARE units are scored at a time


@dataclass(frozen=True)
class Ranges:
    """Smallest and largest entry of `((r − mean r) ⊙ γ) W_U` over the vocabulary for every row r of a kind of unit.

    attn, mlp: [n_layers, rows, 2], rows of W_O [n_heads · d_head] and of W_out [d_mlp]. Divide by σ for B r.
    """

    attn: Tensor
    mlp: Tensor


def jensen_bound(u_target: Tensor, mean: Tensor) -> Tensor:
    """inc ≤ u_t − μ, elementwise.

    >>> p, u = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    >>> exact = u[0] - (p * u.exp()).sum().log()
    >>> bool(exact <= jensen_bound(u[0], (p * u).sum()))
    True
    """
    return u_target - mean


def chord_bound(u_target: Tensor, mean: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """inc ≥ u_t − log of the chord of exp over [low, high] at μ, elementwise; fp64 and safe for any range.

    >>> p, u = torch.tensor([0.5, 0.5]).double(), torch.tensor([1.0, 0.0]).double()
    >>> exact = u[0] - (p * u.exp()).sum().log()
    >>> bound = chord_bound(u[0], (p * u).sum(), u.min(), u.max())
    >>> bool(torch.isclose(bound, exact))                # two values: the chord is exact
    True
    """
    width = high - low
    share = torch.where(width > 0, (mean - low) / width, torch.zeros_like(width)).clamp(0, 1)
    # log((1 − s) e^low + s e^high) = high + log((1 − s) e^(low − high) + s)
    return u_target - (high + torch.log((1 - share) * torch.exp(-width) + share))


def certified(
    projection: Projection,
    terms: Sequence[LayerTerms],
    log_p: Tensor,
    *,
    target: int,
    k: int,
    sign: Sign,
    ranges: Ranges | None = None,
) -> Ranking:
    """The best k value neurons of each kind, exactly as `exhaustive`; `ranges` are needed for "suppress"."""
    p = log_p.exp()
    means = projection.expectations(p.flatten(0, 1)).unflatten(
        0, p.shape[:2]
    )  # Σ_k p_k B_k, [n_layers, 2, d]
    column = projection.column(target)
    found, evaluated, total = [], [], 0
    for name, place in (("mlp", 1), ("attn", 0)):
        parts = [getattr(term, name) for term in terms]
        rows = None if ranges is None else getattr(ranges, name).double() / projection.sigma
        bounds = [
            _bounds(part, column, means[i, place], None if rows is None else rows[i], sign)
            for i, part in enumerate(parts)
        ]
        ranked, n = _search(
            projection, parts, bounds, p[:, place], log_p[:, place], target=target, k=k, sign=sign
        )
        found.append(ranked)
        evaluated.append(n)
        total += sum(bound.numel() for bound in bounds)
    return Ranking(found[0], found[1], evaluated=(evaluated[0], evaluated[1]), total=total)


def _bounds(part: SubLayer, column: Tensor, mean: Tensor, rows: Tensor | None, sign: Sign) -> Tensor:
    """[n · m]: how large (promote) or how low (suppress) each unit of a sub-layer can score; the sign is turned
    for "suppress", so that the largest come first in both."""
    directions, coefficients = part.directions, part.coefficients.double()
    both = torch.stack([column, mean], dim=1).to(directions.dtype)
    u_target, mu = (coefficients * x[:, None] for x in (directions @ both).double().unbind(1))
    if sign == "promote":
        return jensen_bound(u_target, mu).flatten()
    assert rows is not None, "suppress needs the rows' ranges"
    ends = coefficients[:, :, None] * rows[:, None, :]
    return -chord_bound(u_target, mu, ends.amin(-1), ends.amax(-1)).flatten()


def _search(
    projection: Projection,
    parts: Sequence[SubLayer],
    bounds: Sequence[Tensor],
    p: Tensor,
    log_p: Tensor,
    *,
    target: int,
    k: int,
    sign: Sign,
) -> tuple[Ranked, int]:
    """Step 3: the k best, and how many were scored."""
    sizes = torch.tensor([len(bound) for bound in bounds])
    starts = sizes.cumsum(0) - sizes
    bound = torch.cat(list(bounds)).cpu()
    order = torch.sort(bound, descending=True, stable=True).indices
    block = max(8, k // _SHARE)
    turn = 1.0 if sign == "promote" else -1.0
    scores = torch.empty(0, dtype=torch.float64)
    done, k = 0, min(k, len(order))
    while done < len(order):
        kth = float(scores.topk(k).values[-1]) if done >= k else -math.inf
        open_units = int((bound[order[done : done + block]] >= kth - MARGIN).sum())
        if not open_units:
            break
        chosen = order[done : done + (open_units if done else k)].sort().values
        order[done : done + len(chosen)] = chosen  # scored layer by layer
        layer = torch.searchsorted(starts, chosen, right=True) - 1
        present = layer.unique().tolist()
        rows = [_vectors(parts[i], chosen[layer == i] - starts[i]) for i in present]
        bases = [(log_p[i], p[i]) for i in present]
        scores = torch.cat([scores, turn * inc_rows(projection, rows, bases, target=target).cpu()])
        done += len(chosen)
    index = order[:done].sort()
    layer = torch.searchsorted(starts, index.values, right=True) - 1
    ranked = Ranked(turn * scores[index.indices], layer, index.values - starts[layer])
    return Ranked.best([ranked], k=k, sign=sign), done


def _vectors(part: SubLayer, index: Tensor) -> Tensor:
    """[n, d_model] fp32: the units at these flat indices of the coefficients, a direction times a coefficient."""
    unit, column = index // part.coefficients.shape[1], index % part.coefficients.shape[1]
    return part.coefficients[unit, column].float()[:, None] * part.directions[unit].float()
