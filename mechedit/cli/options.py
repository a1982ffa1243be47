"""What every command takes: the options that all share, and the kinds of value an option may have."""

from __future__ import annotations

import argparse
import ast
import re
from dataclasses import replace
from typing import Any, TypeVar

from experiments.cli.options import count, subcommand
from experiments.config import held
from reports.parsing import parse_toml

C = TypeVar("C")
EDITOR_KEY = "EDITOR.KEY=VALUE"
#: What says which model runs where; a recipe may say it too.
PLACE = ("model", "device", "dtype", "prefix", "chat")


def command(
    commands: Any, name: str, run: Any, example: str, *, model: bool = True
) -> argparse.ArgumentParser:
    """A subcommand with the options that all share, and with those of the model it loads, if it loads one."""
    parser = subcommand(commands, name, run, example)
    if model:
        parser.add_argument(
            "--model",
            default="factworld",
            help="factworld, factworld-llama, smollm2 (a real one), a folder or a Hugging Face id",
        )
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default auto)")
        parser.add_argument(
            "--dtype", default="float32", help="float32, float64, bfloat16, float16 (default float32)"
        )
        parser.add_argument(
            "--prefix", metavar="TOKEN", help="a special token in front of every prompt, as '<|endoftext|>'"
        )
        parser.add_argument(
            "--chat",
            action="store_true",
            default=None,
            help="every prompt is the user's message in the chat template, and answers open the assistant's turn",
        )
    return parser


def add_space(parser: Any) -> None:
    """--space."""
    parser.add_argument(
        "--space",
        choices=("auto", "always", "never"),
        help="whether a space goes before an answer (default auto: by the scripts of prompt and answer)",
    )


def top_k(text: str) -> int | str:
    """A count, or "all"."""
    return text if text == "all" else count(text)


def layers(text: str) -> tuple[int, int] | str:
    """The word auto, a layer, or FIRST-LAST."""
    if text == "auto":
        return text
    first, dash, last = text.partition("-")
    last = last if dash else first
    if not first.isdigit() or not last.isdigit():
        raise argparse.ArgumentTypeError(f"expected auto, a layer or FIRST-LAST, as 4-7, found {text!r}")
    return int(first), int(last)


def literal(text: str) -> Any:
    """A value as in Python or TOML, a range of layers as 4-7, or else a word.

    >>> literal("7"), literal("(4, 7)"), literal("4-7"), literal("true"), literal("always")
    (7, (4, 7), (4, 7), True, 'always')
    """
    text = text.strip()
    if span := re.fullmatch(r"(\d+)-(\d+)", text):
        return int(span[1]), int(span[2])
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


class KeyValue(argparse.Action):
    """--set KEY=VALUE, as often as there are keys: one dict; of EDITOR.KEY=VALUE one for each editor."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Adds one."""
        name, equals, value = str(values).partition("=")
        name, chosen = name.strip(), dict(getattr(namespace, self.dest) or {})
        editor, point, key = name.rpartition(".")
        wanted = self.metavar == EDITOR_KEY
        if not equals or not key.isidentifier() or bool(point) != wanted or not value.strip():
            example = "rome.layer=7" if wanted else "layer=7"
            parser.error(f"argument {option_string}: expected {self.metavar}, as {example}, found {values!r}")
        table = dict(chosen.get(editor, {})) if wanted else chosen
        if key in table:
            parser.error(f"argument {option_string}: {name} is given twice; leave one out")
        table[key] = held(literal(value))
        setattr(namespace, self.dest, {**chosen, editor: table} if wanted else table)


def add_set(parser: Any) -> None:
    """--set."""
    parser.add_argument(
        "--set",
        action=KeyValue,
        metavar="KEY=VALUE",
        help="a field of the editor, as layer=7 or contexts='((5, 10),)'; may be repeated "
        "(mechedit edit --editor NAME --fields lists them with their values for the model)",
    )


def add_editors_set(parser: Any) -> None:
    """--set of a command that runs several editors."""
    parser.add_argument(
        "--set",
        action=KeyValue,
        metavar=EDITOR_KEY,
        help="a field of one of the editors, as rome.layer=7; may be repeated (mechedit edit --editor NAME --fields "
        "lists them); in a recipe [set.rome]",
    )


def over_recipe(config: C, fields: dict[str, dict[str, Any]] | None) -> C:
    """`config` with the fields of --set over those of its recipe's [set]."""
    settings: Any = config
    before: dict[str, dict[str, Any]] = settings.set or {}
    together = {
        **before,
        **{name: {**before.get(name, {}), **table} for name, table in (fields or {}).items()},
    }
    return replace(config, set=together or None)  # type: ignore[type-var]
