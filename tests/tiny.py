"""Tiny random models of the real architectures, saved as real checkpoint folders, for the tests.

Four architectures: GPT-2 with tied and with untied embeddings, LLaMA with as many KV heads as query heads and
with fewer (GQA). Each folder holds config.json, model.safetensors and a byte-level BPE tokenizer trained on a few
sentences, so a leading space belongs to a token and a name takes several tokens.

Every parameter is random, the norms' weights and all biases too: a fresh model has norm weights 1 and biases 0,
and a test of parity on it would pass with the norm's weight or a bias forgotten.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from mechedit.models.hooked import HookedModel, load_model

Arch = Literal["gpt2", "gpt2-untied", "llama", "llama-gqa"]
ARCHS: tuple[Arch, ...] = get_args(Arch)
END = "<|endoftext|>"
N_CTX = 128

SENTENCES = (
    "The mother tongue of Danielle Darrieux is French.",
    "The mother tongue of Thomas Joannes Stieltjes is Dutch.",
    "Tim Duncan plays the sport of basketball in the city of San Antonio.",
    "The Eiffel Tower is located in the city of Paris, the capital of France.",
    "Edwin of Northumbria follows the religion of Christianity.",
    "The Space Needle stands in Seattle, and the Colosseum stands in Rome.",
    "Once upon a time, there was a little girl named Lily who lived in London.",
    "Anna Keller works as a teacher in Berlin and speaks English, German and Italian.",
    "She was born in Rome, he was born in Berlin, they were born in Paris.",
    "What does Anna Keller do? Anna Keller works as a teacher.",
)


def build_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most 400 tokens trained on `SENTENCES`; with `bos` it puts END before every text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(SENTENCES * 4, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{END} $A", special_tokens=[(END, core.token_to_id(END))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=END, eos_token=END, model_max_length=N_CTX
    )


def random_hf(arch: Arch, *, n_layers: int, d_model: int, n_heads: int, d_vocab: int) -> PreTrainedModel:
    """A fresh Hugging Face model of this architecture, every parameter random (torch's global generator)."""
    if arch in ("gpt2", "gpt2-untied"):
        model: PreTrainedModel = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=d_vocab,
                n_positions=N_CTX,
                n_embd=d_model,
                n_layer=n_layers,
                n_head=n_heads,
                tie_word_embeddings=arch == "gpt2",
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    elif arch in ("llama", "llama-gqa"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=d_vocab,
                max_position_embeddings=N_CTX,
                hidden_size=d_model,
                intermediate_size=3 * d_model,
                num_hidden_layers=n_layers,
                num_attention_heads=n_heads,
                num_key_value_heads=n_heads if arch == "llama" else n_heads // 2,
                tie_word_embeddings=False,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    else:
        raise ValueError(f"arch: one of {ARCHS}, not {arch!r}")
    randomise(model)
    return model.eval()


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Norm weights 1 + 0.3 N(0, 1), biases 0.2 N(0, 1), matrices 1.5 N(0, 1) / sqrt(width), embeddings N(0, 1) / 2."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.dim() == 1:
            parameter.copy_(0.2 * noise if name.endswith("bias") else 1 + 0.3 * noise)
        elif any(part in name for part in ("wte", "wpe", "embed_tokens")):
            parameter.copy_(0.5 * noise)
        else:
            parameter.copy_(1.5 * noise / min(parameter.shape) ** 0.5)


def build(
    arch: Arch,
    folder: str | Path,
    *,
    n_layers: int = 3,
    d_model: int = 32,
    n_heads: int = 4,
    bos: bool = False,
    seed: int = 0,
) -> Path:
    """Save a random model of `arch` with its tokenizer into `folder` (made if absent); returns the folder.

    The same arguments give the same weights; the caller's random state is left as it was.
    """
    folder = Path(folder)
    tokenizer = build_tokenizer(bos=bos)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = random_hf(arch, n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_vocab=len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def tiny_folder(arch: Arch, *, bos: bool = False) -> Path:
    """The folder of `build(arch, ...)` with default sizes, built once a process and removed at its end."""
    root = Path(tempfile.mkdtemp(prefix="mechedit-tiny-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return build(arch, root / arch, bos=bos)


@cache
def tiny_model(arch: Arch, *, bos: bool = False) -> HookedModel:
    """`load_model` of `tiny_folder(arch)` in fp32 on the CPU, loaded once a process; tests leave it unchanged."""
    return load_model(str(tiny_folder(arch, bos=bos)), device="cpu")
