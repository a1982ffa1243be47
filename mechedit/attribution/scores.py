"""The score of a vector that is added to the residual stream: `inc(base, v) = logp(t | base + v) − logp(t | base)`.

Source: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 3, with the projection B of `projection.py`.

1. With σ frozen the logits are linear: b = B·base + c, u = B v. With p = softmax(b), every base-dependent
   number is in p, and `inc = u_t − log E_p[exp u]`.
2. Only differences of u matter. With d = u − u_t: `inc = −log E_p[exp d] = −log1p(E_p[expm1 d])`. For a
   neuron, d is small and the second form loses nothing to cancellation, even in fp32.
3. Where the second form is not safe (exp overflows, or E_p[expm1 d] is near −1: a unit that nearly settles
   the prediction alone) the rows are done again as `−logsumexp(log p + d)`.
4. Many units share a direction: an attention value neuron has the same row of W_O at every source position. So
   a unit is direction × coefficient, and only directions are multiplied by the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mechedit.attribution.projection import BLOCK_BYTES, WIDTH, Projection

__all__ = ["inc_rows", "inc_scaled"]

# exp(20) is far from fp32's overflow; at E = −0.9 an error of E is ten times as large in log(1 + E)
_PEAK, _LOW = 20.0, -0.9
# entries of one block alive at once: the directions, the scaled differences and the redone rows (three)
_COPIES = 5
_ROWS = 1024  # of one pass over the vocabulary


def inc_scaled(
    projection: Projection, log_p: Tensor, directions: Tensor, coefficients: Tensor, *, target: int
) -> Tensor:
    """`inc(base, coefficients[i, j] · directions[i])` [n, m], in nats (fp64).

    Computed from fp32 products (fp64 for fp64 weights) with an absolute error of about 1e-7 · max |B v|.
    The vocabulary projections are done in blocks of at most `BLOCK_BYTES` (all temporaries together); neither n nor m
    needs to be small.

    Args:
        projection: B.
        log_p: The log-probabilities at the base [d_vocab].
        directions: [n, d_model].
        coefficients: [n, m].
        target: Token id.

    >>> B = Projection(W_U=torch.eye(2), scale=torch.ones(2).double(), centre=False, constant=None, sigma=1.0)
    >>> base = B.log_probs(torch.tensor([[0.0, 0.0]]))[0]
    >>> inc_scaled(B, base, torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]]), target=0)
    tensor([[0.3799, 0.5662]], dtype=torch.float64)
    """
    log_p = log_p.to(projection.dtype)
    p = log_p.exp()
    scores = torch.empty(coefficients.shape, dtype=torch.float64, device=log_p.device)
    rows = max(2, BLOCK_BYTES // (4 * _COPIES * len(log_p)))
    width = min(max(1, coefficients.shape[1]), rows - 1)
    height = max(1, rows // (width + 1))
    for start in range(0, len(directions), height):
        block = slice(start, start + height)
        u = projection.directions(directions[block])
        u -= u[:, target].clone()[:, None]
        for column in range(0, coefficients.shape[1], width):
            part = slice(column, column + width)
            scores[block, part] = _scores(u, coefficients[block, part].to(u.dtype), log_p, p)
    return scores


def inc_rows(projection: Projection, vectors: Tensor, base: Tensor, log_p: Tensor, *, target: int) -> Tensor:
    """`inc` [n] (fp64) of vectors at several bases, in one pass over the vocabulary.

    For a block of tokens at a time all rows are multiplied, and `E_p[expm1 d]` grows by the block's part; nothing of
    the size [n, d_vocab] is made.

    Args:
        projection: B.
        vectors: [n, d_model].
        base: The row of `log_p` that each vector is added to [n].
        log_p: The log-probabilities at the bases [n_bases, d_vocab].
        target: Token id.
    """
    order = base.argsort(stable=True)
    scores = torch.empty(len(order), dtype=torch.float64, device=log_p.device)
    height = max(1, min(_ROWS, BLOCK_BYTES // (3 * 8 * WIDTH)))
    for rows in order.split(height):
        scores[rows] = _streamed(projection, vectors[rows], base[rows], log_p, target=target)
    return scores


def _streamed(projection: Projection, vectors: Tensor, base: Tensor, log_p: Tensor, *, target: int) -> Tensor:
    """`inc_rows` of some rows, sorted by their base."""
    normed = projection.normalise(vectors)
    u_target = (normed @ projection.W_U[:, target].double())[:, None]
    rows, minus = normed.to(projection.dtype), -u_target.to(projection.dtype)
    present, counts = base.unique_consecutive(return_counts=True)
    sizes = counts.tolist()
    mean = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for chunk, W_U in projection.chunks(width=WIDTH):
        d = torch.addmm(minus, rows, W_U).expm1_()
        p = log_p[present, chunk].exp()
        mean += torch.cat([part @ row for part, row in zip(d.split(sizes), p, strict=True)])
    scores = -torch.log1p(mean)
    unsafe = (~torch.isfinite(mean) | (mean < _LOW)).nonzero()[:, 0]
    for block in unsafe.split(projection.rows(bytes_each=3 * 8)):
        d = projection.directions(vectors[block]) + minus[block]
        scores[block] = -torch.logsumexp(d + log_p[base[block]], dim=-1).double()
    return scores


def _scores(u: Tensor, coefficients: Tensor, log_p: Tensor, p: Tensor) -> Tensor:
    """Steps 2 and 3 for one block: `u` [n, V] holds u − u_t, `coefficients` [n, m]; the scores [n, m] in fp64."""
    d = (coefficients[:, :, None] * u[:, None, :]).flatten(0, 1)
    peak = d.amax(dim=-1)
    mean = torch.expm1(d.clamp_(max=_PEAK), out=d) @ p
    scores = -torch.log1p(mean.double())
    unsafe = ((peak > _PEAK) | (mean < _LOW)).nonzero()[:, 0]
    if len(unsafe):
        again = coefficients.flatten()[unsafe, None] * u[unsafe // coefficients.shape[1]]
        scores[unsafe] = -torch.logsumexp(again + log_p, dim=-1).double()
    return scores.view(coefficients.shape)
