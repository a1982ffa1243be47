"""A result as one file of a run folder: plain data, frames as columns, and back without loss.

Floats are written with all their digits, so a result that was read equals the one that was written.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, TypeVar, cast

import pandas as pd

from reports.codec import decode, encode
from reports.errors import IntegrityError
from reports.results import Result

__all__ = ["from_case", "to_case"]

R = TypeVar("R", bound=Result)


def to_case(result: Result) -> dict[str, Any]:
    """Keys: kind, values (the plain fields), frames (by field: columns and dtypes, each by column)."""
    case: dict[str, Any] = {"kind": result.kind, "values": {}, "frames": {}}
    for field in dataclasses.fields(cast(Any, result)):
        value = getattr(result, field.name)
        if isinstance(value, pd.DataFrame):
            dtypes = {name: str(dtype) for name, dtype in value.dtypes.items()}
            case["frames"][field.name] = {"columns": value.to_dict("list"), "dtypes": dtypes}
        else:
            case["values"][field.name] = encode(value, where=field.name)
    return case


def from_case(cls: type[R], case: dict[str, Any], *, where: str) -> R:
    """The result that `to_case` described. Errors: `IntegrityError`, with `where`, for another kind or other fields."""
    if case.get("kind") != cls.kind:
        raise IntegrityError(f"{where}: expected kind {cls.kind!r}, found {case.get('kind')!r}")
    hints = typing.get_type_hints(cls)
    try:
        values = {name: decode(value, hints[name]) for name, value in case["values"].items()}
        frames = {name: _frame(**frame) for name, frame in case["frames"].items()}
        return cls(**values, **frames)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{where}: not the fields of {cls.__name__} ({error})") from error


def _frame(columns: dict[str, list[Any]], dtypes: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(values, dtype=dtypes[name]) for name, values in columns.items()})
