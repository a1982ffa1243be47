"""Strict TOML to a frozen dataclass, and back.

An option that is misspelt, misplaced or of the wrong type is an error that names the file, the key and the
nearest valid name; nothing is dropped or coerced in silence. Steps of `load`:

1. parse the file with the standard library's TOML 1.0 reader;
2. walk the dataclass's annotations beside the table: nested dataclasses are tables, a missing key takes its
   default;
3. build the dataclass, whose own `__post_init__` checks the values.

Annotations that are understood: bool, int, float (an integer is accepted), str, `pathlib.Path` (a string),
`Literal`, `X | None` (TOML has no null: leave the key out), other unions, `list[X]`, `tuple[X, ...]`,
`tuple[X, Y]`, `Sequence[X]` (a tuple), `dict[str, X]`, `Mapping[str, X]`, `Mapping[int, X]` (keys that are digits),
`Any` and dataclasses of these.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import tomli_w

from reports.errors import InputError
from reports.parsing import parse_toml

__all__ = ["BEGUN", "build", "checked", "dump", "held", "load", "read_table"]

C = TypeVar("C")
BEGUN = "begun_with"  # of a configuration: the `limit` of a run that was extended since


class _Mismatch(Exception):
    """A value that its annotation does not allow; the caller adds the file."""


def load(path: str | os.PathLike[str], cls: type[C], *, experiment: str | None = None) -> C:
    """Reads the TOML file `path` as an instance of the dataclass `cls`.

    Args:
        path: The file.
        cls: The dataclass.
        experiment: The name that the file must have where it names an experiment (`experiments.recipe`).

    Raises:
        InputError: The file is missing or no TOML, has an unknown key (the nearest valid one is named), lacks a key
            without a default, has a value of another type than its annotation, or is a recipe of another experiment.

    >>> import tempfile
    >>> @dataclasses.dataclass(frozen=True)
    ... class Window:
    ...     layers: tuple[int, int]
    ...     alpha: float = 1.0
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "window.toml"
    ...     _ = file.write_text(dump(Window(layers=(5, 7))), encoding="utf-8")
    ...     load(file, Window)
    Window(layers=(5, 7), alpha=1.0)
    """
    table = read_table(path)
    if experiment is not None:
        if (named := table.pop("experiment", experiment)) != experiment:
            raise InputError(
                f"{path}: experiment: expected {experiment!r}, found {named!r}; give it to `run`"
            )
        if "matrix" in table:
            raise InputError(f"{path}: matrix: one command is one run; give the recipe to `run`")
    return build(table, cls, where=str(path))


def read_table(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the TOML file `path` as it stands.

    Raises:
        InputError: The file is missing or no TOML.
    """
    file = Path(path)
    try:
        return parse_toml(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"{file}: expected a TOML file, found none; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected a readable UTF-8 TOML file ({error})") from error
    except ValueError as error:
        raise InputError(f"{file}: not valid TOML ({error})") from error


def build(table: dict[str, Any], cls: type[C], *, where: str) -> C:
    """Builds the dataclass `cls` from a table; errors as `load`, each beginning with `where`."""
    try:
        return typing.cast(C, _build(table, cls, ""))
    except (_Mismatch, InputError) as error:
        raise InputError(f"{where}: {error}") from error


def checked(value: Any, hint: Any, *, where: str) -> Any:
    """`value`, as TOML holds it, as the annotation `hint` wants it.

    Raises:
        InputError: It is of another type; the message begins with `where`.

    >>> checked([5, 7], tuple[int, int], where="window")
    (5, 7)
    """
    try:
        return _value(value, hint, where)
    except _Mismatch as error:
        raise InputError(str(error)) from error


def dump(obj: object) -> str:
    """Returns the dataclass instance `obj` as TOML text that `load` reads back to an equal instance.

    A field that is None is left out, so its default must be None.

    Raises:
        InputError: The object is no dataclass instance, or a value is none that TOML can hold.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Optimiser:
    ...     name: str
    ...     rate: float = 0.5
    >>> print(dump(Optimiser("adam")), end="")
    name = "adam"
    rate = 0.5
    """
    if not dataclasses.is_dataclass(obj) or isinstance(obj, type):
        raise InputError(f"obj: expected a dataclass instance, found {type(obj).__name__}")
    return tomli_w.dumps(_table(obj, ""))


def held(value: Any) -> Any:
    """A value as TOML holds it: tuples as arrays, keys as texts, None as "none".

    >>> held({7: (1, None)})
    {'7': [1, 'none']}
    """
    if isinstance(value, dict):
        return {str(key): held(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [held(item) for item in value]
    return "none" if value is None else value


def _table(obj: Any, where: str) -> dict[str, Any]:
    table = {}
    for field in dataclasses.fields(obj):
        value, key = getattr(obj, field.name), _join(where, field.name)
        if value is None:
            if field.default is not None:
                raise InputError(f"{key}: TOML cannot say None and the default is not None; give it a value")
            continue
        table[field.name] = _plain(value, key)
    return table


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, _join(where, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _table(value, where)
    raise InputError(f"{where}: expected something that TOML can hold, found {type(value).__name__}")


def _build(table: Any, cls: Any, where: str) -> Any:
    if not isinstance(table, dict):
        raise _Mismatch(f"{where}: expected a table, found {_show(table)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            hint = f"did you mean {_join(where, near[0])!r}?" if near else f"valid: {', '.join(fields)}"
            raise _Mismatch(f"unknown key {_join(where, key)!r}; {hint}")
    values = {key: _value(value, hints[key], _join(where, key)) for key, value in table.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise _Mismatch(f"key {_join(where, name)!r} is missing; it has no default")
    return cls(**values)


def _value(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint` wants it, or `_Mismatch`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        for option in args:
            if type(option) is type(value) and option == value:
                return value
        raise _Mismatch(f"{where}: expected one of {', '.join(map(repr, args))}, found {_show(value)}")
    if origin in (Union, types.UnionType):
        return _union(value, args, where)
    if dataclasses.is_dataclass(hint):
        return _build(value, hint, where)
    if origin in (list, tuple, Sequence):
        return _sequence(value, origin, args, where)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {
            _key(key, args[0], where): _value(item, args[1], _join(where, key)) for key, item in value.items()
        }
    return _single(value, hint, where)


def _single(value: Any, hint: Any, where: str) -> Any:
    """`_value` of what holds nothing else."""
    if hint is Any:
        return value
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise _Mismatch(f"{where}: expected a number below 1e309, found {_show(value)}") from None
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint in (bool, int, float, str) and type(value) is hint:  # `type`: True is no int here
        return value
    raise _Mismatch(f"{where}: expected {_name(hint)}, found {_show(value)}")


def _union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    errors = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _value(value, option, where)
        except _Mismatch as error:
            errors.append(str(error))
    if len(errors) == 1:
        raise _Mismatch(errors[0])
    raise _Mismatch(f"{where}: expected {' or '.join(map(_name, options))}, found {_show(value)}")


def _sequence(value: Any, origin: Any, args: tuple[Any, ...], where: str) -> Any:
    if not isinstance(value, list):
        raise _Mismatch(f"{where}: expected an array, found {_show(value)}")
    if origin is not tuple or args[-1] is Ellipsis:
        hints = [args[0]] * len(value)
    elif len(args) != len(value):
        raise _Mismatch(f"{where}: expected {len(args)} values, found {len(value)}")
    else:
        hints = list(args)
    pairs = enumerate(zip(value, hints, strict=True))
    items = (_value(item, hint, f"{where}[{i}]") for i, (item, hint) in pairs)
    return list(items) if origin is list else tuple(items)


def _key(key: str, hint: Any, where: str) -> Any:
    """A table's key as `hint` wants it: TOML's keys are texts."""
    if hint is int:
        if not key.isdigit():
            raise _Mismatch(f"{where}: expected keys that are numbers, found {_show(key)}")
        return int(key)
    return key


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _show(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:59] + '…'}"
