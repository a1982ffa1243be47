"""The residual stream of one forward pass, at the last position, and what every sub-layer wrote into it.

What is taken, and where (l counts layers):

1. `resid_pre[l]` at the block's input, `attn_out[l]` at the attention's output behind every other hook on it,
   `resid_mid[l]` at the second norm's input, `mlp_out[l]` at the MLP's output, `resid_final` at the last norm's input;
2. `pattern[l]`, `v[l]` and `mlp_post[l]`, from which heads and neurons are rebuilt;
3. `resid_pre_all[l]`, `resid_mid_all[l]` and `z[l]` at every position: what a neuron reads there, and from whom.

So, up to rounding:

    resid_pre[l] + attn_out[l] = resid_mid[l]
    resid_mid[l] + mlp_out[l]  = resid_pre[l + 1], or resid_final behind the last layer
    sum over heads h and positions t of pattern[l, h, t] · v[l, t, h // (H // K)] @ W_O(l)[h]  + b_O(l) = attn_out[l]
    mlp_post[l, -1] @ W_out(l) + b_out(l) = mlp_out[l]
    final_norm(resid_final) @ W_U + b_U   = logits

Under a hook that steers attn_out the third line has a rest: the steering term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from mechedit.models.bridged import BridgedModel
from mechedit.models.hooking import Hook

__all__ = ["ResidualView", "view_residual", "view_residuals"]


@dataclass(frozen=True, eq=False)
class ResidualView:
    """One prompt's forward pass; all at the last position unless said, in the model's dtype, without gradients.

    Shapes: L layers, H heads, K key-value heads, T tokens, d = d_model, V = d_vocab.

    ids [T]; resid_pre, attn_out, resid_mid, mlp_out [L, d]; resid_final [d], before the final norm;
    pattern [L, H, T], the last position's attention to every position; v [L, T, K, d_head];
    mlp_post [L, T, d_mlp], what W_out multiplies (act(x), or act(gate) · up), at every position;
    resid_pre_all, resid_mid_all [L, T, d] and z [L, T, H · d_head] (what W_O multiplies), at every position;
    logits [V].

    `attn_out` is what was really added to the stream, behind every hook: under a steering edit it is the heads'
    sum + b_O + the steering term.
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


def view_residual(model: BridgedModel, ids: torch.Tensor) -> ResidualView:
    """Run `model` once on `ids` [T] and keep what `ResidualView` holds; hooks already on the model stay on."""
    return view_residuals(model, [ids])[0]


@torch.no_grad()
def view_residuals(model: BridgedModel, sequences: Sequence[torch.Tensor]) -> list[ResidualView]:
    """One forward pass over several prompts of ids [T], padded on the left under a mask; the view of each, in order.

    Padding and batch mates change nothing but rounding. All views are slices of what the one pass left, about
    4 · n_layers · (d_model + d_mlp) bytes a token in fp32, padding included.
    """
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in (*_LAYER_POINTS, "resid_final")}
    hooks: list[Hook] = [
        (f"blocks.{layer}.{point}", partial(_keep, kept[name], part))
        for layer in range(model.shape.n_layers)
        for name, (point, part) in _LAYER_POINTS.items()
    ]
    hooks.append(("ln_final.hook_in", partial(_keep, kept["resid_final"], LAST)))
    ids, mask = model.pad(sequences)
    with model.hooks(hooks):
        logits = model.run(ids, mask, logits_to_keep=1)[0][:, -1]
    # where layers lie on several devices, what they wrote is gathered where the unembedding is
    home = model.device
    stacked = {name: torch.stack([part.to(home) for part in kept[name]], dim=1) for name in _LAYER_POINTS}
    stacked["z"] = stacked["z"].flatten(3)  # some bridges keep the heads apart
    return [
        ResidualView(
            ids=own,
            resid_pre=stacked["resid_pre_all"][row, :, -1].clone(),
            resid_mid=stacked["resid_mid_all"][row, :, -1].clone(),
            resid_final=kept["resid_final"][0][row].to(home),
            logits=logits[row].detach().to(home, copy=True),
            **{name: _unpadded(values[row], name, len(own)) for name, values in stacked.items()},
        )
        for row, own in enumerate(sequences)
    ]


def _unpadded(values: torch.Tensor, name: str, length: int) -> torch.Tensor:
    """One prompt's [L, ...] without the padding on its left, where it has an axis of tokens."""
    part = _LAYER_POINTS[name][1]
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


def _keep(store: list[torch.Tensor], part: Part, tensor: torch.Tensor, hook: object) -> None:
    """A copy, because the model may go on to change a tensor in place."""
    store.append(tensor[part].detach().clone())
