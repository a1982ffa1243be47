"""Tiny random checkpoints of the architectures that people use, those that are supported and those that are refused.

Every parameter is random, norms around what a fresh one has (1, or 0 where a module adds 1), so that nothing that is
forgotten can hide. `FAMILIES` hold what is supported: parallel blocks, norms behind sub-layers, multipliers, windows,
scaled rotary frequencies, q and k norms, biases. `REFUSED` say why not.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from tests.tiny import build_tokenizer

if TYPE_CHECKING:
    from mechedit.models.hooked import HookedModel

Sizes = Mapping[str, Any]

_OLD: Sizes = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 4}
_PLAIN: Sizes = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_NEW: Sizes = {**_PLAIN, "num_key_value_heads": 2}
_WIDE: Sizes = {**_NEW, "head_dim": 6}
#: Narrower than the prompts of the tests, so that the window counts.
WINDOW = 12
_MIXED: Sizes = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}


def _rope(kind: str, **more: float) -> Sizes:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **more}}


_LLAMA3 = _rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)

FAMILIES: dict[str, tuple[str, Sizes]] = {
    "gpt2": ("gpt2", _OLD),
    "gpt-j": ("gptj", {**_OLD, "rotary_dim": 4}),
    "gpt-neox": ("gpt_neox", {**_PLAIN, "rotary_pct": 0.5}),
    "gpt-neox sequential": ("gpt_neox", {**_PLAIN, "rotary_pct": 0.5, "use_parallel_residual": False}),
    "phi": ("phi", {**_NEW, "partial_rotary_factor": 0.5}),
    "gemma": ("gemma", _WIDE),
    "gemma 3": ("gemma3_text", {**_WIDE, **_MIXED, "query_pre_attn_scalar": 5}),
    "olmo": ("olmo", _NEW),
    "olmo-2": ("olmo2", _NEW),
    "granite": (
        "granite",
        {
            **_NEW,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.4,
            "embedding_multiplier": 3.0,
            "logits_scaling": 0.5,
        },
    ),
    "cohere": ("cohere", {**_NEW, "logit_scale": 0.7}),
    "llama": ("llama", _NEW),
    "llama 3": ("llama", {**_NEW, **_LLAMA3}),
    "llama linear": ("llama", {**_NEW, **_rope("linear")}),
    "mistral": ("mistral", {**_NEW, "sliding_window": WINDOW}),
    "qwen 2": ("qwen2", _NEW),
    "qwen 3": ("qwen3", _WIDE),
    "starcoder 2": ("starcoder2", _NEW),
    "phi 3": ("phi3", {**_NEW, "pad_token_id": 0}),
    "falcon": ("falcon", {k: v for k, v in _PLAIN.items() if k != "intermediate_size"}),
    "glm 4": ("glm4", {**_WIDE, "pad_token_id": 0}),
    "nemotron": ("nemotron", _NEW),
}

_EXPERTS: Sizes = {**_NEW, "num_local_experts": 2}
#: model_type, sizes, what the refusal says
REFUSED: dict[str, tuple[str, Sizes, str]] = {
    "gemma 2": ("gemma2", {**_WIDE, "query_pre_attn_scalar": 5}, "soft cap .final_logit_softcapping=30"),
    "bloom": ("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 4}, "ALiBi"),
    "mpt": ("mpt", {"d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, "ALiBi"),
    "falcon alibi": ("falcon", {**FAMILIES["falcon"][1], "alibi": True}, "ALiBi"),
    "mixtral": ("mixtral", _EXPERTS, "mixtures of experts .num_local_experts=2"),
    "gpt-oss": ("gpt_oss", {**_WIDE, **_MIXED, "num_local_experts": 2}, "mixtures of experts"),
    "qwen 2 moe": (
        "qwen2_moe",
        {**_NEW, "num_experts": 2, "moe_intermediate_size": 8},
        "mixtures of experts",
    ),
    "deepseek 3": ("deepseek_v3", {**_PLAIN, "n_routed_experts": 2, "n_group": 1}, "mixtures of experts"),
    "granite moe": ("granitemoe", _EXPERTS, "mixtures of experts"),
    "t5": (
        "t5",
        {"d_model": 16, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_heads": 4},
        "an encoder beside",
    ),
    "bart": ("bart", {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}, "an encoder beside"),
    "apertus": ("apertus", _NEW, "activation function without weights"),
    "mamba": ("mamba", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}, "no blocks.0.attn"),
    "persimmon": ("persimmon", _PLAIN, "no bridge for it"),
}


def random_model(model_type: str, sizes: Sizes, *, d_vocab: int) -> PreTrainedModel:
    """A Hugging Face model with every parameter random (torch's global generator)."""
    config = AutoConfig.for_model(model_type, vocab_size=d_vocab, bos_token_id=0, eos_token_id=0, **sizes)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config)
    _randomise(model)
    return model.eval()


@torch.no_grad()
def _randomise(model: PreTrainedModel) -> None:
    embeddings = {id(weight) for weight in model.get_input_embeddings().parameters()}
    for name, weight in model.named_parameters():
        noise = torch.randn_like(weight)
        if weight.dim() == 1:
            weight.copy_(0.2 * noise if name.endswith("bias") else weight.mean() + 0.3 * noise)
        elif id(weight) in embeddings or "wpe" in name:
            weight.copy_(0.5 * noise)
        else:
            weight.copy_(1.5 * noise / min(weight.shape) ** 0.5)


def save(model_type: str, sizes: Sizes, folder: Path, *, seed: int = 0) -> Path:
    """A checkpoint with its tokenizer; the caller's random state is left as it was."""
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = random_model(model_type, sizes, d_vocab=len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def folder_of(name: str) -> Path:
    """The checkpoint of a family, or of one that is refused; built once a process and removed at its end."""
    root = Path(tempfile.mkdtemp(prefix="mechedit-arch-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return save(*(FAMILIES.get(name) or REFUSED[name][:2]), root / name.replace(" ", "-"))


@cache
def model_of(name: str, dtype: str = "float32") -> HookedModel:
    """`load_model` of a family's checkpoint, loaded once a process: leave it as you found it."""
    from mechedit.models.hooked import load_model

    return load_model(folder_of(name), device="cpu", dtype=dtype)


@cache
def plain_of(name: str, dtype: str = "float32") -> PreTrainedModel:
    """The same by transformers alone."""
    plain: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder_of(name), dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    return plain.eval().requires_grad_(False)
