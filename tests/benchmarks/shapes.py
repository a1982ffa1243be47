"""What is measured: a model by its name or folder, or a random one of a real shape with weights of a trained size."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, PretrainedConfig

from mechedit.models.embedded import MODELS
from mechedit.models.hooked import HookedModel, load_model

__all__ = ["GPT2_SHAPES", "LLAMA_SHAPES", "about", "bench_model", "clock"]

# layers, width, heads; the vocabulary is GPT-2's
GPT2_SHAPES = {
    "gpt2-tiny": (6, 48, 4),
    "gpt2-small": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-xl": (48, 1600, 25),
}
# layers, width, heads, inner width, vocabulary
LLAMA_SHAPES = {"llama-tiny": (6, 48, 4, 96, 1200), "llama2-7b": (32, 4096, 32, 11008, 32000)}
VOCABULARY, TINY_VOCABULARY = 50257, 1200


def bench_model(
    shape: str,
    model: str = "",
    *,
    layers: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> HookedModel:
    """The model of this name or folder; without one a random model of this shape, or with another number of `layers`.

    A random one is made where it runs, and has the tokenizer of the embedded world, whose ids are the first 1,200.
    """
    if model:
        return load_model(model, device=device, dtype=dtype)
    torch.manual_seed(seed)
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(
            _config(shape, layers), dtype=dtype, attn_implementation="eager", trust_remote_code=False
        )
        trained_like(hf)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "gpt2", trust_remote_code=False, local_files_only=True)
    return load_model(hf, tokenizer)


def _config(shape: str, layers: int | None) -> PretrainedConfig:
    if shape in LLAMA_SHAPES:
        depth, width, heads, inner, vocabulary = LLAMA_SHAPES[shape]
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers or depth,
            num_attention_heads=heads,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    depth, width, heads = GPT2_SHAPES[shape]
    vocabulary = TINY_VOCABULARY if shape == "gpt2-tiny" else VOCABULARY
    return GPT2Config(
        n_layer=layers or depth,
        n_embd=width,
        n_head=heads,
        vocab_size=vocabulary,
        bos_token_id=0,
        eos_token_id=0,
    )


@torch.no_grad()
def trained_like(model: torch.nn.Module) -> None:
    """About GPT-2's trained scales: matrices and token embeddings of standard deviation 0.14, norm weights of about
    0.3, a final norm of about 1.5, heavy-tailed rows (a few neurons write far more than the rest)."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.ndim == 1:
            centre = 1.5 if "ln_f" in name or name.endswith("model.norm.weight") else 0.3
            parameter.copy_(0.05 * noise if name.endswith("bias") else centre * (1 + 0.3 * noise))
        elif any(part in name for part in ("c_proj", "o_proj", "down_proj")):
            rows = parameter if "c_proj" in name else parameter.T
            heavy = torch.exp(0.7 * torch.randn(rows.shape[0], 1, dtype=rows.dtype, device=rows.device))
            rows.copy_(0.08 * heavy * (noise if "c_proj" in name else noise.T))
        else:
            parameter.copy_((0.02 if "wpe" in name else 0.14) * noise)


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds so far: of the processor, all threads, on the CPU (other work beside it is no matter); elsewhere of the
    clock, the device waited for."""
    if device.type == "cpu":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def about(model: HookedModel, shape: str = "") -> dict[str, Any]:
    """What a figure was measured on."""
    gpu = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else ""
    return {
        "model": model.name if not shape else f"random, {shape}",
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": gpu or str(model.device),
        "clock": "processor" if model.device.type == "cpu" else "wall",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "date": datetime.now(UTC).date().isoformat(),
    }
