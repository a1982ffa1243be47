"""Cases made by forked processes of this machine, each on one thread: they inherit the models that are loaded."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from experiments.cases import ALONE, Case, Loop, shared

__all__ = ["forked"]

_make: Callable[[int], Case]  # of the forked processes: inherited, not sent


def forked(workers: int) -> AbstractContextManager[None]:
    """Within the block `workers` processes share the cases, where processes can be forked and `workers` is above 1."""
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        return contextlib.nullcontext()
    return shared(_Forks(workers))


class _Forks:
    """See `experiments.cases.Share`."""

    patient = False

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def made(self, loop: Loop) -> Iterator[tuple[int, Case]]:
        if len(loop.units) < 2:
            yield from ALONE.made(loop)
            return
        global _make
        _make = loop.make
        workers = min(self.workers, len(loop.units))
        with multiprocessing.get_context("fork").Pool(workers, _start) as pool:
            for unit in pool.imap_unordered(_made, loop.units):
                yield from unit


def _made(unit: Sequence[int]) -> list[tuple[int, Case]]:
    return [(i, _make(i)) for i in unit]


def _start() -> None:
    """One thread; Ctrl-C is the parent's to answer; a process whose parent was killed ends too."""
    import torch  # here: pages and tables are read without torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
