"""What MEGA's selection and fit cost, against the forward passes that they cannot do without.

The floor is every distinct prompt that the call reads, run once from its beginning, unhooked, batched by length, with
one position of logits; a prompt with the first tokens of an object behind it is one of its own. So what is above it:
prompts that are run again, last tokens under candidate maps, attribution, linear algebra.
Processor time within one run; the call first, then its floor, on prompts recorded on the way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

import mechedit as me
from mechedit.data.facts import FactEdit
from mechedit.editors import MEGA
from mechedit.editors.steering.fit import Fits
from mechedit.models.batching import batches
from mechedit.models.embedded import EMBEDDED
from mechedit.models.hooked import HookedModel
from mechedit.recipes.known_facts import find_known
from tests.benchmarks.shapes import about

__all__ = ["bench_choose", "facts_of", "measured"]

#: Facts that are fitted, one by one, behind those that `select` chooses on.
FITTED = 5


def bench_choose(*, model: str, facts: int) -> dict[str, Any]:
    """The benchmark as one dict: select_ratio, fit_ratio, and processor seconds of each and of its floor."""
    loaded = me.load_model(model)
    chosen = facts_of(loaded, model, facts + FITTED)
    ready: list[MEGA] = []
    select = measured(loaded, lambda: ready.append(MEGA().select(loaded, chosen[:facts])))
    fit = measured(loaded, lambda: [ready[0].fit(loaded, fact) for fact in chosen[facts:]])
    return {
        "select_ratio": select["seconds"] / select["floor_seconds"],
        "fit_ratio": fit["seconds"] / fit["floor_seconds"],
        **{f"select_{key}": value for key, value in select.items()},
        **{f"fit_{key}": value for key, value in fit.items()},
        "facts": facts,
        "fitted": FITTED,
        **about(loaded),
    }


def facts_of(model: HookedModel, name: str, n: int) -> list[FactEdit]:
    return me.factworld.edits(n) if name in EMBEDDED else find_known(model, limit=n, progress=False).facts


def measured(model: HookedModel, call: Callable[[], object]) -> dict[str, float]:
    with recorded(model) as prompts:
        spent = seconds(call)
    return {
        "seconds": spent,
        "floor_seconds": seconds(lambda: run_once(model, sorted(prompts))),
        "prompts": len(prompts),
        "tokens": sum(map(len, prompts)),
    }


@contextmanager
def recorded(model: HookedModel) -> Iterator[set[tuple[int, ...]]]:
    """The prompts that run from their beginning, and those that fits go on with, as ids."""
    prompts: set[tuple[int, ...]] = set()
    run, read = model.run, Fits._read

    def recording(ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
        if options.get("past_key_values") is None:
            prompts.update(tuple(row[real.bool()].tolist()) for row, real in zip(ids, mask, strict=True))
        return run(ids, mask, **options)

    def reading(fits: Fits, name: str, texts: Sequence[Sequence[str]]) -> None:
        prompts.update(tuple(ids.tolist()) for ids in fits._ids(texts))
        read(fits, name, texts)

    model.run = recording  # type: ignore[method-assign]
    Fits._read = reading  # type: ignore[method-assign, assignment]
    try:
        yield prompts
    finally:
        del model.run
        Fits._read = read  # type: ignore[method-assign]


@torch.no_grad()
def run_once(model: HookedModel, prompts: list[tuple[int, ...]]) -> None:
    for batch in batches([len(prompt) for prompt in prompts], 64):
        model.run(*model.pad([torch.tensor(prompts[i]) for i in batch]), logits_to_keep=1)


def seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began
