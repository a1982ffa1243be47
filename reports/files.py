"""Files and folders that are whole or not there at all.

Each is made under a hidden temporary name beside its target (`TEMPORARY`) and renamed at the end: a reader sees the old
one or the new one, and a killed process leaves at most temporary files behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from reports.errors import InputError

__all__ = ["TEMPORARY", "occupied", "swap_folder", "whole_file", "whole_folder", "write"]

#: The names of what a killed process leaves behind.
TEMPORARY = re.compile(r"\..*\.(tmp|old)")


def write(target: Path, data: str | bytes) -> Path:
    """Writes `data` (text as UTF-8) to the file `target`, as `whole_file`; its folder is made. Returns the target."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    return target


def occupied(folder: Path) -> bool:
    """Whether something is there that a new folder of this name would take the place of.

    >>> occupied(Path("/no/such/folder"))
    False
    """
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Gives a path to write to; the file there becomes `target` when the block ends.

    Its bytes are flushed to the disk before the rename. Where the block raises, `target` stays as it was.

    Raises:
        OSError: The file cannot be written; the folder of `target` must exist.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole_file(Path(folder) / "a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     [(file.name, file.read_text()) for file in Path(folder).iterdir()]
    [('a.txt', 'whole')]
    """
    temporary = _beside(target, "tmp")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)  # what a full disk took of it is given back
        raise


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Gives a new empty folder to write to; it takes the place of `target` when the block ends.

    Parents of `target` are made. Where the block raises, `target` stays as it was.

    Raises:
        InputError: `target` is a link.
        OSError: The folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(target, "tmp")
    temporary.mkdir()
    try:
        yield temporary
        swap_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def swap_folder(temporary: Path, target: Path) -> None:
    """Puts the folder `temporary` in the place of `target`; where the second rename fails, the old one is put back.

    Raises:
        InputError: `target` is a link.
    """
    if target.is_symlink():
        raise InputError(
            f"folder: expected a folder, found the link {target}; name the folder that it leads to"
        )
    if not target.exists():
        temporary.replace(target)
        return
    old = _beside(target, "old")
    target.replace(old)
    try:
        temporary.replace(target)
    except OSError:
        old.replace(target)
        raise
    shutil.rmtree(old)


def _beside(target: Path, suffix: str) -> Path:
    """A hidden name in the same folder, so of the same file system, that no other process has."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.{suffix}")
