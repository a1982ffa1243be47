"""What reports cost: a circuit of many edges, a batch of run folders with its index, and the memory of a longer batch.

- *circuit*: the SVG of 60 nodes and 1,000 edges, the fastest of `repeats` (a neighbour on the machine only slows);
- *batch*: pages of `runs` run folders and their index by two processes, from the call to the last file, imports
  included; `cpu_seconds_batch` is what both processes computed, whoever else was on the machine;
- *memory*: the resident set of a new process that makes the pages one after the other, after `few` of them and
  after all; what they differ by is what the pages between have left behind.

The runs have the shape of an evaluation of GPT-2 small with attribution: 40 edits, 5 editors, 12 layers of 12 heads.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from reports import batch
from reports.circuit import Circuit, Edge, Node, draw
from reports.intervals import wilson

__all__ = ["bench_report"]

LAYERS, HEADS, EDITS, EDITORS = 12, 12, 40, ("mega", "rome", "memit", "ft", "no edit")


def bench_report(*, runs: int = 50, few: int = 10, repeats: int = 5) -> dict[str, Any]:
    """The benchmark as one dict: seconds_circuit, seconds_batch, cpu_seconds_batch, mb_few, mb_runs."""
    few = min(few, runs // 2)
    circuit = random_circuit(nodes=60, edges=1000)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        drawing = draw(circuit)
        times.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for i in range(runs):
            write_run(folder / "runs" / f"run{i}", seed=i)
        began, computed = time.perf_counter(), _cpu()
        made = batch.build([folder / "runs"], folder / "index.html", progress=False, workers=2)
        seconds, computed = time.perf_counter() - began, _cpu() - computed
        pages = sorted((folder / "index-runs").iterdir())
        largest = max(page.stat().st_size for page in pages)
        sizes = resident_mb(folder / "runs", few)
    return {
        "seconds_circuit": round(min(times), 4),
        "nodes": drawing.n_shown,
        "edges": len(circuit.edges),
        "seconds_batch": round(seconds, 1),
        "cpu_seconds_batch": round(computed, 1),
        "runs": len(made.entries),
        "pages": len(pages),
        "largest_page_mb": round(largest / 1e6, 3),
        "mb_few": round(sizes[0], 1),
        "mb_runs": round(sizes[1], 1),
        "mb_per_run": round((sizes[1] - sizes[0]) / (runs - few), 3),
        "machine": {"cpu": platform.machine(), "python": platform.python_version()},
    }


def random_circuit(*, nodes: int, edges: int, seed: int = 0) -> Circuit:
    """A circuit of `nodes` nodes in 12 layers and `edges` distinct edges, each upward."""
    generator = np.random.default_rng(seed)
    layers = np.sort(generator.integers(0, LAYERS, nodes - 1))
    kinds = generator.choice(["head", "mlp", "neuron"], nodes - 1)
    units = [
        Node(f"u{i}", str(kind), int(layer), f"L{layer} {i}", float(score))
        for i, (kind, layer, score) in enumerate(
            zip(kinds, layers, generator.normal(size=nodes - 1), strict=True)
        )
    ]
    above = [(a.id, b.id) for a in units for b in units if a.layer < b.layer]
    chosen = generator.choice(len(above), edges - len(units), replace=False)
    pairs = [*(above[i] for i in chosen), *((unit.id, "target") for unit in units)]
    scores = generator.normal(size=len(pairs))
    drawn = tuple(Edge(a, b, float(score)) for (a, b), score in zip(pairs, scores, strict=True))
    return Circuit(
        " target", "A prompt", 0.7, (*units, Node("target", "target", LAYERS, " target", 1.0)), drawn
    )


def _cpu() -> float:
    """Seconds that this process and its ended children have computed."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def resident_mb(folder: Path, few: int) -> tuple[float, float]:
    """Resident MB of a new process after the pages of the first `few` runs in `folder`, and after those of all.

    The kernel's own peak (`ru_maxrss`) will not do: a new process inherits its parent's.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_resident, folder, few).result()


def _resident(folder: Path, few: int) -> tuple[float, float]:
    folders, sizes = batch.find([folder]), []
    with tempfile.TemporaryDirectory() as scratch:
        for part in (folders[:few], folders[few:]):
            batch.build(part, Path(scratch) / "index.html", progress=False, workers=1)
            sizes.append(psutil.Process().memory_info().rss / 1e6)
    return sizes[0], sizes[1]


def write_run(folder: Path, *, seed: int) -> None:
    """A run of random numbers: summary, layer curves, heads, windows, neurons."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    editors = [
        {"name": name, **{k: _score(generator) for k in ("acc", "gen", "spec", "es", "ps", "ns")}}
        for name in EDITORS
    ]
    about = {"title": f"Run {seed}", "model": "gpt2-small", "n": EDITS, "window": [5, 8], "editors": editors}
    (folder / "summary.json").write_text(json.dumps(about), encoding="utf-8")
    names = (["attn", "mlp"], ["new", "old"], ["before", "after"], range(LAYERS))
    contrast = _grid(module=names[0], object=names[1], stage=names[2], layer=names[3])
    score = generator.normal(size=len(contrast))
    contrast.assign(score=score, low=score - 0.2, high=score + 0.2, n=EDITS).to_parquet(
        folder / "contrast.parquet"
    )
    heads = _grid(layer=range(LAYERS), head=range(HEADS))
    heads.assign(score=generator.normal(size=len(heads))).to_parquet(folder / "heads.parquet")
    windows = _grid(first=range(LAYERS), last=range(LAYERS)).query("first <= last")
    windows.assign(score=generator.normal(size=len(windows))).to_parquet(folder / "window.parquet")
    units = [f"L{i % LAYERS}.{i}" for i in range(25)]
    neurons = pd.DataFrame(
        {"layer": [i % LAYERS for i in range(25)], "module": "mlp", "unit": units, "promotes": "a b c"}
    )
    neurons.assign(score=generator.normal(size=25)).to_parquet(folder / "neurons.parquet")


def _score(generator: np.random.Generator) -> dict[str, Any]:
    successes = int(generator.integers(0, EDITS + 1))
    low, high = wilson(successes, EDITS)
    return {"value": successes / EDITS, "low": low, "high": high, "n": EDITS}


def _grid(**keys: Any) -> pd.DataFrame:
    return pd.MultiIndex.from_product(list(keys.values()), names=list(keys)).to_frame(index=False)
