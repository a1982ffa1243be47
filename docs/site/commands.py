"""The commands' pages, read off the parsers themselves: every option, its values, its default and its help."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from docs.site.markdown import cell, code, table

__all__ = ["PROGRAMS", "examples", "leaves", "pages", "parser"]

PROGRAMS = ("mechedit", "xlprobe")
#: Options that every command has; they stand once, at the top of the page.
SHARED = ("--help", "--json", "--quiet", "--seed")
HELP = {
    "--help": "print the options and an example",
    "--seed": "of every random choice (default 0; of `run`: the recipe's)",
}
ABOUT = {
    "mechedit": "Attribute facts, edit them by steering attention, measure the edit.",
    "xlprobe": "What cross-lingual alignment does to transfer, in distances and gradients.",
}


def parser(program: str) -> argparse.ArgumentParser:
    """The parser of "mechedit" or "xlprobe"."""
    made: argparse.ArgumentParser = import_module(f"{program}.cli")._parser()
    return made


def leaves(top: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Every command that can be run, in the order of --help; subcommands stand for the command that has them.

    >>> [leaf.prog for leaf in leaves(parser("mechedit"))][:2]
    ['mechedit demo', 'mechedit attribute']
    """
    below = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield top
    for action in below:
        for inner in dict.fromkeys(action.choices.values()):
            yield from leaves(inner)


def examples(leaf: argparse.ArgumentParser) -> list[str]:
    """The command lines that a command's --help gives as examples.

    >>> examples(next(leaves(parser("mechedit"))))[0].split()[:2]
    ['mechedit', 'demo']
    """
    text = re.sub(r"\\\s*\n\s*", "", leaf.epilog or "")
    program = leaf.prog.split()[0]
    return [line.strip() for line in re.findall(rf"(?:^|:|\s)({program} .*?)$", text, re.M)]


def pages() -> dict[str, str]:
    """A page for each program, by its name."""
    return {program: _page(program) for program in PROGRAMS}


def _page(program: str) -> str:
    commands = list(leaves(parser(program)))
    shared = {name: action for leaf in commands for action in leaf._actions for name in _flags(action)}
    rows = [[code(name), HELP.get(name) or cell(_help(commands[0], shared[name]))] for name in SHARED]
    lines = [
        f"# {program}",
        "",
        f"{ABOUT[program]} Made of the parser itself when the site is built: what stands here is what `--help` says.",
        "Exit status: 0 done, 1 failed, 2 wrong usage (one line on standard error says what, where and what to do),",
        "130 interrupted. Every command takes:",
        "",
        table(["option", ""], rows),
        *(f"[`{leaf.prog}`](#{_anchor(leaf)}) · " for leaf in commands[:-1]),
        f"[`{commands[-1].prog}`](#{_anchor(commands[-1])})",
    ]
    return "\n".join([*lines, "", *(_command(leaf) for leaf in commands)])


def _anchor(leaf: argparse.ArgumentParser) -> str:
    return leaf.prog.replace(" ", "-")


def _command(leaf: argparse.ArgumentParser) -> str:
    said = " ".join((leaf.description or "").split())
    shown = "\n".join(examples(leaf))
    lines = [f"({_anchor(leaf)})=", f"## {leaf.prog}", "", said, "", f"```bash\n{shown}\n```", ""]
    for group in leaf._action_groups:
        rows = [
            _row(leaf, action) for action in group._group_actions if not set(_flags(action)) & set(SHARED)
        ]
        if not rows:
            continue
        if group.title and group.title not in ("options", "positional arguments"):
            lines += [f"**{group.title[:1].upper()}{group.title[1:]}**", ""]
        lines += [table(["option", "values", "default", "meaning"], rows)]
    return "\n".join(lines)


def _flags(action: argparse.Action) -> list[str]:
    return [flag for flag in action.option_strings if flag.startswith("--")] or list(action.option_strings)


def _row(leaf: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    name = ", ".join(action.option_strings) or (_metavar(action) or action.dest)
    required = action.required and bool(action.option_strings)
    return [
        code(name),
        "" if not action.option_strings else code(_values(action)),
        "required" if required else _default(action),
        cell(_help(leaf, action)),
    ]


def _metavar(action: argparse.Action) -> str:
    shown = action.metavar
    return " ".join(shown) if isinstance(shown, tuple) else (shown or "")


def _values(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return " | ".join(map(str, action.choices))
    shown = _metavar(action) or action.dest.upper()
    return shown + (" ..." if action.nargs in ("+", "*") else "")


def _default(action: argparse.Action) -> str:
    value: Any = action.default
    if value in (None, False, argparse.SUPPRESS) or action.nargs == 0 or value == []:
        return ""
    return code(",".join(map(str, value)) if isinstance(value, list | tuple) else value)


def _help(leaf: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help text, its default left out where the table says it."""
    text = leaf._get_formatter()._expand_help(action) if action.help else ""
    return text
