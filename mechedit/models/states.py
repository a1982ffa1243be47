"""Hidden states of many prompts: at their last tokens, or their mean over tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mechedit.models.batching import batches
from mechedit.models.hooked import HookedModel

__all__ = ["last_states", "mean_states"]


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
    return _states(model, prompts, points, batch_size, _last)


@torch.no_grad()
def mean_states(
    model: HookedModel, prompts: Sequence[str], points: Sequence[str], *, batch_size: int = 64
) -> list[Tensor]:
    """As `last_states`, the mean over each prompt's own tokens, [n_prompts, d]: padding does not count."""
    return _states(model, prompts, points, batch_size, _mean)


def _states(
    model: HookedModel,
    prompts: Sequence[str] | Sequence[Tensor],
    points: Sequence[str],
    batch_size: int,
    pool: Callable[[Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """`pool` of (states [B, T, ...], mask [B, T]) at each point, in the order of the prompts."""
    kept: list[list[Tensor]] = [[] for _ in points]
    ids = model.encode(prompts)
    order = []
    for batch in batches([len(one) for one in ids], batch_size):
        padded, mask = model.pad([ids[i] for i in batch])
        hooks = [
            (point, partial(_keep, store, mask, pool)) for point, store in zip(points, kept, strict=True)
        ]
        with model.hooks(hooks):
            model.run(padded, mask, logits_to_keep=1)
        order += batch
    back = torch.tensor(order).argsort().to(model.device)
    return [torch.cat(store)[back] for store in kept]


def _keep(
    store: list[Tensor], mask: Tensor, pool: Callable[[Tensor, Tensor], Tensor], states: Tensor, hook: object
) -> None:
    store.append(pool(states.detach(), mask))


def _last(states: Tensor, mask: Tensor) -> Tensor:
    return states[:, -1].clone()


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(states)[:, :, None]
    return (states * weights).sum(1) / weights.sum(1)
