"""The raw weights of a bridged model: sizes, projections as [in, out] views, norms, and a hash of all of it.

Nothing is copied: what is read here shares its memory with what the model runs on, so that writing to it edits the
model, and an edit of the model shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers.pytorch_utils import Conv1D

from mechedit.models.norms import norm_form
from reports.errors import InputError

__all__ = [
    "FinalNorm",
    "ModelShape",
    "activation",
    "bias",
    "checkpoint_weights",
    "matrix",
    "no_norm",
    "norm",
    "shape",
]


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder; query head h reads KV head h // (n_heads // n_kv_heads).

    Attributes:
        n_layers: Blocks.
        n_heads: Query heads of a layer.
        n_kv_heads: Key-value heads of a layer.
        d_model: Width of the residual stream.
        d_head: Width of a head.
        d_mlp: Neurons of an MLP.
        d_vocab: Tokens of the unembedding.
        architecture: Hugging Face's class name.
        norm: LayerNorm or RMSNorm.
        gated: Whether the MLP multiplies act(gate) by up (LLaMA).
        parallel: Whether the MLP reads the block's input and not what attention leaves (GPT-J).
        logit_scale: What the model multiplies its logits by (Granite, Cohere).
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    architecture: str
    norm: Literal["layer", "rms"]
    gated: bool
    parallel: bool = False
    logit_scale: float = 1.0


@dataclass(frozen=True, eq=False)
class FinalNorm:
    """A norm of the decoder: the final one, or one of a block.

    kind "layer": (x − mean x) / σ · weight + bias, σ = sqrt(var x + eps), the biased variance;
    kind "rms": x / σ · weight, σ = sqrt(mean x² + eps); kind "none", no norm: x · weight, σ = 1.

    Attributes:
        weight: Raw [d].
        bias: Raw [d], or None.
        eps: Of the module that it was read from.
        kind: LayerNorm or RMSNorm.

    >>> norm = FinalNorm(weight=torch.tensor([2.0, 2.0]), bias=None, eps=0.0, kind="rms")
    >>> norm(torch.tensor([3.0, 4.0])) * 12.5 ** 0.5
    tensor([6., 8.])
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float
    kind: Literal["layer", "rms", "none"]

    def to(self, device: torch.device) -> FinalNorm:
        """The norm with its weights on this device; itself where they are there."""
        if self.weight.device == device:
            return self
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)

    def centre(self, x: torch.Tensor) -> torch.Tensor:
        """Subtract the mean from x [..., d] for a LayerNorm; an RMSNorm leaves it."""
        return x - x.mean(-1, keepdim=True) if self.kind == "layer" else x

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """σ of x [..., d], as [..., 1]."""
        if self.kind == "none":
            return torch.ones_like(x[..., :1])
        return (self.centre(x).pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The normed x [..., d]."""
        normed = self.centre(x) / self.scale(x) * self.weight
        return normed if self.bias is None else normed + self.bias


def matrix(component: Any) -> torch.Tensor:
    """Weight [in, out] of a bridged projection, sharing its memory: GPT-2's Conv1D holds it so, Linear transposed."""
    module = component.original_component
    weight: torch.Tensor = module.weight.detach()
    return weight if isinstance(module, Conv1D) else weight.T


def bias(component: Any) -> torch.Tensor | None:
    """Bias of a bridged projection; the buffer of zeros that the bridge gives to an unembedding is none."""
    module = component.original_component
    bias = None if "bias" in module._buffers else getattr(module, "bias", None)
    return None if bias is None else bias.detach()


def norm(component: Any, *, like: torch.Tensor | None = None) -> FinalNorm:
    """A bridged norm, by what the module computes (`mechedit.models.norms`).

    Its weight is a view where the module stores the weight itself; where it stores none, ones beside `like`.
    """
    module = component.original_component
    form, weight, bias = norm_form(module), getattr(module, "weight", None), getattr(module, "bias", None)
    if weight is None:
        weight = torch.ones(module.normalized_shape)
        weight = weight if like is None else weight.to(like)
    elif form.offset:
        weight = weight.detach() + form.offset
    return FinalNorm(
        weight=weight.detach(), bias=None if bias is None else bias.detach(), eps=form.eps, kind=form.kind
    )


def no_norm(like: torch.Tensor) -> FinalNorm:
    """What a sub-layer reads through where there is no norm before it (OLMo-2): x itself. like [d]."""
    return FinalNorm(weight=torch.ones_like(like), bias=None, eps=0.0, kind="none")


def activation(mlp: Any) -> torch.nn.Module:
    """The function between a bridged MLP's projections: its one module without weights.

    Raises:
        InputError: There is none, or several.
    """
    found = [
        module
        for module in mlp.original_component.children()
        if not isinstance(module, torch.nn.Dropout) and not any(True for _ in module.parameters())
    ]
    if len(found) != 1:
        raise InputError(
            f"model: {type(mlp.original_component).__name__} is not supported: expected one activation function "
            f"without weights between the MLP's projections, found {len(found)}"
        )
    return found[0]


def shape(bridge: TransformerBridge) -> ModelShape:
    """The sizes, read off the bridge's config and the weights themselves."""
    cfg, mlp = bridge.cfg, bridge.blocks[0].mlp
    return ModelShape(
        n_layers=len(bridge.blocks),
        n_heads=int(cfg.n_heads),
        n_kv_heads=int(cfg.n_key_value_heads or cfg.n_heads),
        d_model=int(cfg.d_model),
        d_head=int(cfg.d_head),
        d_mlp=matrix(mlp.out).shape[0],
        d_vocab=matrix(bridge.unembed).shape[1],
        architecture=str(cfg.architecture),
        norm=norm_form(bridge.ln_final.original_component).kind,
        gated=hasattr(mlp, "gate"),
        parallel="hook_resid_mid" not in bridge.blocks[0].hook_aliases,
        logit_scale=_logit_scale(bridge.original_model.config),
    )


def _logit_scale(config: Any) -> float:
    """What the checkpoint's config says that logits are multiplied by. Whether they are is checked after loading."""
    scale, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    return (1.0 if scale is None else float(scale)) / (1.0 if divisor is None else float(divisor))


def checkpoint_weights(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the checkpoint, parameter) of the bridged Hugging Face module; tied weights come once.

    Goes through the bridge's components to the modules they wrap, and never into what the bridge derived from them
    (GPT-2's q, k and v).
    """
    seen: set[int] = set()
    stack = [("", module)]
    while stack:
        path, current = stack.pop()
        wrapped = current._modules.get("_original_component")
        if wrapped is not None:
            stack.append((path, wrapped))
            continue
        for name, parameter in current._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{path}{name}", parameter
        inner = ((name, child) for name, child in current._modules.items() if child is not None)
        stack.extend(reversed([(f"{path}{name}.", child) for name, child in inner]))
