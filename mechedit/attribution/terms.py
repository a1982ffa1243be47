"""What each layer adds to the residual stream at the last position, term by term.

Source: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 3; weights as they are in the checkpoint.

1. Attention: `a = Σ_h Σ_pos Σ_j (A[h, last, pos] · V[pos, h, j]) · W_O[h, j, :] + b_O`. A value neuron's
   direction is one row of W_O, its coefficient the product in brackets. With grouped keys and values (GQA),
   head h reads KV head `h // (H // K)`.
2. FFN: `f = Σ_i m_i · W_out[i, :] + b_out`, with m the activation (gated: act(gate) · up).
3. What a hook added on top is the difference between what really entered the residual stream and the sum
   above: the steering term. It is a component of its own, so that neither heads nor neurons are credited with
   it.

The output biases b_O and b_out belong to their sub-layer's score (a and f are what really is added) and to no
head and no neuron: they are there whatever the prompt says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mechedit.attribution.projection import BLOCK_BYTES
from mechedit.models.hooked import HookedModel, ResidualView

__all__ = ["LayerTerms", "SubLayer", "layer_terms", "product"]

# A difference of this many units in the last place of the sum's terms is rounding, not an intervention. (In
# fp32 1e-5 of the terms' size; in bf16 6 %: there a weaker steering term stays inside its sub-layer's score.)
_ULPS = 64
_ULPS_HALF = 8


@dataclass(frozen=True)
class SubLayer:
    """One sub-layer's output at the last position: `output` = its own terms + bias, `steering` = what a hook
    added.

    `output`, `steering` [d_model] (None without a hook), `directions` [n, d_model], `coefficients` [n, m].
    """

    output: Tensor
    steering: Tensor | None
    directions: Tensor
    coefficients: Tensor


@dataclass(frozen=True)
class LayerTerms:
    """Layer `layer`: the residual before attention and before the FFN [d_model], and what each sub-layer
    adds.

    `attn.directions` are the rows of W_O, [n_heads · d_head, d_model], with coefficients [n_heads · d_head,
    T], one column a source position; `mlp.directions` is W_out [d_mlp, d_model] with coefficients [d_mlp, 1].
    """

    layer: int
    x_pre: Tensor
    x_mid: Tensor
    attn: SubLayer
    mlp: SubLayer
    n_heads: int

    def heads(self) -> Tensor:
        """`Σ_pos Σ_j A[h, last, pos] · V[pos, h, j] · W_O[h, j, :]`, [n_heads, d_model]."""
        coefficients = self.attn.coefficients.sum(dim=1).unflatten(0, (self.n_heads, -1))
        directions = self.attn.directions.to(coefficients).unflatten(0, (self.n_heads, -1))
        return torch.einsum("hj,hjd->hd", coefficients, directions)

    def positions(self, head: int) -> Tensor:
        """The terms of one head's sum, one for each source position, [T, d_model]."""
        coefficients = self.attn.coefficients.unflatten(0, (self.n_heads, -1))[head]
        directions = self.attn.directions.unflatten(0, (self.n_heads, -1))[head]
        return coefficients.T @ directions.to(coefficients)


def layer_terms(model: HookedModel, view: ResidualView) -> Iterator[LayerTerms]:
    """The layers' terms in order. Sums are fp64, coefficients fp32 (fp64 for fp64 weights); directions are
    views of the weights (no copy)."""
    shape = model.shape
    group = shape.n_heads // shape.n_kv_heads
    for layer in range(shape.n_layers):
        values = view.v[layer].double().repeat_interleave(group, dim=1)  # [T, H, d_head]
        weighted = view.pattern[layer].double()[:, :, None] * values.transpose(0, 1)  # [H, T, d_head]
        coefficients = weighted.transpose(1, 2).flatten(0, 1)  # [H · d_head, T]
        W_O = model.W_O(layer).flatten(0, 1)
        attn = _sub_layer(view.attn_out[layer], W_O, coefficients, model.b_O(layer))
        activation = view.mlp_post[layer, -1].double()[:, None]
        mlp = _sub_layer(view.mlp_out[layer], model.W_out(layer), activation, model.b_out(layer))
        x_pre, x_mid = view.resid_pre[layer].double(), view.resid_mid[layer].double()
        yield LayerTerms(layer, x_pre, x_mid, attn, mlp, shape.n_heads)


def _working(weights: Tensor) -> torch.dtype:
    """What sums over these weights are taken in: at least fp32."""
    return torch.promote_types(weights.dtype, torch.float32)


def _sub_layer(added: Tensor, directions: Tensor, coefficients: Tensor, bias: Tensor | None) -> SubLayer:
    """Split what was `added` [d_model] to the residual into the sub-layer's own sum and the steering term."""
    weights = coefficients.sum(dim=1)
    precision = torch.finfo(added.dtype)
    limit = (_ULPS if precision.bits > 16 else _ULPS_HALF) * precision.eps
    # The terms' size is at least the sum's: where a quick sum is near enough, the careful one is too.
    bias = None if bias is None else bias.to(weights.device).double()
    quick = (weights.to(directions.device, directions.dtype) @ directions).to(weights.device).double()
    quick = quick if bias is None else quick + bias
    if (added.double() - quick).norm() <= limit * quick.norm():
        return SubLayer(added.double(), None, directions, coefficients.to(_working(directions)))
    own, terms = _weighted_sum(weights, directions)
    if bias is not None:
        own, terms = own + bias, terms + bias.abs()
    steering = added.double() - own
    if steering.norm() <= limit * terms.norm():
        return SubLayer(added.double(), None, directions, coefficients.to(_working(directions)))
    return SubLayer(own, steering, directions, coefficients.to(_working(directions)))


def _weighted_sum(weights: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """`Σ_i w_i r_i` and `Σ_i |w_i r_i|` [d_model] in fp64 over the rows r of `directions`, some rows at a
    time."""
    total = weights.new_zeros(directions.shape[1])
    size = torch.zeros_like(total)
    height = max(1, BLOCK_BYTES // (2 * total.element_size() * directions.shape[1]))
    for w, r in zip(weights.split(height), directions.split(height), strict=True):
        block = r.to(w.device).double()
        total += w @ block
        size += w.abs() @ block.abs()
    return total, size


def product(directions: Tensor, keys: Tensor) -> Tensor:
    """`directions` [n, d_model] times `keys` [d_model, m], [n, m]: computed where the weights lie, given back where the
    keys do; half-precision weights are cast some rows at a time."""
    dtype, home = _working(directions), keys.device
    keys = keys.to(directions.device, dtype)
    if directions.dtype == dtype:
        return (directions @ keys).to(home)
    height = max(1, BLOCK_BYTES // (4 * directions.shape[1]))
    return torch.cat([rows.to(dtype) @ keys for rows in directions.split(height)]).to(home)
