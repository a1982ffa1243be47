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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from mechedit.attribution.passes import Pass
from mechedit.attribution.ranking.neurons import Ranked, Ranking, Sign
from mechedit.attribution.scores import inc_rows
from mechedit.attribution.terms import SubLayer, product

__all__ = [
    "MARGIN",
    "PLACE",
    "Ranges",
    "certified",
    "chord_bound",
    "jensen_bound",
    "unit_vectors",
]

#: Which of a layer's two bases the units of a sub-layer are added to.
PLACE = {"attn": 0, "mlp": 1}
#: How far, in nats, a bound may be off by rounding.
MARGIN = 1e-6
_SHARE = 12  # k + k // _SHARE units are scored first, then k // _SHARE at a time


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
    passes: Sequence[Pass],
    *,
    k: int,
    sign: Sign,
    ranges: Ranges | None = None,
) -> Ranking:
    """The best k value neurons of each kind, as `exhaustive` has them; `ranges` are needed for "suppress".

    Over several passes scores and bounds add up.
    """
    searches = [_Search(passes, name, k=k, sign=sign, ranges=ranges) for name in ("mlp", "attn")]
    while any(wanted := [len(search.choose()) for search in searches]):
        found = torch.zeros(sum(wanted), dtype=torch.float64)
        for n, one in enumerate(passes):
            vectors, bases = zip(*(search.vectors(n) for search in searches), strict=True)
            log_p = one.acc.log_p.flatten(0, 1)
            found += inc_rows(
                one.projection, torch.cat(vectors), torch.cat(bases), log_p, target=one.target
            ).cpu()
        for search, part in zip(searches, found.split(wanted), strict=True):
            search.take(part)
    mlp, attn = searches
    return Ranking(
        mlp.ranked(),
        attn.ranked(),
        evaluated=(len(mlp.found), len(attn.found)),
        total=len(mlp.bound) + len(attn.bound),
    )


def _bounds(one: Pass, name: str, sign: Sign, ranges: Ranges | None) -> Tensor:
    """[n_layers, n, m]: how large (promote) or how low (suppress) each unit of a kind can score; the sign is turned
    for "suppress", so that the largest come first in both."""
    column, place = one.projection.column(one.target), PLACE[name]
    found = []
    for i, term in enumerate(one.terms):
        part: SubLayer = getattr(term, name)
        coefficients = part.coefficients.double()
        both = torch.stack([column, one.acc.means[i, place]], dim=1)
        u_target, mu = product(part.directions, both).double().unbind(1)
        if sign == "promote":
            found.append(coefficients * jensen_bound(u_target, mu)[:, None])
            continue
        assert ranges is not None, "suppress needs the rows' ranges"
        rows = getattr(ranges, name)[i].to(coefficients.device).double() / one.projection.sigma
        ends = coefficients[:, :, None] * rows[:, None, :]
        u_target, mu = coefficients * u_target[:, None], coefficients * mu[:, None]
        found.append(-chord_bound(u_target, mu, ends.amin(-1), ends.amax(-1)))
    return torch.stack([bound.cpu() for bound in found])


class _Search:
    """Step 3 for one kind of unit: what to score next, and what has been found (scores turned as the bounds are)."""

    def __init__(
        self, passes: Sequence[Pass], name: str, *, k: int, sign: Sign, ranges: Ranges | None
    ) -> None:
        self.parts: list[list[SubLayer]] = [[getattr(term, name) for term in one.terms] for one in passes]
        self.place, self.sign = PLACE[name], sign
        bounds = [_bounds(one, name, sign, ranges) for one in passes]
        self.columns = max(bound.shape[2] for bound in bounds)
        # a source position that an earlier pass does not have adds nothing there
        padded = [pad(bound, (0, self.columns - bound.shape[2])) for bound in bounds]
        self.bound = sum(padded[1:], padded[0]).flatten()
        self.order = torch.sort(self.bound, descending=True, stable=True).indices
        self.size = bounds[0].shape[1] * self.columns
        self.k = min(k, len(self.order))
        self.found = torch.empty(0, dtype=torch.float64)
        self.chosen = self.order[:0]

    def choose(self) -> Tensor:
        """The next units in the order of their bound, or none: then the best k are certified."""
        done, more = len(self.found), max(8, self.k // _SHARE)
        if not done:
            self.chosen = self.order[: self.k + more]
            return self.chosen
        kth = float(self.found.topk(self.k).values[-1])
        following = self.order[done : done + more]
        self.chosen = following[self.bound[following] >= kth - MARGIN]
        return self.chosen

    def vectors(self, n: int) -> tuple[Tensor, Tensor]:
        """[n_chosen, d_model] in pass n of the chosen units, and their bases as rows of the flattened log p."""
        layer, index = self.chosen // self.size, self.chosen % self.size
        out = unit_vectors(self.parts[n], layer, index, columns=self.columns)
        return out, (2 * layer + self.place).to(out.device)

    def take(self, scores: Tensor) -> None:
        """Scores [n] of the chosen units."""
        self.found = torch.cat([self.found, scores if self.sign == "promote" else -scores])

    def ranked(self) -> Ranked:
        """The best k of those that were scored."""
        scored = self.order[: len(self.found)].sort()
        found = self.found[scored.indices]
        found = found if self.sign == "promote" else -found
        layer, index = scored.values // self.size, scored.values % self.size
        return Ranked.best([Ranked(found, layer, index)], k=self.k, sign=self.sign)


def unit_vectors(parts: Sequence[SubLayer], layer: Tensor, index: Tensor, *, columns: int) -> Tensor:
    """[n, d_model]: the units at these layers and places of the coefficients, `columns` of them a row, of one kind of
    sub-layer in all layers."""
    out = parts[0].coefficients.new_empty(len(layer), parts[0].directions.shape[1])
    for i in layer.unique().tolist():
        mine = layer == i
        out[mine.to(out.device)] = _vectors(parts[i], index[mine], columns).to(out.device)
    return out


def _vectors(part: SubLayer, index: Tensor, columns: int) -> Tensor:
    """[n, d_model]: the units at these places of the coefficients, `columns` of them a row: a direction times its
    coefficient, zero where this pass has no such column."""
    index = index.to(part.coefficients.device)
    unit, column = index // columns, index % columns
    coefficients = pad(part.coefficients, (0, columns - part.coefficients.shape[1]))[unit, column]
    return coefficients[:, None] * part.directions[unit.to(part.directions.device)].to(coefficients)
