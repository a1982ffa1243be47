"""Does padding or a batch mate change an example's gradient? To be known before any gradient probe is trusted.

The gradient of one example over the encoder's parameters, taken alone and unpadded, is held against the same
example's

- `repeat`: once more, the same way (what is left is the machine's own noise);
- `padding`: padded to twice its length and more;
- `batch mate`: in a batch with a longer sentence, its own loss alone counting;
- `place`: as the last row of that batch;
- `no mask`: padded, but with the mask forgotten: the control, which must be far off, or the checks see nothing.

Measured as ‖g − g₀‖ / ‖g₀‖ and as cosine. The example's loss is the mean square of a fixed random direction of its
content states, so every parameter takes part, and attention over all its tokens. Dropout is off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import pad

from reports.errors import InputError
from reports.results import Result
from xlprobe.batches import Batch, Sentence
from xlprobe.gradient_stream import Layout, Mean, probing

if TYPE_CHECKING:
    from xlprobe.encoder import Encoder

__all__ = ["CHECKS", "Diagnosis", "diagnose"]

CHECKS = ("repeat", "padding", "batch mate", "place", "no mask")
TOLERANCE = 1000  # times the dtype's epsilon


@dataclass(frozen=True, repr=False, eq=False)
class Diagnosis(Result):
    """Frame `checks`: check, relative (the largest ‖g − g₀‖/‖g₀‖ over the examples), cosine (the smallest), n.

    `tolerance` is 1000 epsilons of `dtype`; `ok` says whether every check but the control lies below it, and the
    control above.
    """

    kind: ClassVar[str] = "diagnosis"

    checks: pd.DataFrame
    dtype: str
    attention: str
    tolerance: float
    ok: bool
    provenance: dict[str, Any] = field(default_factory=dict)


def diagnose(encoder: Encoder, sentences: Sequence[Sentence], *, seed: int = 0) -> Diagnosis:
    """All checks of `CHECKS` on each of `sentences` (two or more, of unlike length), on `encoder` as it is loaded.

    Errors: `InputError` for fewer than two sentences, or all of one length (then no batch mate pads anything).

    >>> from xlprobe.encoder import load_encoder
    >>> found = diagnose(load_encoder("langworld", device="cpu"), ["the cat", "a dog and a cat run to the house"])
    >>> found.ok
    True
    """
    if len(sentences) < 2:
        raise InputError(f"sentences: expected at least 2, found {len(sentences)}; each needs a batch mate")
    batch = encoder.encode(sentences)
    lengths = batch.lengths.tolist()
    if len(set(lengths)) == 1:
        raise InputError(f"sentences: expected unlike lengths, found {lengths[0]} tokens in all of them")
    layout = Layout.of(encoder.model, encoder.parameter_table())
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(encoder.d_model, generator=generator).to(encoder.device, encoder.dtype)
    found: dict[str, list[tuple[float, float]]] = {check: [] for check in CHECKS}
    with probing(layout, encoder.model):
        for row in range(len(sentences)):
            alone = batch[[row]]
            mate = batch[[max(range(len(lengths)), key=lambda i: (i != row, lengths[i]))]]
            true = _gradient(encoder, layout, direction, alone, 0)
            for check, (asked, at) in _variants(encoder, alone, mate).items():
                found[check].append(_compare(_gradient(encoder, layout, direction, asked, at), true))
    rows: list[dict[str, Any]] = [
        {
            "check": check,
            "relative": max(r for r, _ in pairs),
            "cosine": min(c for _, c in pairs),
            "n": len(pairs),
        }
        for check, pairs in found.items()
    ]
    tolerance = TOLERANCE * torch.finfo(encoder.dtype).eps
    ok = all((row["relative"] > tolerance) == (row["check"] == "no mask") for row in rows)
    attention = str(getattr(encoder.model.config, "_attn_implementation", "unknown"))
    dtype = str(encoder.dtype).removeprefix("torch.")
    return Diagnosis(pd.DataFrame(rows), dtype, attention, tolerance, ok)


def _variants(encoder: Encoder, alone: Batch, mate: Batch) -> dict[str, tuple[Batch, int]]:
    """Each check's batch, and the example's row in it."""
    width = min(encoder.max_length, 2 * alone.input_ids.shape[1] + 3)
    padded = _widened(encoder, alone, width)
    pair = max(alone.input_ids.shape[1], mate.input_ids.shape[1])
    own, other = _widened(encoder, alone, pair), _widened(encoder, mate, pair)
    unmasked = Batch(padded.input_ids, torch.ones_like(padded.attention_mask), padded.word_ids)
    return {
        "repeat": (alone, 0),
        "padding": (padded, 0),
        "batch mate": (_stacked(own, other), 0),
        "place": (_stacked(other, own), 1),
        "no mask": (unmasked, 0),
    }


def _gradient(encoder: Encoder, layout: Layout, direction: Tensor, batch: Batch, row: int) -> Tensor:
    """The flat gradient of one row's loss."""
    states = encoder.forward(batch)[row]
    content = batch.content[row].to(states.device)
    mean = Mean(layout, "diagnose")
    mean.add((states[content] @ direction).square().mean())
    return mean.flat


def _compare(gradient: Tensor, true: Tensor) -> tuple[float, float]:
    """Relative distance and cosine, in float64."""
    a, b = gradient.double(), true.double()
    size = float(b.norm())
    if size == 0:
        return math.nan, math.nan
    return float((a - b).norm()) / size, float(a @ b) / (float(a.norm()) * size)


def _widened(encoder: Encoder, batch: Batch, width: int) -> Batch:
    more = (0, width - batch.input_ids.shape[1])
    ids = pad(batch.input_ids, more, value=int(encoder.tokenizer.pad_token_id))
    return Batch(ids, pad(batch.attention_mask, more), pad(batch.word_ids, more, value=-1))


def _stacked(first: Batch, second: Batch) -> Batch:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return Batch(*(torch.cat(pair) for pair in pairs))
