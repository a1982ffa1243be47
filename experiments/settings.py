"""What a case was made with: settings as plain data, what tells two of them apart, and where they differ.

Under a key "about", at any depth, stands what a reader wants to know and what makes no other run: where a text lay, the
condition number of a matrix, how a value was chosen.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["changes", "differences", "fingerprint", "identity"]

ABOUT = "about"
HASH = re.compile("[0-9a-f]{64}")


def identity(settings: Any) -> Any:
    """Returns the settings without what stands under "about".

    >>> identity({"text": "ab12", "about": {"file": "here.txt"}})
    {'text': 'ab12'}
    """
    if isinstance(settings, Mapping):
        return {key: identity(value) for key, value in settings.items() if key != ABOUT}
    return [identity(item) for item in settings] if isinstance(settings, list | tuple) else settings


def fingerprint(settings: Any) -> str:
    """Returns 12 hex digits that are the same for the same `identity`.

    >>> fingerprint({"layer": 5, "about": "x"}) == fingerprint({"layer": 5}) != fingerprint({"layer": 6})
    True
    """
    return hashlib.sha256(json.dumps(identity(settings), sort_keys=True).encode()).hexdigest()[:12]


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted key, old, new) of every value that differs; None where there is none. `about` is left out.

    >>> list(differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}))
    [('a.c', 2, 3)]
    """
    old, new = identity(old), identity(new)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (first, second) in enumerate(zip(old, new, strict=True)):
            yield from differences(first, second, f"{where}[{i}]")
    elif repr(old) != repr(new):  # repr: nan equals nan, 1 differs from True
        yield where, old, new


def changes(old: Any, new: Any) -> Iterator[tuple[str, str, str]]:
    """Yields `differences` as a reader is told them: hashes by their first digits, with the source "about" names.

    >>> old, new = ({"c": {"text": digit * 64, "about": {"source": file}}} for digit, file in ("0a", "1b"))
    >>> list(changes(old, new))
    [('c.text', "'000000000000…' (a)", "'111111111111…' (b)")]
    """
    for key, before, now in differences(old, new):
        yield key, _told(before, old, key), _told(now, new, key)


def _told(value: Any, settings: Any, key: str) -> str:
    if not (isinstance(value, str) and HASH.fullmatch(value)):
        text = " ".join(repr(value).split())
        return text if len(text) <= 60 else f"{text[:59]}…"
    for part in key.split(".")[:-1]:
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    about = settings.get(ABOUT) if isinstance(settings, Mapping) else None
    source = about.get("source") if isinstance(about, Mapping) else None
    return f"'{value[:12]}…'" + (f" ({source})" if source else "")
