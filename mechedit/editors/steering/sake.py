"""SAKE: steer the final hidden state by a Gaussian map; change no weight.

Source: Scialanga et al., "SAKE: Steering Activations for Knowledge Editing", arXiv 2503.01751. For one fact:

1. *Prompts*: paraphrases p_j of the rewrite prompt, also behind contexts that the model writes; the source is p_j and,
   where `forced`, also `Repeat this sentence: 'p_j OLD'. p_j`; the target `Do not mention 'OLD'. Repeat this sentence:
   'p_j NEW'. p_j`.
2. *Map*: optimal transport between the Gaussians of the final states at the last token
   (`mechedit.editors.steering.transport`), applied at the prompt's last token.
3. *Gate*: opens where a prompt is near one of the edit's own (`mechedit.editors.steering.gates`): by the hidden state,
   the paper's second variant, which needs no other model, or by a sentence encoder, its first.

It is MEGA's machinery at another site: the residual stream before the final norm [our choice; Hugging Face's last
hidden state lies behind it], so that attribution sees the move as a term of its own ("steer_mlp" of the last layer).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from mechedit.data.facts import FactEdit
from mechedit.editors.contexts import Lengths
from mechedit.editors.defaults import AUTO, Table, Tuned
from mechedit.editors.steering.mega import MEGA, GateKind
from mechedit.editors.steering.paraphrases import Paraphrases, paraphrases
from mechedit.editors.steering.steer import SteeredModel
from mechedit.editors.steering.steering_edit import SteeringEdit
from mechedit.models.hooked import HookedModel

__all__ = ["SAKE"]


@dataclass(frozen=True)
class SAKE(Tuned):
    """The editor; what is AUTO is chosen by the model (`ready`), the gate by `select` on facts not evaluated.

    Attributes:
        estimator: "transport", or "shift", the control that only moves the mean.
        alpha: How far to go; 1 ends at the map's target.
        reg: Is added to both covariances.
        forced: Whether the source also holds the forced prompts.
        contexts: (number, tokens) of texts before the paraphrases.
        gate: As MEGA's; so are gate_layer, threshold, doubted, gate_model and paraphrases.
    """

    estimator: Literal["transport", "shift"] = "transport"
    alpha: float = 1.0
    reg: float = AUTO
    forced: bool = AUTO
    contexts: Lengths = AUTO
    gate: GateKind = "hidden"
    gate_layer: int = AUTO
    threshold: float = AUTO
    doubted: bool = True
    gate_model: str | None = None
    paraphrases: Paraphrases | None = field(default=None, repr=False)
    name: str = "sake"

    DEFAULTS: ClassVar[Table] = {
        "gpt2-xl": {"reg": 1e-2, "forced": True, "contexts": ((10, 5), (10, 10))},
        "llama-2-7b": {"reg": 0.5, "forced": True, "contexts": ((10, 5), (10, 10))},
        "smollm2-135m": {"reg": 0.5, "forced": True, "contexts": ()},
        "factworld": {"reg": 1e-2, "forced": True, "contexts": ()},
        "factworld-llama": {"reg": 1e-2, "forced": True, "contexts": ()},
    }

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[SteeredModel]:
        """The model with the facts edited; of several edits whose gates open, the nearest steers."""
        with self._at_the_end(model).apply(model, facts) as steered:
            yield steered

    def fit(self, model: HookedModel, fact: FactEdit) -> SteeringEdit:
        """The edit of one fact as data: map, gate and alpha. The model is left as it is."""
        return self._at_the_end(model).fit(model, fact)

    def plain_prompts(self, fact: FactEdit) -> list[str]:
        """The prompts that ask for the fact, the rewrite prompt first."""
        return paraphrases(fact, self.paraphrases)

    def select(self, model: HookedModel, facts: Sequence[FactEdit]) -> SAKE:
        """The same editor with gate layer and threshold chosen on `facts`, which the evaluation never sees."""
        if not self.needs_selection:
            return self
        chosen = self._at_the_end(model).select(model, facts)
        assert chosen.gate_layer is not None
        assert chosen.threshold is not None
        return replace(self, gate_layer=chosen.gate_layer, threshold=chosen.threshold)

    def reads(self, model: HookedModel) -> dict[str, Any]:
        """Texts before the paraphrases, and the weights of the gate's encoder."""
        read = self._at_the_end(model).reads(model)
        return {name: read[name] for name in ("context_texts", "gate_weights") if name in read}

    @property
    def needs_selection(self) -> bool:
        """Whether `select` has something left to choose."""
        return self.gate != "always" and (self.threshold is AUTO or self.gate_layer is AUTO)

    def _at_the_end(self, model: HookedModel) -> MEGA:
        """The same as a steering of the residual stream behind the last layer."""
        ready = self.ready(model)
        last = model.shape.n_layers - 1
        return MEGA(
            window=(last, last),
            site="resid_post",
            estimator=ready.estimator,
            source="both" if ready.forced else "plain",
            target="avoid",
            all_targets=True,  # as published: every prompt is fitted on
            rank=None,
            alpha=ready.alpha,
            reg=ready.reg,
            position="prompt",  # "every" would say the new object's first token again and again
            gate=ready.gate,
            gate_layer=ready.gate_layer,
            threshold=ready.threshold,
            doubted=ready.doubted,
            gate_model=ready.gate_model,
            contexts=ready.contexts,
            paraphrases=ready.paraphrases,
            name=ready.name,
        )
