"""Train the embedded models: a byte-level BPE tokenizer and two small decoders on the world's text.

Documents are made on the fly: those of step i depend on (seed, i) alone, so a stopped run continues with the same
documents that it would have seen. Hidden matrices are trained by Muon, all else by AdamW, with a linear decay to zero.
Checkpoints are safetensors, the optimisers' state too.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from experiments.progress import bar
from mechedit.factworld.muon import Muon
from mechedit.factworld.text import TEXT_WEIGHT, Document, Writer
from mechedit.factworld.world import OBJECTS, World
from reports.errors import InputError
from reports.files import whole_folder

__all__ = ["ARCHITECTURES", "Recipe", "train"]

logger = logging.getLogger(__name__)

ARCHITECTURES = ("gpt2", "llama")
END = "<|endoftext|>"
STEPS = {"gpt2": 2600, "llama": 3600}  # LLaMA takes longer to ignore statements about somebody else
VOCABULARY = 1200
CONTEXT = 256


@dataclass(frozen=True)
class Recipe:
    """Everything that the trained weights depend on."""

    arch: str = "gpt2"
    seed: int = 0
    steps: int | None = None  # None: as many as the shipped model of this architecture had
    documents: int = 64  # per step
    d_model: int = 96
    n_layers: int = 8
    n_heads: int = 6
    lr_matrix: float = 5e-3  # Muon
    lr_other: float = 3e-3  # AdamW
    warmup: int = 100
    decay: float = 0.5  # share of the steps over which the rates fall to zero

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise InputError(f"arch: expected one of {', '.join(ARCHITECTURES)}, found {self.arch!r}")
        if self.steps is None:
            object.__setattr__(self, "steps", STEPS[self.arch])

    @property
    def n_steps(self) -> int:
        """The number that `steps` is once the recipe is made."""
        assert self.steps is not None
        return self.steps


def documents(world: World, seed: int, step: int, n: int) -> list[Document]:
    """The `n` documents of one training step."""
    writer = Writer(world, random.Random(f"{seed}:text:{step}"))
    return [writer.document() for _ in range(n)]


def train_tokenizer(world: World, *, bos: bool) -> PreTrainedTokenizerFast:
    """GPT-2's kind of tokenizer, trained on the world's text; objects are one to three tokens.

    With `bos` it puts `<|endoftext|>` first, as LLaMA's does with `<s>`.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator((doc.text for doc in documents(world, world.seed, -1, 20_000)), trainer)
    for kind, values in OBJECTS.items():
        pieces = [core.encode(f" {value}").ids for value in values]
        if max(map(len, pieces)) > 3 or len({p[0] for p in pieces}) < len(values):
            raise RuntimeError(f"objects of kind {kind} must be 1 to 3 tokens with distinct first tokens")
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{END} $A", special_tokens=[(END, core.token_to_id(END))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def build_model(recipe: Recipe, vocabulary: int) -> PreTrainedModel:
    """A fresh model: GPT-2 (tied), or LLaMA with two query heads to each key-value head (untied)."""
    torch.manual_seed(recipe.seed)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    shared: dict[str, Any] = {"vocab_size": vocabulary, **ends}
    if recipe.arch == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                n_embd=recipe.d_model,
                n_layer=recipe.n_layers,
                n_head=recipe.n_heads,
                n_positions=CONTEXT,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **shared,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=recipe.d_model,
            intermediate_size=8 * recipe.d_model // 3,
            num_hidden_layers=recipe.n_layers,
            num_attention_heads=recipe.n_heads,
            num_key_value_heads=recipe.n_heads // 2,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            **shared,
        )
    )


def encode(
    tokenizer: PreTrainedTokenizerFast, docs: Sequence[Document]
) -> list[tuple[list[int], list[float]]]:
    """Token ids and loss weights: a token weighs what its last character weighs; every document ends in END."""
    end = tokenizer.eos_token_id
    encoded = tokenizer([doc.text for doc in docs], return_offsets_mapping=True)
    return [
        ([*ids, end], [doc.weights[b - 1] if b else 0.0 for _, b in offsets] + [TEXT_WEIGHT])
        for doc, ids, offsets in zip(docs, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def micro_batches(
    rows: list[tuple[list[int], list[float]]], tokens: int = 2048
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of like length together, right-padded (harmless under a causal mask; padding weighs nothing)."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    while rows:
        width = len(rows[-1][0])
        take = max(1, tokens // width)
        rows, part = rows[:-take], rows[-take:]
        ids = torch.tensor([r + [0] * (width - len(r)) for r, _ in part])
        weights = torch.tensor([w + [0.0] * (width - len(w)) for _, w in part])
        yield ids, weights


def train_step(model: PreTrainedModel, rows: list[tuple[list[int], list[float]]]) -> tuple[float, float]:
    """Accumulate the gradient of the weighted loss; returns the loss and the recall of what can be known."""
    total = sum(sum(w[1:]) for _, w in rows)
    loss_sum, right, known = 0.0, 0, 0
    for ids, weights in micro_batches(rows):
        # Only weighted positions meet the vocabulary.
        hidden = model.base_model(input_ids=ids[:, :-1]).last_hidden_state
        chosen = weights[:, 1:] > 0
        logits = model.get_output_embeddings()(hidden[chosen])
        target, weight = ids[:, 1:][chosen], weights[:, 1:][chosen]
        loss = (torch.nn.functional.cross_entropy(logits, target, reduction="none") * weight).sum() / total
        loss.backward()
        loss_sum += loss.item()
        fact = weight == 1.0
        right += int((logits.argmax(-1) == target)[fact].sum())
        known += int(fact.sum())
    return loss_sum, right / max(known, 1)


def optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings, norms and biases."""
    embeddings = {
        id(p) for m in (model.get_input_embeddings(), model.get_output_embeddings()) for p in m.parameters()
    }
    matrices = [
        p for n, p in model.named_parameters() if p.ndim == 2 and id(p) not in embeddings and "wpe" not in n
    ]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=recipe.lr_matrix, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=recipe.lr_other, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def rate(recipe: Recipe, step: int) -> float:
    """Warm-up, plateau, linear decay to zero."""
    left = (recipe.n_steps - step) / (recipe.n_steps * recipe.decay)
    return min(1.0, (step + 1) / recipe.warmup, left)


def save_checkpoint(
    folder: Path, model: PreTrainedModel, optims: Sequence[torch.optim.Optimizer], step: int, recipe: Recipe
) -> None:
    """Write weights, optimisers' state and progress to `folder`, which is replaced as a whole."""
    with whole_folder(folder) as fresh:
        model.save_pretrained(fresh)
        state = {
            f"{i}.{j}.{key}": value
            for i, optim in enumerate(optims)
            for j, slot in optim.state_dict()["state"].items()
            for key, value in slot.items()
            if isinstance(value, Tensor)
        }
        save_file(state, fresh / "optimizer.safetensors")
        (fresh / "progress.json").write_text(json.dumps({"step": step, "recipe": asdict(recipe)}, indent=1))


def load_checkpoint(
    folder: Path, model: PreTrainedModel, optims: Sequence[torch.optim.Optimizer], recipe: Recipe
) -> int:
    """Fill model and optimisers; returns the next step (0 where there is no checkpoint).

    Raises:
        InputError: The folder holds a run of another recipe, or an incomplete one.
    """
    if not (folder / "progress.json").exists():
        return 0
    progress = json.loads((folder / "progress.json").read_text())
    if progress["recipe"] != asdict(recipe):
        raise InputError(
            f"{folder}: holds a training run of another recipe; name another folder or remove it"
        )
    weights = load_file(folder / "model.safetensors")
    missing = set(model.load_state_dict(weights, strict=False).missing_keys) - set(
        model._tied_weights_keys or ()
    )
    if missing:
        raise InputError(
            f"{folder}: weights missing: {', '.join(sorted(missing))}; remove the folder to start again"
        )
    state: list[dict[int, dict[str, Tensor]]] = [{} for _ in optims]
    for name, value in load_file(folder / "optimizer.safetensors").items():
        i, j, key = name.split(".", 2)
        state[int(i)].setdefault(int(j), {})[key] = value
    for optim, slots in zip(optims, state, strict=True):
        optim.load_state_dict({"state": slots, "param_groups": optim.state_dict()["param_groups"]})
    return int(progress["step"])


def train(recipe: Recipe, folder: Path, *, save_every: int = 250, progress: bool = True) -> Path:
    """Train, or continue training, in `folder`; returns the folder of the finished model, `folder/model`.

    Args:
        recipe: What is trained.
        folder: For checkpoint and model.
        save_every: Steps between two checkpoints.
        progress: Whether a bar is shown.

    Raises:
        InputError: The folder holds a run of another recipe, or an incomplete one.
    """
    world = World(recipe.seed)
    checkpoint, final = folder / "checkpoint", folder / "model"
    tokenizer = train_tokenizer(world, bos=recipe.arch == "llama")
    model = build_model(recipe, len(tokenizer))
    optims = optimizers(model, recipe)
    start = load_checkpoint(checkpoint, model, optims, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    began, smooth = time.time(), [0.0, 0.0]
    label = f"factworld {recipe.arch}"
    with bar(label, recipe.n_steps, start=start, progress=progress, unit="step") as shown:
        for step in range(start, recipe.n_steps):
            for optim, lr in zip(optims, (recipe.lr_matrix, recipe.lr_other), strict=True):
                optim.param_groups[0]["lr"] = lr * rate(recipe, step)
            loss, recall = train_step(
                model, encode(tokenizer, documents(world, recipe.seed, step, recipe.documents))
            )
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optim in optims:
                optim.step()
                optim.zero_grad(set_to_none=True)
            smooth = [0.98 * s + 0.02 * v for s, v in zip(smooth, (loss, recall), strict=True)]
            shown.set_postfix(loss=f"{smooth[0]:.3f}", recall=f"{smooth[1]:.3f}", refresh=False)
            shown.update()
            if (step + 1) % save_every == 0 or step + 1 == recipe.n_steps:
                save_checkpoint(checkpoint, model, optims, step + 1, recipe)
                logger.info("step %d loss %.3f recall %.3f %.0f s", step + 1, *smooth, time.time() - began)
    model.save_pretrained(final)
    tokenizer.save_pretrained(final)
    return final
