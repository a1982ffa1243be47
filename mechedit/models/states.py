"""Hidden states of many prompts: at their last tokens, or their mean over tokens.

A pass ends where the last of the points has been read: no layer above it runs, and neither does the unembedding. A
caller's hooks on what lies above hear nothing of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from experiments.progress import LONG, bar
from mechedit.models.batching import batches
from mechedit.models.bridged import BridgedModel, Prompts

__all__ = ["last_states", "mean_states"]


@torch.no_grad()
def last_states(
    model: BridgedModel,
    prompts: Prompts,
    points: Sequence[str],
    *,
    batch_size: int = 64,
) -> list[Tensor]:
    """For each hook point the states [n_prompts, ...] at the last tokens of the prompts.

    Hooks attached earlier remain active, and their changes are part of what is read.

    Args:
        model: Any bridged model.
        prompts: Texts, or ids [T] of each.
        points: TransformerLens names whose activation is [batch, pos, ...], as "blocks.3.hook_attn_out"; hook_resid_mid
            is one of them in parallel blocks too.
        batch_size: Prompts that run together.
    """
    return _states(model, prompts, points, batch_size, _last)


@torch.no_grad()
def mean_states(
    model: BridgedModel, prompts: Sequence[str], points: Sequence[str], *, batch_size: int = 64
) -> list[Tensor]:
    """As `last_states`, the mean over each prompt's own tokens, [n_prompts, d]: padding does not count."""
    return _states(model, prompts, points, batch_size, _mean)


def _states(
    model: BridgedModel,
    prompts: Prompts,
    points: Sequence[str],
    batch_size: int,
    pool: Callable[[Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """`pool` of (states [B, T, ...], mask [B, T]) at each point, in the order of the prompts."""
    parts = [_parts(model, point) for point in points]
    kept: dict[str, list[Tensor]] = {one: [] for own in parts for one in own}
    ids = model.encode(prompts)
    order: list[int] = []
    with bar("states", len(ids), unit="prompt", delay=LONG) as shown:
        for batch in batches([len(sequence) for sequence in ids], batch_size):
            padded, mask = model.pad([ids[i] for i in batch])
            hooks = [(point, partial(_keep, kept, point, mask, pool)) for point in kept]
            with model.hooks(hooks), contextlib.suppress(_AllRead):
                model.run(padded, mask, logits_to_keep=1)
            order += batch
            shown.update(len(batch))
    places = torch.tensor(order).argsort().to(model.device)
    found = {point: torch.cat(store)[places] for point, store in kept.items()}
    return [
        torch.stack([found[one] for one in own]).sum(0) if len(own) > 1 else found[own[0]] for own in parts
    ]


def _parts(model: BridgedModel, point: str) -> tuple[str, ...]:
    """The hook points whose sum is asked for.

    A parallel block has no hook_resid_mid; what it stands for is defined (`mechedit.models.residual`).
    """
    block, name = point.rsplit(".", 1)
    if model.shape.parallel and name == "hook_resid_mid":
        return f"{block}.hook_resid_pre", f"{block}.hook_attn_out"
    return (point,)


class _AllRead(Exception):
    """Ends a pass: every point has been read. An `Exception`, so that torch calls the hooks that close a pass."""


def _keep(
    kept: dict[str, list[Tensor]],
    point: str,
    mask: Tensor,
    pool: Callable[[Tensor, Tensor], Tensor],
    states: Tensor,
    hook: object,
) -> None:
    kept[point].append(pool(states.detach(), mask))
    if len({len(store) for store in kept.values()}) == 1:
        raise _AllRead


def _last(states: Tensor, mask: Tensor) -> Tensor:
    return states[:, -1].clone()


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(states)[:, :, None]
    return (states * weights).sum(1) / weights.sum(1)
