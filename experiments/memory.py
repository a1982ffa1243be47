"""How much memory something takes while it runs, and how much is free."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

__all__ = ["free_bytes", "size", "watched"]

_CPU = torch.device("cpu")


@contextmanager
def watched(device: torch.device = _CPU, *, interval: float = 0.002) -> Iterator[list[int]]:
    """Gives a list whose one number becomes the peak of the memory held, in bytes, above its level at the start.

    On the CPU this is the process's resident set, looked at every `interval` seconds: what a process has once held and
    not yet given back to the system is not seen a second time, so watch what runs first. On CUDA it is torch's own
    count.

    >>> with watched() as peak:
    ...     held = b"x" * 200_000_000
    >>> peak[0] > 100_000_000
    True
    """
    peak = [0]
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        try:
            yield peak
        finally:
            peak[0] = torch.cuda.max_memory_allocated(device) - before
        return
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(interval):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak[0] = max(peak[0], process.memory_info().rss - before)


def free_bytes(device: torch.device) -> int:
    """Returns the bytes that are free on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def size(n_bytes: float) -> str:
    """Returns bytes as a person reads them.

    >>> size(12_345_678_901), size(28_400_000)
    ('12.3 GB', '28 MB')
    """
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
