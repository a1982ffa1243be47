"""SAKE: steer the final hidden state by a Gaussian map; change no weight.

Source: Scialanga et al., "SAKE: Steering Activations for Knowledge Editing", arXiv 2503.01751. For one fact:

1. *Prompts*: paraphrases p_j of the rewrite prompt, also behind contexts that the model writes; the source is p_j and,
   where `forced`, also `Repeat this sentence: 'p_j OLD'. p_j`; the target `Do not mention 'OLD'. Repeat this sentence:
   'p_j NEW'. p_j`.
2. *Map*: optimal transport between the Gaussians of the final states at the last token (`mechedit.transport`), applied
   at the prompt's last token.
3. *Gate*: opens where the last token's state at the input of `gate_layer` is near one of the source's
   (`mechedit.gates`): the paper's second variant, which needs no other model.

The state that is moved is the residual stream before the final norm [our choice; Hugging Face's last hidden state lies
behind it], so that attribution, which works in the residual stream, sees the move as a term of its own ("steer_mlp" of
the last layer).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from mechedit.editors.base import as_facts
from mechedit.editors.defaults import AUTO, Table, resolve
from mechedit.editors.lookup import Lengths, contexts
from mechedit.editors.mega import best_gate
from mechedit.editors.steering import FINAL, SteeredModel, SteeringEdit, steer, unsteered
from mechedit.editors.upper import resid_post
from mechedit.facts import FactEdit
from mechedit.gates import AlwaysOn, Gate, HiddenGate
from mechedit.paraphrases import Paraphrases, paraphrases
from mechedit.prompts import avoid, repeat
from mechedit.states import last_states, resid_pre
from mechedit.transport import gaussian_map, mean_shift
from reports.errors import InputError

if TYPE_CHECKING:
    from mechedit.model import HookedModel

__all__ = ["SAKE"]


@dataclass(frozen=True)
class SAKE:
    """The editor; what is AUTO is chosen by the model (`for_model`); the gate, but for the embedded models, by
    `select` on facts that are not evaluated.

    Attributes:
        estimator: "transport", or "shift", the control that only moves the mean. alpha: how far to go, 1 ends at the
        map's target. reg: added to both covariances. forced: whether the source also holds the forced prompts.
        contexts: (number, tokens) of texts before the paraphrases. gate: "hidden" or "always"; gate_layer, threshold:
        whose input the hidden gate reads, and the distance within which it opens. paraphrases: as MEGA's.
    """

    estimator: Literal["transport", "shift"] = "transport"
    alpha: float = 1.0
    reg: float = AUTO
    forced: bool = AUTO
    contexts: Lengths = AUTO
    gate: Literal["hidden", "always"] = "hidden"
    gate_layer: int = AUTO
    threshold: float = AUTO
    paraphrases: Paraphrases | None = field(default=None, repr=False)
    name: str = "sake"

    DEFAULTS: ClassVar[Table] = {
        "gpt2-xl": {"reg": 1e-2, "forced": True, "contexts": ((10, 5), (10, 10))},
        "llama-2-7b": {"reg": 0.5, "forced": True, "contexts": ((10, 5), (10, 10))},
        "factworld": {"reg": 1e-2, "forced": True, "contexts": (), "gate_layer": 7, "threshold": 47.0},
        "factworld-llama": {"reg": 1e-2, "forced": True, "contexts": (), "gate_layer": 7, "threshold": 109.0},
    }

    @classmethod
    def for_model(cls, model: HookedModel) -> SAKE:
        """The editor with this model's defaults."""
        return resolve(cls(), model, cls.DEFAULTS)

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[SteeredModel]:
        """The model with the facts edited; of several edits whose gates open, the nearest steers."""
        with unsteered(model):
            edits = [self.fit(model, fact) for fact in as_facts(facts)]
        with steer(model, edits) as steered:
            yield steered

    def fit(self, model: HookedModel, fact: FactEdit) -> SteeringEdit:
        """The edit of one fact as data: map, gate and alpha. The model is left as it is."""
        ready = resolve(self, model, self.DEFAULTS)
        prompts = paraphrases(fact, ready.paraphrases)
        before = contexts(model, ready.contexts) if ready.contexts else ("",)
        said = [c + p for c in before for p in prompts]
        final = resid_post(model.shape.n_layers - 1)
        source = said + ([repeat(p, fact.target_true) for p in said] if ready.forced else [])
        (start,) = last_states(model, source, [final])
        (goal,) = last_states(model, [avoid(p, fact.target_true, fact.target_new) for p in said], [final])
        fitted = (
            mean_shift(start, goal)
            if ready.estimator == "shift"
            else gaussian_map(start, goal, reg=ready.reg)
        )
        return SteeringEdit(fact, {FINAL: fitted}, ready._gate(model, prompts), ready.alpha)

    def select(self, model: HookedModel, facts: Sequence[FactEdit]) -> SAKE:
        """The same editor with gate layer and threshold chosen on `facts`, which the evaluation never sees."""
        if not self.needs_selection:
            return self
        layers = range(model.shape.n_layers) if self.gate_layer is AUTO else [self.gate_layer]
        layer, threshold = best_gate(model, facts, list(layers), self.paraphrases)
        return replace(self, gate_layer=layer, threshold=threshold)

    @property
    def needs_selection(self) -> bool:
        """Whether `select` has something left to choose."""
        return self.gate == "hidden" and (self.threshold is AUTO or self.gate_layer is AUTO)

    def _gate(self, model: HookedModel, prompts: Sequence[str]) -> Gate:
        if self.gate == "always":
            return AlwaysOn()
        if self.needs_selection:
            raise InputError(
                "threshold: expected one for the hidden gate, found none; "
                "call SAKE().select(model, selection_facts) first, or take gate='always'"
            )
        (centres,) = last_states(model, prompts, [resid_pre(self.gate_layer)])
        return HiddenGate(self.gate_layer, centres, self.threshold)
