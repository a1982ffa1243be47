"""What a prompt may be, and how it becomes ids.

1. *A text* is plain: special tokens written out in it are text, which is logged, since it is mostly not meant.
2. *A conversation*, a list of messages as `{"role": "user", "content": "..."}`, is written by the tokenizer's own chat
   template, whose special tokens are such. An answer opens the assistant's turn, without a space; a last message of the
   assistant is continued.
3. *Ids* are taken as they are.

A model may be loaded with a frame for every text: a special token in front of it (`prefix`), or the text as the user's
message of a conversation (`chat`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from reports.errors import InputError, first_line

__all__ = [
    "Message",
    "Prompt",
    "Written",
    "conversation",
    "is_conversation",
    "recorded",
    "special_ids",
    "special_prefix",
    "text_ids",
    "warn_of",
]

log = logging.getLogger(__name__)

Message = Mapping[str, str]
Prompt = str | Sequence[Message] | Sequence[int] | torch.Tensor


@dataclass(frozen=True)
class Written:
    """A prompt as the tokenizer reads it.

    Attributes:
        text: The text.
        special: Whether special tokens in it are such.
        opens: Whether an answer begins a turn of its own, so that no space belongs in front of it.
    """

    text: str
    special: bool = False
    opens: bool = False


def is_conversation(prompt: object) -> bool:
    """Whether a prompt is a list of messages.

    >>> is_conversation([{"role": "user", "content": "Hello"}]), is_conversation("Hello"), is_conversation([1, 2])
    (True, False, False)
    """
    return isinstance(prompt, list | tuple) and any(isinstance(message, Mapping) for message in prompt)


def recorded(prompt: Prompt) -> Any:
    """A prompt as JSON holds it: a text, a list of messages, or a list of ids.

    >>> recorded(torch.tensor([5, 7])), recorded("Hello")
    ([5, 7], 'Hello')
    """
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, torch.Tensor):
        return prompt.tolist()
    return [dict(part) if isinstance(part, Mapping) else int(part) for part in prompt]


def conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Written:
    """The messages in the tokenizer's own chat template, up to where the assistant's answer stands.

    Raises:
        InputError: The tokenizer has no template, a message has other than a role and a content, or the template
            refuses them.
    """
    wrong = [m for m in messages if not isinstance(m, Mapping) or not _is_message(m)]
    if wrong:
        raise InputError(
            f'prompt: expected messages as {{"role": "user", "content": "..."}}, both texts, found {wrong[0]!r:.60}'
        )
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "prompt: expected a tokenizer with a chat template for a conversation, found none: this is no chat model; "
            "give the prompt as a text"
        )
    goes_on = messages[-1]["role"] == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
        )
    except Exception as error:  # the template's own, whatever it raises
        raise InputError(f"prompt: the chat template refuses the messages: {first_line(error)}") from error
    return Written(str(text), special=True, opens=not goes_on)


def text_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool, d_vocab: int
) -> tuple[int, ...]:
    """Ids of a text without what the tokenizer puts in front.

    Args:
        tokenizer: The checkpoint's.
        text: The text.
        special: Whether special tokens in it are such.
        d_vocab: How many tokens the model knows.

    Raises:
        InputError: The tokenizer belongs to another model.
    """
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=not special).input_ids
    if ids and max(ids) >= d_vocab:
        raise InputError(
            f"text: {text!r} has the token {max(ids)}, the model knows {d_vocab}: "
            "this tokenizer belongs to another model"
        )
    return tuple(ids)


def special_prefix(tokenizer: PreTrainedTokenizerBase, prefix: str) -> list[int]:
    """Ids of special tokens that are to stand in front of every text.

    Raises:
        InputError: `prefix` holds anything but special tokens of this tokenizer.
    """
    ids = list(tokenizer(prefix, add_special_tokens=False).input_ids)
    known = special_ids(tokenizer)
    if not ids or any(token not in known for token in ids):
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(known)[:8])) or "none"
        raise InputError(f"prefix: expected a special token of this tokenizer ({names}), found {prefix!r}")
    return ids


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of all special tokens, the named ones and those that were added."""
    added = tokenizer.added_tokens_decoder
    return set(tokenizer.all_special_ids) | {token for token, spec in added.items() if spec.special}


def _is_message(message: Message) -> bool:
    return all(isinstance(message.get(key), str) for key in ("role", "content"))


def warn_of(tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int]) -> None:
    """Logs special tokens that are written out in a plain text, and words that the tokenizer does not know.

    Args:
        tokenizer: The checkpoint's.
        text: The text.
        ids: Its ids, without what the tokenizer puts in front.
    """
    names = tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
    written = {name: text.count(name) for name in names if name and name in text}
    if written and list(tokenizer(text, add_special_tokens=False).input_ids) != list(ids):
        log.warning(
            "text: %r has %s written out (%d in all); in a plain text they are letters, no special tokens: give a list "
            "of messages, ids, or load_model(prefix=...)",
            _short(text), ", ".join(map(repr, written)), sum(written.values()),
        )  # fmt: skip
    if unknown := list(ids).count(tokenizer.unk_token_id):
        log.warning(
            "text: the tokenizer does not know %d of the %d tokens of %r", unknown, len(ids), _short(text)
        )


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
