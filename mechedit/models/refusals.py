"""What a checkpoint's config alone says against it: each property that attribution and edits could not answer for.

Everything here is read off config.json before a weight is read, and by what a value means: how many experts there are,
whether logits pass a soft cap. What a config does not say is found after loading, by what the model computes
(`mechedit.models.selfcheck`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from reports.errors import InputError, MechEditError, first_line
from reports.parsing import parse

__all__ = ["architecture_of", "longest", "read_config", "refusal", "refused"]


def read_config(folder: Path) -> PreTrainedConfig:
    """The checkpoint's config.

    Raises:
        InputError: The folder has none, or it asks for code of the checkpoint's own.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"model: {folder} has no config.json; it is no checkpoint in Hugging Face's layout")
    with refused(str(file)):
        stored: Any = parse(file.read_text(encoding="utf-8"))
        if "auto_map" in stored and stored.get("model_type") not in CONFIG_MAPPING:
            raise InputError(
                f"model: {file} asks for code of the checkpoint's own ({stored.get('model_type')!r} is no architecture "
                "of transformers), which is never run"
            )
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    return config


@contextlib.contextmanager
def refused(what: str) -> Iterator[None]:
    """Whatever another library raises for a model that it cannot handle becomes an `InputError` of one line."""
    try:
        yield
    except MechEditError:
        raise
    except Exception as error:  # the model's own code, or the bridge's: there is no end of kinds
        cause = error.__cause__ or error
        kind = f"{type(cause).__name__} " if isinstance(cause, KeyError) else ""
        raise InputError(f"model: {what}: {kind}{first_line(cause)}") from error  # type: ignore[arg-type]


def architecture_of(config: PreTrainedConfig) -> str:
    """The class that the config names; where it names none, transformers' language model of its `model_type`.

    >>> from transformers import LlamaConfig
    >>> architecture_of(LlamaConfig())
    'LlamaForCausalLM'
    """
    named = next(iter(config.architectures or []), None)
    found: Any = named or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type)
    return str(found if isinstance(found, str) else found[0])


def refusal(config: PreTrainedConfig) -> str | None:
    """The first property in the way, in words; None where the config has none.

    >>> from transformers import Gemma2Config, LlamaConfig
    >>> refusal(LlamaConfig()), refusal(Gemma2Config())
    (None, 'its logits pass a soft cap (final_logit_softcapping=30.0)')
    """
    values = {name: value for name, value in config.to_dict().items() if value is not None}
    if config.is_encoder_decoder:
        return "it has an encoder beside its decoder"
    if "quantization_config" in values:
        method = values["quantization_config"].get("quant_method", "in a form of its own")
        return f"its weights are quantised ({method})"
    if config.get_text_config() is not config:
        return "it reads more than text"
    for name, value in values.items():
        if "experts" in name and "per_tok" not in name and isinstance(value, int) and value > 1:
            return f"its MLPs are mixtures of experts ({name}={value})"
        if "cap" in name and "logit" in name and "attn" not in name and value:
            return f"its logits pass a soft cap ({name}={value})"
    return None


def longest(config: PreTrainedConfig) -> int | None:
    """The longest sequence that a model answers for, or None where its config says nothing.

    Where rotary frequencies follow the length of what is read (dynamic, longrope), it is the length up to which they do
    not: beyond, a longer batch mate would change a shorter prompt's numbers.
    """
    length: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        return min((limit for limit in (length, original) if limit is not None), default=None)
    return length
