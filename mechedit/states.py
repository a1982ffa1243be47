"""Hidden states of many prompts: at their last tokens, or their mean over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mechedit.model import HookedModel

__all__ = ["last_states", "mean_states", "resid_pre"]


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
    """For each hook point the states [n_prompts, ...] at the last tokens of the prompts (text or ids [T]).

    Hooks already on stay on.

    `points` are TransformerLens names whose activation is [batch, pos, ...], as "blocks.3.hook_attn_out". What is
    read is what the hooks attached before left behind.
    """
    kept: list[list[Tensor]] = [[] for _ in points]
    with model.hooks(
        [(point, partial(_keep_last, store)) for point, store in zip(points, kept, strict=True)]
    ):
        model.logits(prompts, batch_size=batch_size)
    return [torch.cat(store) for store in kept]


@torch.no_grad()
def mean_states(
    model: HookedModel, prompts: Sequence[str], points: Sequence[str], *, batch_size: int = 64
) -> list[Tensor]:
    """As `last_states`, the mean over each prompt's own tokens, [n_prompts, d]: padding does not count."""
    kept: list[list[Tensor]] = [[] for _ in points]
    ids = model.encode(prompts)
    for start in range(0, len(ids), batch_size):
        batch, mask = model.pad(ids[start : start + batch_size])
        hooks = [(point, partial(_keep_mean, store, mask)) for point, store in zip(points, kept, strict=True)]
        with model.hooks(hooks):
            model.run(batch, mask, logits_to_keep=1)
    return [torch.cat(store) for store in kept]


def _keep_last(store: list[Tensor], states: Tensor, hook: object) -> None:
    store.append(states[:, -1].detach().clone())


def _keep_mean(store: list[Tensor], mask: Tensor, states: Tensor, hook: object) -> None:
    weights = mask.to(states)[:, :, None]
    store.append((states * weights).sum(1) / weights.sum(1))
