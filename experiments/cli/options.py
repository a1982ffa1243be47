"""What every command takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from experiments.config import load

__all__ = ["Parser", "configured", "count", "count_or_none", "counts", "subcommand"]

C = TypeVar("C")


class Parser(argparse.ArgumentParser):
    """Prints wrong usage as one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Also takes words behind options, where a command takes `words` (argparse itself reads one run of them)."""
        options, rest = self.parse_known_args(args, namespace)
        if rest and (not hasattr(options, "words") or any(word.startswith("-") for word in rest)):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:
            options.words = [*options.words, *rest]
        return options


def subcommand(commands: Any, name: str, run: Any, example: str) -> argparse.ArgumentParser:
    """Adds a subcommand whose help is the docstring of `run`, with the options that all commands share."""
    help_line = (run.__doc__ or "").strip().splitlines()[0]
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_line, description=help_line, epilog=f"example: {example}"
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress bars (warnings stay)")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (default 0)")
    return parser


def count(text: str) -> int:
    """Reads an integer of at least 1."""
    (value,) = counts(text, several=False)
    return value


def counts(text: str, *, least: int = 1, several: bool = True) -> tuple[int, ...]:
    """Reads integers between commas, none below `least`.

    >>> counts("1,3, 10")
    (1, 3, 10)
    """
    parts = text.split(",") if several else [text]
    try:
        values = tuple(map(int, parts))
    except ValueError as error:
        wanted = "numbers, as 1,2,3" if several else "a number"
        raise argparse.ArgumentTypeError(f"expected {wanted}, found {text!r}") from error
    if min(values) < least:
        raise argparse.ArgumentTypeError(f"expected at least {least}, found {min(values)}")
    return values


def count_or_none(text: str) -> int:
    """Reads an integer of at least 0."""
    return 0 if text.strip() == "0" else count(text)


def configured(
    options: argparse.Namespace, config: type[C], names: Sequence[str], *, experiment: str, **values: Any
) -> C:
    """Returns the configuration of --recipe, or the default one, with the command line's values on top.

    Args:
        options: What the command line has read.
        config: The dataclass of the configuration.
        names: Options that are keys of `config`; None is not given.
        experiment: The name that the recipe must have.
        values: Keys that are made of several options.
    """
    recipe = load(options.recipe, config, experiment=experiment) if options.recipe else config()
    given = {name: getattr(options, name) for name in names} | values
    changed: C = replace(recipe, **{key: value for key, value in given.items() if value is not None})  # type: ignore[type-var]
    return changed
