"""Attention masks in float64: transformers' own for the architecture, with nothing below float32's lowest number.

A mask of transformers knows padding, causality and sliding windows, layer by layer, and says "not seen" by the lowest
number of the model's dtype. Many decoders take the softmax in float32 whatever the dtype: there float64's lowest is
−inf, the row of a padding token, which sees nothing at all, becomes nan, and its value spreads to the tokens behind it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

__all__ = ["finite_masks", "narrow_windows"]

#: So many tokens wide is a sliding window while a model is checked on a handful of tokens.
NARROW = 3
LOWEST = torch.finfo(torch.float32).min


@contextlib.contextmanager
def finite_masks(bridge: TransformerBridge) -> Iterator[None]:
    """For the length of the block, no decoder block gets a float64 mask with numbers that float32 does not have."""
    handles = [
        # before every other hook, so that whoever notes a block's arguments notes this mask
        block.register_forward_pre_hook(_finite, with_kwargs=True, prepend=True)
        for block in bridge.blocks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def narrow_windows(config: Any) -> Iterator[None]:
    """For the length of the block, sliding windows are `NARROW` tokens wide, so that a short text does not fit in one.

    transformers reads the width off the config whenever it makes a mask. Without a window nothing changes.
    """
    width = getattr(config, "sliding_window", None)
    if width is None:
        yield
        return
    config.sliding_window = min(width, NARROW)
    try:
        yield
    finally:
        config.sliding_window = width


def _finite(
    block: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(map(_raised, args)), {name: _raised(value) for name, value in kwargs.items()}


def _raised(value: Any) -> Any:
    """An additive mask [B, 1, n, T] with its lowest numbers raised; everything else as it is."""
    is_mask = isinstance(value, torch.Tensor) and value.ndim == 4 and value.dtype == torch.float64
    return value.clamp(min=LOWEST) if is_mask else value
