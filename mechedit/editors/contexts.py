"""Texts that the model writes itself, put before a prompt, so that an edit holds behind other words too."""

from __future__ import annotations

import re
from functools import lru_cache

from mechedit.models.hooked import HookedModel

__all__ = ["Lengths", "contexts"]


# (texts, tokens of each): what the contexts are made of
Lengths = tuple[tuple[int, int], ...]
STARTS = ("The", "In", "A", "This", "One")


def contexts(model: HookedModel, lengths: Lengths) -> tuple[str, ...]:
    """The empty text, then the texts that the model writes, each ended by ". " as in ROME.

    Sampled from the 5 likeliest tokens behind common first words; the same for the same weights.

    Args:
        model: The model.
        lengths: (number of texts, tokens of each).
    """
    return _contexts(model, model.hash, lengths)


@lru_cache(maxsize=16)
def _contexts(model: HookedModel, digest: str, lengths: Lengths) -> tuple[str, ...]:
    texts = [""]
    for n, tokens in lengths:
        starts = [STARTS[i % len(STARTS)] for i in range(n)]
        prompts = [model.plain_ids(start) for start in starts]
        written = model.generate(prompts, max_new_tokens=tokens, top_k=5, seed=len(texts))
        joined = (f"{start}{text}" for start, text in zip(starts, written, strict=True))
        # A context is one line, and braces would be taken for the subject's place.
        texts += [re.sub(r"[\s{}]+", " ", text).strip().removesuffix(".") + ". " for text in joined]
    return tuple(texts)
