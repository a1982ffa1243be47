"""The last tokens of many prompts, run again and again: what a hook at a prompt's end does, at a fraction of a pass.

A hook that touches only a prompt's last position leaves keys and values of all earlier ones as they are. So

1. every prompt runs once without its last token, and its KV cache is kept;
2. the last token alone runs under whatever hooks are attached, as often as asked; the cache is cut back each time.

A run costs one token a prompt instead of all of them, and gives the logits of the whole pass up to rounding. More
tokens can be put behind a prompt: then these run, and what stands before them does not run again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
        last: The last tokens [B, 1]; [B, n] where tokens were put behind them.
        mask: Of the whole prompts [B, T], padded on the left.
        cache: Keys and values of what stands before the last tokens; None where nothing does.
    """

    rows: list[int]
    last: Tensor
    mask: Tensor
    cache: Any

    def logits(self, model: BridgedModel) -> Tensor:
        """Next-token logits [B, d_vocab] behind the prompts, under the hooks that are attached to `model`."""
        return self._run(model, logits_to_keep=1)[0][:, -1]

    def every(self, model: BridgedModel) -> Tensor:
        """Next-token logits [B, n, d_vocab] behind each of the last tokens, likewise."""
        return self._run(model, logits_to_keep=self.last.shape[1])[0]

    def behind(self, picks: Sequence[int], tokens: Sequence[Sequence[int]]) -> EndBatch:
        """These prompts of the batch with tokens behind them, as many each, as further last tokens [m, n].

        Args:
            picks: Their places in the batch, m of them.
            tokens: Behind each.
        """
        place = torch.tensor(list(picks), device=self.last.device)
        more = torch.tensor([list(row) for row in tokens], dtype=torch.long, device=self.last.device)
        more = more.view(len(place), -1)
        cache = self.cache  # never written to: every run takes a copy
        if cache is not None and list(picks) != list(range(len(self.rows))):
            cache = copy.deepcopy(cache)
            cache.batch_select_indices(place)
        mask = torch.cat([self.mask[place], torch.ones_like(more).to(self.mask)], dim=1)
        rows = [self.rows[pick] for pick in picks]
        return EndBatch(rows, torch.cat([self.last[place], more], dim=1), mask, cache)

    def advanced(self, model: BridgedModel) -> EndBatch:
        """The same prompts with one last token: those before it have run, and are part of the cache."""
        if self.last.shape[1] == 1:
            return self
        run = EndBatch(self.rows, self.last[:, :-1], self.mask[:, :-1], self.cache)
        cache = run._run(model, logits_to_keep=1, use_cache=True)[1]
        return EndBatch(self.rows, self.last[:, -1:], self.mask, cache)

    def _run(self, model: BridgedModel, **options: Any) -> tuple[Tensor, Any]:
        # A cache is written to in place: this pass gets a copy, which shares no memory with the kept one.
        cache = copy.deepcopy(self.cache)
        return model.run(
            self.last, self.mask, **{"use_cache": cache is not None, "past_key_values": cache, **options}
        )


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

    def picked(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> Iterator[EndBatch]:
        """Some of the prompts with tokens behind each, in batches; `EndBatch.rows` are places in the list `rows`.

        Args:
            rows: Their indices among all; one may come several times.
            tokens: Behind each; those that have as many run together.
        """
        place = {row: (n, i) for n, batch in enumerate(self.batches) for i, row in enumerate(batch.rows)}
        together: dict[tuple[int, int], list[int]] = {}
        for i, (row, more) in enumerate(zip(rows, tokens, strict=True)):
            together.setdefault((place[row][0], len(more)), []).append(i)
        for (n, _), mine in together.items():
            batch = self.batches[n].behind([place[rows[i]][1] for i in mine], [tokens[i] for i in mine])
            yield replace(batch, rows=mine)

    @torch.no_grad()
    def continued(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> PromptEnds:
        """The ends of prompts with tokens behind them; only what is behind a prompt runs.

        Args:
            rows: Indices of the prompts.
            tokens: Behind each.
        """
        ends = copy.copy(self)
        ends.n = len(rows)
        ends.batches = [batch.advanced(self.model) for batch in self.picked(rows, tokens)]
        return ends

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
