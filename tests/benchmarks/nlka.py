"""What the certified ranking costs: against full enumeration, and against the floor of any exact method.

All on one prompt of one random model, warm. What is compared runs in turn, repeat by repeat, and each ratio is the
median of the repeats' ratios: a neighbour on the machine slows both sides.

- *certified*: layers, heads, the top 300 FFN and attention neurons and query neurons (`attribute`'s default);
- *exhaustive*: the same by scoring every neuron (once: it takes minutes);
- *floor*: what no method can do without that reports k exact scores of each kind: one forward pass, the vocabulary
  projections of the 2 · n_layers bases, and those of 2 k units with their softmax, one batched product each;
- *floor_streamed*: the same with this project's own product, which goes block by block through the vocabulary and is
  faster than one batched product.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import mechedit as me
from experiments.memory import watched
from mechedit.attribution.projection import Projection
from mechedit.attribution.result import Attribution
from mechedit.attribution.scores import inc_rows
from mechedit.models.hooked import HookedModel
from tests.benchmarks.shapes import random_gpt2

__all__ = ["bench_nlka"]

PROMPT, TARGET = "The mother tongue of Anna Novak is Greek and", " French"
KEYS = {"mlp_neurons": ["layer", "neuron"], "attn_neurons": ["layer", "head", "dim", "pos"]}
Times = dict[str, list[float]]


def bench_nlka(
    *,
    shape: str = "gpt2-small",
    top_k: int = 300,
    repeats: int = 5,
    exhaustive: bool = True,
) -> dict[str, Any]:
    """The benchmark as one dict: speedup_vs_exhaustive, ratio_to_floor, sets_equal, seconds, evaluated, shape."""
    with random_gpt2(shape) as model:
        with watched() as peak:
            exact = me.attribute(model, PROMPT, TARGET, top_k=top_k)
        times, processor = in_turn(_calls(model, top_k), repeats)
        seconds = {name: statistics.median(values) for name, values in times.items()}
        result: dict[str, Any] = {
            "ratio_to_floor": ratio(times, "certified", "floor"),
            "ratio_to_floor_processor": ratio(processor, "certified", "floor"),
            "ratio_to_floor_streamed": ratio(times, "certified", "floor_streamed"),
            "ratio_to_forward": ratio(times, "certified", "forward"),
        }
        if exhaustive:
            began = time.perf_counter()
            full = me.attribute(model, PROMPT, TARGET, top_k=top_k, method="exhaustive")
            seconds["exhaustive"] = time.perf_counter() - began
            result |= {
                "speedup_vs_exhaustive": seconds["exhaustive"] / seconds["certified"],
                "sets_equal": same_sets(exact, full),
            }
    return {
        **result,
        "seconds": seconds,
        "evaluated": exact.certificate["evaluated_by_kind"],
        "total": exact.certificate["total"],
        "peak_bytes_above_weights": peak[0],
        "tokens": len(exact.ids),
        "top_k": top_k,
        "shape": shape,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def _calls(model: HookedModel, top_k: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    return {
        "certified": lambda: me.attribute(model, PROMPT, TARGET, top_k=top_k),
        "floor": lambda: floor(model, PROMPT, top_k),
        "floor_streamed": lambda: floor_streamed(model, PROMPT, top_k),
        "forward": lambda: model.residual_view(model.tokenize(PROMPT)),
    }


def in_turn(calls: dict[str, Callable[[], object]], repeats: int) -> tuple[Times, Times]:
    """Seconds of each call, and seconds of the processor (all threads), one round after another."""
    times: Times = {name: [] for name in calls}
    processor: Times = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter(), time.process_time()
            call()
            times[name].append(time.perf_counter() - began[0])
            processor[name].append(time.process_time() - began[1])
    return times, processor


def ratio(times: Times, above: str, below: str) -> float:
    """The median over the rounds of one time over the other."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


@torch.no_grad()
def floor(model: HookedModel, prompt: str, top_k: int) -> float:
    """Forward pass, 2 L base projections, 2 k unit projections with their softmax, one batched product each."""
    view = model.residual_view(model.tokenize(prompt))
    bases = torch.cat([view.resid_pre, view.resid_mid]) @ model.W_U
    units = _units(model, top_k) @ model.W_U
    return float(bases.log_softmax(-1)[:, 0].sum() + units.log_softmax(-1)[:, 0].sum())


@torch.no_grad()
def floor_streamed(model: HookedModel, prompt: str, top_k: int) -> float:
    """The same with `inc_rows`."""
    view = model.residual_view(model.tokenize(prompt))
    bases = torch.cat([view.resid_pre, view.resid_mid])
    B = Projection.freeze(model.final_norm, model.W_U, None, x_final=view.resid_final, biases="drop")
    log_p = B.logits(bases).log_softmax(-1)
    base = torch.arange(2 * top_k) * len(bases) // (2 * top_k)
    return float(inc_rows(B, _units(model, top_k), base, log_p, target=0).sum())


def _units(model: HookedModel, top_k: int) -> torch.Tensor:
    rows = [model.W_out(layer) for layer in range(model.shape.n_layers)]
    need = -(-2 * top_k // len(rows))
    return torch.cat([part[:need] for part in rows])[: 2 * top_k] * 0.01


def same_sets(fast: Attribution, full: Attribution) -> bool:
    """Whether both hold the same neurons of each kind."""
    pairs = [(getattr(fast, unit)[keys], getattr(full, unit)[keys]) for unit, keys in KEYS.items()]
    return all(set(map(tuple, a.to_numpy())) == set(map(tuple, b.to_numpy())) for a, b in pairs)
