"""Small pieces of Markdown that the generated pages share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["cell", "code", "table"]


def cell(text: object) -> str:
    r"""A text inside a table.

    >>> cell("a | b\nc <d> 10*20*30")
    'a \\| b c \\<d\\> 10\\*20\\*30'
    """
    flat = " ".join(str(text).split())
    for mark in ("\\", "|", "<", ">", "*", "_", "[", "]"):
        flat = flat.replace(mark, "\\" + mark)
    parts = flat.split("`")
    if len(parts) % 2 == 0:  # an odd backtick is one
        return flat.replace("`", "\\`")
    kept = (part.replace("\\", "") if i % 2 and "|" not in part else part for i, part in enumerate(parts))
    return "`".join(kept)


def code(text: object) -> str:
    r"""A text as code inside a table.

    >>> code("'a' | 'b'")
    "`'a' \\| 'b'`"
    """
    return "`" + " ".join(str(text).split()).replace("|", "\\|") + "`" if str(text) else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; "" without rows.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    <BLANKLINE>
    """
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *lines, ""])
