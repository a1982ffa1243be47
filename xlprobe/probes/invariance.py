"""Does padding or a batch mate change an example's gradient? No gradient probe can be trusted before this is known.

The gradient of one example over the encoder's parameters, taken alone and unpadded, is compared with the same
example's

- `repeat`: once more, the same way (what is left is the machine's own noise);
- `padding`: padded to twice its length and more;
- `batch mate`: in a batch with a longer sentence, its own loss alone counting;
- `place`: as the last row of that batch;
- `no mask`: padded, but with the mask forgotten: the control, which must be far off, otherwise the checks see nothing.

Measured as ‖g − g₀‖ / ‖g₀‖, at most 1000 epsilons of the dtype or 5 %, and as cosine. The example's loss is the mean
square of a fixed random direction of its content states, so every parameter takes part, and attention over all its
tokens. Dropout is off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from reports.diagnosis import Check
from xlprobe.encoders.batches import Batch, Sentence
from xlprobe.encoders.encoder import Encoder
from xlprobe.probes.gradient_stream import Layout, Mean, probing

__all__ = ["CHECKS", "compare", "gradient", "invariance", "random_direction", "tolerance"]

CHECKS = ("repeat", "padding", "batch mate", "place", "no mask")
TOLERANCE = 1000  # times the dtype's epsilon
FAR = 5  # the control must lie this many tolerances off


def invariance(encoder: Encoder, sentences: Sequence[Sentence], *, seed: int = 0) -> Iterator[Check]:
    """All rows of `CHECKS` on each of `sentences`: two or more, of unlike length (`xlprobe.diagnose`)."""
    batch = encoder.encode(sentences)
    lengths = batch.lengths.tolist()
    layout = Layout.of(encoder.model, encoder.parameter_table())
    direction = random_direction(encoder, seed)
    errors: dict[str, list[tuple[float, float]]] = {check: [] for check in CHECKS}
    with probing(layout, encoder.model):
        for row in range(len(sentences)):
            alone = batch[[row]]
            mate = batch[[max(range(len(lengths)), key=lambda i: (i != row, lengths[i]))]]
            reference = gradient(encoder, layout, direction, alone)
            for check, (variant, place) in _variants(encoder, alone, mate).items():
                changed = gradient(encoder, layout, direction, variant, row=place)
                errors[check].append(compare(changed, reference))
    for check, pairs in errors.items():
        control = check == "no mask"
        measured = (min if control else max)(relative for relative, _ in pairs)
        yield Check(
            check,
            measured,
            (FAR if control else 1) * tolerance(encoder.dtype),
            f"‖g − g₀‖/‖g₀‖ of an example's gradient, cosine {min(cosine for _, cosine in pairs):.6f}",
            "the control sees no padding: the rows above say nothing"
            if control
            else "do not trust a gradient probe in this setting: use --dtype float32, --attention eager, or batches of "
            "one sentence",
            n=len(pairs),
            control=control,
        )


def tolerance(dtype: torch.dtype) -> float:
    """1000 epsilons, and never more than 5 %: in half precision 1000 epsilons would let anything pass."""
    return min(TOLERANCE * torch.finfo(dtype).eps, 0.05)


def random_direction(encoder: Encoder, seed: int) -> Tensor:
    """A direction [d_model], the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(encoder.d_model, generator=generator).to(encoder.device, encoder.dtype)


def _variants(encoder: Encoder, alone: Batch, mate: Batch) -> dict[str, tuple[Batch, int]]:
    """Each check's batch, and the example's row in it."""
    width = min(encoder.max_length, 2 * alone.input_ids.shape[1] + 3)
    padded = _widened(encoder, alone, width)
    pair = max(alone.input_ids.shape[1], mate.input_ids.shape[1])
    example, companion = _widened(encoder, alone, pair), _widened(encoder, mate, pair)
    unmasked = Batch(padded.input_ids, torch.ones_like(padded.attention_mask), padded.word_ids)
    return {
        "repeat": (alone, 0),
        "padding": (padded, 0),
        "batch mate": (_stacked(example, companion), 0),
        "place": (_stacked(companion, example), 1),
        "no mask": (unmasked, 0),
    }


def gradient(encoder: Encoder, layout: Layout, direction: Tensor, batch: Batch, *, row: int = 0) -> Tensor:
    """The flat gradient [numel] of one row's loss."""
    states = encoder.forward(batch)[row]
    content = batch.content[row].to(states.device)
    mean = Mean(layout, "diagnose")
    mean.add((states[content] @ direction).square().mean())
    return mean.flat


def compare(gradient: Tensor, reference: Tensor) -> tuple[float, float]:
    """Distance relative to the reference, and cosine, in float64."""
    a, b = gradient.double(), reference.double()
    size = float(b.norm())
    if size == 0:
        return math.nan, math.nan
    return float((a - b).norm()) / size, float(a @ b) / (float(a.norm()) * size)


def _widened(encoder: Encoder, batch: Batch, width: int) -> Batch:
    extra = (0, width - batch.input_ids.shape[1])
    ids = pad(batch.input_ids, extra, value=int(encoder.tokenizer.pad_token_id))
    return Batch(ids, pad(batch.attention_mask, extra), pad(batch.word_ids, extra, value=-1))


def _stacked(first: Batch, second: Batch) -> Batch:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return Batch(*(torch.cat(pair) for pair in pairs))
