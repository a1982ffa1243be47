"""Which tokens a KV cache holds, or embeddings are of, read off the vectors themselves.

A cache that was filled before the edits were attached carries no ids, and a gate that reads text needs them. The values
that the first layer cached are a function of one token, v = W norm(E[t]), or of the token and its place where learned
positions are added to the embeddings. So

1. the model runs each token of the vocabulary alone, up to the first layer's cache and no further (at each place, where
   the place counts: the column's number, or that of the tokens in front of it, whichever the caller counted by);
2. a column holds the token whose values it has, within rounding. If the nearest token is not that near (embeddings were
   given in the place of ids), or a second one is as near, the column stays unknown.

Nothing can be told of columns that the cache has dropped (sliding windows). Embeddings are held against the whole
embedding table in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

__all__ = ["cached_ids", "embedded_ids"]

log = logging.getLogger(__name__)

EXACT = 1e-3  # relative distance of the same values from two batch shapes; other tokens are a hundred times as far
ROUNDED = 2e-2  # the same in half precision
TOGETHER = 4096  # tokens of one pass
MANY = 500_000  # tokens times places beyond which a reader is told what takes so long


@torch.no_grad()
def embedded_ids(embedding: nn.Module, vectors: Tensor) -> Tensor:
    """The ids [B, T] of which these embeddings [B, T, d] are, −1 where they are of none.

    >>> table = nn.Embedding(10, 4)
    >>> embedded_ids(table, torch.cat([table(torch.tensor([[3, 7]])), torch.zeros(1, 1, 4)], dim=1))
    tensor([[ 3,  7, -1]])
    """
    vocabulary = int(embedding.num_embeddings)  # type: ignore[arg-type]
    ids = _nearest(vectors.flatten(0, 1), vocabulary, lambda tokens: embedding(tokens).float())
    return ids.view(vectors.shape[:2])


@torch.no_grad()
def cached_ids(base: nn.Module, cache: Any, real: Tensor, first: int) -> Tensor:
    """The ids of the columns of `cache` from `first` on [B, L − first], −1 where they cannot be told.

    Args:
        base: The model that filled the cache, without its LM head.
        cache: With the values of the first layer [B, n_kv_heads, T, d_head].
        real: Which of all L columns are tokens [B, L].
        first: A column.
    """
    rows, length = real.shape
    ids = torch.full((rows, length - first), -1, device=real.device)
    held = getattr(cache.layers[0], "values", None)
    if not isinstance(held, Tensor) or held.ndim != 4 or held.shape[0] != rows or held.shape[2] < length:
        return ids
    held = held[:, :, first:length].transpose(1, 2).flatten(2)
    vocabulary = int(base.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    columns = torch.arange(length, device=real.device).expand(rows, -1)
    if not _depends_on_place(base, held.device):
        ids = _nearest(held.flatten(0, 1), vocabulary, partial(_values, base, 0)).view(rows, -1)
        return ids.where(real[:, first:], -1)
    if vocabulary * (length - first) > MANY:
        log.warning(
            "past_key_values: finding out which %d tokens it holds, since it was filled before the edits were attached "
            "and this model's positions are learned; hand the whole prompt to generate() to save this",
            length - first,
        )
    for places in (columns, real.cumsum(1) - 1):
        places = places[:, first:]
        for place in places.unique().tolist():
            here = (places == place) & real[:, first:] & (ids < 0)
            if place >= 0 and bool(here.any()):
                ids[here] = _nearest(held[here], vocabulary, partial(_values, base, place))
    return ids


def _nearest(values: Tensor, vocabulary: int, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The token of each row of values [n, d] by what tokens have, `of` ids [k], −1 where none or several have it."""
    tolerance = EXACT if values.dtype in (torch.float32, torch.float64) else ROUNDED
    wanted, back = values.float().unique(dim=0, return_inverse=True)
    near = torch.full((2, len(wanted)), torch.inf, device=values.device)
    ids = torch.full((2, len(wanted)), -1, device=values.device)
    for start in range(0, vocabulary, TOGETHER):
        tokens = torch.arange(start, min(start + TOGETHER, vocabulary), device=values.device)
        best = torch.cdist(wanted, of(tokens)).topk(min(2, len(tokens)), largest=False)
        near, order = torch.cat([near, best.values.T]).topk(2, dim=0, largest=False)
        ids = torch.cat([ids, tokens[best.indices].T]).gather(0, order)
    limit = tolerance * wanted.norm(dim=1)
    return ids[0].where((near[0] <= limit) & (near[1] > limit), -1)[back]


def _depends_on_place(base: nn.Module, device: torch.device) -> bool:
    """Whether the same token has other values somewhere else."""
    token = torch.ones(1, dtype=torch.long, device=device)
    here, there = (_values(base, place, token) for place in (0, 1))
    return bool((here - there).norm() > ROUNDED * here.norm())


class _Enough(Exception):
    """The values are there."""


class _FirstLayer(DynamicCache):
    """Stops the model where it caches the first layer's values."""

    values: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.values = value_states.detach().transpose(1, 2).flatten(2).flatten(0, 1).float()
        raise _Enough


def _values(base: nn.Module, place: int, tokens: Tensor) -> Tensor:
    """What the first layer caches of each token alone at a place [n, n_kv_heads · d_head]."""
    probe = _FirstLayer()
    places = torch.full((len(tokens), 1), place, device=tokens.device)
    try:
        base(input_ids=tokens[:, None], position_ids=places, past_key_values=probe, use_cache=True)
    except _Enough:
        return probe.values
    raise AssertionError("the model has no cache")
