"""The page of recipes: every key of every experiment, read off the dataclass that a recipe is built into."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from docs.site import commands
from docs.site.markdown import cell, code, table

__all__ = ["attributes", "key_rows", "meaning", "page", "type_name"]

ROOT = Path(__file__).resolve().parents[2]
#: Options that mean the same in every command that has them.
EVERYWHERE = ("model", "encoder", "device", "dtype", "prefix", "chat", "space", "seed")
#: The command whose options a recipe repeats, where it is not called as the recipe is.
COMMAND_OF = {"real_text": "study"}


def attributes(cls: type[Any]) -> dict[str, str]:
    """The entries of a docstring's `Attributes:`, those of the classes it derives from beneath.

    >>> class Point:
    ...     '''A point.
    ...
    ...     Attributes:
    ...         x: Metres
    ...             to the right.
    ...         y: Metres up.
    ...     '''
    >>> attributes(Point)
    {'x': 'Metres to the right.', 'y': 'Metres up.'}
    """
    entries: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)*)", text, re.M)
        for name, said in re.findall(
            r"^    (\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.M
        ):
            entries |= {key: " ".join(said.split()) for key in name.split(", ")}
    return entries


def type_name(hint: Any) -> str:
    """An annotation as a reader of TOML would say it.

    >>> type_name(tuple[int, ...] | None), type_name(typing.Literal["a", "b"])
    ('list of integer', '"a" | "b"')
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in args)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_name(arg) for arg in args if arg is not type(None))
    if origin is tuple and Ellipsis not in args:
        return f"list of {len(args)}: {', '.join(map(type_name, args))}"
    if (origin is not None and origin in (list, tuple)) or str(origin).endswith("Sequence'>"):
        return f"list of {type_name(args[0])}"
    if origin is not None:
        return "table" if len(args) < 2 or args[1] is Any else f"table of {type_name(args[1])}"
    plain = {str: "text", int: "integer", float: "number", bool: "true | false", Path: "path", Any: "any"}
    if dataclasses.is_dataclass(hint):
        return f"table ({hint.__name__})"
    return plain.get(hint, getattr(hint, "__name__", str(hint)))


@cache
def _options(program: str, command: str) -> dict[str, str]:
    """What the options of the recipe's command say, by their keys, and those that mean the same everywhere."""
    said: dict[str, str] = {}
    for leaf in commands.leaves(commands.parser(program)):
        for action in leaf._actions:
            own = leaf.prog == f"{program} {COMMAND_OF.get(command, command)}"
            if action.help and action.option_strings and (own or action.dest in EVERYWHERE):
                said[action.dest] = commands._help(leaf, action)
    return said


def meaning(cls: type[Any], key: str, program: str, experiment: str) -> str:
    """What a key means: by its dataclass, else by the command's option of that name; "" where nobody says it."""
    said = attributes(cls).get(key) or _options(program, experiment).get(key, "")
    return re.sub(r"\s*\((?:the )?default[^)]*\)", "", said)


def key_rows(cls: type[Any], program: str, experiment: str) -> Iterator[list[str]]:
    """A row for each key: key, type, default, meaning."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        yield [
            code(field.name),
            code(type_name(hints[field.name])),
            _default(field),
            cell(meaning(cls, field.name, program, experiment)),
        ]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value: Any = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if value is None:
        return "(left out)"
    if dataclasses.is_dataclass(value) or value in ({}, ()):
        return "(its own)" if dataclasses.is_dataclass(value) else "(empty)"
    if isinstance(value, tuple):
        return code("[" + ", ".join(map(_toml, value)) + "]") if len(value) < 9 else f"({len(value)} of them)"
    return code(_toml(value))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


def page() -> str:
    """The page."""
    lines = [
        "# Recipes",
        "",
        "A recipe is a TOML file whose key `experiment` says what is run; every other key stands in a table below.",
        "`mechedit run RECIPE KEY=VALUE` sets keys on top, `--dry-run` prints what they come to. An unknown key, or",
        "a value of another type, is refused with the nearest valid one. `[matrix]` holds lists: one run for each",
        "combination. These tables are read off the dataclasses that the recipes are built into.",
        "",
    ]
    for program in commands.PROGRAMS:
        for name, experiment in import_module(f"{program}.recipes.registry").experiments().items():
            config = experiment.config
            lines += [f"## {name} ({program})", "", _summary(config), ""]
            lines += [
                _example(name),
                table(["key", "type", "default", "meaning"], key_rows(config, program, name)),
            ]
            for key, nested in _nested(config):
                lines += [f"### {name}: `[{key}]`", "", _summary(nested), ""]
                lines += [table(["key", "type", "default", "meaning"], key_rows(nested, program, name))]
    return "\n".join(lines)


def _summary(cls: type[Any]) -> str:
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()).replace("<", "\\<")


def _nested(config: type[Any], before: str = "") -> Iterator[tuple[str, type[Any]]]:
    """Tables inside a configuration, and what those hold."""
    for key, hint in typing.get_type_hints(config).items():
        for candidate in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(candidate) and isinstance(candidate, type):
                name = f"{before}{key}" + ("" if candidate is hint else ".NAME")
                yield name, candidate
                yield from _nested(candidate, f"{name}.")


def _example(name: str) -> str:
    for file in sorted((ROOT / "experiments" / "recipes").glob("*.toml")):
        text = file.read_text("utf-8")
        if re.search(rf'^experiment = "{name}"', text, re.M):
            return f"`experiments/recipes/{file.name}`:\n\n```toml\n{text}```\n"
    return ""
