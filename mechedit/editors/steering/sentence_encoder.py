"""Sentence encoders, for gates that read a prompt's text: the optional extra `gate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from experiments.checkpoints import digest
from reports.errors import InputError

__all__ = ["encoder_hash", "sentence_encoder"]


@lru_cache(maxsize=4)
def sentence_encoder(model: str) -> Callable[[Sequence[str]], Tensor]:
    """Texts to embeddings [n, e] (fp32, as the encoder gives them) by a `sentence-transformers` folder or id.

    A checkpoint's own code is never run, and its weights are safetensors: a saved gate names its encoder, and may come
    from elsewhere.

    Raises:
        InputError: The extra is not installed, or there is no such encoder.

    >>> sentence_encoder("./no/such/folder")
    Traceback (most recent call last):
        ...
    reports.errors.InputError: sentence model: ...
    """
    encoder = _loaded(model)

    def embed(texts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            vectors = encoder.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return torch.as_tensor(vectors).float().clone()

    return embed


@lru_cache(maxsize=4)
def encoder_hash(model: str) -> str:
    """sha256 of the encoder's weights."""
    return digest(dict(_loaded(model).state_dict()))


@lru_cache(maxsize=4)
def _loaded(model: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            "sentence model: it needs the extra: pip install 'mechedit[gate]'; without one the language model's own "
            "mean hidden state serves (MEGA: gate='mean')"
        ) from error
    try:
        return SentenceTransformer(
            model, trust_remote_code=False, device="cpu", model_kwargs={"use_safetensors": True}
        )
    except Exception as error:  # the library documents no common base
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"sentence model: expected a sentence-transformers folder or id, found {model!r} ({reason})"
        ) from error
