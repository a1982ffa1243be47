"""Docstrings of this project as reStructuredText: their prose is plain text with `code` in single backticks.

Steps of `to_rst`, which runs before napoleon:

1. doctests, and blocks that are indented below a paragraph, stay as they are written (literal blocks);
2. the sections of Google's style keep their heads and indents, and each entry becomes one line;
3. every paragraph becomes one line, in which `code` turns into a link where it is a public name, into ``code``
   elsewhere, and characters that would be markup are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

__all__ = ["inline", "to_rst"]

SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Examples?|Notes?|Warning):$")
ITEM = re.compile(r"(\d+\.|[-*])\s")
SPAN = re.compile(r"(``.+?``|`[^`]+`)")
EMPHASIS = re.compile(r"(?<![\w*])(\*[^*\s](?:[^*]*[^*\s])?\*)(?![\w*])")


def inline(text: str, link: Callable[[str], str | None]) -> str:
    r"""One paragraph's text.

    Args:
        text: As it stands in the docstring, on one line.
        link: The full name of a public name, or None.

    >>> inline("`x` of *a* | 2 * n_ `f`s", {"f": "m.f"}.get)
    '``x`` of *a* \\| 2 \\* n\\_ :py:obj:`f <m.f>`\\ s'
    """
    parts = SPAN.split(text)
    out = ""
    for index, part in enumerate(parts):
        if index % 2 == 0:
            out += _escaped(part)
            continue
        code = part.strip("`")
        target = link(code.removesuffix("()"))
        before = "\\ " if out and (out[-1].isalnum() or out[-1] == "`") else ""
        after = "\\ " if parts[index + 1][:1].isalnum() else ""
        role = f":py:obj:`{code} <{target}>`" if target else f"``{code.strip()}``"
        out += before + role + after
    return out


def _escaped(text: str) -> str:
    pieces = EMPHASIS.split(text)
    plain = (re.sub(r"([\\*|`])|(?<=\w)(_)(?!\w)", r"\\\1\2", piece) for piece in pieces[::2])
    emphasised = [*pieces[1::2], ""]
    return "".join(a + b for a, b in zip(plain, emphasised, strict=True))


def to_rst(lines: Sequence[str], link: Callable[[str], str | None]) -> list[str]:
    r"""The lines of a docstring (without common indent) as lines of reStructuredText.

    >>> text = "Adds.\n\nSteps:\n\n    a = b | c\n\nArgs:\n    x: A `y`\n        of z."
    >>> print("\n".join(to_rst(text.splitlines(), lambda name: None)))
    Adds.
    <BLANKLINE>
    Steps:
    <BLANKLINE>
    ::
    <BLANKLINE>
        a = b | c
    <BLANKLINE>
    Args:
        x: A ``y`` of z.
    """
    out: list[str] = []
    section, item = False, False
    for block in _blocks(lines):
        head, indent = block[0], _indent(block[0])
        if SECTION.match(head):
            section, item = True, False
            out += [head, *_entries(block[1:], link), ""]
            continue
        if head.lstrip().startswith(">>>"):
            out += [*block, ""]
            continue
        section = section and indent > 0
        if section:
            out += [*_entries(block, link), ""]
        elif _literal(block, item):
            shift = "" if _indent(head) else "    "
            out += ["::", "", *(shift + line for line in block), ""]
        else:
            out += [*_paragraphs(block, link), ""]
            item = bool(ITEM.match(head.lstrip())) or (item and indent > 0)
    return out[:-1] if out else out


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Runs of lines without a blank one; a run ends where an indented block begins below prose."""
    block: list[str] = []
    for line in [*lines, ""]:
        below = block and not SECTION.match(block[0]) and not block[0].lstrip().startswith(">>>")
        steps_in = below and _indent(line) >= _indent(block[-1]) + 4 and not ITEM.match(block[0].lstrip())
        doctest = below and line.lstrip().startswith(">>>")
        head = below and bool(SECTION.match(line))
        if block and (not line.strip() or (steps_in and _indent(block[0]) == 0) or doctest or head):
            yield block
            block = []
        if line.strip():
            block.append(line)


def _literal(block: Sequence[str], item: bool) -> bool:
    """Whether a block outside sections is to stay as it is: indented below prose, or a table."""
    if block[0].lstrip().startswith("|") or any(re.fullmatch(r"[=\- ]{4,}", line) for line in block):
        return True
    return _indent(block[0]) >= 4 or (_indent(block[0]) > 0 and not item)


def _paragraphs(block: Sequence[str], link: Callable[[str], str | None]) -> list[str]:
    """A block of prose, one line for each paragraph or item of a list."""
    joined: list[str] = []
    for line in block:
        if joined and not ITEM.match(line.lstrip()):
            joined[-1] += " " + line.strip()
        else:
            joined.append(line.rstrip())
    return [line[: _indent(line)] + _marked(line.lstrip(), link) for line in joined]


def _marked(text: str, link: Callable[[str], str | None]) -> str:
    marker = ITEM.match(text)
    if marker is None:
        return inline(text, link)
    return marker[0] + inline(text[marker.end() :], link)


def _entries(block: Sequence[str], link: Callable[[str], str | None]) -> list[str]:
    """The entries of a section: what stands further in than the first line goes on with the line before."""
    out: list[str] = []
    for line in block:
        if line.lstrip().startswith((">>>", "...")) or (out and out[-1].lstrip().startswith(">>>")):
            out.append(line)
        elif out and _indent(line) > _indent(block[0]):
            out[-1] += " " + line.strip()
        else:
            out.append(line)
    quoted = (">>>", "...")
    return [
        line if line.lstrip().startswith(quoted) else line[: _indent(line)] + inline(line.lstrip(), link)
        for line in out
    ]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
