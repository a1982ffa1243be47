"""What the certified ranking costs: against full enumeration, and against the floor of any exact method.

All on one prompt of one model, warm. What is compared runs in turn, repeat by repeat, and each ratio is the median of
the repeats' ratios, by processor time on the CPU: a neighbour on the machine is no matter.

- *certified*: layers, heads, the top 300 FFN and attention neurons and query neurons (`attribute`'s default);
- *exhaustive*: the same by scoring every neuron (once: it takes minutes);
- *floor*: what no method can do without that reports k exact scores of each kind: one forward pass, the vocabulary
  projections of the 2 · n_layers bases, and those of 2 k units with their softmax, one batched product each;
- *floor_streamed*: the same with this project's own product, which goes block by block through the vocabulary and is
  faster than one batched product;
- *floor_scored*: the floor with every unit that was scored instead of the 2 k that are shown: the neurons that the
  certificate needed, all heads, and the positions of the strongest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import mechedit as me
from experiments.memory import watched
from mechedit.attribution.projection import Projection
from mechedit.attribution.ranking.neurons import Sign
from mechedit.attribution.result import Attribution
from mechedit.attribution.scores import inc_rows
from mechedit.models.hooked import HookedModel
from tests.benchmarks.shapes import about, bench_model, clock

__all__ = ["bench_nlka", "in_turn", "ratio"]

PROMPT, TARGET = "The mother tongue of Anna Novak is Greek and", " French"
KEYS = {"mlp_neurons": ["layer", "neuron"], "attn_neurons": ["layer", "head", "dim", "pos"]}
#: Head positions that are scored: `attribute` shows the strongest.
HEAD_POSITIONS = 50
Times = dict[str, list[float]]


def bench_nlka(
    *,
    shape: str = "gpt2-small",
    model: str = "",
    top_k: int = 300,
    sign: Sign = "promote",
    repeats: int = 5,
    exhaustive: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, Any]:
    """As one dict: ratios to the floors and to a forward pass, speedup_vs_exhaustive, sets_equal, seconds.

    Ratios are by `tests.benchmarks.shapes.clock`.
    """
    loaded = bench_model(shape, model, device=device, dtype=dtype)
    options: dict[str, Any] = {"top_k": top_k, "sign": sign}
    with watched(loaded.device) as peak:
        exact = me.attribute(loaded, PROMPT, TARGET, **options)
    evaluated = exact.certificate["evaluated"]
    calls: dict[str, Callable[[], object]] = {
        "certified": lambda: me.attribute(loaded, PROMPT, TARGET, **options),
        "floor": lambda: floor(loaded, PROMPT, 2 * top_k),
        "floor_streamed": lambda: floor_streamed(loaded, PROMPT, 2 * top_k),
        "floor_scored": lambda: floor(loaded, PROMPT, scored(loaded, evaluated)),
        "forward": lambda: loaded.residual_view(loaded.tokenize(PROMPT)),
    }
    times = in_turn(calls, repeats, loaded.device)
    result: dict[str, Any] = {
        f"ratio_to_{name}": ratio(times, "certified", name) for name in calls if name != "certified"
    }
    seconds = {name: statistics.median(values) for name, values in times.items()}
    if exhaustive:
        began = time.perf_counter()
        full = me.attribute(loaded, PROMPT, TARGET, method="exhaustive", **options)
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
        **options,
        **about(loaded, "" if model else shape),
    }


def in_turn(calls: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> Times:
    """Seconds of each call by the clock of the device, one round after another; the first, a warm-up, is left out."""
    now = clock(device)
    times: Times = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            began = now()
            call()
            times[name].append(now() - began)
    return {name: values[1:] for name, values in times.items()}


def ratio(times: Times, above: str, below: str) -> float:
    """The median over the rounds of one time over the other."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def scored(model: HookedModel, evaluated: int) -> int:
    """How many units are scored over the vocabulary: the neurons, all heads, and the positions of the strongest."""
    return evaluated + model.shape.n_layers * model.shape.n_heads + HEAD_POSITIONS


@torch.no_grad()
def floor(model: HookedModel, prompt: str, n_units: int) -> float:
    """Forward pass, 2 L base projections, `n_units` unit projections with their softmax, one batched product each."""
    view = model.residual_view(model.tokenize(prompt))
    bases = torch.cat([view.resid_pre, view.resid_mid]) @ model.W_U
    units = _units(model, n_units) @ model.W_U
    return float(bases.log_softmax(-1)[:, 0].sum() + units.log_softmax(-1)[:, 0].sum())


@torch.no_grad()
def floor_streamed(model: HookedModel, prompt: str, n_units: int) -> float:
    """The same with `inc_rows`."""
    view = model.residual_view(model.tokenize(prompt))
    bases = torch.cat([view.resid_pre, view.resid_mid])
    B = Projection.freeze(model.final_norm, model.W_U, None, x_final=view.resid_final, biases="drop")
    log_p = B.logits(bases).log_softmax(-1)
    base = torch.arange(n_units, device=log_p.device) * len(bases) // n_units
    return float(inc_rows(B, _units(model, n_units), base, log_p, target=0).sum())


def _units(model: HookedModel, n_units: int) -> torch.Tensor:
    rows = [model.W_out(layer) for layer in range(model.shape.n_layers)]
    need = -(-n_units // len(rows))
    return torch.cat([part[:need] for part in rows])[:n_units] * 0.01


def same_sets(fast: Attribution, full: Attribution) -> bool:
    """Whether both hold the same neurons of each kind."""
    pairs = [(getattr(fast, unit)[keys], getattr(full, unit)[keys]) for unit, keys in KEYS.items()]
    return all(set(map(tuple, a.to_numpy())) == set(map(tuple, b.to_numpy())) for a, b in pairs)
