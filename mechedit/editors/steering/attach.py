"""Steering edits on a plain `transformers` model: nobody needs TransformerLens to serve an edit.

The same `Steering` (mechedit.editors.steering.steer) as on a hooked model, hung into the modules by forward hooks:

| hook point | module |
|---|---|
| resid_pre | the decoder layer's input |
| attn_out, mlp_out | the attention's and the MLP's output |
| resid_mid | the input of the norm before the MLP |
| z | the input of the attention's output projection |

Modules are found by the names that decoders of the GPT-2, LLaMA, Qwen, Mistral and GPT-NeoX kind give them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from mechedit.editors.steering.steer import Steering, SteeringEdit
from reports.errors import InputError

__all__ = ["attach"]

Fn = Callable[[Tensor], Tensor | None]

LAYERS = ("transformer.h", "model.layers", "gpt_neox.layers")
ATTENTION = ("attn", "self_attn", "attention")
PROJECTION = ("c_proj", "o_proj", "dense")
SECOND_NORM = ("ln_2", "post_attention_layernorm")


@contextlib.contextmanager
def attach(
    hf: PreTrainedModel, edits: Sequence[SteeringEdit], *, tokenizer: Any = None
) -> Iterator[Steering]:
    """`hf` under the edits, for the length of the block: `generate`, the logits, anything that calls its forward.

    Outputs equal those of `steer` on the hooked model to rounding. Hooks are removed however the block is left.

    Args:
        hf: The model. Batches are padded on the left, as for generation: the last position is steered.
        edits: Fitted on this model.
        tokenizer: The model's own; sentence gates alone need it.

    Raises:
        InputError: The model's modules are not found, or a sentence gate has no tokenizer.
    """
    weight = next(hf.parameters())
    steering = Steering(edits, device=weight.device, dtype=weight.dtype, tokenizer=tokenizer)
    if steering.bank.by_text and tokenizer is None:
        raise InputError(
            "tokenizer: expected the model's own, found None; a sentence gate reads the prompt's text"
        )
    blocks = _find(hf, LAYERS, "decoder layers")
    handles = [hf.register_forward_pre_hook(steering.begin, with_kwargs=True)]
    try:
        for name, fn in steering.points():
            _, layer, point = name.split(".", 2)
            handles.append(_HANGERS[point](blocks[int(layer)], fn))
        yield steering
    finally:
        for handle in handles:
            handle.remove()


def _find(module: nn.Module, paths: Sequence[str], what: str) -> Any:
    for path in paths:
        inner: Any = module
        for name in path.split("."):
            inner = getattr(inner, name, None)
        if inner is not None:
            return inner
    raise InputError(
        f"hf: expected {what} at {' or '.join(paths)}, found none in {type(module).__name__}; "
        "steer it through mechedit.load_model"
    )


def _attention(block: nn.Module) -> nn.Module:
    return _find(block, ATTENTION, "an attention module")


def _hang_input(block: nn.Module, fn: Fn) -> Any:
    return block.register_forward_pre_hook(partial(_before, fn), with_kwargs=True)


def _hang_second_norm(block: nn.Module, fn: Fn) -> Any:
    return _hang_input(_find(block, SECOND_NORM, "the norm before the MLP"), fn)


def _hang_attention(block: nn.Module, fn: Fn) -> Any:
    return _attention(block).register_forward_hook(partial(_after, fn))


def _hang_mlp(block: nn.Module, fn: Fn) -> Any:
    return _find(block, ("mlp",), "an MLP").register_forward_hook(partial(_after, fn))


def _hang_z(block: nn.Module, fn: Fn) -> Any:
    attention = _attention(block)
    width = int(getattr(attention, "head_dim", None) or getattr(attention, "head_size"))  # noqa: B009
    projection = _find(attention, PROJECTION, "the output projection")
    return projection.register_forward_pre_hook(partial(_before_heads, fn, width))


_HANGERS: dict[str, Callable[[nn.Module, Fn], Any]] = {
    "hook_resid_pre": _hang_input,
    "hook_resid_mid": _hang_second_norm,
    "hook_attn_out": _hang_attention,
    "hook_mlp_out": _hang_mlp,
    "attn.hook_z": _hang_z,
}


def _before(fn: Fn, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Only reads."""
    fn(args[0] if args else kwargs["hidden_states"])


def _after(fn: Fn, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Attention modules return a tuple, MLPs a tensor."""
    moved = fn(output[0] if isinstance(output, tuple) else output)
    if moved is None:
        return None
    return (moved, *output[1:]) if isinstance(output, tuple) else moved


def _before_heads(fn: Fn, width: int, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
    heads = args[0].unflatten(-1, (-1, width))
    moved = fn(heads)
    return None if moved is None else (moved.flatten(-2),)
