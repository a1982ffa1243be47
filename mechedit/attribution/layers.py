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

from mechedit.attribution.projection import Projection, stacked_expectations, stacked_logits
from mechedit.attribution.terms import Kind, LayerTerms

__all__ = ["PLACE", "Account", "AccountInputs", "account", "accounts", "contrast_scores"]

#: Which of a layer's two bases the units of a sub-layer are added to.
PLACE: dict[Kind, int] = {"attn": 0, "mlp": 1}

# Two states that are this near, relative to their size, differ by rounding: the second order of logp is 1e-9 nats.
_NEAR = 1e-5


@dataclass(frozen=True)
class Account:
    """Layer scores and bases of one forward pass; the bases of a layer are those before attention and before the FFN.

    Attributes:
        layers: Frame layer, module, score.
        log_p: Log-probabilities at the bases [n_layers, 2, d_vocab]; 8 · n_layers · d_vocab bytes, 19 MB for GPT2-XL.
        means: `Σ_k p_k B_k` at the bases [n_layers, 2, d_model], fp64.
        logp: logp(t | x_final).
        embedding_logp: logp(t | x_pre^0).
        prior_logp: logp(t | 0).
    """

    layers: pd.DataFrame
    log_p: Tensor
    means: Tensor
    logp: float
    embedding_logp: float
    prior_logp: float

    @property
    def gap(self) -> float:
        """The part of `logp` that neither the embedding nor a sub-layer accounts for."""
        return self.logp - self.embedding_logp - float(self.layers["score"].sum())


@dataclass(frozen=True)
class _Step:
    layer: int
    module: str
    base: Tensor
    vector: Tensor


@dataclass(frozen=True, eq=False)
class AccountInputs:
    """What an account is made of.

    Attributes:
        projection: That of the forward pass.
        terms: Those of all layers, in order.
        target: The token that is scored.
        x_final: The residual before the final norm [d_model]; None: what the last sub-layer leaves.
    """

    projection: Projection
    terms: Sequence[LayerTerms]
    target: int
    x_final: Tensor | None = None


def account(
    projection: Projection, terms: Sequence[LayerTerms], *, target: int, x_final: Tensor | None = None
) -> Account:
    """Layer scores (fp64) and bases of one forward pass.

    The logits are `projection.dtype`; the target's own logit and all sums are fp64. Arguments as in `AccountInputs`.
    """
    return accounts([AccountInputs(projection, terms, target, x_final)])[0]


def accounts(passes: Sequence[AccountInputs]) -> list[Account]:
    """`account` of several passes of one model: their states go through the vocabulary together.

    Memory: the log-probabilities of all passes at once, `Account.log_p` and as much again.
    """
    plans = [_Plan(inputs) for inputs in passes]
    projections = [inputs.projection for inputs in passes]
    log_p = stacked_logits(projections, [plan.states for plan in plans])
    parts = log_p.split([len(plan.states) for plan in plans])
    measured = [_normalised(part, plan) for part, plan in zip(parts, plans, strict=True)]
    logps, at_bases = zip(*measured, strict=True)
    means = stacked_expectations(projections, at_bases).split([len(plan.steps) for plan in plans])
    return [plan.account(*part) for plan, *part in zip(plans, parts, logps, means, strict=True)]


class _Plan:
    """The states of one account: the bases of its steps, the final one, zero, and what each step leaves.

    What a step leaves is a state of its own only where it is not the next step's base.
    """

    def __init__(self, inputs: AccountInputs) -> None:
        self.inputs = inputs
        self.steps = _steps(inputs.terms)
        bases = torch.stack([step.base for step in self.steps])
        self.ends = bases + torch.stack([step.vector for step in self.steps])
        self.after = torch.cat([bases[1:], self.ends[-1:]])
        last = self.ends[-1] if inputs.x_final is None else inputs.x_final.double()
        # Behind a sub-layer the stream is the next one's base up to rounding: the gradient of logp suffices there.
        self.near = (self.ends - self.after).norm(dim=1) <= _NEAR * self.after.norm(dim=1)
        self.near[-1] = False
        self.states = torch.cat([bases, torch.stack([last, last * 0]), self.ends[~self.near]])

    def account(self, log_p: Tensor, logps: Tensor, means: Tensor) -> Account:
        """From log p [n, d_vocab] and the target's [n] at the states, and the means at the bases."""
        n, near = len(self.steps), self.near
        ahead = torch.empty(n, dtype=torch.float64, device=logps.device)
        ahead[~near] = logps[n + 2 :]
        rows = near.nonzero()[:, 0]
        gradient = self.inputs.projection.column(self.inputs.target) - means[rows + 1]
        ahead[rows] = logps[rows + 1] + ((self.ends - self.after)[rows] * gradient).sum(dim=1)
        is_base = [i for i, step in enumerate(self.steps) if step.module in ("attn", "mlp")]
        return Account(
            layers=_frame(self.steps, (ahead - logps[:n]).tolist()),
            log_p=log_p[is_base].unflatten(0, (-1, 2)),
            means=means[is_base].unflatten(0, (-1, 2)),
            logp=float(logps[n]),
            embedding_logp=float(logps[0]),
            prior_logp=float(logps[n + 1]),
        )


def _normalised(logits: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
    """Turns logits [n, d_vocab] into log p in place; returns the target's log p [n] in fp64, and p at the bases."""
    projection = plan.inputs.projection
    total = torch.empty(len(logits), dtype=torch.float64, device=logits.device)
    p = torch.empty_like(logits[: len(plan.steps)])
    rows = projection.rows(bytes_each=2 * 8)
    for start in range(0, len(logits), rows):
        block = slice(start, start + rows)
        peak = logits[block].amax(dim=-1, keepdim=True)
        grown = (logits[block] - peak).exp_()
        sums = grown.sum(dim=-1, keepdim=True, dtype=torch.float64)
        total[block] = (sums.log() + peak.double())[:, 0]
        logits[block] -= total[block, None].to(logits.dtype)
        p[block] = (grown.div_(sums.to(grown.dtype)))[: len(p[block])]
    return projection.target_logits(plan.states, plan.inputs.target) - total, p


def contrast_scores(
    projection: Projection, terms: Sequence[LayerTerms], *, new: int, old: int
) -> pd.DataFrame:
    """`inc(new) − inc(old) = (B_new − B_old) · v` of every sub-layer: exactly linear, for the softmax drops out.

    Args:
        projection: That of the forward pass.
        terms: Those of all layers, in order.
        new: Token id.
        old: Token id.
    """
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
