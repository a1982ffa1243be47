"""The values of a row of a file, each refused in one line where it is of another kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mechedit.data.records import check_text, check_texts, shown
from reports.errors import InputError

__all__ = ["Row", "at", "check_object", "flat", "listed", "one_or_more", "optional", "text_at", "texts"]

Row = dict[str, Any]


def texts(value: Any, field: str) -> tuple[str, ...]:
    """One text or a list of them."""
    return (check_text(value, field),) if isinstance(value, str) else check_texts(value, field)


def flat(value: Any, field: str) -> Iterator[str]:
    """The texts in lists of lists; empty ones are no answer."""
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from flat(item, f"{field}[{i}]")
    elif value is not None and value != "":
        yield check_text(value, field)


def at(row: Row, field: str) -> Any:
    """The value at a dotted `field`; a column of nulls (Parquet) is as good as a missing key."""
    value: Any = row
    for depth, key in enumerate(field.split("."), start=1):
        if not isinstance(value, dict):
            raise InputError(
                f"{'.'.join(field.split('.')[: depth - 1])}: expected an object, found {shown(value)}"
            )
        value = value.get(key)
        if value is None:
            raise InputError(f"{'.'.join(field.split('.')[:depth])}: expected a value, found none")
    return value


def optional(row: Row, key: str, default: Any) -> Any:
    """The value of a key, or the default where it is missing or null."""
    value = row.get(key)
    return default if value is None else value


def text_at(row: Row, field: str) -> str:
    """The text at a dotted field."""
    return check_text(at(row, field), field)


def one_or_more(row: Row, field: str) -> tuple[str, ...]:
    """One text or a list of them at a dotted field."""
    return texts(at(row, field), field)


def listed(value: Any, field: str) -> Sequence[Any]:
    """A list."""
    if not isinstance(value, list | tuple):
        raise InputError(f"{field}: expected a list, found {shown(value)}")
    return value


def check_object(row: Any, where: str) -> None:
    """Refuses what is no object."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object, found {shown(row)}")
