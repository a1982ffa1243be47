"""The loop over the cases of a run: how far it is, and where it may be stopped.

`track` walks the cases, `bar` counts the parts of one step. On a terminal both show a bar; elsewhere (a file, a batch
job) a line after ten seconds, then one a minute, with the time that is left at the pace since the line before.
`waiting` is for a step without parts: a line where it takes longer. Inside
`interruptible` the first Ctrl-C stops the loop once the case at hand is done and saved (`Stopped`), the second at once;
outside of a loop the first stops at once.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from types import FrameType
from typing import Any, TypeVar

__all__ = [
    "LONG",
    "Stopped",
    "bar",
    "counted",
    "how_to_go_on",
    "interruptible",
    "stop_asked",
    "track",
    "waiting",
]

T = TypeVar("T")
SECONDS = 60.0  # between two lines where there is no terminal
LONG = 10.0  # seconds from which on a step without a bar looks as if it hung


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and did so between two cases: what is finished is saved."""


class _Signals:
    """What the handler and the loops tell each other; signals belong to the process."""

    loops = 0
    stop_requested = False
    quiet = False


def track(
    items: Iterable[T],
    *,
    label: str,
    total: int | None = None,
    progress: bool = True,
    unit: str = "case",
    patient: bool = False,
) -> Iterator[T]:
    """Yields the `items`, one after another; each counts as done when the next is asked for.

    Args:
        items: What is walked.
        label: Names the loop in the bar.
        total: How many there are, where `items` cannot tell.
        progress: False is silent.
        unit: What an item is called.
        patient: Whether a stop waits until `items` end, which are to see `stop_asked` and end with what is at hand.

    Raises:
        Stopped: A stop was asked for, after the item at hand.

    >>> [case for case in track([1, 2], label="cases", progress=False)]
    [1, 2]
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    shown = bar(label, total, progress=progress, unit=unit)
    _Signals.loops += 1
    done = 0
    try:
        for item in items:
            yield item
            done += 1
            shown.update()
            if not patient:
                _stop_here(done, total, label)
        _stop_here(done, total, label)
    finally:
        _Signals.loops -= 1
        shown.close()


def stop_asked() -> bool:
    """Returns whether Ctrl-C was pressed, so that the loop over cases is to end."""
    return _Signals.stop_requested


def _stop_here(done: int, total: int | None, label: str) -> None:
    if _Signals.stop_requested and _Signals.loops == 1:  # an inner loop is part of a case
        raise Stopped(f"{done} of {'?' if total is None else total} done in {label!r}")


@contextlib.contextmanager
def interruptible(*, quiet: bool = False) -> Iterator[None]:
    """Within the block Ctrl-C lets the case at hand end; a second one does not. For the main thread of a command.

    Args:
        quiet: No loop in the block shows how far it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Signals.stop_requested, _Signals.quiet = False, quiet
    before = signal.signal(signal.SIGINT, _on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _Signals.stop_requested = _Signals.quiet = False


def how_to_go_on(stop: KeyboardInterrupt, program: str, argv: Sequence[str], *, saved: bool) -> str:
    """Returns what a stopped command prints: how far it came, whether it is saved, and the command that goes on.

    >>> how_to_go_on(Stopped("2 of 9 done in 'mega'"), "mechedit", ["demo", "--out", "my demo"], saved=True)
    "interrupted: 2 of 9 done in 'mega', all saved; to go on: mechedit demo --out 'my demo'"
    """
    command = shlex.join([program, *argv])
    if not saved:
        return f"interrupted; nothing is saved without --out; to begin again: {command}"
    if isinstance(stop, Stopped):
        return f"interrupted: {stop}, all saved; to go on: {command}"
    return f"interrupted; finished cases of a run folder are kept; to go on, or to begin again: {command}"


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    if _Signals.stop_requested or not _Signals.loops:
        raise KeyboardInterrupt
    _Signals.stop_requested = True
    sys.stderr.write("\nstopping after the current case; Ctrl-C again stops at once\n")


def bar(
    label: str,
    total: int | None,
    *,
    progress: bool = True,
    unit: str = "it",
    start: int = 0,
    delay: float = 0.0,
) -> Any:
    """Returns what counts the parts of a step: `update(n)`, `set_postfix(...)` and `close()`, or a `with` block.

    Args:
        label: Names the step.
        total: How many parts it has; None is not known.
        progress: False is silent.
        unit: What a part is called.
        start: How many were done before.
        delay: Seconds before which nothing is shown; `LONG` for what is short on a small model.

    >>> with bar("parts", 2, progress=False) as shown:
    ...     shown.update(2)
    """
    from tqdm.auto import tqdm  # here: a command's --help needs no bar

    progress = progress and not _Signals.quiet
    if not progress or sys.stderr.isatty() or _in_notebook():
        return tqdm(
            total=total, desc=label, disable=not progress, unit=unit, initial=start, delay=delay, leave=None
        )
    return _Lines(label, total, unit, start)


def counted(items: Sequence[T], label: str, *, unit: str = "step") -> Iterator[T]:
    """Yields the `items` of one step of a case under a bar that is shown once they take `LONG`.

    >>> list(counted(range(2), "loss"))
    [0, 1]
    """
    with bar(label, len(items), unit=unit, delay=LONG) as shown:
        for item in items:
            yield item
            shown.update()


@contextlib.contextmanager
def waiting(label: str) -> Iterator[None]:
    """Says on standard error, once the block takes `LONG`, what is waited for; a notebook shows that it runs itself.

    >>> with waiting("loading"):
    ...     pass
    """
    stream = sys.stderr  # the block may put another one in its place

    def speak() -> None:
        if not _Signals.quiet and not _in_notebook():
            stream.write(f"{label}: takes longer than {LONG:g} s\n")
            stream.flush()

    timer = _later(speak)
    try:
        yield
    finally:
        timer.cancel()


def _later(speak: Callable[[], None]) -> threading.Timer:
    """Calls `speak` after `LONG`, unless it is cancelled before."""
    timer = threading.Timer(LONG, speak)
    timer.daemon = True
    timer.start()
    return timer


def _in_notebook() -> bool:
    """A notebook draws the bar itself."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


class _Lines:
    """What a bar says, as a line after `LONG`, even where no part is done by then, and then one a minute."""

    def __init__(self, label: str, total: int | None, unit: str, start: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.n = self.said = self.begun = start
        self.postfix, self.said_anything = "", False
        self.start = self.last = time.monotonic()
        self._stream, self._timer = sys.stderr, _later(self._first)

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def set_postfix(self, refresh: bool = True, **values: object) -> None:
        """What stands behind the next line, as `tqdm` writes it."""
        self.postfix = ", ".join(f"{name}={value}" for name, value in values.items())

    def update(self, n: int = 1) -> None:
        self.n += n
        now = time.monotonic()
        if now - self.last >= (SECONDS if self.said_anything else min(LONG, SECONDS)):
            self._speak(now)

    def _first(self) -> None:
        if not self.said_anything:
            self._speak(time.monotonic())

    def _speak(self, now: float) -> None:
        from tqdm.std import tqdm

        self._timer.cancel()
        # since the line before: read cases do not count for the rest
        rate = (self.n - self.said) / (now - self.last)
        line = tqdm.format_meter(
            self.n,
            self.total,
            now - self.start,
            ncols=0,
            prefix=self.label,
            unit=self.unit,
            rate=rate or None,
            postfix=self.postfix or None,
            initial=self.begun,
        )
        self.last, self.said, self.said_anything = now, self.n, True
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """Says nothing more."""
        self._timer.cancel()
