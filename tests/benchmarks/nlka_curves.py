"""What certified attribution costs against k, against the prompt's length and against depth.

GPT-2-small's shape with random weights, one of the three changed at a time. Each point is the median over rounds of
the ratio to a forward pass over the same prompt within the same round, and the processor seconds of both: a busy
machine slows both sides of a ratio and leaves processor time nearly alone.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import mechedit as me
from mechedit.models.hooked import HookedModel
from reports.look import row, style
from tests.benchmarks.nlka import PROMPT, TARGET
from tests.benchmarks.shapes import bench_model

__all__ = ["bench_curves", "plot_curves"]

K, LENGTHS, DEPTHS = (30, 300, 3000), (10, 100, 500), (6, 12, 24)
AXES = {"k": "neurons of each kind, k", "length": "prompt, tokens", "depth": "layers"}


def bench_curves(out: Path, *, repeats: int = 3) -> dict[str, Any]:
    """Measures the three curves and writes `nlka_curves.json` and `nlka_curves.svg` into `out`; the dict is the
    JSON's: `points`, a list of rows axis, value, ratio_to_forward, seconds, seconds_forward, evaluated."""
    points: list[dict[str, Any]] = []
    model = bench_model("gpt2-small")
    points += [{"axis": "k", "value": k, **_point(model, PROMPT, k, repeats)} for k in K]
    for length in LENGTHS:
        prompt = _prompt(model, length)
        value = len(model.tokenize(prompt))
        points.append({"axis": "length", "value": value, **_point(model, prompt, 300, repeats)})
    for layers in DEPTHS:
        deep = bench_model("gpt2-small", layers=layers)
        points.append({"axis": "depth", "value": layers, **_point(deep, PROMPT, 300, repeats)})
    result = {
        "points": points,
        "repeats": repeats,
        "shape": "gpt2-small",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "nlka_curves.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot_curves(pd.DataFrame(points)).savefig(out / "nlka_curves.svg")
    return result


def _prompt(model: HookedModel, length: int) -> str:
    """The benchmark's prompt behind as many copies of itself as fit into `length` tokens."""
    unit = len(model.tokenize(PROMPT))
    return " ".join([PROMPT] * max(1, length // unit))


def _point(model: HookedModel, prompt: str, k: int, repeats: int) -> dict[str, Any]:
    ids = model.tokenize(prompt)
    evaluated = me.attribute(model, prompt, TARGET, top_k=k).certificate["evaluated"]  # and warm
    rounds = [
        (
            _seconds(lambda: me.attribute(model, prompt, TARGET, top_k=k)),
            _seconds(lambda: model.residual_view(ids)),
        )
        for _ in range(repeats)
    ]
    return {
        "ratio_to_forward": statistics.median(a / b for a, b in rounds),
        "seconds": statistics.median(a for a, _ in rounds),
        "seconds_forward": statistics.median(b for _, b in rounds),
        "evaluated": evaluated,
    }


def _seconds(call: Callable[[], object]) -> float:
    """Processor time, all threads."""
    began = time.process_time()
    call()
    return time.process_time() - began


def plot_curves(points: pd.DataFrame) -> Any:
    """Three panels, processor seconds of attribution and of the forward pass alone, both axes logarithmic; the
    figure."""
    with style():
        axes = row(len(AXES), width=8.4, height=2.8, sharey=True)
        for ax, (axis, label) in zip(axes, AXES.items(), strict=True):
            mine = points[points["axis"] == axis]
            ax.plot(mine["value"], mine["seconds"], marker="o", label="attribution")
            ax.plot(
                mine["value"], mine["seconds_forward"], marker="s", linestyle="--", label="forward pass alone"
            )
            ax.set(xscale="log", yscale="log", xlabel=label)
            ax.xaxis.set_major_locator(FixedLocator(mine["value"].tolist()))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes[0].set_ylabel("processor seconds")
        axes[0].legend()
        return axes[0].figure
