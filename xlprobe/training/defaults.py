"""Learning rate, batch and steps by the encoder's size, where the caller names none.

| parameters in blocks | alignment | task | its head alone |
|---|---|---|---|
| below 5 million (langworld) | lr 2e-3, batch 24, 80 steps | lr 2e-3, batch 32, 150 steps | lr 1e-2 |
| from 5 million (MiniLM, e5-small) | lr 2e-5, batch 64, one epoch | lr 5e-5, batch 32, 3 epochs | lr 1e-3 |
| from 50 million (XLM-R base) | lr 2e-5, batch 64, one epoch | lr 2e-5, batch 32, 3 epochs | lr 1e-3 |

Epochs are held between 50 and 2,000 steps; a tenth of the steps warms up. The literature takes a batch of 512 and lr
2e-5 for alignment, and 10 epochs (tags) or 40 (SIB-200) for tasks [Xhelili et al. 2024; Gaschi et al. 2023].
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import normalize

from reports.errors import InputError
from xlprobe.encoders.batches import Sentence
from xlprobe.encoders.encoder import Encoder
from xlprobe.training.cached_contrast import Vectors, sentence_vectors
from xlprobe.training.loop import Training

__all__ = ["align_training", "heed_collapse", "is_small", "of_epochs", "spread", "task_training"]

logger = logging.getLogger(__name__)

SMALL, BASE = 5_000_000, 50_000_000
FEWEST, MOST = 50, 2000
SAMPLE = 64
ALIKE = 1e-4  # a spread that is rounding: nothing is left to collapse
COLLAPSED = 0.25  # of the spread before training


def align_training(encoder: Encoder, n_pairs: int, **given: Any) -> Training:
    """The training of an alignment on `n_pairs`; `given` are fields of `Training`, and `epochs`, that are not None.

    >>> from xlprobe.encoders.encoder import load_encoder
    >>> align_training(load_encoder("langworld", device="cpu"), 1600, lr=None).lr
    0.002
    """
    if is_small(encoder):
        return _with(Training(steps=80, batch=24, lr=2e-3, warmup=10), n_pairs, given)
    return _with(of_epochs(1, n_pairs, batch=64, lr=2e-5), n_pairs, given)


def task_training(encoder: Encoder, n: int, *, head_only: bool = False, **given: Any) -> Training:
    """The training of a task on `n` sentences, of the whole model or of its head; `given` as for `align_training`."""
    blocks = _blocks(encoder)
    if blocks < SMALL:
        small = Training(steps=150, batch=32, lr=1e-2 if head_only else 2e-3, warmup=10)
        return _with(small, n, given)
    rate = 1e-3 if head_only else 5e-5 if blocks < BASE else 2e-5
    return _with(of_epochs(3, n, batch=32, lr=rate), n, given)


def of_epochs(epochs: float, n: int, **settings: Any) -> Training:
    """A training of so many passes over `n` items, at least 50 and at most 2,000 steps, a tenth of them warm-up.

    >>> of_epochs(3, 3200, batch=32, lr=1e-5).steps
    300
    """
    steps = min(MOST, max(FEWEST, math.ceil(epochs * n / settings["batch"])))
    return Training(steps=steps, warmup=max(1, steps // 10), **settings)


def _with(training: Training, n: int, given: dict[str, Any]) -> Training:
    """The training with what the caller named; `epochs` are turned into exactly so many steps."""
    named = {name: value for name, value in given.items() if value is not None}
    epochs = named.pop("epochs", None)
    if epochs is not None:
        if "steps" in named:
            raise InputError("epochs: expected epochs or steps, found both")
        if not (epochs > 0 and math.isfinite(epochs)):
            raise InputError(f"epochs: expected a number above 0, found {epochs}")
        named["steps"] = max(1, math.ceil(epochs * n / named.get("batch", training.batch)))
    if "steps" in named and "warmup" not in named:
        named["warmup"] = min(training.warmup, max(1, named["steps"]))
    return replace(training, **named)


def is_small(encoder: Encoder) -> bool:
    """Whether the encoder has fewer than 5 million parameters in its blocks."""
    return _blocks(encoder) < SMALL


def _blocks(encoder: Encoder) -> int:
    table = encoder.parameter_table()
    return int(table.loc[table["layer"] > 0, "numel"].sum())


# ------------------------------------------------------------------------------------------ collapse


@torch.no_grad()
def spread(encoder: Encoder, sentences: Sequence[Sentence], vectors: Vectors) -> float:
    """How unlike the sentences' vectors are: 1 less the mean cosine of two of them, of a sample of 64.

    >>> from xlprobe.encoders.encoder import load_encoder
    >>> encoder = load_encoder("langworld", device="cpu")
    >>> round(spread(encoder, ["one"] * 4, Vectors()), 6)
    0.0
    """
    step = max(1, len(sentences) // SAMPLE)
    batch = encoder.encode(list(sentences[::step][:SAMPLE])).to(encoder.device)
    units = normalize(sentence_vectors(encoder, batch, vectors).float(), dim=1)
    n = len(units)
    if n < 2:
        return math.nan
    cosines = units @ units.T
    return float(1 - (cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))


def heed_collapse(
    before: float, encoder: Encoder, sentences: Sequence[Sentence], vectors: Vectors, training: Training
) -> bool:
    """Warn where training has left the sentences' vectors much more alike than they were; whether it has.

    Args:
        before: Their spread before training.
        encoder: The trained encoder.
        sentences: The sentences of `before`.
        vectors: The layer and pooling of `before`.
        training: Named in the warning.
    """
    after = spread(encoder, sentences, vectors)
    collapsed = before > ALIKE and not after >= COLLAPSED * before
    if collapsed:
        logger.warning(
            "%s: the states of layer %d collapse: 1 - mean cosine of two sentences fell from %.3f to %.3f; take a "
            "smaller learning rate than %g, or fewer steps than %d",
            encoder.name, vectors.at(encoder), before, after, training.lr, training.steps,
        )  # fmt: skip
    return collapsed
