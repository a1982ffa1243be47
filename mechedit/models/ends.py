"""The last tokens of many prompts, run again and again: what a hook at a prompt's end does, at a fraction of a pass.

A hook that touches only a prompt's last position leaves keys and values of all earlier ones as they are. So

1. every prompt runs once without its last token, and its KV cache is kept;
2. the last token alone runs under whatever hooks are attached, as often as asked; the cache is cut back each time.

A run costs one token a prompt instead of all of them, and gives the logits of the whole pass up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.progress import LONG, bar
from mechedit.models.batching import batches
from mechedit.models.bridged import BridgedModel, Prompts

__all__ = ["EndBatch", "PromptEnds"]


@dataclass(frozen=True, eq=False)
class EndBatch:
    """Prompts that run together.

    Attributes:
        rows: The index of each in the list of all.
        last: The last tokens [B, 1].
        mask: Of the whole prompts [B, T], padded on the left.
        cache: Keys and values of what stands before the last tokens; None where nothing does.
    """

    rows: list[int]
    last: Tensor
    mask: Tensor
    cache: Any

    def logits(self, model: BridgedModel) -> Tensor:
        """Next-token logits [B, d_vocab] behind the prompts, under the hooks that are attached to `model`."""
        cache = None
        if self.cache is not None:
            # A cache is written to in place: this pass gets a copy, which shares no memory with the kept one.
            cache = copy.deepcopy(self.cache)
        options = {"use_cache": cache is not None, "past_key_values": cache, "logits_to_keep": 1}
        return model.run(self.last, self.mask, **options)[0][:, -1]


class PromptEnds:
    """Prompts of which all but the last token has run.

    Args:
        model: The model, with the hooks that are to act on the prompts' earlier tokens too; mostly none.
        prompts: Texts, or ids [T] of each.
        batch_size: Prompts that run together, those of like length.
        groups: Indices of the prompts that run together; None: those of like length.

    >>> import mechedit as me
    >>> model = me.load_model("factworld")
    >>> prompts = ["The mother tongue of", "The capital of France is"]
    >>> bool(torch.allclose(PromptEnds(model, prompts).logits(), model.logits(prompts), atol=1e-4))
    True
    """

    @torch.no_grad()
    def __init__(
        self,
        model: BridgedModel,
        prompts: Prompts,
        *,
        batch_size: int = 64,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.model = model
        ids = model.encode(prompts)
        self.n = len(ids)
        split = batches([len(sequence) for sequence in ids], batch_size) if groups is None else groups
        with bar("prompts", self.n, unit="prompt", delay=LONG) as shown:
            self.batches = []
            for rows in split:
                self.batches.append(self._batch([ids[i] for i in rows], list(rows)))
                shown.update(len(rows))

    def _batch(self, ids: Sequence[Tensor], rows: list[int]) -> EndBatch:
        padded, mask = self.model.pad(ids)
        cache = None
        if padded.shape[1] > 1:
            options = {"use_cache": True, "logits_to_keep": 1}
            cache = self.model.run(padded[:, :-1], mask[:, :-1], **options)[1]
        return EndBatch(rows, padded[:, -1:], mask, cache)

    @torch.no_grad()
    def logits(self, hooks: Callable[[EndBatch], Sequence[Any]] = lambda batch: ()) -> Tensor:
        """Next-token logits [n_prompts, d_vocab] in the order of the prompts.

        Args:
            hooks: For each batch the (name, fn) pairs to attach; their tensors are [B, 1, ...], rows as `batch.rows`.
        """
        parts: dict[int, Tensor] = {}
        with bar("last tokens", self.n, unit="prompt", delay=LONG) as shown:
            for batch, logits in self._each(hooks):
                parts |= dict(zip(batch.rows, logits, strict=True))
                shown.update(len(batch.rows))
        return torch.stack([parts[i] for i in range(self.n)])

    def _each(self, hooks: Callable[[EndBatch], Sequence[Any]]) -> Iterator[tuple[EndBatch, Tensor]]:
        for batch in self.batches:
            with self.model.hooks(list(hooks(batch))):
                yield batch, batch.logits(self.model)
