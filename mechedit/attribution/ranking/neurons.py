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

from experiments.progress import counted
from mechedit.attribution.layers import PLACE
from mechedit.attribution.passes import Pass
from mechedit.attribution.scores import inc_scaled
from mechedit.attribution.terms import Kind

__all__ = ["Ranked", "Ranking", "Sign", "attention_index", "exhaustive", "leading"]

Sign = Literal["promote", "suppress"]


@dataclass(frozen=True)
class Ranked:
    """Neurons, best first.

    Attributes:
        score: Their scores [k], fp64.
        layer: Their layers [k].
        index: Their places within the layer [k]: i of an FFN neuron, `attention_index` of an attention neuron.
    """

    score: Tensor
    layer: Tensor
    index: Tensor

    @classmethod
    def best(cls, parts: Sequence[Ranked], *, k: int | None, sign: Sign) -> Ranked:
        """The k best of several rankings (None: all), given in the order of their layers."""
        score = torch.cat([part.score for part in parts])
        order = leading(score, len(score) if k is None else k, descending=sign == "promote")
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

    def to(self, device: torch.device) -> Ranked:
        """The same neurons on another device."""
        return Ranked(self.score.to(device), self.layer.to(device), self.index.to(device))

    def places(self, *, width: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Head, dimension and source position [k] of attention neurons; the inverse of `attention_index`."""
        unit, pos = self.index // length, self.index % length
        return unit // width, unit % width, pos


def leading(values: Tensor, k: int, *, descending: bool = True) -> Tensor:
    """The first k places of a stable sort of values [n]; only those that can be among them are sorted.

    >>> leading(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2).tolist()
    [1, 2]
    """
    if k < len(values):
        bound = values.topk(k, largest=descending).values[-1]
        among = (values >= bound if descending else values <= bound).nonzero()[:, 0]
    else:
        among = torch.arange(len(values), device=values.device)
    return among[values[among].sort(descending=descending, stable=True).indices[:k]]


def attention_index(head: Tensor, dim: Tensor, pos: Tensor, *, width: int, length: int) -> Tensor:
    """The place of attention value neurons within their layer, as one number.

    Args:
        head: [n].
        dim: Dimension within the head [n].
        pos: Source position [n].
        width: d_head.
        length: How many source positions there are.
    """
    return (head * width + dim) * length + pos


@dataclass(frozen=True)
class Ranking:
    """The best FFN and attention value neurons.

    Attributes:
        mlp: FFN neurons.
        attn: Attention neurons.
        evaluated: How many of each kind were scored over the vocabulary.
        total: How many there are of both kinds.
    """

    mlp: Ranked
    attn: Ranked
    evaluated: tuple[int, int]
    total: int


def exhaustive(passes: Sequence[Pass], *, k: int | None, sign: Sign) -> Ranking:
    """The best k of each kind (None: all), by scoring every value neuron; over several passes scores add up."""
    kept: dict[Kind, list[Ranked]] = {"mlp": [], "attn": []}
    total: dict[Kind, int] = {"mlp": 0, "attn": 0}
    for layer in counted(range(len(passes[0].terms)), "every neuron", unit="layer"):
        for kind, parts in kept.items():
            scores = [_layer_scores(forward, layer, kind) for forward in passes]
            columns = max(part.shape[1] for part in scores)
            padded = [pad(part, (0, columns - part.shape[1])) for part in scores]
            summed = sum(padded[1:], padded[0])
            parts.append(Ranked.best([Ranked.of_layer(layer, summed.flatten())], k=k, sign=sign))
            total[kind] += summed.numel()
    mlp, attn = (Ranked.best(parts, k=k, sign=sign) for parts in kept.values())
    return Ranking(mlp, attn, evaluated=(total["mlp"], total["attn"]), total=sum(total.values()))


def _layer_scores(forward: Pass, layer: int, kind: Kind) -> Tensor:
    part = forward.sub_layers(kind)[layer]
    log_p = forward.acc.log_p[layer, PLACE[kind]]
    return inc_scaled(
        forward.projection, log_p, part.written(), part.coefficients, target=forward.target
    ).cpu()
