"""The files of a run folder as the pages read them; a damaged file stops the reader, which names file and reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from reports.codec import decode
from reports.errors import IntegrityError
from reports.parsing import parse
from reports.text import visible

__all__ = ["read_frame", "read_lines", "read_object", "read_record"]


def read_record(path: Path) -> dict[str, Any]:
    """Reads the JSON object in `path` as it stands.

    Raises:
        IntegrityError: The file holds anything else.
        FileNotFoundError: There is no file.
    """
    return _object(path, lambda data: data)


def read_object(path: Path) -> dict[str, Any]:
    """Reads the JSON object in `path`, decoded (`reports.codec`); errors as `read_record`."""
    return _object(path, lambda data: decode(data, Any))


def _object(path: Path, decoded: Callable[[Any], Any]) -> dict[str, Any]:
    try:
        data = decoded(parse(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(data, dict):
        raise IntegrityError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def read_frame(folder: Path, name: str) -> pd.DataFrame | None:
    """Reads the frame in `<name>.parquet` of `folder`; None where there is no such file.

    Raises:
        IntegrityError: The file is damaged.
    """
    path = folder / f"{name}.parquet"
    if not path.is_file():
        return None
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except Exception as error:  # pyarrow and pandas document no common base for a file that is none
        raise IntegrityError(f"{path}: not readable as Parquet ({error})") from error


def read_lines(path: Path) -> str | None:
    """Reads the text of `path`, what is invisible made visible, line by line; None where there is no such file."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return "\n".join(visible(line) if line else "" for line in lines)
