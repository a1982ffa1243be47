"""Steering edits on a plain `transformers` model: nobody needs a hooked one to serve an edit.

The same `Steering` (mechedit.editors.steering.steering) as on a hooked model, hung into the modules by forward hooks:

| hook point | module |
|---|---|
| resid_pre | the decoder layer's input |
| attn_out, mlp_out | the output of attention and MLP, behind the norm and the factor that follow it |
| z | the input of the attention's output projection |

What an architecture calls its modules is what TransformerLens' adapter for it says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from experiments.checkpoints import read_tokenizer
from mechedit.editors.steering.passes import follow
from mechedit.editors.steering.steering import Steering
from mechedit.editors.steering.steering_edit import SteeringEdit
from mechedit.models.adapters import adapter_of
from reports.errors import InputError, first_line

__all__ = ["attach"]

Fn = Callable[[Tensor], Tensor | None]


@contextlib.contextmanager
def attach(
    hf: PreTrainedModel, edits: Sequence[SteeringEdit], *, tokenizer: Any = None
) -> Iterator[Steering]:
    """`hf` under the edits, for the length of the block: `generate`, the logits, anything that calls its forward.

    Outputs equal those of `steer` on the hooked model to rounding, and those of each prompt alone, however it comes in:
    in any batch and padding (`generate` takes padding on the left alone, as ever), in chunks, behind a reused prefix,
    with beams or drafts, as ids or embeddings, with a dynamic, static or no cache, in several threads. How it is known
    where a prompt ends, and what a loop of your own must say: `mechedit.editors.steering.passes`. Hooks are removed
    however the block is left. A cache that was filled in the block keeps what was steered.

    Args:
        hf: The model, on one device or, by a `device_map`, on several.
        edits: Fitted on this model.
        tokenizer: The model's own, for gates that read text; None: that of the folder that `hf` was loaded from.

    Raises:
        InputError: The model's modules are not found, weights are left to the disk or the CPU beside a GPU, or a gate
            that reads text has no tokenizer. In a pass: what cannot be served (continuous batching and other packed
            rows, compiled models, text or a mean state of a prompt whose beginning was cached before the block).
    """
    weight = next(hf.parameters())
    steering = Steering(edits, device=weight.device, dtype=weight.dtype, tokenizer=tokenizer)
    if tokenizer is None and steering.bank.reads_text:
        steering.tokenizer = _tokenizer_of(hf)
    if any(parameter.is_meta for parameter in hf.parameters()):
        raise InputError(
            "hf: expected weights on devices, found some on the CPU or the disk; load it on devices"
        )
    modules = _Modules.of(hf)
    with contextlib.ExitStack() as hooks:
        steering.passes = hooks.enter_context(follow(hf, steering))
        for name, fn in steering.points():
            _, layer, point = name.split(".", 2)
            hooks.callback(modules.hang(point, int(layer), partial(_at, weight.device, fn)).remove)
        yield steering


def _tokenizer_of(hf: PreTrainedModel) -> Any:
    """The tokenizer beside the weights that `hf` was loaded from; nothing is fetched."""
    folder = Path(str(getattr(hf.config, "_name_or_path", "") or "."))
    try:
        if not (folder / "config.json").is_file():
            raise InputError(f"no checkpoint in {folder}")
        return read_tokenizer(folder)
    except InputError as error:
        raise InputError(
            "tokenizer: expected the model's own, since a gate reads the prompt's text, found None and none beside the "
            f"weights ({error}); give attach(hf, tokenizer=...)"
        ) from error


@dataclass(frozen=True)
class _Modules:
    """Where a plain model computes what the hook points have.

    Attributes:
        blocks: The decoder layers.
        attn_out: Name within a layer of what puts out attention's output, behind any norm.
        mlp_out: The same of the MLP's.
        projection: Name of the attention's output projection.
        d_head: Width of a head.
        factor: What the model multiplies a sub-layer's output by before it adds it.
    """

    blocks: Any
    attn_out: str
    mlp_out: str
    projection: str
    d_head: int
    factor: float

    @classmethod
    def of(cls, hf: Any) -> _Modules:
        """Errors: `InputError` for a model that TransformerLens has no adapter for."""
        try:
            adapter = adapter_of(hf.config, type(hf).__name__)
            block = adapter.component_mapping["blocks"]
            parts, attn = block.submodules, block.submodules["attn"]
            behind = [parts.get(f"ln{i}_post", parts[name]).name for i, name in ((1, "attn"), (2, "mlp"))]
            return cls(
                hf.get_submodule(block.name),
                behind[0],
                behind[1] or parts["mlp"].submodules["out"].name,  # an MLP without a module of its own (OPT)
                f"{attn.name}.{attn.submodules['o'].name}",
                int(adapter.cfg.d_head),
                float(getattr(block, "residual_contribution_scale", 1.0)),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"hf: expected decoder layers of attention and MLP, found none in {type(hf).__name__} "
                f"({first_line(error)}); steer it through mechedit.load_model"
            ) from error

    def hang(self, point: str, layer: int, fn: Fn) -> Any:
        """Hangs `fn` where a decoder layer computes what a hook point has; the handle."""
        block = self.blocks[layer]
        if point == "hook_resid_pre":
            return block.register_forward_pre_hook(partial(_before, fn), with_kwargs=True)
        if point == "attn.hook_z":
            heads = partial(_before_heads, fn, self.d_head)
            return block.get_submodule(self.projection).register_forward_pre_hook(heads)
        name = {"hook_attn_out": self.attn_out, "hook_mlp_out": self.mlp_out}[point]
        return block.get_submodule(name).register_forward_hook(partial(_after, fn, self.factor))


def _at(home: torch.device, fn: Fn, states: Tensor) -> Tensor | None:
    """`fn` of states that a layer on another device may have."""
    moved = fn(states.to(home))
    return None if moved is None else moved.to(states.device)


def _before(fn: Fn, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Only reads."""
    fn(args[0] if args else kwargs["hidden_states"])


def _after(fn: Fn, factor: float, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Attention modules return a tuple, MLPs and norms a tensor; the model goes on to multiply it by `factor`."""
    added = output[0] if isinstance(output, tuple) else output
    if added.ndim != 3:
        raise InputError(
            f"hf: expected {type(module).__name__} to write [batch, tokens, width], found {tuple(added.shape)}; "
            "steer this model through mechedit.load_model"
        )
    moved = fn(added if factor == 1 else factor * added)
    if moved is None:
        return None
    moved = moved if factor == 1 else moved / factor
    return (moved, *output[1:]) if isinstance(output, tuple) else moved


def _before_heads(fn: Fn, width: int, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
    heads = args[0].unflatten(-1, (-1, width))
    moved = fn(heads)
    return None if moved is None else (moved.flatten(-2),)
