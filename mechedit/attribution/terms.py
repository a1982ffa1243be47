"""What each layer adds to the residual stream at the last position, term by term.

Source: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 3; weights as they are in the checkpoint.

1. Attention: `a = Σ_h Σ_pos Σ_j (A[h, last, pos] · V[pos, h, j]) · W_O[h, j, :] + b_O`. A value neuron's
   direction is one row of W_O, its coefficient the product in brackets. With grouped keys and values (GQA),
   head h reads KV head `h // (H // K)`.
2. FFN: `f = Σ_i m_i · W_out[i, :] + b_out`, with m the activation (gated: act(gate) · up).
3. Where a norm or a factor stands between a sub-layer and the stream (`mechedit.models.outlets`), every term passes it
   with the norm's scale frozen: v = G(coefficient · direction), and the sums above become G of them.
4. What a hook added on top is the difference between what really entered the residual stream and the sum
   above: the steering term. It is a component of its own, so that neither heads nor neurons are credited with
   it.

The output biases b_O and b_out belong to their sub-layer's score (a and f are what really is added) and to no
head and no neuron: they are added whatever the prompt says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from mechedit.attribution.projection import BLOCK_BYTES
from mechedit.models.hooked import HookedModel
from mechedit.models.outlets import Gain
from mechedit.models.residual import ResidualView

__all__ = [
    "KINDS",
    "Kind",
    "LayerTerms",
    "SubLayer",
    "layer_terms",
    "own_and_steering",
    "position_vectors",
    "product",
    "unit_vectors",
]

#: A kind of value neuron, by the sub-layer that it belongs to.
Kind = Literal["mlp", "attn"]
KINDS: tuple[Kind, ...] = ("mlp", "attn")

# A difference of this many units in the last place of the sum's terms is rounding, not an intervention. (In
# fp32 1e-5 of the terms' size; in bf16 6 %: there a weaker steering term stays inside its sub-layer's score.)
_ULPS = 64
_ULPS_HALF = 8


@dataclass(frozen=True)
class SubLayer:
    """One sub-layer's output at the last position.

    Attributes:
        output: The sum of its terms and its bias [d_model].
        steering: What a hook added [d_model]; None without a hook.
        directions: A unit's direction a row [n, d_model].
        coefficients: What each direction is multiplied by [n, m].
        gain: What a term passes on its way into the stream: unit (i, j) adds gain(coefficients[i, j] · directions[i]).
    """

    output: Tensor
    steering: Tensor | None
    directions: Tensor
    coefficients: Tensor
    gain: Gain = field(default_factory=Gain)

    def product(self, keys: Tensor) -> Tensor:
        """`gain(directions) @ keys` [n, m] for keys [d_model, m]; no row of the weights is copied."""
        return product(self.directions, self.gain.pull(keys.T).T)

    def written(self) -> Tensor:
        """`gain(directions)` [n, d_model]: the directions themselves where nothing stands behind them, else a copy."""
        return self.gain(self.directions)


@dataclass(frozen=True)
class LayerTerms:
    """The residual stream of a layer at the last position, and what each sub-layer adds to it.

    Attributes:
        layer: Which layer.
        x_pre: The residual before attention [d_model].
        x_mid: The residual before the FFN [d_model].
        attn: Directions are the rows of W_O [n_heads · d_head, d_model], with coefficients [n_heads · d_head, T], one
            column a source position.
        mlp: Directions are the rows of W_out [d_mlp, d_model], with coefficients [d_mlp, 1].
        n_heads: How many heads the layer has.
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
        return self.attn.gain(torch.einsum("hj,hjd->hd", coefficients, directions))

    def positions(self, head: int) -> Tensor:
        """The terms of one head's sum, one for each source position, [T, d_model]."""
        coefficients = self.attn.coefficients.unflatten(0, (self.n_heads, -1))[head]
        directions = self.attn.directions.unflatten(0, (self.n_heads, -1))[head]
        return self.attn.gain(coefficients.T @ directions.to(coefficients))


def layer_terms(model: HookedModel, view: ResidualView) -> Iterator[LayerTerms]:
    """The terms of all layers, in order.

    Sums are fp64, coefficients fp32 (fp64 for fp64 weights); directions are views of the weights, not copies.
    """
    shape = model.shape
    group = shape.n_heads // shape.n_kv_heads
    for layer in range(shape.n_layers):
        values = view.v[layer].double().repeat_interleave(group, dim=1)  # [T, H, d_head]
        weighted = view.pattern[layer].double()[:, :, None] * values.transpose(0, 1)  # [H, T, d_head]
        coefficients = weighted.transpose(1, 2).flatten(0, 1)  # [H · d_head, T]
        W_O = model.W_O(layer).flatten(0, 1)
        attn = _sub_layer(
            view.attn_out[layer],
            W_O,
            coefficients,
            model.b_O(layer),
            gain=view.attn_gain(model, layer),
            shift=model.attn_outlet(layer).shift,
        )
        activation = view.mlp_post[layer, -1].double()[:, None]
        mlp = _sub_layer(
            view.mlp_out[layer],
            model.W_out(layer),
            activation,
            model.b_out(layer),
            gain=view.mlp_gain(model, layer),
            shift=model.mlp_outlet(layer).shift,
        )
        x_pre, x_mid = view.resid_pre[layer].double(), view.resid_mid[layer].double()
        yield LayerTerms(layer, x_pre, x_mid, attn, mlp, shape.n_heads)


def _working(weights: Tensor) -> torch.dtype:
    """What sums over these weights are taken in: at least fp32."""
    return torch.promote_types(weights.dtype, torch.float32)


def _sub_layer(
    added: Tensor,
    directions: Tensor,
    coefficients: Tensor,
    bias: Tensor | None,
    *,
    gain: Gain,
    shift: Tensor | None,
) -> SubLayer:
    """What was `added` [d_model] to the residual, split into the sub-layer's own sum and the steering term."""
    weights = coefficients.sum(dim=1)[None]
    output, steering = own_and_steering(added[None], directions, weights, bias, gain=gain, shift=shift)
    coefficients = coefficients.to(_working(directions))
    return SubLayer(output[0], None if steering is None else steering[0], directions, coefficients, gain)


def own_and_steering(
    added: Tensor,
    directions: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    *,
    gain: Gain,
    shift: Tensor | None,
    stream: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What was added to the residual at some positions, as the sub-layer's own sum and what a hook put on top.

    Args:
        added: What really was added [n, d_model].
        directions: A unit's direction a row [rows, d_model].
        weights: What each is multiplied by, at each position [n, rows].
        bias: The sub-layer's [d_model], or None.
        gain: What a sum passes on its way into the stream, at those positions.
        shift: What is added behind it [d_model], or None.
        stream: Of what `added` is a difference [n, d_model], whose rounding it has; None: it was read itself.

    Returns:
        Both fp64 [n, d_model]. Without steering None, and the first is `added`.
    """
    precision = max((torch.finfo(x.dtype) for x in (added, directions)), key=lambda info: info.eps)
    limit = (_ULPS if precision.bits > 16 else _ULPS_HALF) * precision.eps
    added = added.double()
    rounding = 0.0 if stream is None else stream.double().norm(dim=1)

    def passed(x: Tensor) -> Tensor:
        """What becomes of a sum over the terms on its way into the stream."""
        x = x if bias is None else x + bias.to(x.device).double()
        return gain(x) if shift is None else gain(x) + shift.to(x.device)

    # The terms' size is at least the sum's: where a quick sum is near enough, the careful one is too.
    quick = passed((weights.to(directions.device, directions.dtype) @ directions).to(added.device).double())
    if bool(((added - quick).norm(dim=1) <= limit * (quick.norm(dim=1) + rounding)).all()):
        return added, None
    output, size = _weighted_sum(weights.double(), directions)
    output, size = passed(output), gain(size if bias is None else size + bias.to(size.device).double().abs())
    steering = added - output
    steered = steering.norm(dim=1) > limit * (size.norm(dim=1) + rounding)
    if not bool(steered.any()):
        return added, None
    return torch.where(steered[:, None], output, added), torch.where(steered[:, None], steering, 0.0)


def _weighted_sum(weights: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """`Σ_i w_i r_i` and `Σ_i |w_i r_i|` [n, d_model] in fp64 for weights [n, rows], some rows r at a time."""
    total = weights.new_zeros(len(weights), directions.shape[1])
    size = torch.zeros_like(total)
    height = max(1, BLOCK_BYTES // (2 * total.element_size() * directions.shape[1]))
    for w, r in zip(weights.split(height, dim=1), directions.split(height), strict=True):
        block = r.to(w.device).double()
        total += w @ block
        size += w.abs() @ block.abs()
    return total, size


def product(directions: Tensor, keys: Tensor) -> Tensor:
    """`directions` [n, d_model] times `keys` [d_model, m].

    Computed on the device of the directions and returned on that of the keys; half-precision directions are cast some
    rows at a time.
    """
    dtype, home = _working(directions), keys.device
    rows = keys.T.to(directions.device, dtype)
    if (
        directions.dtype == dtype
    ):  # turned: twice as fast for a few keys where the weights are a transposed view
        return (rows @ directions.T).T.to(home)
    height = max(1, BLOCK_BYTES // (4 * directions.shape[1]))
    return torch.cat([rows @ part.to(dtype).T for part in directions.split(height)], dim=1).T.to(home)


def unit_vectors(sub_layers: Sequence[SubLayer], layer: Tensor, index: Tensor, *, columns: int) -> Tensor:
    """The vectors [n, d_model] that units add to the residual stream: each a direction times its coefficient.

    Args:
        sub_layers: One kind of sub-layer, in all layers.
        layer: The units' layers [n].
        index: The units' places in the flattened coefficients of their layer [n].
        columns: The width of a row that `index` counts with. A sub-layer with fewer columns adds nothing at those that
            it does not have.
    """
    first = sub_layers[0]
    vectors = first.coefficients.new_empty(len(layer), first.directions.shape[1])
    for i in layer.unique().tolist():
        in_layer = layer == i
        vectors[in_layer.to(vectors.device)] = _vectors(sub_layers[i], index[in_layer], columns).to(
            vectors.device
        )
    return vectors


def _vectors(sub_layer: SubLayer, index: Tensor, columns: int) -> Tensor:
    index = index.to(sub_layer.coefficients.device)
    row, column = index // columns, index % columns
    coefficients = sub_layer.coefficients
    chosen = pad(coefficients, (0, columns - coefficients.shape[1]))[row, column]
    directions = sub_layer.directions[row.to(sub_layer.directions.device)].to(chosen)
    return sub_layer.gain(chosen[:, None] * directions)


def position_vectors(terms: Sequence[LayerTerms], layer: Tensor, head: Tensor, pos: Tensor) -> Tensor:
    """What heads [n] add from source positions [n], as vectors [n, d_model]; zero where there is no such position."""
    coefficients = terms[0].attn.coefficients
    vectors = coefficients.new_zeros(len(layer), terms[0].attn.directions.shape[1])
    for i, j in torch.stack([layer, head], dim=1).unique(dim=0).tolist():
        rows = (layer == i) & (head == j) & (pos < coefficients.shape[1])
        vectors[rows.to(vectors.device)] = terms[i].positions(j)[pos[rows]].to(vectors)
    return vectors
