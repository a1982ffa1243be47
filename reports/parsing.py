"""JSON and TOML from elsewhere, read strictly: whatever is wrong with a text is one `ValueError`."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable
from typing import Any

__all__ = ["json_rows", "parse", "parse_toml"]

#: Levels of nesting: a reader that calls itself twice a level stays within Python's limit.
DEEPEST = 100
_NESTED = (list, dict)
# a.b.c of over a hundred parts: reading a key takes a time that grows with the square of its parts
_DOTTED = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){100}""")
_TOO_DEEP = "its values are nested too deeply"


def parse(text: str | bytes) -> Any:
    """Reads the JSON in `text`; NaN is read, as Python writes it.

    Raises:
        ValueError: Whatever is wrong with the text, nothing else: nesting beyond `DEEPEST` levels, numbers beyond a
            float or of thousands of digits, half a surrogate pair.

    >>> parse('{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    >>> parse("1e999")
    Traceback (most recent call last):
        ...
    ValueError: 1e999 is no number that can be kept
    >>> parse("[" * 101 + "]" * 101)
    Traceback (most recent call last):
        ...
    ValueError: its values are nested too deeply
    """
    if isinstance(text, bytes):
        text = text.decode()
    try:
        value = json.loads(text, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    if type(value) in _NESTED and _deeper(value, DEEPEST):
        raise ValueError(_TOO_DEEP)
    if "\\u" in text:  # an escape may be half a surrogate pair, which no file and no page can hold
        json.dumps(value, ensure_ascii=False).encode()
    return value


def json_rows(text: str, read: Callable[[str], Any] = parse) -> Any:
    r"""Reads the rows of a JSON text: an array, JSON Lines (one object a line), or one object, which is one row.

    Args:
        text: The text, whatever its file is called.
        read: What reads JSON.

    Raises:
        ValueError: It is none of these; what an array or JSON Lines hold is not looked at.

    >>> json_rows('{"a": 1}\r\n{"a": 2}'), json_rows('[{"a": 1}]'), json_rows("")
    ([{'a': 1}, {'a': 2}], [{'a': 1}], [])
    """
    if not text.strip():
        return []
    try:
        value = read(text)
        return [value] if isinstance(value, dict) and value else value
    except ValueError:
        numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if len(numbered) < 2 or not _reads(numbered[0][1], read):
            raise
    rows = []
    for number, line in numbered:
        try:
            rows.append(read(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return rows


def _reads(line: str, read: Callable[[str], Any]) -> bool:
    try:
        return isinstance(read(line), dict)
    except ValueError:
        return False


def parse_toml(text: str) -> dict[str, Any]:
    """Reads the TOML in `text`.

    Raises:
        ValueError: Whatever is wrong with the text, nothing else, as `parse`; a key of more than a hundred parts.

    >>> parse_toml("limit = 3")
    {'limit': 3}
    >>> parse_toml("a." * 100 + "a = 1")
    Traceback (most recent call last):
        ...
    ValueError: a key of more than 100 parts
    """
    if _DOTTED.search(text):
        raise ValueError("a key of more than 100 parts")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects lie within each other more than `levels` deep."""
    inside = [value]
    for _ in range(levels):
        inside = [
            item for v in inside for item in (v.values() if type(v) is dict else v) if type(item) in _NESTED
        ]
    return bool(inside)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is no number that can be kept")
    return value
