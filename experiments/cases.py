"""The cases of a run: those that are there are read, the others are made, each written as it ends.

`every_case` is the loop of every experiment. *Who* makes the missing cases is said around the experiment by a `Share`:
this process, one after another (`Alone`, where nothing else is said), forked processes (`experiments.forks`) or the
workers of a cluster (`experiments.engine`). No experiment knows which.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from experiments.progress import track
from experiments.runs import RunFolder
from reports.errors import InputError

__all__ = ["ALONE", "Alone", "Case", "Loop", "Share", "every_case", "finished", "settings_digest", "shared"]

Case = dict[str, Any]


@dataclass(frozen=True)
class Loop:
    """One call of `every_case`: what a `Share` is handed.

    Attributes:
        keys: The ids of the cases.
        make: Makes the case at a place in `keys`.
        done: The finished cases, by their place in `keys`.
        units: Places of the missing ones, each unit for one process.
        run: Where the cases are, or None.
    """

    keys: tuple[str, ...]
    make: Callable[[int], Case]
    done: Mapping[int, Case]
    units: Sequence[Sequence[int]]
    run: RunFolder | None


class Share(Protocol):
    """Who makes the missing cases of a loop.

    Attributes:
        patient: Whether it ends by itself where Ctrl-C asks it to (`progress.track`).
    """

    patient: bool

    def made(self, loop: Loop) -> Iterator[tuple[int, Case]]:
        """Yields every missing case with its place, in any order, each as it ends."""


class Alone:
    """Makes all cases in this process, in order."""

    patient = False

    def made(self, loop: Loop) -> Iterator[tuple[int, Case]]:
        """See `Share`."""
        for unit in loop.units:
            for i in unit:
                yield i, loop.make(i)


ALONE = Alone()
_share: ContextVar[Share] = ContextVar("share", default=ALONE)


@contextlib.contextmanager
def shared(share: Share) -> Iterator[None]:
    """Within the block, `share` makes the cases of every loop."""
    before = _share.set(share)
    try:
        yield
    finally:
        _share.reset(before)


def every_case(
    run: RunFolder | None,
    keys: Sequence[str],
    make: Callable[[int], Case],
    *,
    label: str,
    settings: Sequence[Any] | None = None,
    together: Callable[[str], Hashable] | None = None,
    progress: bool = True,
) -> list[Case]:
    """Returns the cases `keys`, in order: read from `run` where they are finished, else made and written there.

    Ctrl-C ends the loop after the case at hand (`progress.track`).

    Args:
        run: The run folder; None keeps nothing.
        keys: The ids of the cases.
        make: Gives the case of keys[i], plain data; it depends on i alone, since any process may be asked.
        label: Names the loop in its progress bar.
        settings: For each key what its case's "settings" must be: a `settings_digest` of what its numbers depend on.
        together: Neighbours with the same value are made by one process, because they share work.
        progress: Whether a bar is shown.

    Raises:
        InputError: A finished case has other settings, or a key is no file name; before any case is made.

    >>> every_case(None, ["a", "b"], lambda i: {"square": i * i}, label="squares", progress=False)
    [{'square': 0}, {'square': 1}]
    """
    share, cases = _share.get(), dict[int, Case]()
    each = _each(run, keys, make, settings, together, share, cases)
    for i, case in track(each, label=label, total=len(keys), progress=progress, patient=share.patient):
        cases[i] = case
    return [cases[i] for i in range(len(keys))]


def _each(
    run: RunFolder | None,
    keys: Sequence[str],
    make: Callable[[int], Case],
    settings: Sequence[Any] | None,
    together: Callable[[str], Hashable] | None,
    share: Share,
    done: Mapping[int, Case],
) -> Iterator[tuple[int, Case]]:
    """Yields every case with its place: first the finished ones, which the caller puts into `done`, then the others."""
    todo = []
    for i, key in enumerate(keys):
        case = finished(run, key, settings=None if settings is None else settings[i])
        if case is None:
            todo.append(i)
        else:
            yield i, case

    def alone(i: int) -> Case:
        with shared(ALONE):  # a loop inside a case is part of it
            return make(i)

    units = [[i] for i in todo]
    if together is not None:
        units = [list(unit) for _, unit in itertools.groupby(todo, lambda i: together(keys[i]))]
    for i, case in share.made(Loop(tuple(keys), alone, done, units, run)):
        if settings is not None:
            _check(case, keys[i], settings[i], "by another process")
        if run is not None:
            run.write_case(keys[i], case)
        yield i, case


def finished(run: RunFolder | None, key: str, *, settings: Any = None) -> Case | None:
    """Returns the case `key` of `run`, or None where it is still to be made.

    Raises:
        InputError: Its "settings" are others (None: it has none).
    """
    case = None if run is None else run.find_case(key)
    if run is not None and case is not None and settings is not None:
        _check(case, key, settings, f"in {run.path}")
    return case


def settings_digest(*parts: Any) -> str:
    """Returns the sha256, as hex, of what a case's numbers depend on: the "settings" of `every_case`.

    Args:
        parts: Plain data (what JSON holds), in an order that stays the same.

    >>> settings_digest("model", 1) == settings_digest("model", 1) != settings_digest(1, "model")
    True
    """
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check(case: Case, key: str, settings: Any, where: str) -> None:
    if case.get("settings") != settings:
        raise InputError(
            f"run: case {key!r} {where} was measured with another model, editor, fact or setting, or by a version that "
            "did not record what editors read; choose another folder"
        )
