"""One forward pass for each target token that is scored, read at its last position.

A target of several tokens is scored for its first one, or for all of them teacher-forced: token j is predicted
behind prompt + tokens before j, log p(target) is the sum, and a unit's score is the sum of its scores in the passes.
Each pass has its own σ, frozen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mechedit.attribution.layers import Account, Asked, accounts
from mechedit.attribution.projection import Biases, Projection
from mechedit.attribution.terms import LayerTerms, layer_terms
from mechedit.models.hooked import HookedModel, ResidualView
from reports.errors import InputError

__all__ = ["Pass", "TargetTokens", "read_passes", "run_pass", "run_passes"]

TargetTokens = Literal["first", "sum"]


@dataclass(frozen=True, eq=False)
class Pass:
    """What one forward pass left, and the account of log p(target) at its last position."""

    view: ResidualView
    projection: Projection
    terms: list[LayerTerms]
    acc: Account
    target: int


def run_pass(model: HookedModel, view: ResidualView, target: int, *, biases: Biases) -> Pass:
    """The account of `target` behind `view`. Errors: `InputError` where the pass is not finite."""
    return read_passes(model, [view], [target], biases=biases)[0]


def read_passes(
    model: HookedModel, views: Sequence[ResidualView], targets: Sequence[int], *, biases: Biases
) -> list[Pass]:
    """`run_pass` of several views of one model, each for its own target; their bases go through the vocabulary
    together."""
    asked = []
    for view, target in zip(views, targets, strict=True):
        projection = Projection.freeze(
            model.final_norm, model.W_U, model.b_U, x_final=view.resid_final, biases=biases
        )
        asked.append(Asked(projection, list(layer_terms(model, view)), target, view.resid_final))
    found = accounts(asked)
    for acc in found:
        if not math.isfinite(acc.logp):
            raise InputError(
                f"model: expected a finite forward pass, found log p {acc.logp}; try dtype='float32'"
            )
    rows = zip(views, asked, found, strict=True)
    return [Pass(view, one.projection, list(one.terms), acc, one.target) for view, one, acc in rows]


def run_passes(
    model: HookedModel, prompt: str, target: str, *, tokens: TargetTokens, biases: Biases
) -> tuple[list[Pass], tuple[int, ...]]:
    """The passes of the first target token or of all, and the ids of the whole target.

    Errors: `InputError` for a target that is empty or changes the prompt's tokens.
    """
    ids, target_ids = model.continuation(prompt, target)
    scored = target_ids[: 1 if tokens == "first" else None].tolist()
    passes = []
    for n, token in enumerate(scored):
        view = model.residual_view(torch.cat([ids, target_ids[:n]]))
        passes.append(run_pass(model, view, token, biases=biases))
    return passes, tuple(target_ids.tolist())
