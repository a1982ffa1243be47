"""One forward pass scored for several objects: layers, heads and the neurons that matter, nothing twice.

1. One pass gives the residual stream and its terms (`terms.py`) under one frozen σ.
2. For each object: layer scores, which telescope to its log-probability, and head scores. What no sub-layer wrote (an
   edit of the final state) is `rest`, so that nothing is lost.
3. Only where they are called for: the top k neurons, certified exact (`ranking/certified.py`), and the exact scores of
   given ones.

An attention value neuron is here (layer, head, dim), *summed over source positions*: prompts of other lengths (an edit
that puts demonstrations in front) can then be compared, and there are T times fewer to rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch

from mechedit.attribution.exact_scores import unit_scores
from mechedit.attribution.frames import head_frame
from mechedit.attribution.layers import Account, account
from mechedit.attribution.passes import Pass
from mechedit.attribution.projection import Projection
from mechedit.attribution.ranking.certified import certified
from mechedit.attribution.terms import KINDS, Kind, LayerTerms, layer_terms
from mechedit.data.joining import Space
from mechedit.models.deciding import through_text
from mechedit.models.hooked import HookedModel
from mechedit.models.prompts import Prompt

__all__ = ["LayerScores", "ScoredPass", "layer_scores"]

NO_HEADS = pd.DataFrame({"layer": [], "head": [], "score": []})
Unit = tuple[int, int]  # layer, and index within the layer: i, or h · d_head + j


@dataclass(frozen=True, eq=False)
class LayerScores:
    """One target's NLKA scores, nats.

    Attributes:
        token: The id of the target's first token.
        layers: Frame layer, module, score, as `attribute` has it.
        heads: Frame layer, head, score, likewise.
        logp: The token's log-probability.
        rest: The part of `logp` that neither the embedding nor any sub-layer accounts for; rounding, but for an edit
            of the final state.
    """

    token: int
    layers: pd.DataFrame
    heads: pd.DataFrame
    logp: float
    rest: float


def layer_scores(
    model: HookedModel, prompt: Prompt, targets: Sequence[str], *, space: Space = "auto"
) -> list[LayerScores]:
    """Layer and head scores of several targets from one forward pass, with biases kept and without neurons."""
    scored = ScoredPass(model, prompt, targets, space=space)
    return [scored.layers(i) for i in range(len(targets))]


class ScoredPass:
    """One prompt's forward pass on a model as it is now, to be scored for the first tokens of `targets`.

    One target whose first token is a bare space is scored at the first token with text behind it.

    Directions are views of the weights: under a weight edit everything must be read before the edit is undone.
    """

    @torch.no_grad()
    def __init__(
        self, model: HookedModel, prompt: Prompt, targets: Sequence[str], *, space: Space = "auto"
    ) -> None:
        pairs = [model.continuation(prompt, target, space=space) for target in targets]
        # An object alone is scored at its first token with text, behind the bare space before it.
        lead = through_text(model.tokenizer, pairs[0][1].tolist()) - 1 if len(pairs) == 1 else 0
        view = model.residual_view(torch.cat([pairs[0][0], pairs[0][1][:lead]]))
        self.tokens = [int(target[lead]) for _, target in pairs]
        self.next_token = int(view.logits.argmax())
        self._view = view
        self._projection = Projection.freeze(
            model.final_norm, model.W_U, model.b_U, x_final=view.resid_final, biases="keep"
        )
        self._terms = list(layer_terms(model, view))
        self._summed = [_summed(term) for term in self._terms]
        self._accounts: dict[int, Account] = {}

    @torch.no_grad()
    def layers(self, target: int, *, heads: bool = True) -> LayerScores:
        """`LayerScores` of the target of this index, on request without its heads."""
        forward = self._pass(target, self._terms)
        acc, frame = forward.acc, head_frame(forward) if heads else NO_HEADS
        return LayerScores(forward.target, acc.layers, frame, acc.logp, acc.gap)

    @torch.no_grad()
    def top(self, target: int, k: int) -> dict[Kind, list[tuple[Unit, float]]]:
        """The k neurons of each kind that promote a target most, certified exact, best first, with their scores."""
        ranking = certified([self._pass(target, self._summed)], k=k, sign="promote")
        tops: dict[Kind, list[tuple[Unit, float]]] = {}
        for kind, best in zip(KINDS, (ranking.mlp, ranking.attn), strict=True):
            units = zip(best.layer.tolist(), best.index.tolist(), strict=True)
            tops[kind] = list(zip(units, best.score.tolist(), strict=True))
        return tops

    @torch.no_grad()
    def of(self, target: int, kind: Kind, units: Sequence[Unit]) -> list[float]:
        """Exact scores of these neurons for a target, in their order."""
        layer, index = torch.tensor(units, dtype=torch.long).view(-1, 2).unbind(1)
        scores: list[float] = unit_scores([self._pass(target, self._summed)], kind, layer, index).tolist()
        return scores

    def _pass(self, target: int, terms: list[LayerTerms]) -> Pass:
        return Pass(self._view, self._projection, terms, self._account(target), self.tokens[target])

    def _account(self, target: int) -> Account:
        if target not in self._accounts:
            self._accounts[target] = account(
                self._projection,
                self._terms,
                target=self.tokens[target],
                x_final=self._view.resid_final,
            )
        return self._accounts[target]


def _summed(term: LayerTerms) -> LayerTerms:
    coefficients = term.attn.coefficients.sum(1, keepdim=True)
    return replace(term, attn=replace(term.attn, coefficients=coefficients))
