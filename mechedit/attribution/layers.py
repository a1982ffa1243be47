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


@dataclass(frozen=True)
class Account:
    """`layers` (layer, module, score), the bases' log-probabilities `log_p` [n_layers, 2, d_vocab] (fp32:
    before attention, before the FFN; 8 · n_layers · d_vocab bytes, 19 MB for GPT2-XL), and logp(t |
    x_pre^0)."""

    layers: pd.DataFrame
    log_p: Tensor
    embedding_logp: float


@dataclass(frozen=True)
class _Step:
    layer: int
    module: str
    base: Tensor
    vector: Tensor


def account(projection: Projection, terms: Sequence[LayerTerms], *, target: int) -> Account:
    """Layer scores (fp64) and bases of one forward pass; `terms` are all of its layers, in order."""
    steps = _steps(terms)
    states = torch.stack([z for step in steps for z in (step.base, step.base + step.vector)])
    is_base = [i for i, step in enumerate(steps) if step.module in ("attn", "mlp")]
    base_rows = {2 * i: n for n, i in enumerate(is_base)}
    log_p = torch.empty(len(is_base), projection.W_U.shape[1], dtype=torch.float32, device=states.device)
    logps = torch.empty(len(states), dtype=torch.float64, device=states.device)
    rows = projection.rows(bytes_each=3 * 8)  # the logits, their softmax and one temporary
    for start in range(0, len(states), rows):
        block = projection.log_probs(states[start : start + rows])
        logps[start : start + rows] = block[:, target]
        for row in range(len(block)):
            if start + row in base_rows:
                log_p[base_rows[start + row]] = block[row].float()
    scores = (logps[1::2] - logps[0::2]).tolist()
    return Account(_frame(steps, scores), log_p.unflatten(0, (-1, 2)), float(logps[0]))


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
