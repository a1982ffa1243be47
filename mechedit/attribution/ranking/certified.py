"""Ranking of value neurons without the vocabulary: the same top k as full enumeration, and a proof that it is.

With σ frozen the logits are linear in the residual. For a unit v at a base with p = softmax(logits), u = B v and
μ = E_p[u], the score is inc = u_t − log E_p[exp u], and

    inc ≤ u_t − μ = v · g,   g = B_t − Σ_k p_k B_k                                        (Jensen)

and a bound from below by moments (`suppress_bound.py`).

1. One product with the vocabulary gives B_t, μ's direction Σ_k p_k B_k and so g for all bases of all layers.
2. A bound of a unit is then a dot product with its direction, times its coefficient; from below it takes a product with
   the columns of few tokens too.
3. Units are scored exactly, over the vocabulary, in the order of their bound, some at a time over all layers
   together, until no bound that is left reaches the k-th best exact score: the top k is certified.

Floating point: a bound is trusted to within `MARGIN` nats; scores closer to each other than that may change places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from mechedit.attribution.layers import PLACE
from mechedit.attribution.passes import Pass, base_rows
from mechedit.attribution.ranking.neurons import Ranked, Ranking, Sign, leading
from mechedit.attribution.ranking.suppress_bound import LIKELIEST, RowMoments, lowest_scores
from mechedit.attribution.terms import KINDS, Kind, SubLayer, unit_vectors

__all__ = ["MARGIN", "certified", "jensen_bound"]

#: How far, in nats, a bound may be off by rounding.
MARGIN = 1e-6
_SHARE = 12  # k + k // _SHARE units are scored first, then k // _SHARE at a time


def jensen_bound(u_target: Tensor, mean: Tensor) -> Tensor:
    """The upper bound u_t − μ of inc, elementwise.

    >>> p, u = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    >>> exact = u[0] - (p * u.exp()).sum().log()
    >>> bool(exact <= jensen_bound(u[0], (p * u).sum()))
    True
    """
    return u_target - mean


def certified(passes: Sequence[Pass], *, k: int, sign: Sign, moments: RowMoments | None = None) -> Ranking:
    """The best k value neurons of each kind, as `exhaustive` finds them; over several passes scores and bounds add up.

    Args:
        passes: One for each token of the target that is scored.
        k: How many of each kind.
        sign: Whether the largest or the lowest scores are the best.
        moments: Those of the model; "suppress" needs them.
    """
    return certified_along(passes, [], k=k, sign=sign, moments=moments)[0]


def certified_along(
    passes: Sequence[Pass],
    others: Sequence[tuple[Tensor, Tensor]],
    *,
    k: int,
    sign: Sign,
    moments: RowMoments | None = None,
) -> tuple[Ranking, Tensor]:
    """`certified`, and the scores [n] of other vectors, which share its first pass over the vocabulary.

    Args:
        passes: As there.
        others: Of each pass the vectors [n, d_model] and the rows of their bases [n], or nothing at all.
        k: As there, and so are sign and moments.
        sign: Likewise.
        moments: Likewise.
    """
    searches = [_Search(passes, kind, k=k, sign=sign, moments=moments) for kind in KINDS]
    waiting, beside = len(others[0][1]) if others else 0, torch.zeros(0, dtype=torch.float64)
    while any(wanted := [waiting, *(len(search.choose()) for search in searches)]):
        scores = torch.zeros(sum(wanted), dtype=torch.float64)
        for n, forward in enumerate(passes):
            parts = [others[n]] if waiting else []
            vectors, bases = zip(*parts, *(search.vectors(n) for search in searches), strict=True)
            scores += forward.scores(torch.cat(vectors), torch.cat(bases))
        part, *found = scores.split(wanted)
        beside, waiting = (part, 0) if waiting else (beside, 0)
        for search, of_search in zip(searches, found, strict=True):
            search.take(of_search)
    mlp, attn = searches
    ranking = Ranking(
        mlp.ranked(),
        attn.ranked(),
        evaluated=(len(mlp.scores), len(attn.scores)),
        total=len(mlp.bound) + len(attn.bound),
    )
    return ranking, beside


def _bounds(forward: Pass, kind: Kind, sign: Sign, moments: RowMoments | None) -> Tensor:
    """How large (promote) or how low (suppress) each unit of a kind can score [n_layers, n, m].

    For "suppress" the sign is turned, so that the largest come first in both.
    """
    column, likeliest = forward.projection.column(forward.target), None
    if sign == "suppress":
        assert moments is not None, "suppress needs the rows' moments"
        likeliest = _likeliest(forward, kind)
    bounds = []
    for i, part in enumerate(forward.sub_layers(kind)):
        coefficients = part.coefficients.double()
        both = torch.stack([column, forward.acc.means[i, PLACE[kind]]], dim=1)
        u_target, mu = part.product(both).double().unbind(1)
        if likeliest is None:
            bounds.append(coefficients * jensen_bound(u_target, mu)[:, None])
            continue
        p, tokens = likeliest.p[i], likeliest.tokens[i]
        sigma = forward.projection.sigma * float(part.gain.sigma)
        scale = torch.tensor([sigma, sigma**2, sigma], dtype=torch.float64, device=u_target.device)
        of_rows = getattr(moments, kind)[i].to(u_target.device) / scale
        x = part.product(forward.projection.columns(tokens)).to(u_target.device)
        bounds.append(-lowest_scores(coefficients, u_target, mu, x, of_rows, p))
    return torch.stack([bound.cpu() for bound in bounds])


@dataclass(frozen=True, eq=False)
class _Likeliest:
    """The likeliest tokens [n_layers, k] at the bases of a kind, and their p as `lowest_scores` takes it."""

    tokens: Tensor
    p: Tensor


def _likeliest(forward: Pass, kind: Kind) -> _Likeliest:
    p = forward.acc.log_p[:, PLACE[kind]].double().exp()
    k = min(LIKELIEST, p.shape[1] - 1)
    top = p.topk(k + 1, dim=1)
    rest = p.scatter(1, top.indices[:, :k], 0.0).sum(1)  # a difference of sums would lose small ones
    return _Likeliest(top.indices[:, :k], torch.cat([top.values, rest[:, None]], dim=1))


class _Search:
    """Step 3 for one kind of unit: what to score next, and the scores so far (turned as the bounds are)."""

    def __init__(
        self, passes: Sequence[Pass], kind: Kind, *, k: int, sign: Sign, moments: RowMoments | None
    ) -> None:
        self.sub_layers: list[list[SubLayer]] = [forward.sub_layers(kind) for forward in passes]
        self.kind, self.sign = kind, sign
        bounds = [_bounds(forward, kind, sign, moments) for forward in passes]
        self.columns = max(bound.shape[2] for bound in bounds)
        # A source position that an earlier pass does not have adds nothing there.
        padded = [pad(bound, (0, self.columns - bound.shape[2])) for bound in bounds]
        self.bound = sum(padded[1:], padded[0]).flatten()
        self.size = bounds[0].shape[1] * self.columns
        self.k = min(k, len(self.bound))
        self.order = self.bound.new_zeros(0, dtype=torch.long)  # as far as it was asked for
        self.scores = torch.empty(0, dtype=torch.float64)
        self.chosen = self.order[:0]

    def choose(self) -> Tensor:
        """The next units in the order of their bound, or none: then the best k are certified."""
        done, step = len(self.scores), max(8, self.k // _SHARE)
        wanted = done + step if done else self.k + step
        if wanted > len(self.order) < len(self.bound):
            self.order = leading(self.bound, 2 * wanted)
        following = self.order[done:wanted]
        if not done:
            self.chosen = following
            return self.chosen
        kth = float(self.scores.topk(self.k).values[-1])
        self.chosen = following[self.bound[following] >= kth - MARGIN]
        return self.chosen

    def vectors(self, n: int) -> tuple[Tensor, Tensor]:
        """The chosen units' vectors [n_chosen, d_model] in pass n, and the rows of their bases [n_chosen]."""
        layer, index = self._place(self.chosen)
        vectors = unit_vectors(self.sub_layers[n], layer, index, columns=self.columns)
        return vectors, base_rows(self.kind, layer).to(vectors.device)

    def take(self, scores: Tensor) -> None:
        """Scores [n] of the chosen units."""
        self.scores = torch.cat([self.scores, scores if self.sign == "promote" else -scores])

    def ranked(self) -> Ranked:
        """The best k of those that were scored."""
        scored = self.order[: len(self.scores)].sort()
        scores = self.scores[scored.indices]
        scores = scores if self.sign == "promote" else -scores
        return Ranked.best([Ranked(scores, *self._place(scored.values))], k=self.k, sign=self.sign)

    def _place(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Layer, and place within it, of places in `bound`."""
        return flat // self.size, flat % self.size
