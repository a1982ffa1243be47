"""The part of a model that turns prompts into ids: texts, conversations, and what follows them.

`BridgedModel` is one. Text becomes ids as the checkpoint's tokenizer does it, and a target's tokens are read off
prompt + target, because `tok(" Paris")` alone is another segmentation. What a prompt may be: `mechedit.models.prompts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from mechedit.data.joining import Space, check_space, gap
from mechedit.models.prompts import (
    Prompt,
    Written,
    conversation,
    is_conversation,
    special_ids,
    special_prefix,
    text_ids,
    warn_of,
)
from mechedit.models.weights import ModelShape
from reports.errors import InputError

__all__ = ["PromptReader", "Prompts"]

Prompts = Sequence[Prompt] | Sequence[str] | Sequence[torch.Tensor]


class PromptReader:
    """Reads prompts by a checkpoint's tokenizer.

    Attributes:
        tokenizer: The checkpoint's own.
        shape: The decoder's sizes.
        framing: What every text is put into, {} for nothing: "prefix", special tokens in front of it, or "chat" (the
            hash of its template), it is the user's message of a conversation.
    """

    tokenizer: PreTrainedTokenizerBase
    shape: ModelShape
    framing: dict[str, str]

    @property
    def device(self) -> torch.device:
        """Where the ids are put."""
        raise NotImplementedError

    def tokenize(self, prompt: Prompt) -> torch.Tensor:
        """Ids [T] of a prompt.

        A text becomes what `tokenizer(text)` gives: with BOS only if the tokenizer itself adds one (or `load_model` was
        told to put a `prefix` in front). Special tokens written inside a text are text, which is logged. A list of
        messages is written by the tokenizer's chat template, with its special tokens and nothing in front. Ids are
        taken as they are.

        Raises:
            InputError: Nothing is left to run the model on; ids that are no tokens of the model; or as
                `mechedit.models.prompts.conversation`.
        """
        if not isinstance(prompt, str) and not is_conversation(prompt):
            return self._checked_ids(prompt)
        written = self.written(prompt)
        if not written.special:
            self._warn(written.text)
        ids = self._ids(written.text, special=written.special)
        if not ids:
            raise InputError(f"text: expected at least one token, found none in {prompt!r}")
        return torch.tensor(ids, device=self.device)

    def plain_ids(self, text: str) -> torch.Tensor:
        """Ids [T] of a text that is no prompt, as of a corpus: without chat and without what IKE puts before it."""
        return torch.tensor([*self._prefix, *self._encode(text)], device=self.device)

    def written(self, prompt: Prompt) -> Written:
        """A prompt that is a text or a conversation, as the tokenizer reads it."""
        if isinstance(prompt, str):
            text = self._before + prompt.lstrip(" ") if self._before else prompt
            if "chat" not in self.framing:
                return Written(text)
            return conversation(self.tokenizer, [{"role": "user", "content": text}])
        messages = [dict(message) for message in cast(Sequence[dict[str, str]], prompt)]
        users = [message for message in messages if message.get("role") == "user"]
        if self._before and users:
            users[-1]["content"] = self._before + users[-1]["content"].lstrip(" ")
        return conversation(self.tokenizer, messages)

    def continuation(
        self, prompt: Prompt, target: str, *, space: Space = "auto"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids of the prompt [T], ids of the target [n]): the tokens of prompt + target behind those of the prompt.

        Args:
            prompt: What the target follows: a text, a list of messages, or ids.
            target: A word or more.
            space: Whether a space is put between them; "auto" by both (`mechedit.data.joining`), and never where the
                target opens the assistant's turn of a conversation.

        Raises:
            InputError: The target is empty, encodes to nothing, or to a special token (which a word becomes that the
                tokenizer does not know); or the prompt's own tokens change once the target follows, for then no
                position of the prompt predicts the target.
        """
        if not target.strip():
            raise InputError(f"target: expected a word, found {target!r}")
        ids, written = self.tokenize(prompt), self._readable(prompt)
        check_space(space)
        before = prompt if isinstance(prompt, str) and not written.special else written.text
        target = gap(before, target, "never" if written.opens and space == "auto" else space) + target
        head = self._behind(written, "")
        whole = self._behind(written, target)
        if not torch.equal(whole[: len(head)], head):
            raise InputError(
                f"prompt: its tokens change once {target!r} follows {prompt!r}; "
                "end the prompt in a whole word, without a space behind it"
            )
        if len(whole) == len(head):
            raise InputError(f"target: {target!r} encodes to no token behind {prompt!r}")
        self._require_words(target, whole[len(head) :].tolist(), written)
        return ids, whole[len(head) :]

    def encode(self, prompts: Prompts) -> list[torch.Tensor]:
        """Ids of each prompt; prompts that are ids already pass through.

        Raises:
            InputError: One prompt instead of a list of them.
        """
        if isinstance(prompts, str) or is_conversation(prompts):
            raise InputError(
                f"prompts: expected a list of prompts, found one: [{prompts!r:.40}...]; put it in a list"
            )
        return [self.tokenize(prompt) for prompt in prompts]

    # -------------------------------------------------------------------------------------- inside

    def _read_by(self, prefix: str | None, chat: bool) -> None:
        """Reads texts in this frame from now on."""
        self.framing = {}
        self._prefix = _special_prefix(self.tokenizer)
        self._own_prefix = self._prefix
        # An evaluation asks for the same prompts again and again.
        self._encode = lru_cache(maxsize=8192)(self._encode_text)
        self._warn = lru_cache(maxsize=8192)(lambda text: warn_of(self.tokenizer, text, self._encode(text)))
        #: A text that is read before every prompt's own (IKE).
        self._before = ""
        if prefix is not None and chat:
            raise InputError(
                "prefix: expected none beside chat, whose template has its own; leave one of them out"
            )
        if chat:
            conversation(
                self.tokenizer, [{"role": "user", "content": "a"}]
            )  # refused now, not at the first prompt
            self.framing = {
                "chat": hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:12]
            }
        if prefix is not None and (ids := special_prefix(self.tokenizer, prefix)) != self._prefix:
            self.framing = {"prefix": prefix}
            self._prefix = [*ids, *self._prefix]

    def _encode_text(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        return text_ids(self.tokenizer, text, special=special, d_vocab=self.shape.d_vocab)

    def _ids(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Ids of a text as `Written` has it, with what is put in front of a plain one."""
        return self._encode(text, special=True) if special else (*self._prefix, *self._encode(text))

    def _checked_ids(self, prompt: Any) -> torch.Tensor:
        """Ids that a user gives, as a tensor."""
        try:
            ids = torch.as_tensor(prompt)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"prompt: expected a text, a list of messages or ids, found {prompt!r:.60}"
            ) from error
        if ids.dim() != 1 or not len(ids) or ids.is_floating_point() or ids.dtype == torch.bool:
            raise InputError(
                f"prompt: expected ids [T] of at least one token, found {ids.dtype} of shape {tuple(ids.shape)}"
            )
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.shape.d_vocab:
            raise InputError(
                f"prompt: expected ids of 0 to {self.shape.d_vocab - 1}, found {int(ids.min())} to {int(ids.max())}"
            )
        return ids.long().to(self.device)

    def _readable(self, prompt: Prompt) -> Written:
        """A prompt as text, by which the tokens of what follows are found; of ids, what they stand for."""
        if isinstance(prompt, str) or is_conversation(prompt):
            return self.written(prompt)
        ids = self._checked_ids(prompt).tolist()
        text = str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        return Written(text, special=True, opens=ids[-1] in special_ids(self.tokenizer))

    def _behind(self, written: Written, target: str) -> torch.Tensor:
        """Ids of the prompt with the target behind it."""
        ids = self._ids(written.text + target, special=written.special)
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def _require_words(self, target: str, ids: Sequence[int], written: Written) -> None:
        """Refuses a target that is no text for this tokenizer."""
        tokenizer = self.tokenizer
        refused = special_ids(tokenizer) if written.special else {tokenizer.unk_token_id}
        if bad := [token for token in ids if token in refused]:
            raise InputError(
                f"target: {target!r} becomes {tokenizer.convert_ids_to_tokens(bad[0])!r}, which is no word: the "
                "tokenizer does not know it, or it is a special token; take another spelling"
            )


def _special_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer itself puts before a text, mostly BOS or nothing."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    if not bare:
        raise InputError("tokenizer: expected a vocabulary, found one that encodes 'a' to nothing")
    if full[len(full) - len(bare) :] != bare:
        raise InputError(
            "tokenizer: it puts a special token behind every text, so that no prompt ends in its own last token; "
            "load it with add_eos_token=False"
        )
    return full[: len(full) - len(bare)]
