"""MEGA: steer the attention outputs of the layers that attribution names; change no weight.

Source: "The Anatomy of an Edit" (arXiv 2603.20795) for the idea: an intervention on the attention residual in
attribution-aligned layers. The paper's details are not public; the map is the one of SAKE (arXiv 2503.01751), which it
is said to build on. Steps, for one fact:

1. *Prompts*: paraphrases p_j of the rewrite prompt are the source; the target is the same question after a statement of
   the new fact, `Do not mention 'OLD'. Repeat this sentence: 'p_j NEW'. p_j`.
2. *Map*: at each layer of the window, a Gaussian map from the source's attention outputs at the last token to the
   target's, in the span of the prompts (`mechedit.transport`). Fitted in order, with the earlier layers' maps
   on, so that
   each map starts from the states it will really meet.
3. *Gate*: opens where the last token's state below the window is near one of the source prompts' (`mechedit.gates`).
4. *Steer*: `a' = a + α · P (M z + c)` (`mechedit.editors.steering`).

Window, alpha, gate layer and threshold are chosen on facts that are never evaluated, by `MEGA().select(model, facts)`:
the window is the run of layers where a statement in context that succeeds writes more of the new object than
one that fails (`mechedit.anatomy`), the threshold separates those facts' paraphrases from their neighbours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from mechedit.editors.base import as_facts
from mechedit.editors.steering import SteeredModel, SteeringEdit, site, steer
from mechedit.facts import FactEdit
from mechedit.gates import AlwaysOn, Gate, HiddenGate, calibrate, nearest
from mechedit.paraphrases import Paraphrases, paraphrases
from mechedit.prompts import avoid
from mechedit.states import last_states, resid_pre
from mechedit.transport import AffineMap, gaussian_map, mean_shift
from reports.errors import InputError

if TYPE_CHECKING:
    from mechedit.model import HookedModel

__all__ = ["MEGA", "best_gate"]

Window = tuple[int, int]
# A mean over paraphrases falls short of any one of them, so going past it can pay.
ALPHAS = (1.0, 1.5, 2.0)


@dataclass(frozen=True)
class MEGA:
    """The editor: `MEGA(window=(4, 7)).apply(model, fact)`.

    Attributes:
        window: first and last layer that are steered, or "auto": to be chosen by `select`.
        estimator: "transport", or "shift", the control that only moves the mean.
        alpha: how far along the map; 0 steers nothing (the gate alone), above 1 goes past the target, "auto": to be
            chosen by `select` from `ALPHAS`.
        reg: regularisation of both covariances, in squared units of the attention output; the larger, the nearer the
            transport comes to the mean shift.
        rank: principal directions that the map may use (None: all).
        sequential: fit each layer with the earlier layers' maps on.
        gate: "hidden" or "always".
        gate_layer, threshold: whose input the hidden gate reads, and the distance within which it opens.
        paraphrases: rewrite template -> other templates; None: the embedded world's.
    """

    window: Window | Literal["auto"] = "auto"
    estimator: Literal["transport", "shift"] = "transport"
    alpha: float | Literal["auto"] = "auto"
    reg: float = 1.0
    rank: int | None = None
    sequential: bool = True
    gate: Literal["hidden", "always"] = "hidden"
    gate_layer: int | None = None
    threshold: float | None = None
    paraphrases: Paraphrases | None = field(default=None, repr=False)
    name: str = "mega"

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[SteeredModel]:
        """The model with the facts edited; of several edits whose gates open, the nearest steers."""
        edits = [self.fit(model, fact) for fact in as_facts(facts)]
        with steer(model, edits) as steered:
            yield steered

    def fit(self, model: HookedModel, fact: FactEdit) -> SteeringEdit:
        """The edit of one fact as data: maps, gate and alpha. The model is left as it is."""
        first, last = self.layers(model)
        alpha, gate_layer = self._alpha(), self._gate_layer()
        source = paraphrases(fact, self.paraphrases)
        layers = range(first, last + 1)
        sites = [site(layer) for layer in layers]
        gate_sites = [] if gate_layer is None else [resid_pre(gate_layer)]
        *centres, first_start = last_states(model, source, [*gate_sites, sites[0]])
        gate: Gate = (
            HiddenGate(gate_layer, centres[0], self.threshold or 0.0)
            if gate_layer is not None
            else AlwaysOn()
        )
        if alpha == 0:  # the gate alone
            return SteeringEdit(fact, {}, gate, 0.0)
        goals = last_states(model, [avoid(p, fact.target_true, fact.target_new) for p in source], sites)
        maps: dict[int, AffineMap] = {}
        for layer, goal in zip(layers, goals, strict=True):
            earlier = SteeringEdit(fact, maps if self.sequential else {}, alpha=alpha)
            start = first_start if layer == first else self._start(model, earlier, source, layer)
            maps = {**maps, layer: self._map(start, goal)}
        return SteeringEdit(fact, maps, gate, alpha)

    def select(self, model: HookedModel, facts: Sequence[FactEdit]) -> MEGA:
        """The same editor with all that is "auto" or None (window, alpha, gate layer, threshold) chosen on `facts`.

        Use facts that the evaluation never sees. Errors: `InputError` where there are none, or where no statement in
        context succeeds or none fails, so that there is nothing to contrast.
        """
        from mechedit.anatomy import statement_contrast

        chosen = self
        if self.window == "auto":
            chosen = replace(chosen, window=statement_contrast(model, facts).window)
        if self.alpha == "auto":
            chosen = replace(chosen, alpha=chosen._best_alpha(model, facts))
        if self.gate == "hidden" and self.threshold is None:
            layer, threshold = chosen._calibrate(model, facts)
            chosen = replace(chosen, gate_layer=layer, threshold=threshold)
        return chosen

    @property
    def needs_selection(self) -> bool:
        """Whether `select` has something left to choose."""
        return "auto" in (self.window, self.alpha) or (self.gate == "hidden" and self.threshold is None)

    def layers(self, model: HookedModel) -> Window:
        """First and last layer that are steered. Errors: `InputError` for a window outside of `model`, or "auto"."""
        if isinstance(self.window, str):
            raise InputError(
                "window: 'auto' is chosen on facts that are not evaluated; "
                "call MEGA(window='auto').select(model, selection_facts), or give (first, last)"
            )
        first, last = self.window
        if not 0 <= first <= last < model.shape.n_layers:
            raise InputError(
                f"window: expected layers between 0 and {model.shape.n_layers - 1}, first to last, found {self.window}"
            )
        return first, last

    # -- pieces --------------------------------------------------------------------------------------------

    def _map(self, source: Tensor, target: Tensor) -> AffineMap:
        if self.estimator == "shift":
            return mean_shift(source, target)
        return gaussian_map(source, target, reg=self.reg, rank=self.rank)

    def _start(self, model: HookedModel, earlier: SteeringEdit, source: Sequence[str], layer: int) -> Tensor:
        """The source's attention outputs at `layer` with the earlier layers' maps on."""
        with steer(model, [earlier]) as steered:
            return last_states(steered, source, [site(layer)])[0]

    def _gate_layer(self) -> int | None:
        if self.gate == "hidden" and (self.gate_layer is None or self.threshold is None):
            raise InputError(
                "threshold: expected one for the hidden gate, found None; "
                "call MEGA(...).select(model, selection_facts) first, or take gate='always'"
            )
        return self.gate_layer if self.gate == "hidden" else None

    def _alpha(self) -> float:
        if isinstance(self.alpha, str):
            raise InputError(
                "alpha: 'auto' is chosen on facts that are not evaluated; "
                "call MEGA(...).select(model, selection_facts), or give a number (1.0 ends at the map's target)"
            )
        return self.alpha

    def _best_alpha(self, model: HookedModel, facts: Sequence[FactEdit]) -> float:
        """The smallest of `ALPHAS` with which most rewrite and paraphrase prompts of the facts give the new object."""
        right = dict.fromkeys(ALPHAS, 0)
        for alpha in ALPHAS:
            editor = replace(self, alpha=alpha, gate="always")
            for fact in facts:
                prompts = [fact.rewrite_prompt, *fact.paraphrase_prompts]
                token = model.continuation(fact.rewrite_prompt, fact.target_new)[1][0]
                with editor.apply(model, fact) as edited:
                    right[alpha] += int((edited.logits(prompts).argmax(-1) == token).sum())
        return max(ALPHAS, key=lambda alpha: (right[alpha], -alpha))

    def _calibrate(self, model: HookedModel, facts: Sequence[FactEdit]) -> tuple[int, float]:
        """Gate layer and threshold with the fewest errors on the facts' own paraphrases and neighbours."""
        first, _ = self.layers(model)
        layers = [self.gate_layer] if self.gate_layer is not None else list(range(first + 1))
        return best_gate(model, facts, layers, self.paraphrases)


def best_gate(
    model: HookedModel, facts: Sequence[FactEdit], layers: Sequence[int], table: Paraphrases | None
) -> tuple[int, float]:
    """Of `layers` the one, and the threshold there, with the fewest errors on the facts' own paraphrases and
    neighbours."""
    best: tuple[float, int, float] | None = None
    for layer, (own, foreign) in zip(layers, _distances(model, facts, layers, table), strict=True):
        threshold = calibrate(own, foreign)
        missed = sum(d > threshold for d in own) / len(own)
        false = sum(d <= threshold for d in foreign) / len(foreign)
        if best is None or missed + false <= best[0]:  # of equals the deepest: it has seen the most
            best = (missed + false, layer, threshold)
    assert best is not None
    return best[1], best[2]


def _distances(
    model: HookedModel, facts: Sequence[FactEdit], layers: Sequence[int], table: Paraphrases | None
) -> list[tuple[list[float], list[float]]]:
    """For each layer the distances to the facts' centres, of their paraphrase and of their neighbourhood prompts."""
    points = [resid_pre(layer) for layer in layers]
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in layers]
    for fact in facts:
        centres = last_states(model, paraphrases(fact, table), points)
        for side, prompts in enumerate((fact.paraphrase_prompts, fact.neighborhood_prompts)):
            states = last_states(model, prompts, points) if prompts else []
            for pair, at_layer, centre in zip(found, states, centres, strict=False):
                pair[side].extend(nearest(at_layer, centre).tolist())
    return found
