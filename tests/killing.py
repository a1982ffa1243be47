"""Real child processes for the tests: forked from one that has everything loaded, then killed or interrupted."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def forked(work: Callable[[], int | None], *, errors: Path | None = None) -> int:
    """The number of a child that does `work` and ends with its status; what it says on stderr goes to `errors`."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if errors is not None:
            sys.stderr = io.TextIOWrapper(io.FileIO(os.open(errors, os.O_WRONLY | os.O_CREAT), "w"))
        status = int(work() or 0)
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """The exit status of the child; −N where signal N ended it."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def until(file: Path, child: int, *, seconds: float = 300) -> None:
    """Wait for the child to write `file`; an error where it ends before, or takes too long."""
    end = time.monotonic() + seconds
    while not file.exists():
        over, status = os.waitpid(child, os.WNOHANG)
        assert not over, f"the child ended with {os.waitstatus_to_exitcode(status)} and wrote no {file.name}"
        assert time.monotonic() < end, f"no {file.name} in {seconds} seconds"
        time.sleep(0.005)


def killed(work: Callable[[], int | None], after: float) -> bool:
    """Whether `kill -9` found the child at work, `after` seconds past its start."""
    pid = forked(work)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    return ended(pid) == -signal.SIGKILL


def whole(folder: Path) -> dict[str, bytes]:
    """Every file, also the hidden ones."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
