"""One forward pass for each target token that is scored, read at its last position.

A target of several tokens is scored for its first one (where that is a bare space, for those through the first one with
text: `mechedit.models.deciding`), or for all of them teacher-forced: token j is predicted
behind prompt + tokens before j, log p(target) is the sum, and a unit's score is the sum of its scores in the passes.
Each pass has its own σ, frozen.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mechedit.attribution.layers import PLACE, Account, AccountInputs, accounts
from mechedit.attribution.projection import Biases, Projection
from mechedit.attribution.scores import inc_rows
from mechedit.attribution.terms import Kind, LayerTerms, SubLayer, layer_terms
from mechedit.data.joining import Space
from mechedit.models.deciding import through_text
from mechedit.models.hooked import HookedModel
from mechedit.models.prompts import Prompt
from mechedit.models.residual import ResidualView
from mechedit.models.scoring import score_pairs
from reports.errors import InputError

__all__ = [
    "Pass",
    "TargetTokens",
    "base_rows",
    "check_forced",
    "read_passes",
    "run_pass",
    "run_passes",
    "scored_tokens",
]

log = logging.getLogger(__name__)

TargetTokens = Literal["first", "sum"]


@dataclass(frozen=True, eq=False)
class Pass:
    """What one forward pass left, and the account `acc` of log p(target) at its last position."""

    view: ResidualView
    projection: Projection
    terms: list[LayerTerms]
    acc: Account
    target: int

    def sub_layers(self, kind: Kind) -> list[SubLayer]:
        """The FFNs or the attentions of all layers, in order."""
        return [getattr(term, kind) for term in self.terms]

    def scores(self, vectors: Tensor, base: Tensor) -> Tensor:
        """`inc(base, v)` [n] (fp64, nats, on the CPU), each over the whole vocabulary.

        Args:
            vectors: v [n, d_model].
            base: The row of each base in the flattened `acc.log_p` [n], as `base_rows` gives it.
        """
        if not len(vectors):
            return torch.zeros(0, dtype=torch.float64)
        log_p = self.acc.log_p.flatten(0, 1)
        base = base.to(vectors.device)
        return inc_rows(self.projection, vectors, base, log_p, target=self.target).cpu()


def base_rows(kind: Kind, layer: Tensor) -> Tensor:
    """The rows in the flattened `Account.log_p` of the bases of units of a kind in these layers [n]."""
    return 2 * layer + PLACE[kind]


def run_pass(model: HookedModel, view: ResidualView, target: int, *, biases: Biases) -> Pass:
    """The account of `target` behind `view`.

    Raises:
        InputError: The forward pass is not finite.
    """
    return read_passes(model, [view], [target], biases=biases)[0]


def read_passes(
    model: HookedModel, views: Sequence[ResidualView], targets: Sequence[int], *, biases: Biases
) -> list[Pass]:
    """`run_pass` of several views of one model, each for its own target.

    Their bases go through the vocabulary together.

    Raises:
        InputError: A forward pass is not finite.
    """
    inputs = []
    for view, target in zip(views, targets, strict=True):
        projection = Projection.freeze(
            model.final_norm, model.W_U, model.b_U, x_final=view.resid_final, biases=biases
        )
        inputs.append(AccountInputs(projection, list(layer_terms(model, view)), target, view.resid_final))
    measured = accounts(inputs)
    for acc in measured:
        if not math.isfinite(acc.logp):
            raise InputError(
                f"model: expected a finite forward pass, found log p {acc.logp}; try dtype='float32'"
            )
    rows = zip(views, inputs, measured, strict=True)
    return [Pass(view, part.projection, list(part.terms), acc, part.target) for view, part, acc in rows]


def scored_tokens(model: HookedModel, target_ids: Sequence[int], tokens: TargetTokens) -> int:
    """How many tokens of a target are scored: all for the "sum", else those through the first one with text."""
    return len(target_ids) if tokens == "sum" else through_text(model.tokenizer, target_ids)


def run_passes(
    model: HookedModel,
    prompt: Prompt,
    target: str,
    *,
    tokens: TargetTokens,
    biases: Biases,
    space: Space = "auto",
) -> tuple[list[Pass], tuple[int, ...]]:
    """The passes of the first target token (with text) or of all, and the ids of the whole target.

    Raises:
        InputError: The target is empty or changes the prompt's tokens, or a forward pass is not finite.
    """
    ids, target_ids = model.continuation(prompt, target, space=space)
    scored = target_ids[: scored_tokens(model, target_ids.tolist(), tokens)].tolist()
    passes = []
    for n, token in enumerate(scored):
        view = model.residual_view(torch.cat([ids, target_ids[:n]]))
        passes.append(run_pass(model, view, token, biases=biases))
    if len(passes) > 1 and biases == "keep":
        check_forced(model, ids, scored, passes[-1].acc.logp)
    return passes, tuple(target_ids.tolist())


def check_forced(model: HookedModel, ids: Tensor, scored: Sequence[int], logp: float) -> None:
    """Warns where hooks make the last scored token another one's: what steers each position is in one pass in the last.

    Args:
        model: The model, under its hooks.
        ids: Those of the prompt [T].
        scored: The target's tokens up to the last one that is scored.
        logp: The log-probability of that one in the pass that is attributed.
    """
    if not any(point.has_hooks() for point in model.bridge.hook_dict.values()):
        return
    reached = float(score_pairs(model, [(ids, torch.tensor(list(scored)))])[0].logps[-1])
    if abs(reached - logp) > 1e-2 * max(1.0, abs(logp)):
        log.warning(
            "log p of the target's token %d is %.4f in the pass that is attributed and %.4f in generation: a steering "
            "edit moves the last position of a pass alone; attribute a target of one token",
            len(scored),
            logp,
            reached,
        )
