"""ROME: insert one association into one layer's W_out, by a change of rank one.

Source: Meng et al., "Locating and Editing Factual Associations in GPT", NeurIPS 2022, section 3.1; kmeng01/rome. With
C = E[k kᵀ] over a text (`mechedit.editors.weights.covariance`), for one fact:

1. k* is the mean, over contexts, of the MLP's key at the subject's last token;
2. v* = v0 + δ with v0 = W k* + b, the mean of the MLP's outputs there, and δ from
   `mechedit.editors.weights.value_search`;
3. W' = W + u (v* − v0)ᵀ / (uᵀ k*) with u = C⁻¹ k*, W as [d_mlp, d_model]; so k*ᵀ W' + b = v*.

The reference code takes v0 of the bare rewrite prompt, which is no linear image of its k*; with the mean the constraint
holds exactly for the k* it is stated for. Several facts are inserted one after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from mechedit.data.facts import FactEdit
from mechedit.editors.base import as_facts
from mechedit.editors.contexts import Lengths, contexts
from mechedit.editors.defaults import AUTO, Table
from mechedit.editors.settings import resolved
from mechedit.editors.steering.steer import unsteered
from mechedit.editors.weights.covariance import Covariance, covariance_for
from mechedit.editors.weights.subject import edit_batch, subject_ids
from mechedit.editors.weights.upper_layers import mlp_output, upper_part
from mechedit.editors.weights.value_search import Search, find_delta
from mechedit.editors.weights.weight_edit import (
    LowRank,
    WeightChange,
    WeightEditor,
    combine,
    low_rank,
    weight_edit,
)
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import post
from mechedit.models.states import last_states
from reports.errors import InputError

__all__ = ["ROME", "Association"]


@dataclass(frozen=True, eq=False)
class Association:
    """What ROME inserts, in fp32.

    Attributes:
        key: k* [d_mlp].
        value: v* [d_model].
        direction: u [d_mlp], with uᵀ k* = 1.
        change: v* − v0 [d_model].
    """

    key: Tensor
    value: Tensor
    direction: Tensor
    change: Tensor


@dataclass(frozen=True)
class ROME(WeightEditor):
    """The editor; what is AUTO is chosen by the model (`ready`).

    Attributes:
        layer: Whose W_out is changed.
        steps: As lr, weight_decay, kl_factor and clamp of the search for v* (`mechedit.editors.weights.value_search`).
        contexts: (number, tokens) of the texts before the prompt.
        covariance: C of the layer; None: `covariance_for(model, layer)`.

    >>> import mechedit as me
    >>> model, fact = me.load_model("factworld"), me.factworld.edits(1)[0]
    >>> with ROME().apply(model, fact) as edited:
    ...     edited.generate([fact.rewrite_prompt], max_new_tokens=3)[0].startswith(f" {fact.target_new}")
    True
    """

    layer: int = AUTO
    steps: int = AUTO
    lr: float = AUTO
    weight_decay: float = AUTO
    kl_factor: float = AUTO
    clamp: float = AUTO
    contexts: Lengths = AUTO
    covariance: Covariance | None = field(default=None, repr=False)
    name: str = "rome"

    LAYERS: ClassVar[tuple[str, ...]] = ("layer",)
    DEFAULTS: ClassVar[Table] = {
        "gpt2-xl": {"layer": 17, "steps": 20, "lr": 0.5, "weight_decay": 0.5, "kl_factor": 0.0625, "clamp": 4.0,
                    "contexts": ((10, 5), (10, 10))},
        "llama-2-7b": {"layer": 5, "steps": 25, "lr": 0.5, "weight_decay": 1e-3, "kl_factor": 0.0625, "clamp": 4.0,
                       "contexts": ((10, 5), (10, 10))},
        "smollm2-135m": {"layer": 3, "steps": 25, "lr": 0.5, "weight_decay": 1e-3, "kl_factor": 0.0625, "clamp": 4.0,
                         "contexts": ((10, 5), (10, 10))},
        "factworld": {"layer": 0, "steps": 20, "lr": 1.0, "weight_decay": 1e-3, "kl_factor": 0.0625, "clamp": 20.0,
                      "contexts": ((3, 6),)},
        "factworld-llama": {"layer": 0, "steps": 25, "lr": 4.0, "weight_decay": 1e-3, "kl_factor": 0.0625,
                            "clamp": 40.0, "contexts": ((3, 6),)},
    }  # fmt: skip

    def change(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> WeightChange:
        """The edit as data; the model is left as it is."""
        ready, facts, digest = self.ready(model), as_facts(facts), model.hash
        done: list[dict[str, tuple[LowRank, ...]]] = []
        with contextlib.ExitStack() as earlier:
            before, covariance = ready._fixed(model)
            for i, fact in enumerate(facts):
                association = ready._insert(model, fact, before, covariance)
                rows, columns = association.direction[:, None], association.change[None]
                done.append(low_rank(model, ready.layer, rows=rows, columns=columns))
                if i + 1 < len(facts):
                    earlier.enter_context(
                        weight_edit(model, WeightChange(self.name, (fact,), digest, done[-1]))
                    )
        return WeightChange(
            ready.name, facts, digest, combine(done), model.name, settings=resolved(ready, model)
        )

    def reads(self, model: HookedModel) -> dict[str, Any]:
        """The covariance, and the texts before the prompt."""
        before, covariance = self.ready(model)._fixed(model)
        return {"covariance": covariance.settings, "context_texts": list(before)}

    def associate(self, model: HookedModel, fact: FactEdit) -> Association:
        """k* and v* of one fact, and the change of rank one that they ask for."""
        ready = self.ready(model)
        return ready._insert(model, fact, *ready._fixed(model))

    def _fixed(self, model: HookedModel) -> tuple[tuple[str, ...], Covariance]:
        """What does not depend on the fact: contexts, and C of the layer."""
        covariance = self.covariance or covariance_for(model, self.layer)
        if covariance.layer != self.layer:
            raise InputError(
                f"covariance: expected that of layer {self.layer}, found layer {covariance.layer}"
            )
        with unsteered(model):
            return contexts(model, self.contexts), covariance

    def _insert(
        self, model: HookedModel, fact: FactEdit, before: Sequence[str], covariance: Covariance
    ) -> Association:
        search = Search(self.steps, self.lr, self.weight_decay, self.kl_factor, self.clamp)
        with unsteered(model):
            cut = [subject_ids(model, fact.prompt, fact.subject, context=c) for c in before]
            (keys,) = last_states(model, cut, [post(self.layer)])
            k = keys.mean(0).to(torch.promote_types(keys.dtype, torch.float32))
            v0 = mlp_output(model, self.layer, k)
            batch = edit_batch(model, [fact], before)
            upper = upper_part(model, self.layer, batch.texts, batch.starts)
            delta = find_delta(upper, batch, v0[None], search)[0]
        u = covariance.solve(k[:, None])[:, 0]
        u = (u / (u @ k.double())).to(k.dtype)
        return Association(k, v0 + delta, u, delta)
