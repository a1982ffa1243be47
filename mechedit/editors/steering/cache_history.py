"""What a KV cache holds, as far as steering must know it: a record that lives on the cache object itself.

Column c of a cache is the c-th place of every row, padding included. For each row the history knows which columns are
real, their ids, where the prompt ends, from which column on the cached states are steered, and which edit won. It goes
wherever the cache goes: a copy of the cache has a copy, two caches on one model do not mix, `crop`, `reset`,
`reorder_cache`, `batch_select_indices` and `batch_repeat_interleave` change both.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from reports.errors import InputError

__all__ = ["UNSTEERED", "History", "copied", "crop", "history_of", "keep_history", "length_of"]

UNSTEERED = 1 << 60  # the "first steered column" of a row that has none
_NAME = "_steering_history"


@dataclass(eq=False)
class History:
    """The columns of a cache.

    Attributes:
        real: Tokens that are no padding [B, L].
        ids: −1 where unknown: cached before the edits were attached, or given as embeddings [B, L].
        positions: −1 where the model chose them itself [B, L].
        ends: The column of each prompt's last token, −1 while it is not known; on the CPU [B].
        steered: The first column whose cached states are steered, `UNSTEERED` where none is; on the CPU [B].
        winners: By steering, the edit that steers each row, −1 for none; on the CPU [B].
        embeds: Of columns that were given as embeddings, by the first of each run of columns [B, n, d].
        states: What gates of a mean state read, by (steering, layer); nan where unknown [B, L, d].
    """

    real: Tensor
    ids: Tensor
    positions: Tensor
    ends: Tensor
    steered: Tensor
    winners: dict[str, Tensor] = field(default_factory=dict)
    embeds: dict[int, Tensor] = field(default_factory=dict)
    states: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> History:
        """Of a batch of which nothing has come in."""
        nothing = torch.zeros(rows, 0, dtype=torch.long, device=device)
        ends = torch.full((rows,), -1)
        return cls(nothing.bool(), nothing, nothing, ends, torch.full((rows,), UNSTEERED))

    @property
    def rows(self) -> int:
        """The batch size."""
        return len(self.ids)

    @property
    def length(self) -> int:
        """How many columns there are."""
        return self.ids.shape[1]

    def extend(
        self, real: Tensor, ids: Tensor | None, embeds: Tensor | None, positions: Tensor | None
    ) -> None:
        """More columns, of which `real` [B, n] are tokens."""
        unknown = real.new_full(real.shape, -1, dtype=torch.long)
        if embeds is not None:
            self.embeds[self.length] = embeds
        self.real = torch.cat([self.real, real], 1)
        self.positions = torch.cat([self.positions, unknown if positions is None else positions], 1)
        self.ids = torch.cat([self.ids, unknown if ids is None else ids], 1)

    def put_states(self, key: tuple[str, int], first: int, states: Tensor) -> None:
        """States [B, n, d] of the columns from `first` on."""
        before = self.states.get(key, states[:, :0])[:, :first]
        gap = states.new_full((len(states), first - before.shape[1], states.shape[2]), torch.nan)
        self.states[key] = torch.cat([before, gap, states.detach()], 1)

    def crop(self, length: int) -> None:
        """The columns before `length`; a row that loses its prompt's end has none."""
        self.real, self.ids, self.positions = (
            columns[:, :length] for columns in (self.real, self.ids, self.positions)
        )
        self.embeds = {
            first: piece[:, : length - first] for first, piece in self.embeds.items() if first < length
        }
        self.states = {key: states[:, :length] for key, states in self.states.items()}
        self.forget(self.ends >= length)
        self.steered[self.steered >= length] = UNSTEERED

    def forget(self, rows: Tensor) -> None:
        """These rows [B] of a mask are at no prompt's end; what was steered in them stays recorded."""
        self.ends[rows] = -1
        for winner in self.winners.values():
            winner[rows] = -1

    def select(self, index: Tensor) -> None:
        """The rows of this index, in its order."""
        here, on_cpu = index.to(self.ids.device), index.cpu()
        self.real, self.ids, self.positions = self.real[here], self.ids[here], self.positions[here]
        self.ends, self.steered = self.ends[on_cpu], self.steered[on_cpu]
        self.winners = {key: winner[on_cpu] for key, winner in self.winners.items()}
        self.embeds = {first: piece[index.to(piece.device)] for first, piece in self.embeds.items()}
        self.states = {key: states[index.to(states.device)] for key, states in self.states.items()}

    def inputs(self, first: int, embed: Any) -> dict[str, Tensor] | None:
        """What the model is to be given again to run the columns from `first` on; None where it is not known."""
        ids = self.ids[:, first:]
        if not self.embeds and bool((ids >= 0).all()):
            return {"input_ids": ids}
        vectors = embed(ids.clamp(min=0))
        known = (ids >= 0).all(0)
        for start, piece in self.embeds.items():
            place = slice(max(start, first) - first, max(start + piece.shape[1] - first, 0))
            vectors[:, place] = piece[:, max(first - start, 0) :].to(vectors)
            known[place] = True
        return {"inputs_embeds": vectors} if bool(known.all()) else None


def history_of(cache: Any) -> History | None:
    """The history of a cache, if it has one."""
    return getattr(cache, _NAME, None)


def keep_history(cache: Any, history: History | None) -> None:
    """Puts a history on a cache, which changes it with itself from now on; None takes it off."""
    if not isinstance(cache, _Recorded):
        cache.__class__ = _recorded(type(cache))  # type: ignore[arg-type]
    setattr(cache, _NAME, history)


def length_of(cache: Any) -> int:
    """How many columns a cache has, 0 for None."""
    return 0 if cache is None else int(cache.get_seq_length())


def copied(cache: Any) -> Any:
    """A cache of its own, without gradients."""
    tensors = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, Tensor)]
    return copy.deepcopy(cache, {id(tensor): tensor.detach().clone() for tensor in tensors})


def crop(cache: Any, columns: int) -> None:
    """Takes the last columns off a cache, static ones too.

    Raises:
        InputError: It cannot give them back; it is as it was.
    """
    static = [hasattr(layer, "max_cache_len") for layer in cache.layers]
    rolling = [
        getattr(layer, "is_sliding", False)
        and (is_static or int(layer.get_seq_length()) >= int(layer.sliding_window))
        and not getattr(layer, "record_past", False)
        for layer, is_static in zip(cache.layers, static, strict=True)
    ]
    dynamic = [
        getattr(layer, "is_croppable", True) and not hasattr(layer, "_quantize") for layer in cache.layers
    ]
    if any(rolling) or not (all(static) or all(dynamic)):
        raise InputError(
            f"past_key_values: more of the prompt follows an end that was steered, and a {type(cache).__name__} of "
            "this length cannot give it back; begin with an empty cache, or run all parts of a prompt but the last "
            "under steering.prompt_part()"
        )
    if all(static):
        for layer in cache.layers:
            layer.cumulative_length.sub_(columns)
    else:
        cache.crop(-columns)


class _Recorded:
    """What a cache with a history does besides: its history goes with it, into copies and files too."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restored, (type(self).__mro__[2],), dict(vars(self))

    def reorder_cache(self: Any, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        _select(self, beam_idx)

    def batch_select_indices(self: Any, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        _select(self, torch.as_tensor(indices))

    def batch_repeat_interleave(self: Any, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        history = history_of(self)
        if history is not None:
            history.select(torch.arange(history.rows).repeat_interleave(repeats))

    def crop(self: Any, *args: Any, **kwargs: Any) -> None:
        super().crop(*args, **kwargs)  # type: ignore[misc]
        history = history_of(self)
        if history is not None:
            history.crop(length_of(self))

    def reset(self: Any) -> None:
        super().reset()  # type: ignore[misc]
        setattr(self, _NAME, None)


def _select(cache: Any, index: Tensor) -> None:
    history = history_of(cache)
    if history is not None:
        history.select(index.nonzero()[:, 0] if index.dtype == torch.bool else index)


def _restored(kind: type) -> Any:
    return object.__new__(_recorded(kind))


@cache
def _recorded(kind: type) -> type:
    return type(kind.__name__, (_Recorded, kind), {"__module__": kind.__module__})
