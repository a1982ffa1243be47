r"""A prompt and the text that follows it, joined as people write them: with a space between them, or without.

`space="auto"`, the first rule that applies:

1. none where the prompt ends or the text begins in white space;
2. between letters or digits: none where both belong to scripts without spaces between words (Chinese, Japanese, Thai,
   Lao, Khmer, Burmese, ...); where one does, none if the prompt's last sentence has at least as many such characters
   as other words;
   else a space. Korean has spaces. None between two digits ("The year is 20|24");
3. none in front of what closes or continues: `. , ; : ! ? ) ] } % …`, `'t` and the other short forms, `-based`; none
   in front of or behind full-width punctuation;
4. none behind what opens or holds on: `( [ { $ # @`, an opening quotation mark, an apostrophe (`l'|Espagne`, but
   `the players'| union`), a hyphen or a slash inside a word;
5. else a space.

"always" and "never" are what they say, but white space is never doubled. Every text that joins a prompt and an object
is made here, so that what is scored, edited and demonstrated is one text.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Literal, get_args

from reports.errors import InputError

__all__ = ["Space", "check_space", "gap", "joined"]

Space = Literal["auto", "always", "never"]

_UNSPACED = (
    "CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO",
    "IDEOGRAPHIC", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE", "BALINESE", "TAI ", "NEW TAI ", "YI ",
)  # fmt: skip
_SHORT_FORM = re.compile(r"['’](?:t|s|d|m|re|ve|ll|em|n|cause)?(?!\w)", re.IGNORECASE)
_CLOSES = ".,;:!?…%‰°″′)]}/"
_HOLDS = "$€£¥₹#@_\\¿¡"
_TIGHT = "-‐‑–/=+*^~&"  # they hold on where they stand behind a character, not behind a space
_QUOTES = "\"'’"


def check_space(space: object) -> None:
    """Checks the switch.

    Raises:
        InputError: It is none of "auto", "always" and "never".
    """
    if space not in get_args(Space):
        raise InputError(f"space: expected one of {', '.join(get_args(Space))}, found {space!r}")


def joined(prompt: str, text: str, space: Space = "auto") -> str:
    """`prompt` and `text` as one text.

    Args:
        prompt: What comes first.
        text: What follows.
        space: Whether a space stands between them; "auto" decides by both.

    Raises:
        InputError: `space` is something else.

    >>> joined("Paris is in", "France"), joined("中国的首都是", "北京"), joined("I don", "'t"), joined("It is", "北京")
    ('Paris is in France', '中国的首都是北京', "I don't", 'It is 北京')
    """
    return prompt + gap(prompt, text, space) + text


@lru_cache(maxsize=8192)
def gap(prompt: str, text: str, space: Space = "auto") -> str:
    """What stands between `prompt` and `text`: " " or ""; arguments as of `joined`."""
    check_space(space)
    if space == "never" or prompt[-1:].isspace() or text[:1].isspace():
        return ""
    if space == "always" or not prompt or not text:
        return " "
    return "" if _touch(prompt, text) else " "


def _touch(prompt: str, text: str) -> bool:
    last, first = _base(prompt), text[0]
    if last.isalnum() and first.isalnum():
        return (last.isdigit() and first.isdigit()) or _in_unspaced_text(prompt, last, first)
    return _closes(prompt, text) or _holds(prompt)


def _base(prompt: str) -> str:
    """The last character of `prompt` that is no combining mark: Thai and Burmese end words in marks."""
    return next((c for c in reversed(prompt) if not unicodedata.category(c).startswith("M")), prompt[-1])


def _in_unspaced_text(prompt: str, last: str, first: str) -> bool:
    sides = [_unspaced(last), _unspaced(first)]
    if all(sides) or not any(sides):
        return all(sides)
    sentence = re.split(r"[\n.!?。！？]", prompt)[-1]
    characters = sum(_unspaced(c) for c in sentence)
    words = re.findall(r"\w+", "".join(" " if _unspaced(c) else c for c in sentence))
    return characters > 0 and characters >= len(words)


@lru_cache(maxsize=4096)
def _unspaced(character: str) -> bool:
    """Whether it is a letter of a script without spaces between words."""
    return character.isalpha() and unicodedata.name(character, "").startswith(_UNSPACED)


def _wide_punctuation(character: str) -> bool:
    return not character.isalnum() and unicodedata.east_asian_width(character) in "WF"


def _closes(prompt: str, text: str) -> bool:
    first, second = text[0], text[1:2]
    if _wide_punctuation(first):
        return True
    if first in "'’":
        return bool(_SHORT_FORM.match(text)) or _open_quote(prompt, first)
    if first == '"':
        return not second.isalnum() or _open_quote(prompt, first)
    if first == ".":
        return not (second.isdigit() or second.isupper())  # ".5" and ".NET" are words
    if first in "-‐‑":
        return second.isalpha()
    return first in _CLOSES or unicodedata.category(first) in ("Pe", "Pf")


def _holds(prompt: str) -> bool:
    last, before = prompt[-1], prompt[-2:-1]
    if _wide_punctuation(last):
        return True
    if last in "'’":
        word = re.search(r"\w*$", prompt[:-1])
        letters = word[0] if word else ""
        possessive = len(letters) > 2 and letters.endswith("s")
        return (bool(letters) and not possessive and not _open_quote(prompt[:-1], last)) or _opens(before)
    if last == '"':
        return _open_quote(prompt, last) and _opens(before)
    if last in _TIGHT:
        return bool(before) and not before.isspace()
    return last in _HOLDS or unicodedata.category(last) in ("Ps", "Pi")


def _opens(before: str) -> bool:
    """Whether a quotation mark behind this character opens."""
    return (
        not before
        or before.isspace()
        or unicodedata.category(before) in ("Ps", "Pi", "Pd")
        or before in _QUOTES
    )


def _open_quote(prompt: str, mark: str) -> bool:
    """Whether a quotation of this mark has been opened, and not closed; apostrophes inside words do not count."""
    opened = False
    for i, character in enumerate(prompt):
        if character == mark and not opened:
            opened = _opens(prompt[i - 1 : i])
        elif character == mark and not prompt[i + 1 : i + 2].isalnum():
            opened = False
    return opened
