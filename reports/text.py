"""Text that came out of a tokenizer, made visible.

A token may be a line break, a zero-width joiner, a right-to-left override, a lone byte, or HTML. Escaping
keeps it from being *run*; it does not keep it from being *invisible*, nor from turning round the text beside
it. `visible` maps each character that draws nothing, or that acts on its neighbours, to a mark that is drawn.
Ordinary letters of any script and emoji stay as they are. HTML escaping is the job of whoever writes HTML.
"""

from __future__ import annotations

import unicodedata

__all__ = ["clip", "visible"]

_MARKS = {" ": "·", "\n": "⏎", "\r": "␍", "\t": "⇥"}
# drawn as nothing, though Unicode counts them as letters, symbols or marks: fillers, the empty braille cell,
# the joiner of combining marks, variation selectors
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5") | {chr(0xFE00 + i) for i in range(16)}


def visible(text: str, *, spaces: bool = False) -> str:
    r"""Marks each control, format, surrogate, unassigned or unusual space character of `text` as `⟨U+XXXX⟩`.

    Line breaks and tabs become `⏎`, `␍`, `⇥`, the empty string `∅`. A zero-width joiner between two emoji is marked
    too: one picture is less useful here than the code points that the model saw.

    Args:
        text: Any text.
        spaces: Whether an ordinary space becomes `·` (for single tokens, where a leading space is part of the
            identity).

    >>> visible("a\u200bb\u202e\n")
    'a⟨U+200B⟩b⟨U+202E⟩⏎'
    >>> visible(" Paris", spaces=True)
    '·Paris'
    """
    return "".join(_mark(char, spaces=spaces) for char in text) or "∅"


def clip(text: str, width: int) -> str:
    """Cuts `text` to at most `width` characters, the last of them `…` where something was cut.

    >>> clip("representation", 8)
    'represe…'
    """
    return text if len(text) <= width else text[: width - 1] + "…"


def _mark(char: str, *, spaces: bool) -> str:
    if char == " ":
        return _MARKS[char] if spaces else char
    if char in _MARKS:
        return _MARKS[char]
    category = unicodedata.category(char)
    hidden = category[0] in "CZ" or char in _BLANK
    return f"⟨U+{ord(char):04X}⟩" if hidden else char
