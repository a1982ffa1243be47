"""GGUF files of tiny random models, written as llama.cpp's converter does it, beside the model they are made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.tiny import N_CTX, build_tokenizer, random_hf, randomise

LLAMA = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GPT2 = {
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}

Change = Callable[[gguf.GGUFWriter], None]


def hf_model(arch: str, *, seed: int = 0) -> PreTrainedModel:
    """A random model: "llama" with fewer KV heads, "qwen2" (tied, biases on q, k and v) or "gpt2"."""
    torch.manual_seed(seed)
    d_vocab = len(build_tokenizer())
    if arch == "llama":
        return random_hf("llama-gqa", n_layers=2, d_model=32, n_heads=4, d_vocab=d_vocab)
    if arch == "gpt2":
        model: PreTrainedModel = GPT2LMHeadModel(
            GPT2Config(vocab_size=d_vocab, n_positions=N_CTX, n_embd=32, n_layer=2, n_head=4, n_inner=64)
        )
    else:
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=d_vocab,
                max_position_embeddings=N_CTX,
                hidden_size=32,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                tie_word_embeddings=True,
            )
        )
    randomise(model)
    return model.eval()


def write(
    file: Path,
    model: PreTrainedModel,
    *,
    kind: Type = Type.F32,
    arch: str = "",
    change: Change = lambda writer: None,
    left_out: str = "",
    bos: bool | None = None,
) -> dict[str, torch.Tensor]:
    """Writes the model, its matrices as `kind`; returns what a reader must get, by the model's names.

    Args:
        file: The new file.
        model: What is written.
        kind: Of all matrices; norms and biases are F32.
        arch: What the file calls the architecture (default: the model's type).
        change: What else is written, last.
        left_out: A tensor of the file that is missing.
        bos: What the file says of a BOS before every text, if anything.
    """
    config, name = model.config, str(model.config.model_type)
    writer = gguf.GGUFWriter(file, arch or name)
    _write_sizes(writer, config)
    _write_tokenizer(writer, build_tokenizer(), bos)
    expected = {}
    for hf_name, weight in model.state_dict().items():
        if hf_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.detach().float().numpy()
        quantised, dequantised = _stored(values, kind)
        expected[hf_name] = torch.from_numpy(dequantised)
        place, suffix = hf_name.rsplit(".", 1)
        gguf_name = f"{_gguf_place(place)}.{suffix}"
        if name == "gpt2" and values.ndim == 2 and "blk" in gguf_name:
            quantised, dequantised = _stored(np.ascontiguousarray(values.T), kind)
            expected[hf_name] = torch.from_numpy(np.ascontiguousarray(dequantised.T))
        if name == "llama" and place.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if place.endswith("q_proj") else config.num_key_value_heads
            quantised, _ = _stored(_interleaved(values, heads), kind)
        if gguf_name != left_out:
            stored = None if values.ndim == 1 else kind
            writer.add_tensor(gguf_name, quantised, raw_dtype=stored)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _stored(values: np.ndarray[Any, Any], kind: Type) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The values as the file holds them and as a reader gets them; vectors stay as they are."""
    if values.ndim == 1:
        return values, values
    data = gguf.quants.quantize(values, kind)
    return data, gguf.dequantize(data, kind).reshape(values.shape)


def _interleaved(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """LLaMA's query and key rows in the order in which llama.cpp rotates them."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(weight.shape))


def _gguf_place(place: str) -> str:
    if place in OUTER:
        return OUTER[place]
    _, _, layer, inner = place.split(".", 3)
    return f"blk.{layer}.{(LLAMA | GPT2)[inner]}"


def _write_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(N_CTX)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, bos: bool | None) -> None:
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = sorted(core["model"]["vocab"], key=core["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3, *[1] * (len(vocabulary) - 1)])
    writer.add_token_merges([" ".join(pair) for pair in core["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    if bos is not None:
        writer.add_add_bos_token(bos)
