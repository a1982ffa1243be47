"""What attributing many prompts together costs: against one by one, and against its floor.

In turn, each ratio the median of the repeats', by processor time on the CPU. The floor: one padded forward pass over
all prompts, and for each the projections of its 2 L bases and of 2 k units with their softmax, as batched products.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

import mechedit as me
from mechedit.models.hooked import HookedModel
from mechedit.models.residual import view_residuals
from tests.benchmarks.nlka import _units, in_turn, ratio
from tests.benchmarks.shapes import about, bench_model

__all__ = ["bench_many"]


def bench_many(
    *,
    shape: str = "gpt2-small",
    model: str = "",
    top_k: int = 30,
    prompts: int = 16,
    repeats: int = 3,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, Any]:
    """The benchmark as one dict: speedup_vs_one_by_one, ratio_to_floor, prompts_per_second, seconds."""
    loaded = bench_model(shape, model, device=device, dtype=dtype)
    facts = me.factworld.edits(prompts)
    texts, targets = [fact.rewrite_prompt for fact in facts], [fact.target_true for fact in facts]
    pairs = list(zip(texts, targets, strict=True))
    times = in_turn(
        {
            "together": lambda: me.attribute_many(loaded, texts, targets, top_k=top_k, progress=False),
            "one_by_one": lambda: [me.attribute(loaded, *pair, top_k=top_k) for pair in pairs],
            "floor": lambda: floor_of_many(loaded, texts, top_k),
        },
        repeats,
        loaded.device,
    )
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "speedup_vs_one_by_one": ratio(times, "one_by_one", "together"),
        "ratio_to_floor": ratio(times, "together", "floor"),
        "prompts_per_second": {name: prompts / value for name, value in seconds.items()},
        "seconds": seconds,
        "prompts": prompts,
        "top_k": top_k,
        **about(loaded, "" if model else shape),
    }


@torch.no_grad()
def floor_of_many(model: HookedModel, prompts: list[str], top_k: int) -> float:
    """One forward pass, and the projections of each prompt."""
    units, total = _units(model, 2 * top_k), 0.0
    for view in view_residuals(model, model.encode(prompts)):
        for rows in (torch.cat([view.resid_pre, view.resid_mid]), units):
            total += float((rows @ model.W_U).log_softmax(-1)[:, 0].sum())
    return total
