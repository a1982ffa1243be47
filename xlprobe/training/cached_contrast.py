"""A step on more sentences than fit at once, equal to the step on all of them: gradients through cached vectors.

A contrastive loss needs every vector of its batch, so a sum over smaller batches is another loss. As GradCache does
[Gao et al. 2021, arXiv 2101.06983], here with torch's own checkpoints:

1. `micro` sentences at a time go through the encoder; only the vectors that the loss looks at are kept;
2. the loss of all vectors, and its gradient on each of them;
3. backward, every part goes through the encoder once more (with the same dropout) and passes its gradient on.

Memory is that of `micro` sentences and the vectors; time that of one more forward pass. The gradient is that of the
whole batch up to rounding, where dropout is off; with dropout, the parts draw other masks than the whole would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reports.errors import InputError
from xlprobe.encoders.batches import Batch, Pooling, pooled, require_pooling
from xlprobe.encoders.encoder import Encoder

__all__ = ["Vectors", "in_parts", "probe_layer", "sentence_vectors"]


@dataclass(frozen=True)
class Vectors:
    """The vectors that an alignment looks at.

    Attributes:
        layer: The layer whose states are taken (0: the embeddings); None is `probe_layer`.
        pooling: A sentence is the mean of its tokens or its first token (<s>, [CLS]), a word the mean of its sub-words
            or its first.
        micro: Sentences that go through the encoder at once; 0: all of a step.

    Raises:
        InputError: Another pooling, or a number below 0.
    """

    layer: int | None = None
    pooling: Pooling = "mean"
    micro: int = 0

    def __post_init__(self) -> None:
        require_pooling(self.pooling)
        for name in ("layer", "micro"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise InputError(f"{name}: expected at least 0, found {value}")

    def at(self, encoder: Encoder) -> int:
        """The layer in this encoder.

        Raises:
            InputError: It has none of this number.
        """
        if self.layer is None:
            return probe_layer(encoder.n_layers)
        if self.layer > encoder.n_layers:
            raise InputError(f"layer: expected 0 to {encoder.n_layers}, found {self.layer}")
        return self.layer


def probe_layer(n_layers: int) -> int:
    """The layer two thirds up, where alignment is made and measured by default.

    >>> probe_layer(12), probe_layer(4)
    (8, 3)
    """
    return round(2 * n_layers / 3)


def in_parts(of: Callable[[Batch, Tensor], Tensor], batch: Batch, micro: int) -> list[Tensor]:
    """`of` of the batch's parts of `micro` sentences, in order; what they need for backward is computed again there.

    Args:
        of: Takes a part and the numbers of its sentences to a tensor; it may draw from torch's generator alone.
        batch: The batch.
        micro: Sentences of a part; 0, or all of them: one part, as it is.
    """
    whole = torch.arange(len(batch))
    if not micro or micro >= len(batch):
        return [of(batch, whole)]
    return [checkpoint(of, batch[rows], rows, use_reentrant=False) for rows in whole.split(micro)]


def sentence_vectors(encoder: Encoder, batch: Batch, vectors: Vectors) -> Tensor:
    """One vector a sentence [B, d], with gradients, of sentences sorted by length into parts.

    >>> from xlprobe.encoders.encoder import load_encoder
    >>> encoder = load_encoder("langworld", device="cpu")
    >>> batch = encoder.encode(["one text", "another , longer one", "a third"])
    >>> whole, parts = (sentence_vectors(encoder, batch, Vectors(micro=micro)) for micro in (0, 2))
    >>> torch.allclose(whole, parts, atol=1e-6)
    True
    """
    layer = vectors.at(encoder)

    def of(part: Batch, rows: Tensor) -> Tensor:
        part = part.to(encoder.device)
        return pooled(encoder.state(part, layer), part, vectors.pooling)

    if not vectors.micro or vectors.micro >= len(batch):
        return of(batch, torch.arange(len(batch)))
    order = torch.argsort(batch.lengths.cpu(), stable=True)
    rows = torch.cat(in_parts(of, batch[order], vectors.micro))
    return rows[torch.argsort(order).to(rows.device)]
