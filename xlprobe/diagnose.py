"""Can a number measured on this encoder be trusted? Every check is a row: measured, tolerance, and what to change.

1. The encoder alone: gradients against padding and batch mates, with the forgotten mask as the control
   (`xlprobe.probes.invariance`); special tokens around every sentence; every layer's hook.
2. Beside a second load of the same checkpoint: states of all layers against `transformers` alone, in eager and in sdpa
   attention; states and gradients against float64 (float32 where float64 does not fit), which is what the dtype costs.
3. The memory that one gradient takes beyond the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.checkpoints import second_load
from experiments.memory import free_bytes, size, watched
from reports.diagnosis import Check, Diagnosis, Step, gathered
from reports.errors import InputError
from xlprobe.encoders.architectures import ARCHITECTURES
from xlprobe.encoders.batches import Batch, Sentence
from xlprobe.encoders.encoder import Encoder, load_encoder
from xlprobe.encoders.loading import EMBEDDED, read_model
from xlprobe.probes.gradient_stream import Layout, probing
from xlprobe.probes.invariance import compare, gradient, invariance, random_direction, tolerance

__all__ = ["Diagnosis", "diagnose"]


def diagnose(encoder: Encoder, sentences: Sequence[Sentence], *, seed: int = 0) -> Diagnosis:
    """All checks on each of `sentences` (two or more, of unlike length), on `encoder` as it is loaded.

    They take as much memory again as the weights have in float64; `notes` say what was left out because it does not
    fit. A check that cannot be carried out is a row that is not ok.

    Raises:
        InputError: Fewer than two sentences, or all of one length (then no batch mate pads anything).

    >>> from xlprobe.encoders.encoder import load_encoder
    >>> diagnosis = diagnose(load_encoder("langworld", device="cpu"), ["the cat", "a dog and a cat run to the house"])
    >>> diagnosis.ok
    True
    """
    if len(sentences) < 2:
        raise InputError(f"sentences: expected at least 2, found {len(sentences)}; each needs a batch mate")
    batch = encoder.encode(sentences)
    lengths = batch.lengths.tolist()
    if len(set(lengths)) == 1:
        raise InputError(f"sentences: expected unlike lengths, found {lengths[0]} tokens in all of them")
    notes: list[str] = []
    steps: list[Step] = [
        ("memory", lambda: _memory(encoder, batch)),
        ("gradients", lambda: invariance(encoder, sentences, seed=seed)),
        ("special tokens", lambda: _special_tokens(encoder, batch)),
        ("hooks fire once", lambda: _hooks_fire(encoder, batch)),
        *_beside(encoder, batch, notes, seed),
    ]
    return Diagnosis.of(
        list(gathered(steps)),
        subject=encoder.name,
        dtype=str(encoder.dtype).removeprefix("torch."),
        device=str(encoder.device),
        attention=str(getattr(encoder.model.config, "_attn_implementation", "unknown")),
        notes=tuple(notes),
    )


# -- the encoder alone -----------------------------------------------------------------------------------------------


def _special_tokens(encoder: Encoder, batch: Batch) -> Iterator[Check]:
    """Special tokens come once at either end, as in <s> words </s>, and every token between them has a word."""
    tokenizer = encoder.tokenizer
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    wrong = 0
    for ids, words, length in zip(batch.input_ids, batch.word_ids, batch.lengths.tolist(), strict=True):
        tokens, inner = ids[:length].tolist(), words[:length].tolist()
        ends = tokens[:1] == [first] and tokens[-1:] == [last]
        framed = ends and tokens.count(first) == tokens.count(last) == 1
        wrong += not (framed and inner[0] == inner[-1] == -1 and min(inner[1:-1], default=0) >= 0)
    yield Check(
        "special tokens",
        wrong,
        0,
        f"sentences that are not {tokenizer.cls_token} words {tokenizer.sep_token}",
        "the template in tokenizer.json's post_processor is not the one that the encoder was trained with",
        n=len(batch),
    )


@torch.no_grad()
def _hooks_fire(encoder: Encoder, batch: Batch) -> Iterator[Check]:
    """Embeddings and blocks run once a pass each."""
    modules = [encoder.embeddings, *encoder.blocks]
    fired = [0] * len(modules)

    def count(at: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            fired[at] += 1

        return hook

    handles = [module.register_forward_hook(count(at)) for at, module in enumerate(modules)]
    try:
        encoder.forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    wrong = [at for at, times in enumerate(fired) if times != 1]
    yield Check(
        "hooks fire once",
        len(wrong),
        0,
        f"of {len(modules)} layers (the embeddings are 0) did not run exactly once in a pass",
        f"layer {wrong[0] if wrong else 0}: its states are not what the encoder computes; load it with load_encoder",
    )


def _memory(encoder: Encoder, batch: Batch) -> Iterator[Check]:
    """Memory of the longest sentence's gradient, the first that is computed, above what the process held before."""
    layout = Layout.of(encoder.model, encoder.parameter_table())
    longest = batch[[int(batch.lengths.argmax())]]
    n_bytes = sum(weight.numel() * weight.itemsize for weight in encoder.model.parameters())
    before = free_bytes(encoder.device)
    with watched(encoder.device) as peak, probing(layout, encoder.model):
        gradient(encoder, layout, random_direction(encoder, 0), longest)
    yield Check(
        "memory of a gradient",
        peak[0],
        before,
        f"bytes at the peak: {size(peak[0])} above weights of {size(n_bytes)}; {size(before)} were free",
        "take a smaller encoder, shorter sentences, or another device",
    )


# -- beside a second load --------------------------------------------------------------------------------------------


def _beside(encoder: Encoder, batch: Batch, notes: list[str], seed: int) -> Iterator[Step]:
    """The checks that load the checkpoint again, as far as there is one and room for it."""
    n_weights = sum(weight.numel() for weight in encoder.model.parameters())
    n_bytes, free = n_weights * encoder.dtype.itemsize, free_bytes(encoder.device)
    folder, why = second_load(
        encoder.source, embedded=EMBEDDED, n_bytes=n_bytes, device=encoder.device, loader="load_encoder"
    )
    if folder is None:
        notes.append(why)
        return
    yield "states of transformers", lambda: _plain(encoder, folder, batch)
    wide = torch.float64 if 3 * n_weights * 8 <= free else torch.float32  # weights and two gradients
    if 3 * n_weights * wide.itemsize <= free:
        yield "dtype", lambda: _dtype(encoder, folder, batch, wide, seed)
    else:
        notes.append(
            f"no dtype budget: weights and gradients take {size(12 * n_weights)} in float32, {size(free)} "
            f"are free on {encoder.device}"
        )


@torch.no_grad()
def _plain(encoder: Encoder, folder: Path, batch: Batch) -> Iterator[Check]:
    """The checkpoint by `transformers` alone, on the same device and in the same dtype."""
    plain, _ = read_model(folder, dtype=encoder.dtype, attention="eager")
    torch.nn.Module.to(plain.eval(), encoder.device)
    states, placed = encoder.states(batch), batch.to(encoder.device)
    for attention in ARCHITECTURES[encoder.model.config.model_type].attentions:
        plain.set_attn_implementation(attention)
        output = plain(
            input_ids=placed.input_ids, attention_mask=placed.attention_mask, output_hidden_states=True
        )
        yield Check(
            f"states of transformers, {attention}",
            _off(states, torch.stack(list(output.hidden_states)), placed),
            tolerance(encoder.dtype),
            "of the largest value, all layers",
            "the loaded encoder is not what its checkpoint says: it was changed after loading; load it again",
            n=len(batch),
        )


def _dtype(encoder: Encoder, folder: Path, batch: Batch, wide: torch.dtype, seed: int) -> Iterator[Check]:
    """What the dtype costs: the same states and gradients in a wider one."""
    attention: Any = getattr(encoder.model.config, "_attn_implementation", "eager")
    reference = load_encoder(folder, device=str(encoder.device), dtype=wide, attention=attention)
    name = str(wide).removeprefix("torch.")
    with torch.no_grad():
        off = _off(encoder.states(batch), reference.states(batch), batch.to(encoder.device))
    change = "more than this dtype's rounding: use --dtype float32"
    yield Check(
        f"states against {name}",
        off,
        tolerance(encoder.dtype),
        "of the largest value, all layers",
        change,
        n=len(batch),
    )
    pairs = [
        compare(_gradient(encoder, batch[[i]], seed), _gradient(reference, batch[[i]], seed))
        for i in range(len(batch))
    ]
    yield Check(
        f"gradients against {name}",
        max(relative for relative, _ in pairs),
        tolerance(encoder.dtype),
        f"‖g − g₀‖/‖g₀‖ of an example's gradient, cosine {min(cosine for _, cosine in pairs):.6f}",
        "cosines of gradients are read to two decimals and this error is larger: use --dtype float32",
        n=len(pairs),
    )


def _gradient(encoder: Encoder, alone: Batch, seed: int) -> Tensor:
    layout = Layout.of(encoder.model, encoder.parameter_table())
    with probing(layout, encoder.model):
        return gradient(encoder, layout, random_direction(encoder, seed), alone)


def _off(states: Tensor, expected: Tensor, batch: Batch) -> float:
    """Largest difference of states [L, B, T, d] at real tokens, as a share of the largest value."""
    real = batch.attention_mask.bool()
    a, b = states[:, real].double(), expected[:, real].double()
    return float((a - b).abs().max() / b.abs().max())
