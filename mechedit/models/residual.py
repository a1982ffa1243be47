"""The residual stream of one forward pass, at the last position, and what every sub-layer wrote into it.

What is taken, and where (l counts layers):

1. `resid_pre[l]` at the block's input, `attn_out[l]` at the attention's output behind every other hook on it,
   `resid_mid[l]` at the second norm's input, `mlp_out[l]` at the MLP's output, `resid_final` at the last norm's input;
2. `pattern[l]`, `v[l]` and `mlp_post[l]`, from which heads and neurons are rebuilt;
3. `resid_pre_all[l]`, `resid_mid_all[l]` and `z[l]` at every position: what a neuron reads there, and from whom.

So, up to rounding:

    resid_pre[l] + attn_out[l] = resid_mid[l]
    resid_mid[l] + mlp_out[l]  = resid_pre[l + 1], or resid_final behind the last layer
    A(sum over heads h and positions t of pattern[l, h, t] · v[l, t, h // (H // K)] @ W_O(l)[h]  + b_O(l)) = attn_out[l]
    M(mlp_post[l, -1] @ W_out(l) + b_out(l)) = mlp_out[l]
    final_norm(resid_final) @ W_U + b_U   = logits

A and M are what a sub-layer's output passes before it is added (`mechedit.models.outlets`): nothing in most models, a
norm or a factor in some. In a parallel block, where the MLP reads resid_pre, the first line is a definition: attention
comes first, then the MLP. Under a hook that steers attn_out the third line has a rest: the steering term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from mechedit.models.bridged import BridgedModel
from mechedit.models.hooking import Hook, in_block
from mechedit.models.outlets import Gain
from mechedit.models.weights import FinalNorm
from reports.errors import IntegrityError

__all__ = ["ResidualView", "view_residual", "view_residuals"]


@dataclass(frozen=True, eq=False)
class ResidualView:
    """One prompt's forward pass, in the model's dtype, without gradients.

    Shapes: L layers, H heads, K key-value heads, T tokens, d = d_model, V = d_vocab. What has no axis T is at the last
    position.

    Attributes:
        ids: Token ids [T].
        resid_pre: The layers' inputs [L, d].
        attn_out: What attention really added to the stream [L, d], behind every hook: under a steering edit it is the
            heads' sum + b_O + the steering term.
        resid_mid: The stream between attention and MLP [L, d].
        mlp_out: What the MLPs added [L, d].
        resid_final: The final norm's input [d].
        pattern: The last position's attention to every position [L, H, T].
        v: Values [L, T, K, d_head].
        mlp_post: What W_out multiplies (act(x), or act(gate) · up) [L, T, d_mlp].
        resid_pre_all: The layers' inputs [L, T, d].
        resid_mid_all: The stream between attention and MLP [L, T, d].
        z: What W_O multiplies [L, T, H · d_head].
        logits: Of the next token [V].
        attn_scale: σ of the norm behind attention [L, T]; None where there is none.
        mlp_scale: σ of the norm behind the MLP [L, T]; None where there is none.
    """

    ids: torch.Tensor
    resid_pre: torch.Tensor
    attn_out: torch.Tensor
    resid_mid: torch.Tensor
    mlp_out: torch.Tensor
    resid_final: torch.Tensor
    pattern: torch.Tensor
    v: torch.Tensor
    mlp_post: torch.Tensor
    resid_pre_all: torch.Tensor
    resid_mid_all: torch.Tensor
    z: torch.Tensor
    logits: torch.Tensor
    attn_scale: torch.Tensor | None = None
    mlp_scale: torch.Tensor | None = None

    def attn_gain(self, model: BridgedModel, layer: int, pos: torch.Tensor | None = None) -> Gain:
        """A with its scale frozen, at the last position or at each of several, pos [n]."""
        return model.attn_outlet(layer).frozen(_scale_at(self.attn_scale, layer, pos))

    def mlp_gain(self, model: BridgedModel, layer: int, pos: torch.Tensor | None = None) -> Gain:
        """M with its scale frozen, at the last position or at each of several, pos [n]."""
        return model.mlp_outlet(layer).frozen(_scale_at(self.mlp_scale, layer, pos))


def _scale_at(scale: torch.Tensor | None, layer: int, pos: torch.Tensor | None) -> float | torch.Tensor:
    """σ of a layer [L, T]: a number at the last position, [n, 1] at pos [n]; 1 where there is no norm."""
    if scale is None:
        return 1.0
    return float(scale[layer, -1]) if pos is None else scale[layer, pos].double()[:, None]


def view_residual(model: BridgedModel, ids: torch.Tensor) -> ResidualView:
    """The `ResidualView` of one forward pass on `ids` [T]; hooks attached earlier remain active."""
    return view_residuals(model, [ids])[0]


@torch.no_grad()
def view_residuals(model: BridgedModel, sequences: Sequence[torch.Tensor]) -> list[ResidualView]:
    """One forward pass over several prompts of ids [T], padded on the left under a mask; the view of each, in order.

    Padding and batch mates change nothing but rounding. All views are slices of what the one pass left, about
    4 · n_layers · (d_model + d_mlp) bytes a token in fp32, padding included.
    """
    layers, points = range(model.shape.n_layers), _points(model)
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in (*points, "resid_final")}
    hooks: list[Hook] = [
        (in_block(layer, point), partial(_keep, kept[name], part))
        for layer in layers
        for name, (point, part) in points.items()
    ]
    scales = {
        name: outlet for name, outlet in _SCALES.items() if getattr(model, outlet[0])(0).norm is not None
    }
    for name, (outlet, point) in scales.items():
        kept[name] = []
        norms = [getattr(model, outlet)(layer).norm for layer in layers]
        hooks += [(f"blocks.{i}.{point}", partial(_keep_scale, kept[name], norms[i])) for i in layers]
    hooks.append(("ln_final.hook_in", partial(_keep, kept["resid_final"], LAST)))
    ids, mask = model.pad(sequences)
    with model.hooks(hooks):
        logits = model.run(ids, mask, logits_to_keep=1)[0][:, -1]
    if len(kept["resid_final"]) != 1:
        raise IntegrityError(
            f"residual_view: expected one forward pass, found {len(kept['resid_final'])}: something runs the model "
            "within the model's own pass, so that layers of different passes would be mixed"
        )
    stacked = {name: torch.stack(kept[name], dim=1) for name in (*points, *scales)}
    stacked["z"] = stacked["z"].flatten(3)  # some bridges have an axis of heads
    if model.shape.parallel:  # there is no such stream: it is defined
        stacked["resid_mid_all"] = stacked["resid_pre_all"] + stacked["resid_mid_all"]
    return [
        ResidualView(
            ids=ids_of_row,
            resid_pre=stacked["resid_pre_all"][row, :, -1].clone(),
            resid_mid=stacked["resid_mid_all"][row, :, -1].clone(),
            resid_final=kept["resid_final"][0][row],
            logits=logits[row].detach().to(model.device, copy=True),
            **{name: _unpadded(values[row], name, len(ids_of_row)) for name, values in stacked.items()},
        )
        for row, ids_of_row in enumerate(sequences)
    ]


def _unpadded(values: torch.Tensor, name: str, length: int) -> torch.Tensor:
    """One prompt's [L, ...] without the padding on its left, where it has an axis of tokens."""
    part = _LAYER_POINTS[name][1] if name in _LAYER_POINTS else WHOLE
    if part is LAST:
        return values
    axis = 2 if part is LAST_QUERY else 1
    return values.narrow(axis, values.shape[axis] - length, length)


Part = tuple[int | slice, ...]
WHOLE: Part = (slice(None),)  # of [B, T, ...]
LAST: Part = (slice(None), -1)  # of [B, T, d]
LAST_QUERY: Part = (slice(None), slice(None), -1)  # of [B, H, T, T]

# name in the view -> (hook point in a block, the part of it that is kept)
_LAYER_POINTS: dict[str, tuple[str, Part]] = {
    "resid_pre_all": ("hook_resid_pre", WHOLE),
    "attn_out": ("hook_attn_out", LAST),
    "resid_mid_all": ("hook_resid_mid", WHOLE),
    "z": ("attn.hook_z", WHOLE),
    "mlp_out": ("hook_mlp_out", LAST),
    "pattern": ("attn.hook_pattern", LAST_QUERY),
    "v": ("attn.hook_v", WHOLE),
    "mlp_post": ("mlp.hook_post", WHOLE),
}


# name in the view -> (whose norm it is the scale of, the norm's input)
_SCALES = {"attn_scale": ("attn_outlet", "ln1_post.hook_in"), "mlp_scale": ("mlp_outlet", "ln2_post.hook_in")}


def _points(model: BridgedModel) -> dict[str, tuple[str, Part]]:
    """What is kept of a layer; in a parallel block attn_out at all positions, of which resid_mid is made."""
    return _LAYER_POINTS | ({"resid_mid_all": ("hook_attn_out", WHOLE)} if model.shape.parallel else {})


def _keep_scale(store: list[torch.Tensor], norm: FinalNorm, tensor: torch.Tensor, hook: object) -> None:
    """σ [B, T] of a norm's input."""
    store.append(norm.scale(tensor.detach())[..., 0])


def _keep(store: list[torch.Tensor], part: Part, tensor: torch.Tensor, hook: object) -> None:
    """A copy, because the model may go on to change a tensor in place."""
    store.append(tensor[part].detach().clone())
