"""JSON and TOML from elsewhere, read strictly: whatever is wrong with a text is one `ValueError`."""

from __future__ import annotations

import json
import math
import re
import tomllib
from typing import Any

__all__ = ["parse", "parse_toml"]

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
