"""Plain values to strict JSON data and back, without loss.

JSON has no nan, no infinities, no tuples, no dataclasses and no paths. Floats that JSON lacks are tagged
(`{"$float": "nan"}`), since a reader must not have to guess; the containers come back by the annotation of
the field, so that the file stays as plain as a person would write it.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np

from reports.errors import InputError

__all__ = ["decode", "encode"]

_FLOAT = "$float"


def encode(value: Any, *, where: str) -> Any:
    """Turns `value` into plain JSON data.

    Args:
        value: None, bool, int, float, str, a path, or lists, tuples, str-keyed dicts and dataclasses of these.
        where: Names the field in the error.

    Raises:
        InputError: The value cannot be stored.

    >>> encode({"gap": float("nan"), "window": (4, 7)}, where="result")
    {'gap': {'$float': 'nan'}, 'window': [4, 7]}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: str(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [encode(item, where=f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and _FLOAT not in value and all(isinstance(key, str) for key in value):
        return {key: encode(item, where=f"{where}[{key!r}]") for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return {name: encode(getattr(value, name), where=f"{where}.{name}") for name in fields}
    raise InputError(
        f"{where}: expected a frame, number, string, list, tuple, str-keyed dict or dataclass, "
        f"found {type(value).__name__}; put arrays into a tidy frame"
    )


def decode(value: Any, hint: Any) -> Any:
    """Undoes `encode`; the annotation decides what JSON cannot express (tuple, dataclass, path).

    Args:
        value: What `encode` returned.
        hint: The annotation of the field.

    Raises:
        ValueError, TypeError: The annotation does not allow the value.

    >>> decode([4, 7], tuple[int, int])
    (4, 7)
    >>> decode("4", int)
    Traceback (most recent call last):
        ...
    ValueError: expected int, found '4'
    """
    if isinstance(value, dict) and value.keys() == {_FLOAT}:
        return float(value[_FLOAT])
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        picked = _pick(value, args)
        if picked is Any and not any(option is Any or _allowed(value, option) for option in args):
            raise ValueError(f"expected {hint}, found {value!r}")
        return decode(value, picked)
    if not _allowed(value, hint):
        raise ValueError(f"expected {getattr(hint, '__name__', hint)}, found {value!r}")
    if isinstance(value, list):
        variadic = len(args) == 2 and args[1] is Ellipsis
        fixed = origin is tuple and not variadic
        if fixed and len(args) != len(value):
            raise ValueError(f"expected {len(args)} values, found {len(value)}")
        inner = list(args) if fixed else [*args[:1]] * len(value)
        items = [decode(item, inner[i] if inner else Any) for i, item in enumerate(value)]
        return tuple(items) if hint is tuple or origin is tuple else items
    if isinstance(value, dict):
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            inner_hints = typing.get_type_hints(hint)
            return hint(**{key: decode(item, inner_hints.get(key, Any)) for key, item in value.items()})
        inner_hint = args[1] if len(args) == 2 else Any
        return {key: decode(item, inner_hint) for key, item in value.items()}
    return Path(value) if hint is Path else value


_SCALARS = (bool, int, float, str, Path, type(None))


def _allowed(value: Any, hint: Any) -> bool:
    """Whether `value` may stand where `hint` is.

    An integer may stand where a float is, a text where a path is; anything where the hint is no plain type.
    """
    kind = typing.get_origin(hint) or hint
    if isinstance(value, list):
        return kind not in (*_SCALARS, dict) and not dataclasses.is_dataclass(kind)
    if isinstance(value, dict):
        return kind not in (*_SCALARS, list, tuple)
    if kind in _SCALARS:
        return type(value) is {Path: str}.get(kind, kind) or (kind is float and type(value) is int)
    return kind not in (list, tuple, dict) and not dataclasses.is_dataclass(kind)


def _pick(value: Any, options: tuple[Any, ...]) -> Any:
    """The member of a union that `value` was stored from; containers only: scalars carry their type."""
    for option in options:
        base = typing.get_origin(option) or option
        if isinstance(value, list) and base in (list, tuple):
            return option
        if isinstance(value, dict) and (base is dict or dataclasses.is_dataclass(base)):
            return option
        if isinstance(value, str) and base is Path and str not in options:
            return option
    return Any
