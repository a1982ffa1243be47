"""Which tokens of a forward pass are a prompt's and which are generated: what decides where and when an edit steers.

An edit's gate is read at a prompt's last token, and an edited text is the text of *the prompt alone*: nothing before
its end is steered, however the prompt came in. A pass brings in new columns (tokens) behind those that its KV cache
holds. They are

- inside `generate`: the prompt's up to the length that `generate` was given, generated behind it. Chunked prefill,
  reused prefixes, beams, drafts of assisted decoding and `use_cache=False` follow from that;
- in a pass of the caller's own: *generated*, if it is one column behind a prompt whose end was seen, else the *prompt's*,
  whose end is each row's last real token;
- what the caller says: under `prompt_part()` parts of a prompt that goes on (its next pass is the prompt's again, however
  short), under `generated_tokens()` generated ones, however many. The one case in which it must be said: the last part of
  a prompt is a single token, or a draft of several generated ones is checked at once.

When more of a prompt comes in behind an end that was steered (a further chunk, the next turn of a conversation), that
end was none: the cached columns from there on are taken back and run again without steering, before the pass.

All of this is kept per row in the cache (`mechedit.editors.steering.cache_history`) and per thread, so that sequences,
batches and threads on one model do not mix.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from mechedit.editors.steering.cache_history import (
    UNSTEERED,
    History,
    copied,
    crop,
    history_of,
    keep_history,
    length_of,
)
from reports.errors import InputError

__all__ = ["Listener", "Pass", "Passes", "follow"]

_PACKED = ("cu_seq_lens_q", "cu_seqlens", "block_table", "seq_idx")


@dataclass(eq=False)
class Pass:
    """The columns that a forward pass brings in.

    Attributes:
        history: Of all columns, these included.
        first: The first of them.
        length: How many there are.
        ends: Where in the pass each prompt ends, −1 where none does; on the CPU [B].
        generated: Columns of generated tokens, None where there is none; on the CPU [B, length].
        new_prompt: Rows that get tokens of a prompt; on the CPU [B].
        replayed: These columns had come in before.
    """

    history: History
    first: int
    length: int
    ends: Tensor
    generated: Tensor | None
    new_prompt: Tensor
    replayed: bool = False


class Listener(Protocol):
    """What is told of the passes: a `Steering`."""

    key: int

    def open(self, new: Pass) -> bool:
        """Before a pass; whether it needs a look ahead: a pass over the same columns in which nothing is steered."""

    def look_ahead(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        """Around the pass that looks ahead, which this listener wanted or another did."""

    def close(self) -> None:
        """After the pass."""


@dataclass(eq=False)
class _Here(threading.local):
    """What one thread is at."""

    prompts: list[int] = field(default_factory=list)  # their lengths in the `generate`s that are running
    begun: bool = False  # the innermost `generate` has made a pass
    declared: Literal["part", "generated"] | None = None
    inside: bool = False  # in a pass that is run for another
    history: History | None = None


@dataclass(frozen=True, eq=False)
class _Call:
    """The arguments of a pass."""

    ids: Tensor | None
    embeds: Tensor | None
    mask: Any
    positions: Tensor | None
    cache: Any
    arguments: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        named = {**dict(zip(_parameters(type(module)), args, strict=False)), **kwargs}
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
        inputs = self.embeds if self.ids is None else self.ids
        assert inputs is not None
        return inputs

    def real(self, first: int) -> Tensor:
        """Which of the columns up to this pass's last are tokens [B, first + T], of any mask that transformers takes."""
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


class Passes:
    """Follows all passes of a model and tells its listeners what each of them brings in."""

    def __init__(self, base: nn.Module) -> None:
        self._base = weakref.ref(base)
        self._here = _Here()
        self.listeners: list[Listener] = []
        self.undo: Callable[[], None] = lambda: None

    # -- hooks ---------------------------------------------------------------------------------------------------

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each pass, whoever calls it."""
        if self._here.inside:
            return
        self._here.history = None
        call = _Call.of(module, args, kwargs)
        first = length_of(call.cache)
        history = self._history(call, first)
        new = self._read(call, history, first)
        self._take_back(call, history, new)
        history.extend(
            new_real := call.real(first)[:, first:], call.ids, call.embeds, _filled(call.positions, new_real)
        )
        history.forget(new.new_prompt)
        history.ends = torch.where(new.ends >= 0, new.ends + first, history.ends)
        self._here.history = history
        if call.cache is not None:
            keep_history(call.cache, history)
        looking = [listener for listener in self.listeners if listener.open(new)]
        if looking:
            self._look_ahead(module, call, looking)

    def finish(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After each pass, also one that failed."""
        if self._here.inside:
            return
        for listener in self.listeners:
            listener.close()
        history, self._here.history = self._here.history, None
        parts = output if isinstance(output, tuple) else [getattr(output, "past_key_values", None)]
        for cache in parts:
            if history is not None and hasattr(cache, "layers") and hasattr(cache, "get_seq_length"):
                keep_history(cache, history)  # of a cache that the model made itself

    # -- what the caller says ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def declare(self, kind: Literal["part", "generated"]) -> Iterator[None]:
        """Passes of this thread in the block bring in parts of prompts that go on, or generated tokens."""
        before, self._here.declared = self._here.declared, kind
        try:
            yield
        finally:
            self._here.declared = before

    def generate(self, generate: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """`generate` of the model, of whose passes it is known which columns are the prompt's."""
        config = args[1] if len(args) > 1 else options.get("generation_config")
        if options.get("token_healing", getattr(config, "token_healing", False)):
            raise InputError(
                "token_healing: expected False under edits, found True: it changes the prompt's end"
            )
        inputs = options.get("inputs_embeds")
        ids = options.get("input_ids", args[0] if args else options.get("inputs"))
        inputs = ids if inputs is None else inputs
        mask = options.get("attention_mask")
        known = mask if isinstance(mask, Tensor) and mask.ndim == 2 else inputs
        self._here.prompts.append(1 if known is None else known.shape[1])
        before = self._here.declared, self._here.begun
        self._here.declared, self._here.begun = None, False
        try:
            return generate(*args, **{**options, "disable_compile": True})
        finally:
            self._here.prompts.pop()
            self._here.declared, self._here.begun = before

    # -- pieces --------------------------------------------------------------------------------------------------

    def _history(self, call: _Call, first: int) -> History:
        """What the cache holds; columns that came in while no edit was attached are unknown."""
        rows, device = call.inputs.shape[0], call.inputs.device
        history = history_of(call.cache) if first else None
        if history is None:
            history = History.empty(rows, device)
        if history.rows != rows:
            raise InputError(
                f"past_key_values: expected {history.rows} rows, as the cached ones, found {rows}; "
                "select or repeat them by the cache's own batch_select_indices or batch_repeat_interleave"
            )
        if history.length > first:
            history.crop(first)
        if any(listener.key not in history.winners for listener in self.listeners):
            history.forget(torch.ones(rows, dtype=torch.bool))  # prompts that these edits have not seen
        if history.length < first:
            history.extend(call.real(first)[:, history.length : first], None, None, None)
            history.forget(torch.ones(rows, dtype=torch.bool))
        return history

    def _read(self, call: _Call, history: History, first: int) -> Pass:
        """Which of the new columns are what."""
        rows, length = call.inputs.shape[:2]
        ends, nobody = torch.full((rows,), -1), torch.zeros(rows, dtype=torch.bool)
        declared, prompts = self._here.declared, self._here.prompts
        if prompts:
            behind = max(prompts[-1] - first, 0)  # of the pass's columns, the first that is generated
            if not behind and not self._here.begun:
                raise InputError(
                    f"past_key_values: expected less than the prompt's {prompts[-1]} tokens, found {first}; "
                    "crop the cache by one, and generate() goes on from the prompt's last token"
                )
            self._here.begun = True
            generated = None
            if behind < length:
                generated = (torch.arange(length) >= behind).expand(rows, -1)
            if 0 < behind <= length:
                ends = torch.full((rows,), behind - 1)
                if not bool(call.real(first)[:, first + behind - 1].all()):
                    raise InputError(
                        "attention_mask: expected prompts padded on the left, found padding behind one; "
                        "generate() would go on from the padding (tokenizer.padding_side = 'left')"
                    )
            return Pass(history, first, length, ends, generated, nobody if behind <= 0 else ~nobody)
        seen = bool((history.ends >= 0).all())
        if declared == "generated" and not seen:
            raise InputError("generated_tokens: expected a prompt before them in past_key_values, found none")
        if declared == "generated" or (declared is None and length == 1 and seen):
            return Pass(history, first, length, ends, torch.ones(rows, length, dtype=torch.bool), nobody)
        real = call.real(first)[:, first:]
        if declared is None and length == 1 and not bool((real[:, 0].cpu() & (history.ends < 0)).any()):
            return Pass(history, first, length, ends, real.cpu(), nobody)
        _refuse_restarts(call.positions, real)
        places = torch.arange(1, length + 1, device=real.device)
        last = (real * places).amax(1).cpu() - 1
        return Pass(history, first, length, ends if declared == "part" else last, None, last >= 0)

    def _take_back(self, call: _Call, history: History, new: Pass) -> None:
        """Runs the columns again that were steered at the end of a prompt that goes on; other rows are left as they were."""
        start = int(torch.where(new.new_prompt, history.steered, UNSTEERED).min())
        if start >= new.first:
            return
        base = self._base()
        assert base is not None
        inputs = history.inputs(start, base.get_input_embeddings())  # type: ignore[operator]
        if inputs is None:
            raise InputError(
                "past_key_values: more of the prompt follows tokens that were steered, and some of these came in while "
                "the edits were not attached; begin with an empty cache"
            )
        keep_history(call.cache, None)
        crop(call.cache, new.first - start)
        keep_history(call.cache, history)
        again = torch.arange(start, new.first)
        ends = torch.where(~new.new_prompt & (history.ends >= start), history.ends - start, -1)
        generated = (again > history.ends[:, None]) & (history.ends >= 0)[:, None] & ~new.new_prompt[:, None]
        positions = history.positions[:, start:]
        arguments = {**inputs, "past_key_values": call.cache, "use_cache": True}
        if not bool(history.real.all()):
            arguments["attention_mask"] = history.real.long()
        if bool((positions >= 0).all()):
            arguments["position_ids"] = positions
        history.steered[new.new_prompt] = UNSTEERED
        replay = Pass(history, start, new.first - start, ends, generated, new.new_prompt, replayed=True)
        with self._inside():
            for listener in self.listeners:
                listener.open(replay)
            base(**arguments)

    def _look_ahead(self, module: nn.Module, call: _Call, looking: Sequence[Listener]) -> None:
        """A pass over the same columns that steers nothing and leaves the cache alone."""
        cache = None if call.cache is None else copied(call.cache)
        options = {"past_key_values": cache, "use_cache": cache is not None}
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._inside())
            for listener in self.listeners:
                stack.enter_context(listener.look_ahead(listener in looking))
            stack.enter_context(torch.no_grad())
            module(**{**call.arguments, **options})

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        self._here.inside = True
        try:
            yield
        finally:
            self._here.inside = False


_FOLLOWED: weakref.WeakKeyDictionary[nn.Module, Passes] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


@contextlib.contextmanager
def follow(hf: Any, listener: Listener) -> Iterator[Passes]:
    """Tells `listener` of all passes of `hf` and of its base model, for the length of the block.

    Raises:
        InputError: In `hf.generate`, for continuous batching, whose passes hold many prompts in one row.
    """
    base: nn.Module = hf.base_model
    with _LOCK:
        passes = _FOLLOWED.setdefault(base, Passes(base))
        if not passes.listeners:
            passes.undo = _hang(hf, base, passes)
        passes.listeners.append(listener)
    try:
        yield passes
    finally:
        with _LOCK:
            passes.listeners.remove(listener)
            if not passes.listeners:
                passes.undo()
                del _FOLLOWED[base]


def _hang(hf: Any, base: nn.Module, passes: Passes) -> Callable[[], None]:
    """Hangs the hooks, and `generate` in front of the model's own; what undoes it."""
    handles = [
        base.register_forward_pre_hook(passes.begin, with_kwargs=True),
        base.register_forward_hook(passes.finish, with_kwargs=True, always_call=True),
    ]
    names = [name for name in ("generate", "init_continuous_batching") if hasattr(hf, name)]
    before = {name: vars(hf)[name] for name in names if name in vars(hf)}
    for name in names:
        own = partial(passes.generate, hf.generate) if name == "generate" else _refuse_continuous_batching
        setattr(hf, name, own)

    def undo() -> None:
        for handle in handles:
            handle.remove()
        for name in names:
            delattr(hf, name)
        vars(hf).update(before)

    return undo


def _refuse_continuous_batching(*args: Any, **kwargs: Any) -> None:
    raise InputError(
        "cache_implementation: expected batches of prompts under edits, found continuous batching, "
        "which packs many prompts into one row; call generate() with batches padded on the left"
    )


def _refuse_restarts(positions: Tensor | None, real: Tensor) -> None:
    """Positions that start again within a row are several sequences in one."""
    if positions is None or positions.shape[1] != real.shape[1] or positions.shape[1] < 2:
        return
    if bool(((positions.diff(dim=1) <= 0) & real[:, 1:] & real[:, :-1]).any()):
        raise InputError(
            "position_ids: expected positions that rise along a row, found some that start again: packed sequences, "
            "each of which has its own prompt; give each a row of its own"
        )


def _filled(positions: Tensor | None, real: Tensor) -> Tensor | None:
    return None if positions is None else positions.expand(real.shape)


@cache
def _parameters(kind: type[nn.Module]) -> tuple[str, ...]:
    """The names of a forward's positional arguments."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind in positional)
