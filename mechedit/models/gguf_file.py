"""A model out of a GGUF file: configuration, tokenizer and weights by transformers' own reader, dequantised.

transformers reads what it knows of a GGUF file and leaves out the rest without a word. What it left out would be
another model, so it is looked for here:

- weights: as many as the file has must be in the model (llama 3's `rope_freqs.weight` and biases are left out);
- sizes of the configuration that it does not take over are set (GPT-2's context, the heads' width);
- positions that are scaled, and rotations of a part of a head, are refused unless the configuration has them;
- other fields of the architecture that nobody has read are named in a warning;
- BOS: the tokenizer puts one before a text exactly where the file says so.

The weights are then those of a plain Hugging Face model of this dtype: they can be edited and saved as safetensors.
How they were stored stays in the configuration as `dequantized_from`, so that a report can say "4-bit (Q4_1)".
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, cast

import torch
from tokenizers import processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from experiments.gguf_header import GgufHeader
from reports.errors import InputError, first_line

__all__ = ["load_bytes", "parsed_once", "read_config", "read_model", "read_tokenizer"]

logger = logging.getLogger(__name__)

#: Fields that transformers takes over, that are checked here, or that say nothing about what is computed.
READ = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.sliding_window"),
    *("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
    *("attn_logit_softcapping", "final_logit_softcapping", "logit_scale"),
}
#: Fields that transformers does not take over for every architecture, by the configuration's own name.
SET = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logit_scale",
}


def load_bytes(header: GgufHeader, dtype: torch.dtype) -> int:
    """Returns the bytes that reading takes at the peak: the weights, and the largest tensor thrice in float32."""
    return header.n_elements * dtype.itemsize + 12 * max(tensor.n_elements for tensor in header.tensors)


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """Within it the `gguf` package parses a file once, and maps an architecture's names once.

    transformers has it parse the file anew for the configuration, the tokenizer and the weights, and map the names anew
    for every module: two thirds of the time that a small model takes to load.
    """
    try:
        import gguf  # an extra; transformers says what is missing
    except ImportError:
        yield
        return
    names = vars(gguf)
    kept = {name: names[name] for name in ("GGUFReader", "get_tensor_name_map")}
    names.update({name: cache(function) for name, function in kept.items()})
    try:
        yield
    finally:
        names.update(kept)


def read_config(header: GgufHeader) -> PretrainedConfig:
    """The configuration that the file's fields describe, with the name of the architecture.

    Raises:
        InputError: transformers does not read this architecture, or a setting that matters would be left out.
    """
    parts = header.fields.get("split.count", 0)
    if parts > 1:
        raise InputError(
            f"model: {header.file} is one of {parts} parts; join them with llama-gguf-split --merge"
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            header.file.parent, **_place(header), trust_remote_code=False
        )
    except Exception as error:  # whatever transformers raises for fields that it does not understand
        raise InputError(
            f"model: {header.file}: architecture {header.architecture!r} cannot be read by transformers "
            f"({first_line(error)}); expected a decoder such as llama, qwen2 or gpt2"
        ) from error
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "none named")]
    _set_sizes(config, header)
    _check_rotation(config, header)
    unread = sorted(_own_fields(header).keys() - READ)
    if unread:
        logger.warning("%s: not read: %s", header.file.name, ", ".join(unread))
    if header.quantization:
        config.dequantized_from = header.quantization
    return config


def read_model(
    header: GgufHeader, config: PretrainedConfig, *, dtype: torch.dtype, attention: str, shown: bool
) -> PreTrainedModel:
    """The plain Hugging Face model, dequantised.

    Args:
        header: Of the file.
        config: `read_config` of it.
        dtype: Of the weights.
        attention: The attention implementation.
        shown: Whether transformers' progress bar is.

    Raises:
        InputError: The file cannot be read, or holds fewer or more weights than the model.
    """
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    architecture = _architecture(config)
    try:
        with _bar(shown=shown):
            model, report = load(
                header.file.parent,
                **_place(header),
                trust_remote_code=False,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with a name
            )
    except (
        Exception
    ) as error:  # ValueError, KeyError, RuntimeError, NotImplementedError: depends on the architecture
        raise InputError(f"model: {header.file} cannot be loaded: {first_line(error)}") from error
    faults = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if faults:
        raise InputError(
            f"model: weights missing from {header.file}, or of another shape: {len(faults)} that "
            f"{architecture} asks for, the first {faults[0]}"
        )
    n_read = sum(weight.numel() for weight in model.parameters())
    if n_read != header.n_elements:
        rope = "; rope_freqs.weight among them" * any(t.name == "rope_freqs.weight" for t in header.tensors)
        raise InputError(
            f"model: {header.file} holds {header.n_elements} weights, of which transformers takes {n_read} into "
            f"{architecture}{rope}; the model would not be the file's: use its Hugging Face folder"
        )
    return _plain(cast(PreTrainedModel, model))


def read_tokenizer(header: GgufHeader) -> PreTrainedTokenizerBase:
    """The tokenizer that the file's fields describe.

    Raises:
        InputError: The file has none, or one of an unknown kind.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            header.file.parent, **_place(header), trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(
            f"model: the tokenizer of {header.file} cannot be read: {first_line(error)}"
        ) from error
    wanted = header.fields.get("tokenizer.ggml.add_bos_token")
    bos = tokenizer.bos_token_id
    has_bos = bos is not None and tokenizer("a").input_ids[:1] == [bos]
    if wanted is not None and wanted != has_bos and bos is not None:
        _set_bos(tokenizer, bool(wanted))
    return tokenizer


# -- inside ----------------------------------------------------------------------------------------------------------


def _place(header: GgufHeader) -> dict[str, Any]:
    """Where transformers is to look; the whole path, because a bare name is looked for in the working folder first."""
    return {
        "gguf_file": str(header.file.resolve()),
        "local_files_only": True,
    }


def _architecture(config: PretrainedConfig) -> str:
    return next(iter(config.architectures or []), "none named")


def _own_fields(header: GgufHeader) -> dict[str, Any]:
    """The fields of the architecture, without its name."""
    prefix = f"{header.architecture}."
    return {key.removeprefix(prefix): v for key, v in header.fields.items() if key.startswith(prefix)}


def _set_sizes(config: PretrainedConfig, header: GgufHeader) -> None:
    fields = _own_fields(header)
    if config.model_type == "gpt2":
        config.n_positions = fields.get("context_length", config.n_positions)
        config.n_inner = fields.get("feed_forward_length")
    if hasattr(config, "global_head_dim"):  # Gemma 4 has two widths; transformers sets both
        return
    for key, name in SET.items():
        value = fields.get(key)
        if value is None or getattr(config, name, None) == value:
            continue
        if hasattr(config, name):
            setattr(config, name, value)
        elif key in ("logit_scale", "attn_logit_softcapping", "final_logit_softcapping"):
            raise InputError(
                f"model: {header.file}: {key} is {value}, which {_architecture(config)} does not have"
            )


def _check_rotation(config: PretrainedConfig, header: GgufHeader) -> None:
    """Refuses positions that transformers would rotate otherwise than the file says."""
    rotation = getattr(config, "rope_parameters", None)
    if not rotation:
        return
    fields = _own_fields(header)
    scaling, factor = fields.get("rope.scaling.type", "none"), fields.get("rope.scaling.factor", 1.0)
    if scaling != "none" and factor != 1 and rotation.get("rope_type", "default") == "default":
        raise InputError(
            f"model: {header.file} scales its positions ({scaling}, factor {factor:g}), which transformers does not "
            "read from a GGUF file; use its Hugging Face folder"
        )
    width = fields.get("attention.key_length") or config.hidden_size // config.num_attention_heads
    turned, expected = (
        fields.get("rope.dimension_count"),
        int(width * rotation.get("partial_rotary_factor", 1)),
    )
    if turned is not None and turned != expected:
        raise InputError(
            f"model: {header.file} rotates {turned} dimensions of a head, transformers would rotate {expected}; "
            "use its Hugging Face folder"
        )


def _set_bos(tokenizer: PreTrainedTokenizerBase, wanted: bool) -> None:
    bos, core = str(tokenizer.bos_token), tokenizer.backend_tokenizer
    template = f"{bos} $A" if wanted else "$A"
    core.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(bos, tokenizer.bos_token_id)] if wanted else []
    )


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model without what transformers keeps of a quantised one: it is not any more."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


@contextlib.contextmanager
def _bar(*, shown: bool) -> Iterator[None]:
    """Silences the bar that transformers draws while it dequantises, which has no switch."""
    if shown:
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield
