"""Random models of real shapes, with weights of about a trained model's size, loaded as any checkpoint is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mechedit.models.embedded import MODELS
from mechedit.models.hooked import HookedModel, load_model

__all__ = ["GPT2_SHAPES", "random_gpt2"]

# layers, width, heads; the vocabulary is GPT-2's
GPT2_SHAPES = {"gpt2-small": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-xl": (48, 1600, 25)}
VOCABULARY = 50257


@contextmanager
def random_gpt2(
    shape: str, *, layers: int | None = None, seed: int = 0, dtype: str = "float32"
) -> Iterator[HookedModel]:
    """A GPT-2 of this shape, or with another number of `layers`. Its folder is removed on leaving; the tokenizer is
    the embedded world's, whose ids are the first 1,200 of the vocabulary."""
    depth, width, heads = GPT2_SHAPES[shape]
    with tempfile.TemporaryDirectory(prefix="mechedit-bench-") as folder:
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {
            "n_layer": layers or depth,
            "n_embd": width,
            "n_head": heads,
            "vocab_size": VOCABULARY,
        }
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
        trained_like(model)
        model.save_pretrained(folder)
        del model
        for file in (MODELS / "gpt2").glob("tokenizer*"):
            shutil.copy(file, folder)
        yield load_model(folder, dtype=dtype)


@torch.no_grad()
def trained_like(model: torch.nn.Module) -> None:
    """About GPT-2's trained scales: matrices and token embeddings of standard deviation 0.14, norm weights of about
    0.3, a final norm of about 1.5, heavy-tailed rows (a few neurons write far more than the rest)."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.ndim == 1:
            centre = 1.5 if "ln_f" in name else 0.3
            parameter.copy_(0.05 * noise if name.endswith("bias") else centre * (1 + 0.3 * noise))
        elif "c_proj" in name:
            rows = torch.exp(0.7 * torch.randn(parameter.shape[0], 1))
            parameter.copy_(0.08 * rows * noise)
        else:
            parameter.copy_((0.02 if "wpe" in name else 0.14) * noise)
