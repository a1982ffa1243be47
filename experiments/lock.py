"""One process at a time writes to a run folder: an advisory lock that dies with its process.

`flock` on the hidden file `.lock` of the folder, which holds the number of the process that has it. The kernel frees
it when the process ends, however it ends, so a killed run leaves no stale lock; an orderly end removes the file.
Folders opened twice in one process share the lock; forked workers do not hold it. Where the system has no `flock`
(Windows) nothing is locked.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path

from reports.errors import InputError, MechEditError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "FolderLock", "lock"]

LOCK = ".lock"
_held: weakref.WeakValueDictionary[Path, FolderLock] = weakref.WeakValueDictionary()


class FolderLock:
    """Held for as long as this object lives; make it with `lock`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / LOCK
        self._descriptor: int | None = None
        while fcntl is not None:
            try:
                descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise MechEditError(
                    f"path: cannot write to {folder} ({error.strerror}); give write permission or choose another folder"
                ) from error
            if not _taken(descriptor, folder):
                return  # a file system without locks: as on Windows
            with contextlib.suppress(FileNotFoundError):
                if self.file.stat().st_ino == os.fstat(descriptor).st_ino:
                    break
            os.close(descriptor)  # its holder removed it just now: this one guards nothing
        else:
            return
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())
        self._descriptor = descriptor

    def release(self, *, remove: bool = True) -> None:
        """Gives the lock up; a second call does nothing."""
        if self._descriptor is not None:
            if remove:
                self.file.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()


def _taken(descriptor: int, folder: Path) -> bool:
    """Whether the lock is ours now; False where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(descriptor, 32).decode("ascii", "replace").strip() or "another"
        os.close(descriptor)
        raise InputError(
            f"path: process {owner} is writing to the run in {folder}; wait for its end or choose another folder"
        ) from error
    except OSError:
        os.close(descriptor)
        return False
    return True


def lock(folder: Path) -> FolderLock:
    """Returns the lock of `folder`, which exists.

    Raises:
        InputError: Another process has it; the message names the process.
        MechEditError: The folder cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     one = lock(Path(folder))
    ...     one is lock(Path(folder))
    True
    """
    key = folder.resolve()
    held = _held.get(key)
    if held is None:
        held = FolderLock(key)
        _held[key] = held
    return held


def _forget() -> None:
    """In a forked child: closing its copies leaves the parent's lock alone, and a killed parent's lock falls."""
    for held in list(_held.values()):
        held.release(remove=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
