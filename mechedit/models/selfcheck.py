"""Is this model what the rest of the package takes it for? One small forward pass, after loading.

Checked, in this order:

1. the parts are there: attention with v and o, an MLP with in and out, in every block;
2. the bridge's logits equal the plain Hugging Face model's, alone and in a padded batch, with sliding windows made so
   narrow that they count;
3. every hook point that `ResidualView` reads fires (`HookedModel.hooks` fails otherwise), and z too;
4. the view adds up (see `mechedit.models.residual`): sub-layers to the residual stream, heads to attn_out, neurons to
   mlp_out, the final norm and W_U to the logits;
5. values and neurons read the stream as their norms and weights say.

An architecture that passes is one whose numbers mean what attribution and edits take them for, whatever its name. One
that does not is refused with the property that an identity failed for (`PROPERTIES`).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from mechedit.models.bridged import BridgedModel
from mechedit.models.hooking import in_block
from mechedit.models.masks import narrow_windows
from mechedit.models.residual import ResidualView, view_residual
from mechedit.models.weights import FinalNorm, bias, matrix
from reports.errors import InputError, IntegrityError

__all__ = ["TOLERANCE", "check_loaded", "conservation", "share_off"]

#: Largest difference allowed, as a share of the largest value compared; fp32 agrees to about 1e-6. Of a float64 model
#: transformers computes norms, rotations and softmax in fp32.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


# What a model does for which an identity fails.
PROPERTIES = {
    "resid_pre + attn_out = resid_mid": "something besides attention writes to its residual stream before the MLP",
    "resid_mid + mlp_out = the next resid_pre": "something besides attention and MLP writes to its residual stream",
    "heads + b_O = attn_out": "its attention's output is not the sum of its heads'",
    "mlp_post @ W_out + b_out = mlp_out": "its MLP's output is not the sum of its neurons'",
    "final_norm(resid_final) @ W_U + b_U = logits": "its logits are not linear in the normed residual stream",
    "norm1(resid_pre) @ W_V + b_V = v": "its values are not linear in the normed residual stream",
    "act(norm2(resid) @ W_in + b_in) = mlp_post": "its neurons are no activation of the normed residual stream",
}


def check_loaded(
    model: BridgedModel, *, probe: torch.Tensor | None = None, reference: torch.Tensor | None = None
) -> None:
    """Run the checks above.

    Args:
        model: The loaded model.
        probe: Token ids [T]; None: six, spread over the vocabulary.
        reference: The plain model's logits on them [T, V]; None: check 2 is left out.

    Raises:
        InputError: The architecture's residual view does not add up.
        IntegrityError: The logits differ from the plain model's.
    """
    ids = torch.linspace(0, model.shape.d_vocab - 1, 6).long().to(model.device) if probe is None else probe
    if reference is not None:
        _check_logits(model, ids, reference)
    z: list[torch.Tensor] = []
    names = [in_block(layer, "attn.hook_z") for layer in range(model.shape.n_layers)]
    with model.hooks([(name, lambda t, hook: z.append(t)) for name in names]):
        view = view_residual(model, ids)
    for identities in (conservation, reads):
        for identity, (total, expected) in identities(model, view).items():
            error = share_off(total, expected)
            if not error <= TOLERANCE[model.dtype]:
                raise InputError(
                    f"model: {model.shape.architecture} is not supported: {PROPERTIES[identity]} ({identity} is off by "
                    f"{error:.1e} of the largest value)"
                )


def conservation(model: BridgedModel, view: ResidualView) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The identities of `mechedit.models.residual`, by name: (what the parts add up to, what the model computed).

    They hold for a model without a steering hook; under one the heads' sum lacks the steering term.
    """
    layers = range(model.shape.n_layers)
    following = torch.cat([view.resid_pre[1:], view.resid_final[None]])
    heads = torch.stack([model.attn_outlet(i)(_heads_output(model, view, i)) for i in layers])
    neurons = torch.stack(
        [
            model.mlp_outlet(i)(_plus(_times(view.mlp_post[i, -1], model.W_out(i)), model.b_out(i)))
            for i in layers
        ]
    )
    return {
        "resid_pre + attn_out = resid_mid": (view.resid_pre + view.attn_out, view.resid_mid),
        "resid_mid + mlp_out = the next resid_pre": (view.resid_mid + view.mlp_out, following),
        "heads + b_O = attn_out": (heads, view.attn_out),
        "mlp_post @ W_out + b_out = mlp_out": (neurons, view.mlp_out),
        "final_norm(resid_final) @ W_U + b_U = logits": (
            _plus(model.final_norm(view.resid_final) @ model.W_U, model.b_U),
            view.logits,
        ),
    }


@torch.no_grad()
def reads(model: BridgedModel, view: ResidualView) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What the sub-layers read, by name: (what their norms and weights make of the stream, what the model had).

    They say what a key is (`mechedit.attribution.circuits.keys`).
    """
    layers = range(model.shape.n_layers)
    v = torch.stack(
        [_read(model.norm1(i), view.resid_pre_all[i], model.bridge.blocks[i].attn.v) for i in layers]
    )
    inputs = view.resid_pre_all if model.shape.parallel else view.resid_mid_all
    posts = []
    for i in layers:
        mlp, normed = model.bridge.blocks[i].mlp, inputs[i]
        post = _read(model.norm2(i), normed, getattr(mlp, "in"))
        gate = None if not model.shape.gated else model.act_fn(_read(model.norm2(i), normed, mlp.gate))
        posts.append(model.act_fn(post) if gate is None else gate * post)
    return {
        "norm1(resid_pre) @ W_V + b_V = v": (v, view.v.flatten(2)),
        "act(norm2(resid) @ W_in + b_in) = mlp_post": (torch.stack(posts), view.mlp_post),
    }


def _read(norm: FinalNorm, x: torch.Tensor, projection: Any) -> torch.Tensor:
    """norm(x) @ W + b of a bridged projection."""
    return _plus(_times(norm(x), matrix(projection)), bias(projection))


def _heads_output(model: BridgedModel, view: ResidualView, layer: int) -> torch.Tensor:
    """Σ_{h,t} pattern[h, t] · v[t, h // (H // K)] @ W_O[h] + b_O, [d_model], at the last position."""
    group = model.shape.n_heads // model.shape.n_kv_heads
    v = view.v[layer].repeat_interleave(group, dim=1)  # [T, H, d_head]
    z = torch.einsum("ht,thd->hd", view.pattern[layer], v)
    return _plus(_times(z.flatten(), model.W_O(layer).flatten(0, 1)), model.b_O(layer))


@torch.no_grad()
def _check_logits(model: BridgedModel, ids: torch.Tensor, reference: torch.Tensor) -> None:
    half = len(ids) // 2
    with narrow_windows(model.hf.config):  # as the reference is
        alone = model.forward(ids[None], torch.ones_like(ids)[None])[0]
        padded = model.run(*model.pad([ids, ids[:half]]), logits_to_keep=1)[0][:, -1]
    pairs = {"alone": (alone, reference), "in a padded batch": (padded, reference[[-1, half - 1]])}
    for where, (logits, expected) in pairs.items():
        error = share_off(logits, expected)
        if not error <= TOLERANCE[model.dtype]:
            raise IntegrityError(
                f"model: the bridged {model.shape.architecture} does not compute what the plain one does: logits "
                f"{where} are off by {error:.1e} of the largest; this architecture cannot be used"
            )


def share_off(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the largest expected value; nan and inf fail every comparison with <=."""
    difference, size = (
        float((value.double() - expected.double()).abs().max()),
        float(expected.double().abs().max()),
    )
    return 0.0 if difference == size == 0 else difference / size if size else math.inf


def _plus(x: torch.Tensor, constant: torch.Tensor | None) -> torch.Tensor:
    return x if constant is None else x + constant.to(x.device)


def _times(x: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
    """X @ W, computed where W is and given where x is."""
    return (x.to(W.device) @ W).to(x.device)
