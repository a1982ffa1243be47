"""Engines: who makes the cases of a recipe's run. `local`, this process; `Ray`, the workers of a Ray cluster.

Under Ray every worker is a process that runs the *same experiment* in a run folder of its own, which is thrown away:

1. at each loop over cases (`experiments.cases`) the workers claim missing ones from a `Board` and give them back;
2. when none is left to claim, a worker waits for the others, takes all cases of the loop over and goes on: what is no
   case (a choice on a selection split, the unedited baseline) each computes itself;
3. the driver, the process that was started, runs the experiment too, but makes no case: it writes those that come in,
   and then results, page and manifest, as a local run does. A run that one engine began another may end.

What a worker that died was at goes back to the board, and another worker takes its place. No method knows of this.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import pkgutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.board import Board, Page
from experiments.cases import Case, Loop, shared
from experiments.progress import Stopped, stop_asked
from experiments.provenance import versions
from experiments.recipe import Cell, read
from experiments.runs import SAME
from reports.errors import InputError, MechEditError

__all__ = ["Engine", "Ray", "Worker", "local"]

log = logging.getLogger(__name__)

#: A context around the run of a cell, which sets who makes its cases.
Engine = Callable[[Cell], AbstractContextManager[None]]

PAUSE = 0.1  # seconds between two looks at the board
GRACE = 10.0  # seconds in which workers have to end when the run does
LIVES = 3  # deaths a worker, one after another without a finished case, after which the run gives up
_OBJECT_STORE = 2**28  # bytes of shared memory of a local cluster: cases are small
_TOKEN = "ray._private.authentication"  # warns that a cluster's ports ask for a token, as they should


def local(cell: Cell) -> AbstractContextManager[None]:
    """Makes every case in this process."""
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Ray:
    """`workers` processes of a Ray cluster, each with a model of its own.

    Called with a cell, it raises the experiment's own errors, and `MechEditError` where workers die again and again.

    Attributes:
        program: "module:function" that gives the experiments, importable on every node.
        workers: Number of processes.
        address: "auto" or HOST:PORT of a cluster that runs already; None starts one on this machine and ends it.
        gpus_per_worker: None means 1 where the cluster has GPUs, else 0; 0.5 puts two workers on one.

    Raises:
        InputError: Ray is not installed (extra `ray`), the address has no cluster, the cluster has no room for so many
            workers, or the machines are not alike.
    """

    program: str
    workers: int = 2
    address: str | None = None
    gpus_per_worker: float | None = None

    def __post_init__(self) -> None:
        if self.workers < 1 or (self.gpus_per_worker or 0) < 0:
            raise InputError(
                "workers, gpus_per_worker: expected at least 1 and 0, found "
                f"{self.workers} and {self.gpus_per_worker}"
            )
        if importlib.util.find_spec("ray") is None:
            raise InputError("engine: ray is not installed; pip install 'mechedit[ray]'")

    @contextlib.contextmanager
    def __call__(self, cell: Cell) -> Iterator[None]:
        """Within the block the workers make the cases of `cell`; they start with the first missing one."""
        import torch

        threads, grace = torch.get_num_threads(), 0.0
        job = _Job(self.program, cell.to_toml(), str(Path.cwd()), versions())
        with self._cluster():
            driver = _Driver(self, job)
            torch.set_num_threads(1)  # as the workers: sums are split among threads
            try:
                with shared(driver):
                    yield
                grace = GRACE
            except Stopped:
                grace = GRACE
                raise
            finally:
                torch.set_num_threads(threads)
                driver.end(grace)

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[None]:
        """Starts or joins Ray; a cluster that the caller has joined already is used and left."""
        if self.address not in (None, "auto"):
            _check_address(str(self.address))
        import ray

        if ray.is_initialized():
            yield
            return
        logging.getLogger(_TOKEN).setLevel(logging.ERROR)
        local_options: dict[str, Any] = {}
        if self.address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            local_options = {
                "num_cpus": self.workers,
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE,
            }
        with contextlib.redirect_stdout(sys.stderr):  # Ray's own messages about a worker that died
            try:
                ray.init(
                    address=self.address or "local",
                    logging_level=logging.WARNING,
                    log_to_driver=False,
                    **local_options,
                )
            except ConnectionError as error:
                reason = " ".join(str(error).split())
                raise InputError(f"address: no Ray cluster at {self.address!r} ({reason})") from error
            try:
                yield
            finally:
                ray.shutdown()

    def gpus(self) -> float:
        """Returns the GPUs of one worker, after checking that the cluster has room for all workers."""
        import ray

        has = ray.cluster_resources()
        cpus, gpus = has.get("CPU", 0.0), has.get("GPU", 0.0)
        each = min(1.0, gpus) if self.gpus_per_worker is None else self.gpus_per_worker
        room = int(min(cpus, gpus / each if each else math.inf))
        if self.workers > room:
            raise InputError(
                f"workers: expected at most {room} on this cluster, of {cpus:g} CPUs and {gpus:g} GPUs with {each:g} "
                f"GPUs a worker, found {self.workers}"
            )
        return each


@dataclass(frozen=True)
class _Job:
    """What a worker needs to run the same experiment: plain data. versions: of the driver's packages."""

    program: str
    recipe: str
    folder: str
    versions: dict[str, str]


class _Driver:
    """See `experiments.cases.Share`: makes nothing, passes on what the workers have made, replaces those that die."""

    patient = True

    def __init__(self, engine: Ray, job: _Job) -> None:
        self.engine, self.job = engine, job
        self._loop = 0
        self._early: list[Page] = []  # loops before there was a case to make, and so a board
        self._board: Any = None
        self._gpus = 0.0
        self._runs: dict[Any, tuple[str, Any]] = {}  # by the reference to its end: name and actor of a worker
        self._begun = self._deaths = 0

    def made(self, loop: Loop) -> Iterator[tuple[int, Case]]:
        """See `Share`."""
        import ray

        number, wanted, seen = self._loop, sum(map(len, loop.units)), 0
        self._loop += 1
        self._open(Page(loop.keys, _facts(loop), dict(loop.done), loop.units))
        failure: Exception | None = None
        while seen < wanted:
            news, busy = ray.get(self._board.news.remote(number, seen))
            self._deaths = 0 if news else self._deaths
            for place, case in news:
                seen += 1
                yield place, case
            if seen == wanted:
                return
            if failure is not None:
                raise failure
            if stop_asked():
                ray.get(self._board.close.remote())
                if not news and not busy:
                    return
            failure = self._look_after()

    def _open(self, page: Page) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if self._board is not None:
            ray.get(self._board.open.remote(page))
            return
        self._early.append(page)
        if not page.units:
            return
        self._gpus = self.engine.gpus()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote(self._early)
        for _ in range(self.engine.workers):
            self._begin()

    def _begin(self) -> None:
        """Starts one more worker."""
        import ray

        name, self._begun = f"worker {self._begun}", self._begun + 1
        actor: Any = ray.remote(Worker).options(num_cpus=1, num_gpus=self._gpus).remote()
        self._runs[actor.run.remote(self.job, self._board, name)] = name, actor

    def _look_after(self) -> Exception | None:
        """Waits a moment for a worker to end and replaces one that died; returns why one failed."""
        import ray

        if not self._runs:
            time.sleep(PAUSE)
            return None if stop_asked() else MechEditError("engine: every worker ended before the last case")
        ended, _ = ray.wait(list(self._runs), timeout=PAUSE)
        for run in ended:
            name, _ = self._runs.pop(run)
            try:
                ray.get(run)
            except ray.exceptions.RayActorError as error:
                return self._bury(name, error)
            except ray.exceptions.RayTaskError as error:
                known = isinstance(error.cause, MechEditError)
                return error.cause if known else error
        return None

    def _bury(self, name: str, error: Exception) -> Exception | None:
        import ray

        back = ray.get(self._board.lost.remote(name))
        self._deaths += 1
        log.warning("%s died; to be made again: %s", name, ", ".join(back) or "nothing")
        if self._deaths > LIVES * self.engine.workers:
            reason = next(iter(str(error).splitlines()), "")
            return MechEditError(
                f"engine: {self._deaths} workers died, one after another ({reason}), the last at "
                f"{', '.join(back) or 'its start'}; finished cases are kept"
            )
        self._begin()
        return None

    def end(self, grace: float) -> None:
        """Gives workers that wait or finish so many seconds to end by themselves, then ends them."""
        import ray

        if self._board is None:
            return
        try:
            self._board.close.remote()
            if self._runs:
                ray.wait(list(self._runs), num_returns=len(self._runs), timeout=grace)
        finally:
            for _, actor in self._runs.values():
                ray.kill(actor)
            ray.kill(self._board)


class Worker:
    """One process of the cluster, which runs the experiment of a job with a share of its cases."""

    def run(self, job: _Job, board: Any, name: str) -> None:
        """Runs to the end of the experiment, or of the run.

        Raises:
            InputError: The machine has other packages, or not the driver's folder; and the experiment's own errors.
        """
        import torch

        torch.set_num_threads(1)
        if (mine := versions()) != job.versions:
            raise InputError(f"engine: a worker has {_first(mine, job.versions)}; install the same")
        if not Path(job.folder).is_dir():
            raise InputError(
                f"engine: a worker's machine has no folder {job.folder}; share it among the nodes"
            )
        os.chdir(job.folder)
        experiments = pkgutil.resolve_name(job.program)()
        with tempfile.TemporaryDirectory(prefix="worker-") as scratch, contextlib.suppress(Stopped):
            recipe = Path(scratch) / "recipe.toml"
            recipe.write_text(job.recipe, encoding="utf-8")
            (cell,) = read(recipe, experiments)
            with shared(_Claimed(board, name)):
                cell.experiment.run(cell.config, Path(scratch) / "run", False)


class _Claimed:
    """See `experiments.cases.Share`: makes what it claims from the board and takes the rest from the other workers."""

    patient = False

    def __init__(self, board: Any, name: str) -> None:
        self.board, self.name, self._loop = board, name, 0

    def made(self, loop: Loop) -> Iterator[tuple[int, Case]]:
        """See `Share`."""
        import ray

        number = self._loop
        self._loop += 1
        while (page := ray.get(self.board.page.remote(number))) is None:
            self._wait()
        keys, facts = page
        if keys != loop.keys:
            raise InputError(f"engine: loop {number} of a worker is over other cases; is its code the same?")
        if (mine := _facts(loop)) != facts:
            raise InputError(f"engine: a worker has {_first(mine, facts)}; give all machines the same")
        while (unit := ray.get(self.board.claim.remote(number, self.name))) is not None:
            for place in unit:
                ray.get(self.board.give.remote(number, self.name, place, loop.make(place)))
            if not unit:
                self._wait()
        yield from ray.get(self.board.cases.remote(number)).items()

    def _wait(self) -> None:
        import ray

        if ray.get(self.board.closed.remote()):
            raise Stopped("the run ends here")
        time.sleep(PAUSE)


def _check_address(address: str) -> None:
    """Refuses an address at which nobody listens: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    try:
        if not host or not port.isdecimal():
            raise OSError("expected auto or HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"address: no Ray cluster at {address!r} ({reason})") from error


def _facts(loop: Loop) -> dict[str, Any]:
    """What must be the same in every process: model, data, seeds, device, dtype."""
    facts = {} if loop.run is None else loop.run.provenance
    return {key: _placeless(facts[key]) for key in SAME if key in facts}


def _placeless(fact: Any) -> Any:
    """Drops the source: a model that each process trains lies in a folder of its own; its hash agrees."""
    if not isinstance(fact, dict):
        return fact
    return {key: _placeless(value) for key, value in fact.items() if key != "source"}


def _first(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Names the first difference."""
    key = next(key for key in [*mine, *theirs] if mine.get(key) != theirs.get(key))
    return f"{key} {mine.get(key)}, the driver {theirs.get(key)}"
