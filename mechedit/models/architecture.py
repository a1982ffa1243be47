"""What a bridge must have and must not have, read off the bridge alone: parts, hook points, raw weights."""

from __future__ import annotations

from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from mechedit.models.hooking import in_block
from mechedit.models.norms import norm_form
from reports.errors import InputError

__all__ = ["points", "refuse_processed", "require_parts"]

PARTS = ("attn.v", "attn.o", "mlp.in", "mlp.out")
#: The norms that a block may have.
NORMS = ("ln1", "ln1_post", "ln2", "ln2_post")
STREAM_POINTS = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
INNER_POINTS = ("attn.hook_pattern", "attn.hook_v", "attn.hook_z", "mlp.hook_post")


def points(block: Any) -> tuple[str, ...]:
    """The hook points of a bridged block that this package reads or steers.

    A parallel block has none between attention and MLP; where a norm follows a sub-layer, its input is read too.
    """
    middle = ("hook_resid_mid",) if "hook_resid_mid" in block.hook_aliases else ()
    behind = tuple(f"{norm}.hook_in" for norm in ("ln1_post", "ln2_post") if hasattr(block, norm))
    return (*STREAM_POINTS, *middle, *INNER_POINTS, *behind)


def require_parts(bridge: TransformerBridge) -> None:
    """Refuse a bridge without the parts of a decoder of attention and MLPs.

    Raises:
        InputError: A part or a hook point is missing, layers differ in size, or attention has linear biases.
    """
    missing = [part for part in ("ln_final", "unembed") if not _has(bridge, part)]
    missing += [] if len(getattr(bridge, "blocks", ())) else ["blocks"]
    if not missing:
        known = bridge.hook_dict
        for i, block in enumerate(bridge.blocks):
            missing += [in_block(i, part) for part in PARTS if not _has(block, part)]
            missing += [name for point in points(block) if (name := in_block(i, point)) not in known]
    if not missing and (part := _uneven(bridge)):
        raise InputError(
            f"model: {bridge.cfg.architecture} is not supported: its layers differ in the size of {part}"
        )
    if not missing and bridge.cfg.positional_embedding_type == "alibi":
        raise InputError(
            f"model: {bridge.cfg.architecture} is not supported: its attention has linear biases (ALiBi)"
        )
    if missing:
        raise InputError(
            f"model: {bridge.cfg.architecture} is not supported: expected blocks of one attention and one MLP, found "
            f"no {missing[0]}"
        )


def refuse_processed(bridge: TransformerBridge) -> None:
    """Refuse folded or centred weights and compatibility mode, with the call that gives a raw bridge.

    Processing leaves traces that training never does: norm weights of exactly 1 (folded), W_U with mean 0 over the
    vocabulary or W_out with mean 0 over d_model (centred), value biases of exactly 0 (folded into b_O). A GPT-2 that
    nobody has trained yet has the first and the last too, and is refused with them.

    Raises:
        InputError: The weights have been processed.
    """
    processed = _processing(bridge)
    if processed:
        raise InputError(
            f"bridge: expected raw weights, found {processed}; use "
            f"TransformerBridge.boot_transformers({str(bridge.cfg.model_name)!r}) and neither "
            "enable_compatibility_mode nor process_weights"
        )


def _processing(bridge: TransformerBridge) -> str | None:
    """What has been done to the weights, in words, or None."""
    blocks = list(bridge.blocks)
    parts = [getattr(block, name) for block in blocks for name in NORMS if hasattr(block, name)]
    norms = [part.original_component for part in (*parts, bridge.ln_final)]
    weights = [
        norm.weight + norm_form(norm).offset for norm in norms if getattr(norm, "weight", None) is not None
    ]
    value_biases = [block.attn.v.original_component.bias for block in blocks]
    out = blocks[0].mlp.out.original_component.weight
    if bridge.compatibility_mode:
        return "one in compatibility mode, where weights are processed and hooks called once for each of their names"
    if weights and all(bool((weight == 1).all()) for weight in weights):
        return "one with its norms folded (all their weights are 1)"
    if _centred(bridge.unembed.original_component.weight, dim=0):
        return "one with a centred unembedding"
    if _centred(out, dim=out.shape.index(bridge.cfg.d_model)):
        return "one with centred writing weights"
    if all(bias is not None and not bool(bias.any()) for bias in value_biases):
        return "one with its value biases folded (all of them are 0)"
    return None


def _uneven(bridge: TransformerBridge) -> str | None:
    """A part whose weights are not of one shape in all blocks, or None."""
    for part in PARTS:
        owner, name = part.split(".")
        modules = [getattr(getattr(block, owner), name).original_component for block in bridge.blocks]
        if len({module.weight.shape for module in modules}) > 1:
            return part
    return None


def _has(block: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(block, name):
            return False
        block = getattr(block, name)
    return getattr(block, "original_component", None) is not None


def _centred(weight: torch.Tensor, *, dim: int) -> bool:
    """Do all means along `dim` vanish, up to rounding?"""
    weight = weight.detach().double()
    return bool((weight.mean(dim).abs().max() < 1e-6 * weight.std()).item())
