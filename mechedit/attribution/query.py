"""Query neurons: which earlier FFN neurons switch the best attention value neurons on.

Source: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 3.

1. The attention value neuron (l, h, j, pos) with score s reads x_pre^l[pos] with the key k = W_V^l[:, h, j] ⊙
   γ_ln1^l.
2. Every FFN neuron (l' < l, i) gets `q += s · (m_i^{l'}[pos] · W_out^{l'}[i] · k) / (x_pre^l[pos] · k)`, its
   share of what the key reads, summed over the `N_VALUES` best attention value neurons.
3. The denominator can be negative or nearly zero, and then one value neuron owns the ranking. Guard [our
   choice]: its size is floored at `GUARD` · ‖x‖ · ‖k‖, sign kept. Off with `biases="drop"`, which reproduces
   the reference.

Wrong as a mechanism where the denominator is negative (the shares of a negative whole) and blind to what the
norm subtracts: read it as a ranking, beside the counts in the result's certificate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mechedit.attribution.neurons import Ranked, Sign
from mechedit.attribution.terms import LayerTerms, product

if TYPE_CHECKING:
    from mechedit.model import HookedModel, ResidualView

__all__ = ["GUARD", "N_VALUES", "query_neurons"]

N_VALUES = 30
#: The least cosine between residual and key that a denominator is taken at.
GUARD = 0.05


@dataclass(frozen=True)
class _Keys:
    """The n value neurons read from: `layer`, `pos`, `weight` = s / denominator [n], `key` [n, d_model]."""

    layer: Tensor
    pos: Tensor
    weight: Tensor
    key: Tensor


def query_neurons(
    model: HookedModel,
    view: ResidualView,
    terms: Sequence[LayerTerms],
    values: Ranked,
    *,
    k: int | None,
    sign: Sign,
    guard: bool,
) -> tuple[Ranked, dict[str, Any]]:
    """The k best FFN neurons by step 2 (None: all), and the denominators' account.

    `values`: attention value neurons, best first; the first `N_VALUES` are used. The account holds `values`
    (how many were used), `negative`, `below_guard` (denominators that are so, whether or not the guard is on)
    and `guard`.
    """
    keys, info = _keys(model, view, values.first(N_VALUES), guard=guard)
    parts = []
    for term in terms:
        later = keys.layer > term.layer
        activations = view.mlp_post[term.layer][keys.pos[later]].T.float()  # [d_mlp, n]
        reads = product(term.mlp.directions, keys.key[later].T)  # W_out[i] · k, [d_mlp, n]
        scores = (activations * reads).double() @ keys.weight[later]
        parts.append(Ranked.of_layer(term.layer, scores))
    return Ranked.best(parts, k=k, sign=sign), info


def _keys(
    model: HookedModel, view: ResidualView, values: Ranked, *, guard: bool
) -> tuple[_Keys, dict[str, Any]]:
    length, width = len(view.ids), model.shape.d_head
    rows = []
    for layer, index in zip(values.layer.tolist(), values.index.tolist(), strict=True):
        head, j = divmod(index // length, width)
        rows.append(model.W_V(layer)[head, :, j].double() * model.ln1(layer).double())
    key = torch.stack(rows)
    pos = values.index % length
    residual = view.resid_pre_all[values.layer, pos].double()
    read = (residual * key).sum(dim=1)
    floor = GUARD * residual.norm(dim=1) * key.norm(dim=1)
    small = read.abs() < floor
    info = {
        "values": len(values.score),
        "negative": int((read < 0).sum()),
        "below_guard": int(small.sum()),
        "guard": GUARD if guard else 0.0,
    }
    if guard:
        read = torch.where(small, torch.where(read < 0, -floor, floor), read)
    return _Keys(values.layer, pos, values.score / read, key.float()), info
