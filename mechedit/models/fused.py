"""Queries, keys and values that lie interleaved in one fused weight (GPT-NeoX, Falcon): read from it, not from copies.

TransformerLens runs q, k and v as projections of their own. Where their rows lie in blocks of the fused weight they are
views of it (GPT-2); where they are interleaved head by head they would be copies: the memory of attention twice, and an
edit of the checkpoint's weight would change nothing. Here each becomes a selection of the fused weight's rows, which is
taken anew whenever it is used. Which rows belong to whom is asked of the split itself, by splitting the rows' numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

__all__ = ["Rows", "share_fused"]

# A row's number in three digits, each of which every dtype holds exactly.
_BASE, _DIGITS = 128, 3


class Rows(torch.nn.Module):
    """x ↦ x @ W[rows]ᵀ + b[rows] for a projection W [n, d] that others read too."""

    fused: Any
    rows: Tensor

    def __init__(self, fused: torch.nn.Module, rows: Tensor) -> None:
        super().__init__()
        self.__dict__["fused"] = fused  # not registered: its weight has its own place in the model
        self.register_buffer("rows", rows, persistent=False)

    @property
    def weight(self) -> Tensor:
        """W[rows], a copy."""
        weight: Tensor = self.fused.weight
        return weight[self.rows]

    @property
    def bias(self) -> Tensor | None:
        """b[rows], a copy, or None."""
        bias: Tensor | None = self.fused.bias
        return None if bias is None else bias[self.rows]

    @property
    def in_features(self) -> int:
        """D."""
        return int(self.fused.weight.shape[1])

    @property
    def out_features(self) -> int:
        """How many rows."""
        return len(self.rows)

    def forward(self, x: Tensor) -> Tensor:
        """The selected outputs [..., len(rows)]."""
        return torch.nn.functional.linear(x, self.weight, self.bias)


def share_fused(bridge: TransformerBridge) -> None:
    """Replaces copies of a fused projection's rows by selections of it, in every block that has some."""
    for block in bridge.blocks:
        attn: Any = block.attn
        if not hasattr(attn, "split_qkv_matrix") or not hasattr(attn, "qkv"):
            continue
        fused = attn.qkv.original_component
        parts = [attn.q, attn.k, attn.v]
        if any(_is_copy(part.original_component, fused) for part in parts):
            for part, rows in zip(parts, _rows(attn, fused), strict=True):
                part.set_original_component(Rows(fused, rows))


def _is_copy(part: Any, fused: Any) -> bool:
    return not isinstance(part, Rows) and (
        part.weight.untyped_storage().data_ptr() != fused.weight.untyped_storage().data_ptr()
    )


@torch.no_grad()
def _rows(attn: Any, fused: Any) -> list[Tensor]:
    """The rows of the fused weight that are q's, k's and v's, by splitting a weight that holds its rows' numbers."""
    weight = fused.weight.data
    numbers = torch.arange(len(weight), device=weight.device)
    digits = [(numbers // _BASE**i % _BASE).to(weight.dtype)[:, None] for i in range(_DIGITS)]
    spread = [digit.expand(-1, -(-weight.shape[1] // _DIGITS)) for digit in digits]
    with torch.random.fork_rng(
        devices=[]
    ):  # the split makes fresh projections, which draw their first values
        fused.weight.data = torch.cat(spread, dim=1)[:, : weight.shape[1]].contiguous()
        try:
            split = attn.split_qkv_matrix(attn.original_component)
        finally:
            fused.weight.data = weight
    width = spread[0].shape[1]
    return [sum(part.weight[:, i * width].long() * _BASE**i for i in range(_DIGITS)) for part in split]
