"""What the runner costs: ten thousand cases that do nothing, written, read again, finished.

Beside it the floor: the same bytes in as many files, flushed to the disk, without a run folder.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from experiments.progress import track
from experiments.runs import RunFolder, provenance

__all__ = ["bench_runs"]

FACTS = provenance(model={}, data={}, seeds={}, device="cpu", dtype="float32", attn_implementation="eager")
CASE = {"case_id": "1", "settings": "0" * 64, "prompts": [{"nll_new": 0.1, "nll_true": 1 / 3}] * 10}


def bench_runs(*, cases: int = 10_000) -> dict[str, Any]:
    """Milliseconds a case (run folder, and the floor), seconds of finish and of a resume, growth of memory in MB.

    Memory is the process's own, from a tenth of the cases to the last: flat where nothing is kept for a case.

    >>> found = bench_runs(cases=20)
    >>> found["cases"], found["resumed"]
    (20, 20)
    """
    with tempfile.TemporaryDirectory() as folder:
        floor = _floor(Path(folder), cases)
        began = time.perf_counter()
        early, _ = _walk(Path(folder) / "run", cases)
        written = time.perf_counter() - began
        grown = psutil.Process().memory_info().rss - early
        began = time.perf_counter()
        run = RunFolder(Path(folder) / "run", {})
        run.finish({"n": cases})
        finished = time.perf_counter() - began
        began = time.perf_counter()
        _, resumed = _walk(Path(folder) / "run", cases)
        again = time.perf_counter() - began
    return {
        "cases": cases,
        "ms_a_case": 1e3 * written / cases,
        "floor_ms_a_case": 1e3 * floor / cases,
        "finish_s": finished,
        "resume_s": again,
        "resumed": resumed,
        "grown_mb": grown / 1e6,
    }


def _walk(folder: Path, cases: int) -> tuple[int, int]:
    """Each case found, or else written; memory after a tenth of them, and how many cases were there already."""
    run = RunFolder.open(folder, {"n": cases}, provenance=FACTS)
    there = early = 0
    for case in track(range(cases), label="cases", progress=False):
        if run.find_case(case) is None:
            run.write_case(case, CASE)
        else:
            there += 1
        if case == cases // 10:
            early = psutil.Process().memory_info().rss
    return early, there


def _floor(folder: Path, cases: int) -> float:
    data = json.dumps(CASE).encode()
    plain = folder / "plain"
    plain.mkdir()
    began = time.perf_counter()
    for case in range(cases):
        with (plain / f"{case}.json").open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    return time.perf_counter() - began
