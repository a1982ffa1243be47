"""Ranking of value neurons by full enumeration.

Source: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 3: an FFN value neuron (l, i) adds m_i ·
W_out[i] to x_mid^l; an attention value neuron (l, h, j, pos) adds A[h, last, pos] · V[pos, h, j] · W_O[h, j]
to x_pre^l.

1. Score every neuron of a layer in blocks (`scores.inc_scaled`).
2. Keep the layer's best k; after the last layer, the best k of all of them. Equal scores stay in the order of
   layer and index, so a ranking does not depend on the block size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from mechedit.attribution.passes import Pass
from mechedit.attribution.scores import inc_scaled

__all__ = ["Ranked", "Ranking", "Sign", "exhaustive"]

Sign = Literal["promote", "suppress"]


@dataclass(frozen=True)
class Ranked:
    """Neurons, best first: `score` (fp64), `layer` and `index` [k]. `index` counts within the layer: i for an
    FFN neuron, `(h · d_head + j) · T + pos` for an attention neuron."""

    score: Tensor
    layer: Tensor
    index: Tensor

    @classmethod
    def best(cls, parts: Sequence[Ranked], *, k: int | None, sign: Sign) -> Ranked:
        """The k best of several rankings (None: all), given in the order of their layers."""
        score = torch.cat([part.score for part in parts])
        order = torch.sort(score, descending=sign == "promote", stable=True).indices[:k]
        layer, index = (torch.cat([getattr(part, name) for part in parts]) for name in ("layer", "index"))
        return cls(score[order], layer[order], index[order])

    @classmethod
    def of_layer(cls, layer: int, scores: Tensor) -> Ranked:
        """All neurons of one layer with these scores [n], unsorted."""
        index = torch.arange(len(scores), device=scores.device)
        return cls(scores, torch.full_like(index, layer), index)

    def first(self, k: int | None) -> Ranked:
        """The first k (None: all)."""
        return Ranked(self.score[:k], self.layer[:k], self.index[:k])


@dataclass(frozen=True)
class Ranking:
    """The best FFN and attention value neurons; `evaluated` of each kind, of `total` in all, were scored over the
    vocabulary."""

    mlp: Ranked
    attn: Ranked
    evaluated: tuple[int, int]
    total: int


def exhaustive(passes: Sequence[Pass], *, k: int | None, sign: Sign) -> Ranking:
    """Score every value neuron; the best k of each kind (None: all). Over several passes scores add up."""
    mlp: list[Ranked] = []
    attn: list[Ranked] = []
    total = [0, 0]
    # disable=None: the bar shows on a terminal only
    for layer in tqdm(range(len(passes[0].terms)), desc="layers", disable=None, leave=False):
        for place, (name, kept) in enumerate((("attn", attn), ("mlp", mlp))):
            scores = [_layer_scores(one, layer, place, name) for one in passes]
            columns = max(part.shape[1] for part in scores)
            padded = [pad(part, (0, columns - part.shape[1])) for part in scores]
            summed = sum(padded[1:], padded[0])
            kept.append(Ranked.best([Ranked.of_layer(layer, summed.flatten())], k=k, sign=sign))
            total[1 - place] += summed.numel()
    ranked = [Ranked.best(parts, k=k, sign=sign) for parts in (mlp, attn)]
    return Ranking(ranked[0], ranked[1], evaluated=(total[0], total[1]), total=sum(total))


def _layer_scores(one: Pass, layer: int, place: int, name: str) -> Tensor:
    part = getattr(one.terms[layer], name)
    log_p = one.acc.log_p[layer, place]
    return inc_scaled(one.projection, log_p, part.directions, part.coefficients, target=one.target).cpu()
