"""Tokens as strings, one string a token, the leading space kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["joined_tokens", "token_strings"]

_SPACE = "\u2581"  # how SentencePiece writes a leading space; decoding a single token drops it
_BROKEN = "\ufffd"


def token_strings(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Each id as the text that it stands for: " Paris" with its space.

    Not the inverse of tokenising: the strings are for people. A byte that is only a part of a character has
    no text of its own, and the tokenizer's name for it is shown instead.
    """
    texts = {i: _text(tokenizer, i) for i in set(ids)}
    return tuple(texts[i] for i in ids)


def joined_tokens(tokenizer: Any, ids: Sequence[int]) -> str:
    """The tokens as one text, the leading space kept; pieces of a character are put together where they make one."""
    pieces = token_strings(tokenizer, ids)
    if not any(_BROKEN in str(tokenizer.decode([i])) for i in ids):
        return "".join(pieces)
    whole = str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    if _BROKEN in whole:
        return "".join(pieces)
    led = pieces[0].startswith(" ") and not whole.startswith(" ")
    return f" {whole}" if led else whole


def _text(tokenizer: Any, token: int) -> str:
    raw = str(tokenizer.convert_ids_to_tokens(token))
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if _BROKEN in text:
        return raw
    if raw.startswith(_SPACE):
        return " " * (len(raw) - len(raw.lstrip(_SPACE))) + text.lstrip(" ")
    return text
