"""The account over depth: what each sub-layer adds to the target's log-probability, and every unit's base.

Source: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 3.

1. States in the order of the computation: x_pre^l, x_pre^l + a^l (, + steering), x_mid^l, x_mid^l + f^l (, +
   steering).
2. A layer score is the difference of logp(t | ·) between two neighbouring states. They telescope: their sum
   is logp(t | x_final) − logp(t | x_pre^0), up to rounding and to whatever changed the stream between the
   sub-layers.
3. The log-probabilities at x_pre^l and x_mid^l are the bases of the layer's heads and neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from mechedit.attribution.projection import Projection
from mechedit.attribution.terms import LayerTerms

__all__ = ["Account", "account", "contrast_scores"]

# Two states that are this near, relative to their size, differ by rounding: the second order of logp is 1e-9 nats.
_NEAR = 1e-5


@dataclass(frozen=True)
class Account:
    """`layers` (layer, module, score), and the bases before attention and before the FFN of every layer: their
    log-probabilities `log_p` [n_layers, 2, d_vocab] (8 · n_layers · d_vocab bytes, 19 MB for GPT2-XL) and
    `means` = Σ_k p_k B_k [n_layers, 2, d_model] (fp64). `logp` = logp(t | x_final), `embedding_logp` = logp(t |
    x_pre^0), `prior_logp` = logp(t | 0)."""

    layers: pd.DataFrame
    log_p: Tensor
    means: Tensor
    logp: float
    embedding_logp: float
    prior_logp: float


@dataclass(frozen=True)
class _Step:
    layer: int
    module: str
    base: Tensor
    vector: Tensor


def account(
    projection: Projection, terms: Sequence[LayerTerms], *, target: int, x_final: Tensor | None = None
) -> Account:
    """Layer scores (fp64) and bases of one forward pass; `terms` are all of its layers, in order. `x_final`: the
    residual before the final norm (None: what the last sub-layer leaves).

    The logits are `projection.dtype`; the target's own logit and all sums are fp64.
    """
    steps = _steps(terms)
    bases = torch.stack([step.base for step in steps])
    ends = bases + torch.stack([step.vector for step in steps])
    after = torch.cat([bases[1:], ends[-1:]])
    last = ends[-1] if x_final is None else x_final.double()
    # Behind a sub-layer the stream is the next one's base up to rounding: there the gradient of logp is enough.
    near = (ends - after).norm(dim=1) <= _NEAR * after.norm(dim=1)
    near[-1] = False
    states = torch.cat([bases, torch.stack([last, last * 0]), ends[~near]])
    log_p, logps = _log_probs(projection, states, target=target)
    n = len(steps)
    means = projection.expectations(log_p[:n].exp())
    ahead = torch.empty(n, dtype=torch.float64, device=states.device)
    ahead[~near] = logps[n + 2 :]
    rows = near.nonzero()[:, 0]
    gradient = projection.column(target) - means[rows + 1]
    ahead[rows] = logps[rows + 1] + ((ends - after)[rows] * gradient).sum(dim=1)
    is_base = [i for i, step in enumerate(steps) if step.module in ("attn", "mlp")]
    return Account(
        layers=_frame(steps, (ahead - logps[:n]).tolist()),
        log_p=log_p[is_base].unflatten(0, (-1, 2)),
        means=means[is_base].unflatten(0, (-1, 2)),
        logp=float(logps[n]),
        embedding_logp=float(logps[0]),
        prior_logp=float(logps[n + 1]),
    )


def _log_probs(projection: Projection, states: Tensor, *, target: int) -> tuple[Tensor, Tensor]:
    """log p [n, d_vocab] in `projection.dtype` at the states [n, d_model], and the target's [n] in fp64."""
    log_p = projection.logits(states)
    total = torch.empty(len(states), dtype=torch.float64, device=states.device)
    rows = projection.rows(bytes_each=2 * 8)
    for start in range(0, len(states), rows):
        block = slice(start, start + rows)
        total[block] = log_p[block].double().logsumexp(dim=-1)
        log_p[block] -= total[block, None].to(log_p.dtype)
    return log_p, projection.target_logits(states, target) - total


def contrast_scores(
    projection: Projection, terms: Sequence[LayerTerms], *, new: int, old: int
) -> pd.DataFrame:
    """`inc(new) − inc(old) = (B_new − B_old) · v` of every sub-layer: exactly linear, the softmax drops
    out."""
    steps = _steps(terms)
    difference = projection.column(new) - projection.column(old)
    return _frame(steps, (torch.stack([step.vector for step in steps]) @ difference).tolist())


def _steps(terms: Sequence[LayerTerms]) -> list[_Step]:
    steps = []
    for term in terms:
        halves = ((term.x_pre, term.attn, "attn", "steer"), (term.x_mid, term.mlp, "mlp", "steer_mlp"))
        for base, part, module, steer in halves:
            steps.append(_Step(term.layer, module, base, part.output))
            if part.steering is not None:
                steps.append(_Step(term.layer, steer, base + part.output, part.steering))
    return steps


def _frame(steps: Sequence[_Step], scores: Sequence[float]) -> pd.DataFrame:
    layer, module = [step.layer for step in steps], [step.module for step in steps]
    return pd.DataFrame({"layer": layer, "module": module, "score": scores})
