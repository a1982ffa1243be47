"""FFN neurons as writers: what readers further up read of each, and the query neurons.

Neuron (l', i) writes c = m_i[pos] · W_out[i] at a position. A reader with key k at that position reads c · k of it, if
it lies behind that layer.

*Query neurons* (Yu & Ananiadou, EMNLP 2024, arXiv 2312.12141, section 3) are those that the best value neurons, with
scores s and keys k, read most of: `q = Σ s · (c · k) / (x · k)`. What is linear in the key is added up before the
product with W_out, not behind it: all keys of one kind at one position are one reader, Σ weight · k. Who else asks
about FFN neurons (`edges.py`) shares the product: one a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mechedit.attribution.circuits.keys import Keys
from mechedit.attribution.ranking.neurons import Ranked, Sign
from mechedit.attribution.terms import LayerTerms, product
from mechedit.models.hooked import HookedModel
from mechedit.models.residual import ResidualView

__all__ = ["QueryNeurons", "Readers", "NeuronReading", "neuron_reads", "read_neurons"]


@dataclass(frozen=True, eq=False)
class Readers:
    """What reads the stream.

    Attributes:
        key: k [n, d_model], fp64; 0 where nothing is to be read.
        pos: At which position [n].
    """

    key: Tensor
    pos: Tensor


class NeuronReading(Protocol):
    """Who asks about FFN neurons, layer by layer."""

    def readers(self, layer: int) -> Readers:
        """What it reads of the FFN of this layer with, always as many."""

    def take(self, layer: int, reads: Tensor) -> None:
        """What they read of every neuron of it [n, d_mlp]."""


def read_neurons(
    model: HookedModel, view: ResidualView, terms: Sequence[LayerTerms], readings: Sequence[NeuronReading]
) -> None:
    """Gives each what it asks for, in the order of the layers."""
    for term in terms:
        asked = [reading.readers(term.layer) for reading in readings]
        together = Readers(torch.cat([one.key for one in asked]), torch.cat([one.pos for one in asked]))
        parts = neuron_reads(model, view, term, together).split([len(one.pos) for one in asked])
        for reading, part in zip(readings, parts, strict=True):
            reading.take(term.layer, part)


def neuron_reads(model: HookedModel, view: ResidualView, term: LayerTerms, readers: Readers) -> Tensor:
    """`G(m_i[pos] · W_out[i]) · k` of every reader and every FFN neuron of a layer, [n, d_mlp]."""
    key = view.mlp_gain(model, term.layer, readers.pos).pull(readers.key)
    return product(term.mlp.directions, key.T).T.mul_(view.mlp_post[term.layer, readers.pos])


class QueryNeurons:
    """The scores q of all FFN neurons, for attention and for FFN value neurons.

    Args:
        keys: What the value neurons read.
        weights: Those of the keys [n, 2], as `query.key_weights` gives them.
    """

    def __init__(self, keys: Keys, weights: Tensor) -> None:
        self._keys, self._weighted = keys, weights.sum(dim=1)[:, None] * keys.key.double()
        # Position and kind of value neuron; a key has no weight in the other kind.
        self._places, self._group = (2 * keys.pos + keys.mid.long()).unique(return_inverse=True)
        self._scored: tuple[list[Ranked], list[Ranked]] = ([], [])

    def readers(self, layer: int) -> Readers:
        """`NeuronReading.readers`."""
        seen = self._weighted * self._keys.after(layer, attention=False)[:, None]
        key = seen.new_zeros(len(self._places), seen.shape[1]).index_add_(0, self._group, seen)
        return Readers(key, self._places // 2)

    def take(self, layer: int, reads: Tensor) -> None:
        """`NeuronReading.take`."""
        for kind, parts in enumerate(self._scored):
            scores = reads[self._places % 2 == kind].sum(dim=0, dtype=torch.float64)
            parts.append(Ranked.of_layer(layer, scores))

    def best(self, k: int | None, sign: Sign) -> tuple[Ranked, Ranked]:
        """The best k of either kind; None: all."""
        attn, mlp = (Ranked.best(parts, k=k, sign=sign) for parts in self._scored)
        return attn, mlp
