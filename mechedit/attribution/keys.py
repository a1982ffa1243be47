"""What the best value neurons read, and how much of it is each source's.

Source: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 3.

1. An attention value neuron (l, h, j, pos) reads x_pre^l[pos] with the key k = W_V^l[:, h, j] ⊙ γ_ln1^l (grouped
   heads: the column of the head's group); an FFN value neuron (l, i) reads x_mid^l at the last position with
   k = W_in^l[:, i] ⊙ γ_ln2^l. A gated FFN neuron has two keys, up and gate.
2. Its read is x · k. LayerNorm takes the mean off x, which is the same as taking it off the key: `centre` does
   so, and then (x · k) / σ is what the neuron's input really is, but for the constant of the biases.
3. x is a sum of sources, so a source c has the share (c · k) / (x · k) of the read, and the shares sum to 1.

The shares are exact: take c out of the neuron's input, hold σ still, and the read falls by that share. What the
neuron's coefficient does then is `slope`, to first order: its relative change by a unit of read. For attention, whose
coefficient A · V is linear in the read, 1 / (σ V); for an FFN neuron act'(z) / (act(z) σ) at its input z, and for the
up key of a gated one 1 / (z σ).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechedit.attribution.neurons import Ranked

if TYPE_CHECKING:
    from mechedit.model import FinalNorm, HookedModel, ResidualView

__all__ = ["GUARD", "Keys", "attention_keys", "mlp_keys"]

#: The least cosine between residual and key that a denominator is taken at.
GUARD = 0.05


@dataclass(frozen=True, eq=False)
class Keys:
    """n keys of value neurons: `key` [n, d_model] (fp32) reads x [n, d_model] at `pos` [n] in `layer` [n], before the
    FFN where `mid` [n] says so, else before attention; `score` [n] is its value neuron's, `weight` [n] the part of it
    that the key stands for (a half for each of a gated neuron's two), `slope` [n] ∂ log coefficient / ∂ read (0 where
    the coefficient is 0)."""

    layer: Tensor
    pos: Tensor
    key: Tensor
    x: Tensor
    score: Tensor
    weight: Tensor
    mid: Tensor
    slope: Tensor

    @property
    def read(self) -> Tensor:
        """x · k [n], fp64."""
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
        own = self.mid & (self.layer == layer)  # an FFN reads behind its own layer's attention
        return (self.layer > layer) | own if attention else self.layer > layer

    def join(self, other: Keys) -> Keys:
        """These keys, then the others."""
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return Keys(*(torch.cat(pair) for pair in pairs))


def attention_keys(model: HookedModel, view: ResidualView, values: Ranked, *, centre: bool) -> Keys:
    """The keys of attention value neurons; `centre`: as LayerNorm reads, without the mean."""
    length, width, shape = len(view.ids), model.shape.d_head, model.shape
    layer, pos = values.layer, values.index % length
    unit = values.index // length
    pairs = list(zip(layer.tolist(), unit.tolist(), strict=True))
    columns = [model.W_V(i)[n // width, :, n % width] for i, n in pairs]
    norms = [model.norm1(i) for i, _ in pairs]
    x = view.resid_pre_all[layer, pos].double()
    v = view.v[layer, pos, unit // width // (shape.n_heads // shape.n_kv_heads), unit % width].double()
    slope = _inverse(v * _scale(norms, x))
    weight, mid = torch.ones_like(values.score), torch.zeros_like(pos, dtype=torch.bool)
    return Keys(layer, pos, _keys(columns, norms, centre=centre), x, values.score, weight, mid, slope)


def mlp_keys(
    model: HookedModel, view: ResidualView, values: Ranked, *, centre: bool, pos: Tensor | None = None
) -> Keys:
    """The keys of FFN value neurons at `pos` [n] (None: the last position); of gated ones first all up keys, then all
    gate keys."""
    pairs = list(zip(values.layer.tolist(), values.index.tolist(), strict=True))
    up = [_column(model.W_in(i), model.b_in(i), n) for i, n in pairs]
    gates = [(model.W_gate(i), model.b_gate(i), n) for i, n in pairs]
    gate = [_column(W, b, n) for W, b, n in gates if W is not None]
    pos = torch.full_like(values.layer, len(view.ids) - 1) if pos is None else pos
    x = view.resid_mid_all[values.layer, pos].double()
    norms = [model.norm2(i) for i, _ in pairs]
    sigma, times = _scale(norms, x), 1 + bool(gate)
    normed = norms[0].centre(x) / sigma[:, None] * torch.stack([norm.weight.double() for norm in norms])
    normed = normed + torch.stack([_zero_or(norm.bias, norm.weight) for norm in norms])
    inputs = [
        (normed * torch.stack([c for c, _ in part])).sum(1) + torch.stack([b for _, b in part])
        for part in (up, gate)[:times]
    ]
    act, change = _activation(model.act_fn, inputs[-1])
    bent = change * _inverse(act * sigma)  # through the activation: the gate's, or the only key's
    slope = torch.cat([_inverse(inputs[0] * sigma), bent]) if gate else bent
    layer, score = values.layer.repeat(times), values.score.repeat(times)
    key = _keys([column for column, _ in up + gate], norms * times, centre=centre)
    weight, mid = torch.full_like(score, 1 / times), torch.ones_like(layer, dtype=torch.bool)
    return Keys(layer, pos.repeat(times), key, x.repeat(times, 1), score, weight, mid, slope)


def _column(W: Tensor, b: Tensor | None, i: int) -> tuple[Tensor, Tensor]:
    """Column i of a projection, and its bias; fp64."""
    column = W[:, i].double()
    return column, column.new_zeros(()) if b is None else b[i].double()


def _keys(columns: Sequence[Tensor], norms: Sequence[FinalNorm], *, centre: bool) -> Tensor:
    key = torch.stack([c.double() * n.weight.double() for c, n in zip(columns, norms, strict=True)])
    taken = centre and norms[0].kind == "layer"
    return (key - key.mean(dim=1, keepdim=True) if taken else key).float()


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
