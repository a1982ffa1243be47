"""The page of errors: the kinds, and the text of every message that the source can raise, by package and room."""

from __future__ import annotations

import ast
import inspect
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from docs.site.api import PACKAGES
from mechedit.data.records import Unmeasurable
from reports.errors import InputError, IntegrityError, MechEditError
from xlprobe.training.loop import TrainingError

__all__ = ["messages", "page"]

ROOT = Path(__file__).resolve().parents[2]
KINDS = (MechEditError, InputError, IntegrityError, Unmeasurable, TrainingError)
STATUS = {"InputError": 2, "Unmeasurable": 2}


def messages(source: str) -> Iterator[tuple[str, str]]:
    """Each error that a module raises with a text of its own: kind, and the text with what is filled in in braces.

    >>> list(messages('raise InputError(f"k: expected {n}, " "found 0")'))
    [('InputError', 'k: expected {n}, found 0')]
    """
    names = {kind.__name__ for kind in KINDS}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names and node.args:
            text = _text(node.args[0])
            if text and " " in text:
                yield ast.unparse(node.func), text


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "{" + (node.value.id if isinstance(node.value, ast.Name) else "…") + "}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "{…}"


def page() -> str:
    """The page."""
    lines = [
        "# Errors",
        "",
        "A message is one line that names the argument, what was expected, what was found, and what to do. A command",
        "prints it on standard error and ends with the status below; what else is raised is a bug, with its traceback.",
        "",
    ]
    for kind in KINDS:
        name, said = kind.__name__, " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
        lines += [f"`{name}`", f": {said} Exit status {STATUS.get(name, 1)}.", ""]
    lines += [
        "From Python `except reports.errors.MechEditError` catches all; `InputError` is a `ValueError` too.",
        "",
        "## Every message",
        "",
        "Read off the source. What a message fills in stands in braces: search this page for the words around it.",
    ]
    for room, found in _by_room().items():
        lines += ["", f"### {room}", "", *(f"- `{text}`" for text in sorted(found))]
    return "\n".join(lines) + "\n"


def _by_room() -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = defaultdict(set)
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).parts
            room = ".".join(parts[:2] if len(parts) > 2 else parts[:1])
            for _, text in messages(file.read_text("utf-8")):
                rooms[room].add(" ".join(text.split()).replace("`", "'"))
    return {room: found for room, found in rooms.items() if found}
