"""What the best value neurons read, and how much of it is each source's.

Source: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 3.

1. An attention value neuron (l, h, j, pos) reads x_pre^l[pos] with the key k = W_V^l[:, h, j] ⊙ γ_ln1^l (grouped
   heads: the column of the head's group); an FFN value neuron (l, i) reads x_mid^l at the last position with
   k = W_in^l[:, i] ⊙ γ_ln2^l. A gated FFN neuron has two keys, up and gate.
2. Its read is x · k. LayerNorm takes the mean off x, which is the same as taking it off the key: `centre` does
   so, and then (x · k) / σ is what the neuron's input really is, but for the constant of the biases.
3. x is a sum of sources, so a source c has the share (c · k) / (x · k) of the read, and the shares sum to 1.

The shares are exact: take c out of the neuron's input, hold σ still, and the read falls by that share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechedit.attribution.neurons import Ranked

if TYPE_CHECKING:
    from mechedit.model import HookedModel, ResidualView

__all__ = ["GUARD", "Keys", "attention_keys", "mlp_keys"]

#: The least cosine between residual and key that a denominator is taken at.
GUARD = 0.05


@dataclass(frozen=True, eq=False)
class Keys:
    """n keys of value neurons: `key` [n, d_model] (fp32) reads x [n, d_model] at `pos` [n] in `layer` [n], before the
    FFN where `mid` [n] says so, else before attention; `score` [n] is its value neuron's, `weight` [n] the part of it
    that the key stands for (a half for each of a gated neuron's two)."""

    layer: Tensor
    pos: Tensor
    key: Tensor
    x: Tensor
    score: Tensor
    weight: Tensor
    mid: Tensor

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
    length, width = len(view.ids), model.shape.d_head
    pairs = list(zip(values.layer.tolist(), (values.index // length).tolist(), strict=True))
    columns = [model.W_V(layer)[unit // width, :, unit % width] for layer, unit in pairs]
    gammas = [model.ln1(layer) for layer, _ in pairs]
    pos = values.index % length
    x = view.resid_pre_all[values.layer, pos].double()
    key = _keys(columns, gammas, centre=centre and model.shape.norm == "layer")
    ones = torch.ones_like(values.score)
    return Keys(values.layer, pos, key, x, values.score, ones, torch.zeros_like(pos, dtype=torch.bool))


def mlp_keys(model: HookedModel, view: ResidualView, values: Ranked, *, centre: bool) -> Keys:
    """The keys of FFN value neurons; of gated ones first all up keys, then all gate keys."""
    pairs = list(zip(values.layer.tolist(), values.index.tolist(), strict=True))
    columns = [model.W_in(layer)[:, i] for layer, i in pairs]
    gates = [(model.W_gate(layer), i) for layer, i in pairs]
    columns += [gate[:, i] for gate, i in gates if gate is not None]
    times = len(columns) // max(1, len(pairs))
    gammas = [model.ln2(layer) for layer, _ in pairs] * times
    key = _keys(columns, gammas, centre=centre and model.shape.norm == "layer")
    layer, score = values.layer.repeat(times), values.score.repeat(times)
    pos = torch.full_like(layer, len(view.ids) - 1)
    x = view.resid_mid[layer].double()
    weight, mid = torch.full_like(score, 1 / times), torch.ones_like(pos, dtype=torch.bool)
    return Keys(layer, pos, key, x, score, weight, mid)


def _keys(columns: Sequence[Tensor], gammas: Sequence[Tensor], *, centre: bool) -> Tensor:
    key = torch.stack([c.double() * g.double() for c, g in zip(columns, gammas, strict=True)])
    return (key - key.mean(dim=1, keepdim=True) if centre else key).float()
