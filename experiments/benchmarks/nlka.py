"""What the certified ranking costs: against full enumeration, and against the floor of any exact method.

All on one prompt of one random model, warm, medians of `repeats`, ratios within the run:

- *certified*: layers, heads, the top 300 FFN and attention neurons and query neurons (`attribute`'s default);
- *exhaustive*: the same by scoring every neuron (once: it takes minutes);
- *floor*: what no method can do without that reports k exact scores of each kind: one forward pass, the vocabulary
  projections of the 2 · n_layers bases, and those of 2 k units with their softmax, one batched product each.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from experiments.benchmarks.shapes import random_gpt2

if TYPE_CHECKING:
    from mechedit.attribution import Attribution
    from mechedit.model import HookedModel

__all__ = ["bench_nlka"]

PROMPT, TARGET = "The mother tongue of Anna Novak is Greek and", " French"
KEYS = {"mlp_neurons": ["layer", "neuron"], "attn_neurons": ["layer", "head", "dim", "pos"]}


def bench_nlka(
    *, shape: str = "gpt2-small", top_k: int = 300, repeats: int = 5, exhaustive: bool = True
) -> dict[str, Any]:
    """The benchmark as one dict: speedup_vs_exhaustive, ratio_to_floor, sets_equal, seconds, evaluated, shape."""
    import mechedit as me

    with random_gpt2(shape) as model:
        attr = me.attribute(model, PROMPT, TARGET, top_k=top_k)
        fast = _median(lambda: me.attribute(model, PROMPT, TARGET, top_k=top_k), repeats)
        forward = _median(lambda: model.residual_view(model.tokenize(PROMPT)), repeats)
        floor = _median(lambda: _floor(model, top_k), repeats)
        seconds = {"certified": fast, "floor": floor, "forward": forward}
        result: dict[str, Any] = {"ratio_to_floor": fast / floor, "ratio_to_forward": fast / forward}
        if exhaustive:
            began = time.perf_counter()
            full = me.attribute(model, PROMPT, TARGET, top_k=top_k, method="exhaustive")
            seconds["exhaustive"] = time.perf_counter() - began
            result |= {
                "speedup_vs_exhaustive": seconds["exhaustive"] / fast,
                "sets_equal": _same_sets(attr, full),
            }
    return {
        **result,
        "seconds": seconds,
        "evaluated": attr.certificate["evaluated_by_kind"],
        "total": attr.certificate["total"],
        "tokens": len(attr.ids),
        "top_k": top_k,
        "shape": shape,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def _median(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@torch.no_grad()
def _floor(model: HookedModel, top_k: int) -> float:
    """Forward pass, 2 L base projections, 2 k unit projections with their softmax."""
    view = model.residual_view(model.tokenize(PROMPT))
    bases = torch.cat([view.resid_pre, view.resid_mid]) @ model.W_U
    units = model.W_out(0)[: 2 * top_k] @ model.W_U
    return float(bases.log_softmax(-1)[:, 0].sum() + units.log_softmax(-1)[:, 0].sum())


def _same_sets(fast: Attribution, full: Attribution) -> bool:
    pairs = [(getattr(fast, unit)[keys], getattr(full, unit)[keys]) for unit, keys in KEYS.items()]
    return all(set(map(tuple, a.to_numpy())) == set(map(tuple, b.to_numpy())) for a, b in pairs)
