"""The value that makes a layer say the new object: v* = v0 + δ, for one fact or many at once.

Source: ROME (Meng et al., NeurIPS 2022, section 3.1, step 2); MEMIT (ICLR 2023, section 4.3.1). δ is added at layer l
at the subject's last token, and found by Adam on

    L(δ) = mean over contexts and tokens of −log p(new object)
         + kl_factor · KL(p0 ‖ p)  of the next token behind "{subject} is a"
         + weight_decay · ‖δ‖ / ‖v0‖²,

with δ cut back to ‖δ‖ ≤ clamp · ‖v0‖ after each step, for at most `steps` evaluations of L, or until L < `stop`. ROME's
v0 is the MLP's output there, MEMIT's the layer's; where δ is added the two are the same, since the MLP's output is
added to the layer's. Where a norm or a factor stands between the two (`mechedit.models.outlets`), δ is added to what
W_out writes. The KL is the paper's: the reference code reads it at the subject's last token instead.

Facts do not touch each other: Adam works entry by entry, so the δ of 32 facts optimised in one batch are those of 32
runs. Only what δ can change is run (`mechedit.editors.weights.upper_layers`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.progress import counted
from mechedit.editors.weights.subject import EditBatch
from mechedit.editors.weights.upper_layers import Upper
from reports.errors import InputError, IntegrityError

__all__ = ["Search", "find_delta"]


@dataclass(frozen=True)
class Search:
    """How δ is searched: the hyper-parameters of the formula above."""

    steps: int
    lr: float
    weight_decay: float
    kl_factor: float
    clamp: float
    stop: float = 5e-2

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.lr > 0 or not self.clamp > 0:
            raise InputError(
                "steps, lr, clamp: expected at least 1 step and positive numbers, "
                f"found {self.steps}, {self.lr}, {self.clamp}"
            )


def find_delta(upper: Upper, batch: EditBatch, v0: Tensor, search: Search) -> Tensor:
    """δ [F, d], fp32, of the facts of `batch`.

    Args:
        upper: The layer where δ is added and what is above it, of the batch's rows.
        batch: The facts' rows and the places that the loss reads.
        v0: What δ is added to [F, d]; it sets the scale.
        search: The hyper-parameters.

    Raises:
        IntegrityError: The loss is NaN.
    """
    scale = v0.float().norm(dim=-1)
    delta = torch.zeros_like(v0, dtype=torch.promote_types(v0.dtype, torch.float32)).requires_grad_()
    adam = torch.optim.Adam([delta], lr=search.lr)
    with torch.no_grad():
        drift = _log_probs(upper, upper(upper.resid_post), batch.drift_row, batch.drift_column)
    settled = torch.zeros_like(delta, requires_grad=False)
    finished = torch.zeros(len(delta), dtype=torch.bool, device=delta.device)
    for step in counted(range(search.steps), "value of the edit"):
        with torch.enable_grad():
            loss = losses(upper, batch, delta, scale, drift, search)
        if loss[~finished].isnan().any():
            raise IntegrityError(
                "edit: the loss became NaN; the model overflows, so take float32 or a smaller lr"
            )
        newly = (loss.detach() < search.stop) & ~finished
        settled[newly] = delta.detach()[newly]
        finished = finished | newly
        if step == search.steps - 1 or finished.all():
            break
        adam.zero_grad()
        loss[~finished].sum().backward()
        adam.step()
        with torch.no_grad():
            limit = search.clamp * scale / delta.norm(dim=-1).clamp(min=1e-30)
            delta *= limit.clamp(max=1)[:, None]
        if newly.any():
            batch, kept = batch.without(finished)
            upper = upper.rows(kept)
    return torch.where(finished[:, None], settled, delta.detach())


def losses(
    upper: Upper, batch: EditBatch, delta: Tensor, scale: Tensor, drift: Tensor, search: Search
) -> Tensor:
    """L(δ) of each fact [F]; a fact whose rows are not in `batch` gets what nobody should read."""
    normed = upper(upper.moved(delta[batch.fact]))
    log_p = _log_probs(upper, normed, batch.row, batch.column).gather(-1, batch.token[:, None])[:, 0]
    nll = torch.zeros_like(scale).index_add(0, batch.fact[batch.row], -batch.weight * log_p)
    decay = search.weight_decay * delta.norm(dim=-1) / scale**2
    if not search.kl_factor:
        return nll + decay
    now = _log_probs(upper, normed, batch.drift_row, batch.drift_column)
    kl = (drift.exp() * (drift - now)).sum(-1)
    return nll + search.kl_factor * kl + decay


def _log_probs(upper: Upper, normed: Tensor, row: Tensor, column: Tensor) -> Tensor:
    return upper.logits(normed, row, column).log_softmax(-1)
