"""What the best value neurons read, and how much of it is each source's.

Source: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 3.

1. An attention value neuron (l, h, j, pos) reads x_pre^l[pos] with the key k = W_V^l[:, h, j] ⊙ γ_ln1^l (grouped
   heads: the column of the head's group); an FFN value neuron (l, i) reads x_mid^l at the last position with
   k = W_in^l[:, i] ⊙ γ_ln2^l, in a parallel block x_pre^l. A gated FFN neuron has two keys, up and gate. Where a
   sub-layer reads the stream itself (OLMo-2), γ and σ are 1.
2. Its read is x · k. LayerNorm takes the mean off x, which is the same as taking it off the key: `centre` does
   so, and then (x · k) / σ is what the neuron's input really is, but for the constant of the biases.
3. x is a sum of sources, so a source c has the share (c · k) / (x · k) of the read, and the shares sum to 1.

The shares are exact: take c out of the neuron's input, hold σ still, and the read falls by that share. What the
neuron's coefficient does then is `slope`, to first order: its relative change by a unit of read. For attention, whose
coefficient A · V is linear in the read, 1 / (σ V); for an FFN neuron act'(z) / (act(z) σ) at its input z, and for the
up key of a gated one 1 / (z σ).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mechedit.attribution.ranking.neurons import Ranked
from mechedit.models.hooked import HookedModel
from mechedit.models.residual import ResidualView
from mechedit.models.weights import FinalNorm

__all__ = ["GUARD", "Keys", "attention_keys", "mlp_keys"]

#: The least cosine between residual and key that a denominator is taken at.
GUARD = 0.05


@dataclass(frozen=True, eq=False)
class Keys:
    """n keys of value neurons, and what each reads.

    Attributes:
        layer: Where the value neuron is [n].
        pos: The position that is read [n].
        key: k [n, d_model], fp32.
        x: The residual that is read [n, d_model], fp64.
        score: That of the value neuron [n].
        weight: The part of the score that the key stands for [n]: a half for each of a gated neuron's two.
        mid: Whether x is the residual before the FFN, else before attention [n].
        slope: ∂ log coefficient / ∂ read [n]; 0 where the coefficient is 0.
        own: Whether it reads its own layer's attention [n]: an FFN's does, but for parallel blocks.
    """

    layer: Tensor
    pos: Tensor
    key: Tensor
    x: Tensor
    score: Tensor
    weight: Tensor
    mid: Tensor
    slope: Tensor
    own: Tensor

    @property
    def read(self) -> Tensor:
        """The reads x · k [n], fp64."""
        return (self.x * self.key.double()).sum(dim=1)

    @property
    def least(self) -> Tensor:
        """What the guard floors a denominator's size at: `GUARD` · ‖x‖ · ‖k‖ [n]."""
        return GUARD * self.x.norm(dim=1) * self.key.double().norm(dim=1)

    def denominators(self, *, guard: bool) -> Tensor:
        """The reads; with `guard`, their size floored at `least`, the sign kept."""
        read, least = self.read, self.least
        if not guard:
            return read
        return torch.where(read.abs() < least, torch.where(read < 0, -least, least), read)

    def after(self, layer: int, *, attention: bool) -> Tensor:
        """Which keys [n] read what this layer's attention (or else its FFN) has written."""
        later = self.layer > layer
        return later | (self.own & (self.layer == layer)) if attention else later

    def join(self, following: Keys) -> Keys:
        """These keys, then the following ones."""
        pairs = ((getattr(self, field.name), getattr(following, field.name)) for field in fields(self))
        return Keys(*map(torch.cat, pairs))


def attention_keys(model: HookedModel, view: ResidualView, values: Ranked, *, centre: bool) -> Keys:
    """The keys of attention value neurons.

    Args:
        model: The model, as it is now.
        view: The forward pass.
        values: The value neurons.
        centre: Whether the mean that LayerNorm takes off x is taken off the keys.
    """
    values, shape = values.to(view.resid_pre_all.device), model.shape
    layer = values.layer
    head, dim, pos = values.places(width=shape.d_head, length=len(view.ids))
    columns, _ = _by_layer(lambda i, rows: (model.W_V(i)[head[rows].cpu(), :, dim[rows].cpu()], None), layer)
    norms = [model.norm1(i) for i in range(shape.n_layers)]
    x = view.resid_pre_all[layer, pos].double()
    v = view.v[layer, pos, head // (shape.n_heads // shape.n_kv_heads), dim].double()
    slope = _inverse(v * _scale(norms, x))
    weight, mid = torch.ones_like(values.score), torch.zeros_like(pos, dtype=torch.bool)
    key = _keys(columns, _gamma(norms)[layer], norms[0], centre=centre)
    return Keys(layer, pos, key, x, values.score, weight, mid, slope, mid)


def mlp_keys(
    model: HookedModel, view: ResidualView, values: Ranked, *, centre: bool, pos: Tensor | None = None
) -> Keys:
    """The keys of FFN value neurons; of gated ones first all up keys, then all gate keys.

    Args:
        model: The model, as it is now.
        view: The forward pass.
        values: The value neurons.
        centre: Whether the mean that LayerNorm takes off x is taken off the keys.
        pos: Where they read [n]; None: at the last position.
    """
    values, gated = values.to(view.resid_pre_all.device), model.shape.gated
    layer = values.layer
    parts = [_by_layer(_columns(model.W_in, model.b_in, values.index), layer)]
    if gated:
        parts.append(_by_layer(_columns(model.W_gate, model.b_gate, values.index), layer))
    pos = torch.full_like(layer, len(view.ids) - 1) if pos is None else pos
    stream = view.resid_pre_all if model.shape.parallel else view.resid_mid_all
    x = stream[layer, pos].double()
    norms = [model.norm2(i) for i in range(model.shape.n_layers)]
    sigma, gamma = _scale(norms, x), _gamma(norms)[layer]
    bias = torch.stack([_zero_or(norm.bias, norm.weight) for norm in norms])[layer]
    normed = norms[0].centre(x) / sigma[:, None] * gamma + bias
    inputs = [(normed * columns).sum(1) + constants for columns, constants in parts]
    act, change = _activation(model.act_fn, inputs[-1])
    activated = change * _inverse(
        act * sigma
    )  # of the key that the activation is taken of: the gate, or the only one
    slope = torch.cat([_inverse(inputs[0] * sigma), activated]) if gated else activated
    times = len(parts)
    rows = torch.cat([columns for columns, _ in parts])
    key = _keys(rows, gamma.repeat(times, 1), norms[0], centre=centre)
    layer, score = layer.repeat(times), values.score.repeat(times)
    weight, mid = torch.full_like(score, 1 / times), torch.ones_like(layer, dtype=torch.bool)
    own = mid & (not model.shape.parallel)
    return Keys(layer, pos.repeat(times), key, x.repeat(times, 1), score, weight, mid, slope, own)


def _columns(
    W: Callable[[int], Tensor | None], b: Callable[[int], Tensor | None], index: Tensor
) -> Callable[[int, Tensor], tuple[Tensor, Tensor | None]]:
    """For `_by_layer`: the columns `index` [n] of the layers' projections as rows, and their biases."""

    def read(layer: int, units: Tensor) -> tuple[Tensor, Tensor | None]:
        matrix, bias, chosen = W(layer), b(layer), index[units].cpu()
        assert matrix is not None
        return matrix.T[chosen], None if bias is None else bias[chosen]

    return read


def _by_layer(
    read: Callable[[int, Tensor], tuple[Tensor, Tensor | None]], layer: Tensor
) -> tuple[Tensor, Tensor]:
    """What `read(layer, units)` gives for units in these layers [n], fp64, with one gather a layer.

    Rows [n, d_model] and constants [n] (None: 0).
    """
    order, parts = [], []
    for i in layer.unique().tolist():
        units = (layer == i).nonzero()[:, 0]
        rows, constants = read(i, units)
        rows = rows.to(layer.device).double()
        order.append(units)
        parts.append((rows, rows.new_zeros(len(rows)) if constants is None else constants.to(rows)))
    place = torch.cat(order).argsort()
    rows, constants = (torch.cat(part)[place] for part in zip(*parts, strict=True))
    return rows, constants


def _keys(columns: Tensor, gamma: Tensor, norm: FinalNorm, *, centre: bool) -> Tensor:
    """Columns ⊙ γ [n, d_model], their mean taken off with `centre` where the norm takes it off; fp32."""
    key = columns * gamma
    taken = centre and norm.kind == "layer"
    return (key - key.mean(dim=1, keepdim=True) if taken else key).float()


def _gamma(norms: Sequence[FinalNorm]) -> Tensor:
    """The weights of the layers' norms [n_layers, d_model], fp64."""
    return torch.stack([norm.weight.double() for norm in norms])


def _zero_or(bias: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.float64) if bias is None else bias.double()


def _scale(norms: Sequence[FinalNorm], x: Tensor) -> Tensor:
    """σ [n] of the rows of x; the norms of one model share their kind and eps."""
    return norms[0].scale(x)[:, 0]


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x == 0, 0.0, 1 / x)


def _activation(function: torch.nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """The activation and its derivative at z."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        act = function(leaf)
        (change,) = torch.autograd.grad(act.sum(), leaf)
    return act.detach(), change
