"""What a forward pass and `generate` are given: inputs, masks and caches of every kind, and what is refused at once."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from reports.errors import InputError

__all__ = ["Call", "GivenPrompts", "refuse_restarts"]

_PACKED = ("cu_seq_lens_q", "cu_seqlens", "block_table", "seq_idx")


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of a pass."""

    ids: Tensor | None
    embeds: Tensor | None
    mask: Any
    positions: Tensor | None
    cache: Any
    arguments: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Of a module's call.

        Raises:
            InputError: It cannot be served.
        """
        names = _parameters(type(module))  # type: ignore[arg-type]
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        ids, embeds = named.get("input_ids"), named.get("inputs_embeds")
        packed = [name for name in _PACKED if named.get(name) is not None]
        if packed or torch.compiler.is_compiling():
            what = f"packed sequences ({packed[0]}: continuous batching)" if packed else "a compiled model"
            raise InputError(
                f"hf: expected batches of rows and an uncompiled model under edits, found {what}"
            )
        if ids is None and embeds is None:
            raise InputError("input_ids: expected them or inputs_embeds, found neither")
        positions = named.get("position_ids")
        if positions is not None and positions.ndim != 2:
            raise InputError(f"position_ids: expected [batch, tokens], found {list(positions.shape)}")
        cache = named.get("past_key_values")
        if cache is not None and not hasattr(cache, "layers"):
            raise InputError(f"past_key_values: expected a transformers Cache, found {type(cache).__name__}")
        return cls(ids, embeds, named.get("attention_mask"), positions, cache, named)

    @property
    def inputs(self) -> Tensor:
        """What came in [B, T, ...]."""
        inputs = self.embeds if self.ids is None else self.ids
        assert inputs is not None
        return inputs

    def real(self, first: int) -> Tensor:
        """Which of the columns up to this pass's last are tokens [B, first + T], by any kind of mask."""
        rows, end = self.inputs.shape[0], first + self.inputs.shape[1]
        mask = self.mask
        if isinstance(mask, dict):  # one for each kind of attention: the widest sees all
            mask = mask.get("full_attention", next(iter(mask.values())))
        if mask is None:
            return torch.ones(rows, end, dtype=torch.bool, device=self.inputs.device)
        if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
            raise InputError("attention_mask: expected one of two or four dimensions, found another kind")
        if mask.ndim == 4:  # what the last query sees: additive (0) or boolean
            mask = mask[:, 0, -1] if mask.dtype == torch.bool else mask[:, 0, -1] == 0
        if mask.shape[1] < end:
            raise InputError(
                f"attention_mask: expected one of {end} columns (cached ones too), found {mask.shape[1]}"
            )
        return mask[:, :end].bool().expand(rows, -1)


@dataclass(frozen=True, eq=False)
class GivenPrompts:
    """What a `generate` was given: which columns of its L are tokens [B, L], and their ids, where they are known."""

    mask: Tensor
    ids: Tensor | None

    @classmethod
    def of(cls, hf: Any, args: tuple[Any, ...], options: dict[str, Any]) -> GivenPrompts:
        """Of the arguments of `generate`: without a mask, padding is what transformers takes for it."""
        ids = options.get("input_ids", args[0] if args else options.get("inputs"))
        embeds, mask = options.get("inputs_embeds"), options.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            return cls(mask.bool(), ids if ids is not None and ids.shape == mask.shape else None)
        if embeds is not None or ids is None:
            return cls(torch.ones((1, 1) if embeds is None else embeds.shape[:2], dtype=torch.bool), None)
        config = options.get("generation_config") or hf.generation_config
        pad, end = (options.get(name, getattr(config, name)) for name in ("pad_token_id", "eos_token_id"))
        ends = end if isinstance(end, list) else [end]
        return cls(torch.ones_like(ids).bool() if pad is None or pad in ends else ids != pad, ids)

    def real(self, rows: int, end: int, device: torch.device) -> Tensor:
        """Which of the first `end` columns are tokens [rows, end]; generated ones are."""
        mask = self.mask.to(device).repeat_interleave(rows // len(self.mask), 0)
        behind = torch.ones(len(mask), max(end - mask.shape[1], 0), dtype=torch.bool, device=device)
        return torch.cat([mask[:, :end], behind], 1)


def refuse_restarts(positions: Tensor | None, real: Tensor) -> None:
    """Positions that start again within a row are several sequences in one."""
    if positions is None or positions.shape[1] != real.shape[1] or positions.shape[1] < 2:
        return
    if bool(((positions.diff(dim=1) <= 0) & real[:, 1:] & real[:, :-1]).any()):
        raise InputError(
            "position_ids: expected positions that rise along a row, found some that start again: packed sequences, "
            "each of which has its own prompt; give each a row of its own"
        )


@cache
def _parameters(kind: type[nn.Module]) -> tuple[str, ...]:
    """The names of a forward's positional arguments."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind in positional)
