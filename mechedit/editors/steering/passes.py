"""Which tokens of a forward pass are a prompt's and which are generated: what decides where and when an edit steers.

An edit's gate is read at a prompt's last token, and an edited text is the text of *the prompt alone*: nothing before
its end is steered, however the prompt came in. A pass brings in new columns (tokens) behind those that its KV cache
holds. They are

- inside `generate`: the prompt's up to the length that `generate` was given, generated behind it. Chunked prefill,
  reused prefixes, beams, drafts of assisted decoding and `use_cache=False` follow from that;
- in a pass of the caller's own: *generated*, if it is one column behind a prompt whose end these edits have seen in the
  cache; else the *prompt's*, whose end is each row's last real token (so is a whole text that is run without a cache);
- what the caller says: under `prompt_part()` parts of a prompt that goes on (its next pass is the prompt's again,
  however short), under `generated_tokens()` generated ones, however many. It must be said where the last part of a
  prompt is a single token, or where several generated ones come in at once, as a draft that is checked.

When more of a prompt comes in behind an end that was steered (a further chunk, the next turn of a conversation), that
end was none: the cached columns from there on are taken back and run again without steering, before the pass.

A gate that lies above the first steered layer is read in a pass of its own over the same columns, before the caller's,
that ends where the last gate has read. Hooks of a `HookedModel` are not called in it; torch's own hooks on the modules
are, and the last call is the caller's.

All of this is kept per row in the cache (`mechedit.editors.steering.cache_history`) and per thread, so that sequences,
batches and threads on one model do not mix.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from mechedit.editors.steering.cached_tokens import cached_ids, embedded_ids
from mechedit.editors.steering.pass_arguments import Call, GivenPrompts, refuse_restarts
from mechedit.models.hooking import unheard
from reports.errors import InputError

__all__ = ["GatesRead", "Incoming", "Listener", "Passes", "follow", "mean_state", "to_the_left"]


@dataclass(eq=False)
class Incoming:
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


class GatesRead(Exception):
    """Ends a pass: all gates have read. An `Exception`, so that torch calls the hooks that close a pass."""


class Listener(Protocol):
    """What is told of the passes: a `Steering`."""

    key: str

    @property
    def last_read(self) -> int:
        """The last layer that it reads, −1 where it reads none."""

    @property
    def reads_text(self) -> bool:
        """Whether it needs the ids of whole prompts."""

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """Around passes that are none of the caller's: nothing is read, nothing is steered."""

    def open(self, new: Incoming) -> bool:
        """Before a pass; whether it needs a look ahead: a pass over the same columns in which nothing is steered."""

    def look_ahead(self, wanted: bool, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around the pass that looks ahead, which this listener wanted or another did; the `last` to read ends it."""

    def close(self) -> None:
        """After the pass."""


@dataclass(eq=False)
class _Here(threading.local):
    """What one thread is at."""

    prompts: list[GivenPrompts] = field(default_factory=list)  # of the `generate`s that are running
    begun: bool = False  # the innermost `generate` has made a pass
    declared: Literal["part", "generated"] | None = None
    inside: bool = False  # in a pass that is run for another
    history: History | None = None


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
        call = Call.of(module, args, kwargs)
        first = length_of(call.cache)
        history = self._history(call, first)
        new = self._read(call, history, first)
        self._take_back(call, history, new)
        real = self._real(call, first)[:, first:]
        positions = None if call.positions is None else call.positions.expand(real.shape)
        history.extend(real, self._ids(call), call.embeds, positions)
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

    def generate(self, hf: Any, generate: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """`generate` of the model, of whose passes it is known which columns are the prompt's."""
        config = args[1] if len(args) > 1 else options.get("generation_config")
        if options.get("token_healing", getattr(config, "token_healing", False)):
            raise InputError(
                "token_healing: expected False under edits, found True: it changes the prompt's end"
            )
        self._here.prompts.append(GivenPrompts.of(hf, args, options))
        before = self._here.declared, self._here.begun
        self._here.declared, self._here.begun = None, False
        try:
            return generate(*args, **{**options, "disable_compile": True})
        finally:
            self._here.prompts.pop()
            self._here.declared, self._here.begun = before

    # -- pieces --------------------------------------------------------------------------------------------------

    def _real(self, call: Call, first: int) -> Tensor:
        """Which of the columns up to this pass's last are tokens [B, first + T]."""
        if not self._here.prompts:
            return call.real(first)
        rows, length = call.inputs.shape[:2]
        return self._here.prompts[-1].real(rows, first + length, call.inputs.device)

    def _history(self, call: Call, first: int) -> History:
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
            known = self._here.prompts[-1].ids if self._here.prompts else None
            if known is not None:
                known = known.to(device)[:, history.length : first].repeat_interleave(rows // len(known), 0)
                known = known if known.shape[1] == first - history.length else None
            real = self._real(call, first)[:, :first]
            if known is None and self._reads_text:
                known = self._read_cache(call, real, history.length)
            history.extend(real[:, history.length :], known, None, None)
            history.forget(torch.ones(rows, dtype=torch.bool))
        return history

    def _ids(self, call: Call) -> Tensor | None:
        """The ids that came in; of embeddings, where a gate reads text, the tokens that have them."""
        if call.ids is not None or not self._reads_text:
            return call.ids
        base = self._base()
        assert base is not None
        assert call.embeds is not None
        return embedded_ids(base.get_input_embeddings(), call.embeds)  # type: ignore[operator]

    @property
    def _reads_text(self) -> bool:
        return any(listener.reads_text for listener in self.listeners)

    def _read_cache(self, call: Call, real: Tensor, first: int) -> Tensor:
        """The ids of the cached columns from `first` on, by what the cache holds."""
        base = self._base()
        assert base is not None
        with self._inside(), unheard(), contextlib.ExitStack() as stack:
            for listener in self.listeners:
                stack.enter_context(listener.aside())
            return cached_ids(base, call.cache, real, first)

    def _read(self, call: Call, history: History, first: int) -> Incoming:
        """Which of the new columns are what."""
        rows, length = call.inputs.shape[:2]
        ends, nobody = torch.full((rows,), -1), torch.zeros(rows, dtype=torch.bool)
        declared, prompts = self._here.declared, self._here.prompts
        if prompts:
            return self._read_generate(call, history, first)
        seen = history.ends >= 0
        if declared == "generated" and not bool(seen.any()):
            raise InputError("generated_tokens: expected a prompt before them in past_key_values, found none")
        if declared == "generated" or (declared is None and length == 1 and bool(seen.all())):
            return Incoming(history, first, length, ends, torch.ones(rows, length, dtype=torch.bool), nobody)
        real = call.real(first)[:, first:]
        if declared is None and length == 1 and bool(seen.any()):
            if bool((real[:, 0].cpu() & ~seen).any()):
                raise InputError(
                    "past_key_values: expected rows that are all at their prompts or all behind them, found a single "
                    "token behind both; run it under steering.prompt_part() or steering.generated_tokens()"
                )
            return Incoming(history, first, length, ends, real.cpu(), nobody)
        refuse_restarts(call.positions, real)
        places = torch.arange(1, length + 1, device=real.device)
        last = (real * places).amax(1).cpu() - 1
        lost = (last < 0) & (history.ends < 0) & history.real.any(1).cpu()
        if declared is None and bool(lost.any()):
            raise InputError(
                f"prompt_part: expected every prompt to go on behind it, found that {int(lost.sum())} of {rows} ended "
                "in it; pad on the left, or run the parts outside of the block"
            )
        return Incoming(history, first, length, ends if declared == "part" else last, None, last >= 0)

    def _read_generate(self, call: Call, history: History, first: int) -> Incoming:
        """Which of the new columns are what, in `generate`."""
        rows, length = call.inputs.shape[:2]
        total = self._here.prompts[-1].mask.shape[1]
        behind = max(total - first, 0)  # of the pass's columns, the first that is generated
        if not behind and not self._here.begun:
            raise InputError(
                f"past_key_values: expected less than the prompt's {total} tokens, found {first}; "
                "crop the cache by one, and generate() goes on from the prompt's last token"
            )
        self._here.begun = True
        ends = torch.full((rows,), behind - 1 if 0 < behind <= length else -1)
        if 0 < behind <= length and not bool(self._real(call, first)[:, first + behind - 1].all()):
            raise InputError(
                "attention_mask: expected prompts padded on the left, found padding behind one; generate() would go on "
                "from the padding (tokenizer.padding_side = 'left')"
            )
        generated = (torch.arange(length) >= behind).expand(rows, -1) if behind < length else None
        return Incoming(history, first, length, ends, generated, torch.full((rows,), behind > 0))

    def _take_back(self, call: Call, history: History, new: Incoming) -> None:
        """Runs again, unsteered, what was steered at the end of a prompt that goes on; other rows stay as they are."""
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
        replay = Incoming(history, start, new.first - start, ends, generated, new.new_prompt, replayed=True)
        with self._inside():
            for listener in self.listeners:
                listener.open(replay)
            base(**arguments)

    def _look_ahead(self, module: nn.Module, call: Call, looking: Sequence[Listener]) -> None:
        """A pass over the same columns that steers nothing and leaves the cache alone."""
        cache = None if call.cache is None else copied(call.cache)
        options = {"past_key_values": cache, "use_cache": cache is not None}
        last = max(
            reversed(looking), key=lambda listener: listener.last_read
        )  # hooks run as they were attached
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._inside())
            stack.enter_context(unheard())
            for listener in self.listeners:
                stack.enter_context(listener.look_ahead(listener in looking, last=listener is last))
            stack.enter_context(torch.no_grad())
            stack.enter_context(contextlib.suppress(GatesRead))
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
        own = partial(passes.generate, hf, hf.generate) if name == "generate" else _refuse_continuous_batching
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


def mean_state(kept: Tensor, inside: Tensor) -> Tensor:
    """The mean over each prompt's tokens [n, d]."""
    if bool(kept.isnan().any()):
        raise InputError(
            "past_key_values: expected the whole prompt, whose mean state a gate reads, found tokens that were cached "
            "before the edits were attached; begin with an empty cache"
        )
    return kept.sum(1) / inside.to(kept).sum(1, keepdim=True)


def to_the_left(states: Tensor, inside: Tensor) -> Tensor:
    """States [n, T, d] with those that are `inside` first, in order."""
    order = (~inside).to(torch.int8).argsort(dim=1, stable=True)
    return states.gather(1, order[:, :, None].expand_as(states))
