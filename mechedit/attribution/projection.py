"""The projection B from the residual stream to the vocabulary, with the final norm inside and its scale frozen.

Source: Yu & Ananiadou, "Neuron-Level Knowledge Attribution in Large Language Models", EMNLP 2024
(arXiv 2312.12141), section 3; written from the formulas.

1. The final norm of a real forward pass has one scale σ at the last position. It is frozen.
2. With σ frozen the norm is linear, so the logits are linear in the residual: `B z = ((z − mean z) ⊙ γ / σ)
   W_U` (RMSNorm does not centre).
3. What does not depend on z, the final norm's bias β and the unembedding's b_U, is `c = β W_U + b_U`: part of
   every logit with `biases="keep"`, left out with `biases="drop"`.
4. Products with the vocabulary run in fp32 (in fp64 where the weights are fp64), a block of tokens at a time: a
   block of W_U stays in the processor's cache for all rows, and no [rows, vocabulary] matrix is ever made.
5. Where a model's weights lie on several devices, all of this happens where W_U lies: vectors are moved there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mechedit.models.weights import FinalNorm

__all__ = ["BLOCK_BYTES", "WIDTH", "Biases", "Projection", "stacked_expectations", "stacked_logits"]

Biases = Literal["keep", "drop"]

#: Memory budget: no temporary that has the vocabulary as one of its axes is larger than this many bytes (but
#: for one row, where a single row is larger). A block of 64 MiB keeps the matrix products efficient on two
#: cores.
BLOCK_BYTES = 64 * 2**20
#: So many tokens at a time keep to the processor's cache, for up to a thousand rows.
WIDTH = 1024


@dataclass(frozen=True)
class Projection:
    """`B z + c`: the logits of a residual vector z under the final norm with its scale frozen.

    Wrong as a model of the network for vectors that would change σ much: the score of a unit is its effect
    with the norm held still, not the effect of removing it.

    Attributes:
        W_U: [d_model, d_vocab], of any float type; a view, never copied whole.
        scale: γ/σ [d_model], fp64.
        centre: Whether the norm subtracts the mean (LayerNorm).
        constant: b_U [d_vocab], fp64, or None.
        sigma: σ.
        biases: Whether c = β W_U + b_U is part of the logits ("keep") or not ("drop").
        shift: β [d_model], fp64, or None.

    >>> B = Projection(W_U=torch.eye(2), scale=torch.ones(2).double(), centre=False, constant=None, sigma=1.0)
    >>> B.log_probs(torch.tensor([[0.0, 0.0]])).exp()
    tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """

    W_U: Tensor
    scale: Tensor
    centre: bool
    constant: Tensor | None
    sigma: float
    biases: Biases = "keep"
    shift: Tensor | None = None

    @classmethod
    def freeze(
        cls, norm: FinalNorm, W_U: Tensor, b_U: Tensor | None, *, x_final: Tensor, biases: Biases
    ) -> Projection:
        """The projection whose σ is that of a forward pass.

        LayerNorm: σ = sqrt(var(x) + eps) with the biased variance; RMSNorm: σ = sqrt(mean(x²) + eps).

        Args:
            norm: The final norm.
            W_U: The unembedding [d_model, d_vocab].
            b_U: Its bias [d_vocab], or None.
            x_final: The residual before the final norm [d_model].
            biases: Whether the biases of both are part of the logits.
        """
        x = x_final.to(W_U.device).double()
        centre = norm.kind == "layer"
        power = x.var(unbiased=False) if centre else x.square().mean()
        sigma = (power + norm.eps).sqrt()
        kept = biases == "keep"
        return cls(
            W_U=W_U,
            scale=norm.weight.to(W_U.device).double() / sigma,
            centre=centre,
            constant=b_U.double() if kept and b_U is not None else None,
            sigma=float(sigma),
            biases=biases,
            shift=norm.bias.to(W_U.device).double() if kept and norm.bias is not None else None,
        )

    @property
    def dtype(self) -> torch.dtype:
        """What products with the vocabulary are computed in."""
        return torch.float64 if self.W_U.dtype == torch.float64 else torch.float32

    def normalise(self, vectors: Tensor) -> Tensor:
        """`(v − mean v) ⊙ γ / σ` (RMSNorm: no mean) for rows v [..., d_model]; fp64."""
        vectors = vectors.to(self.scale.device).double()
        if self.centre:
            vectors = vectors - vectors.mean(dim=-1, keepdim=True)
        return vectors * self.scale

    def directions(self, vectors: Tensor) -> Tensor:
        """`B v` [n, d_vocab] for rows v [n, d_model]; linear, so without c. The caller keeps n small."""
        return _product(self.normalise(vectors).to(self.dtype), self.W_U)

    def logits(self, states: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """`B z + c` [n, d_vocab] for rows z [n, d_model], in `dtype` (None: `self.dtype`). The caller keeps n small."""
        logits = _product(self._normed(states).to(dtype or self.dtype), self.W_U)
        return logits if self.constant is None else logits.add_(self.constant)

    def target_logits(self, states: Tensor, target: int) -> Tensor:
        """The target's entry of `logits` [n], a dot product in fp64."""
        logits = self._normed(states) @ self.W_U[:, target].double()
        return logits if self.constant is None else logits + self.constant[target]

    def log_probs(self, states: Tensor) -> Tensor:
        """`log_softmax(B z + c)` [n, d_vocab], all in fp64, for rows z [n, d_model]. The caller keeps n small."""
        return self.logits(states, dtype=torch.float64).log_softmax(dim=-1)

    def expectations(self, p: Tensor) -> Tensor:
        """`Σ_k p_k B_k` [n, d_model] in fp64 for rows of probabilities p [n, d_vocab], in one pass over W_U.

        As a map of vectors: `v · expectation = E_p[B v]`.
        """
        return stacked_expectations([self], [p])

    def chunks(self, *, width: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of tokens and their columns of W_U [d_model, width] in `dtype`, over the whole vocabulary.

        Args:
            width: Tokens of a block; None: as many as fit the memory budget.
        """
        return _chunks(self.W_U, self.dtype, width=width)

    def column(self, token: int) -> Tensor:
        """`B_t` [d_model] in fp64, so that `(B v)[t] = v · B_t`."""
        column = self.W_U[:, token].double() * self.scale
        return column - column.mean() if self.centre else column

    def columns(self, tokens: Tensor) -> Tensor:
        """`B_t` of several tokens as columns [d_model, n], in `dtype`."""
        columns = self.W_U[:, tokens].to(self.dtype) * self.scale.to(self.dtype)[:, None]
        return columns - columns.mean(0) if self.centre else columns

    def _normed(self, states: Tensor) -> Tensor:
        """What W_U multiplies for rows z of states: `normalise` and β."""
        normed = self.normalise(states)
        return normed if self.shift is None else normed + self.shift

    def rows(self, *, bytes_each: int) -> int:
        """How many rows of the vocabulary fit the memory budget at `bytes_each` bytes an entry (at least 1)."""
        return max(1, BLOCK_BYTES // (self.W_U.shape[1] * bytes_each))


def stacked_logits(projections: Sequence[Projection], states: Sequence[Tensor]) -> Tensor:
    """`Projection.logits` of each projection's own states, stacked [Σ n, d_vocab], in one product with the vocabulary.

    The projections have to share it, as those of one model on several prompts do.
    """
    first = projections[0]
    normed = torch.cat([B._normed(rows) for B, rows in zip(projections, states, strict=True)])
    logits = _product(normed.to(first.dtype), first.W_U)
    return logits if first.constant is None else logits.add_(first.constant)


def stacked_expectations(projections: Sequence[Projection], p: Sequence[Tensor]) -> Tensor:
    """`Projection.expectations` of each projection's own rows p, stacked [Σ n, d_model], in one pass over W_U."""
    first, rows = projections[0], p[0] if len(p) == 1 else torch.cat(list(p))
    total = torch.zeros(len(rows), len(first.scale), dtype=torch.float64, device=rows.device)
    for chunk, part in first.chunks():
        total += (rows[:, chunk] @ part.T).double()
    sizes = torch.tensor([len(part) for part in p], device=rows.device)
    total *= torch.stack([B.scale for B in projections]).repeat_interleave(sizes, dim=0)
    return total - total.mean(-1, keepdim=True) if first.centre else total


def _chunks(W_U: Tensor, dtype: torch.dtype, *, width: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Column blocks of `W_U` in `dtype`: a cast of the whole would be a second copy of the unembedding."""
    width = width or max(1, BLOCK_BYTES // (8 * W_U.shape[0]))
    for start in range(0, W_U.shape[1], width):
        chunk = slice(start, start + width)
        yield chunk, W_U[:, chunk].to(dtype)


def _product(rows: Tensor, W_U: Tensor) -> Tensor:
    """[n, d_vocab]; written block by block into one result."""
    out = torch.empty(len(rows), W_U.shape[1], dtype=rows.dtype, device=rows.device)
    for chunk, part in _chunks(W_U, rows.dtype, width=WIDTH):
        torch.matmul(rows, part, out=out[:, chunk])
    return out
