"""Hidden states of many prompts at their last tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mechedit.model import HookedModel

__all__ = ["last_states", "resid_pre"]


def resid_pre(layer: int) -> str:
    """The hook point of a layer's input.

    >>> resid_pre(3)
    'blocks.3.hook_resid_pre'
    """
    return f"blocks.{layer}.hook_resid_pre"


@torch.no_grad()
def last_states(
    model: HookedModel,
    prompts: Sequence[str] | Sequence[Tensor],
    points: Sequence[str],
    *,
    batch_size: int = 64,
) -> list[Tensor]:
    """For each hook point the states [n_prompts, d] at the last tokens of the prompts (text or ids [T]).

    Hooks already on stay on.

    `points` are TransformerLens names whose activation is [batch, pos, d], as "blocks.3.hook_attn_out". What is
    read is what the hooks attached before left behind.
    """
    kept: list[list[Tensor]] = [[] for _ in points]
    with model.hooks(
        [(point, partial(_keep_last, store)) for point, store in zip(points, kept, strict=True)]
    ):
        model.logits(prompts, batch_size=batch_size)
    return [torch.cat(store) for store in kept]


def _keep_last(store: list[Tensor], states: Tensor, hook: object) -> None:
    store.append(states[:, -1].detach().clone())
