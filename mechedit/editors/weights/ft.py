"""FT: fine-tune one layer's W_out on the new fact alone.

Source: the baselines of ROME (Meng et al., NeurIPS 2022, appendix E.1; kmeng01/rome, `baselines/ft`). Adam on one
weight,

    L(W) = mean over facts and their tokens of −log p_W(new object | rewrite prompt),    W ← Adam(∇L),

for at most `steps` steps, or until L < `stop`. FT-L (`FTL`) adds |W − W0| ≤ epsilon in every entry.

Only W_out(l) changes, so the residual stream and the MLP's activations up to layer l are computed once
(`mechedit.editors.weights.upper_layers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from experiments.progress import counted
from mechedit.data.facts import FactEdit
from mechedit.editors.base import as_facts
from mechedit.editors.defaults import AUTO, Table
from mechedit.editors.settings import resolved
from mechedit.editors.steering.steer import unsteered
from mechedit.editors.weights.subject import target_places
from mechedit.editors.weights.upper_layers import Upper, upper_part
from mechedit.editors.weights.weight_edit import Replaced, WeightChange, WeightEditor, weight_name
from mechedit.models.hooked import HookedModel

__all__ = ["FT", "FTL"]


@dataclass(frozen=True)
class FT(WeightEditor):
    """Fine-tuning of one layer; what is AUTO is chosen by the model (`ready`).

    Attributes:
        layer: Whose W_out is trained.
        steps: Adam's, at most.
        lr: Adam's.
        epsilon: Largest change of an entry of W_out (None: no bound).
        stop: The loss below which it stops, nats a token.

    >>> import mechedit as me
    >>> model, fact = me.load_model("factworld"), me.factworld.edits(1)[0]
    >>> with FT().apply(model, fact) as edited:
    ...     edited.generate([fact.rewrite_prompt], max_new_tokens=3)[0].startswith(f" {fact.target_new}")
    True
    """

    layer: int = AUTO
    steps: int = AUTO
    lr: float = AUTO
    epsilon: float | None = None
    stop: float = 1e-2
    name: str = "ft"

    LAYERS: ClassVar[tuple[str, ...]] = ("layer",)
    DEFAULTS: ClassVar[Table] = {
        "gpt2-xl": {"layer": 1, "steps": 25, "lr": 5e-4},
        "llama-2-7b": {"layer": 21, "steps": 25, "lr": 5e-4},
        "smollm2-135m": {"layer": 3, "steps": 25, "lr": 2e-3},
        "factworld": {"layer": 4, "steps": 25, "lr": 2e-2},
        "factworld-llama": {"layer": 2, "steps": 25, "lr": 2e-2},
    }

    def change(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> WeightChange:
        """The edit as data; the model is left as it is."""
        ready, facts = self.ready(model), as_facts(facts)
        pairs = [model.continuation(fact.rewrite_prompt, fact.target_new, space=fact.space) for fact in facts]
        with unsteered(model):
            texts = [torch.cat([prompt, target[:-1]]) for prompt, target in pairs]
            upper = upper_part(model, ready.layer, texts, [0] * len(texts))
            weight = ready._train(model, upper, pairs)
        view = model.W_out(ready.layer)
        name, stored = weight_name(model, view)
        value = weight if stored.stride() == view.stride() else weight.mT
        parts = {name: (Replaced(value.to(stored.dtype).contiguous()),)}
        used = resolved(ready, model)
        return WeightChange(ready.name, facts, model.hash, parts, model.name, settings=used)

    def _train(self, model: HookedModel, upper: Upper, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """W_out [d_mlp, d_model] after training."""
        before = model.W_out(self.layer)
        wide = torch.promote_types(before.dtype, torch.float32)
        start = before.to(wide)
        weight = start.clone().requires_grad_()
        places = target_places(model, pairs)
        adam = torch.optim.Adam([weight], lr=self.lr)
        for _ in counted(range(self.steps), self.name):
            with torch.enable_grad():
                loss = self._loss(model, upper, places, weight)
            if loss < self.stop:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            if self.epsilon is not None:
                with torch.no_grad():
                    weight.copy_(weight.clamp(start - self.epsilon, start + self.epsilon))
        return weight.detach()

    def _loss(self, model: HookedModel, upper: Upper, places: tuple[Tensor, ...], weight: Tensor) -> Tensor:
        """Mean over facts of the mean over tokens of −log p."""
        written = upper.key.to(weight.dtype) @ weight
        bias = model.b_out(self.layer)
        written = written if bias is None else written + bias
        normed = upper(upper.behind(written))
        row, column, tokens, shares = places
        log_p = upper.logits(normed, row, column).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        return -(shares * log_p).sum()


@dataclass(frozen=True)
class FTL(FT):
    """FT within a box; fields as `FT`, `epsilon` is the bound. What is AUTO is chosen by the model (`ready`).

    >>> import mechedit as me
    >>> model, fact = me.load_model("factworld"), me.factworld.edits(1)[0]
    >>> before = model.W_out(4).clone()
    >>> with FTL(layer=4, epsilon=1e-3).apply(model, fact):
    ...     bool((model.W_out(4) - before).abs().max() <= 1e-3 + 1e-6)
    True
    """

    epsilon: float | None = AUTO
    name: str = "ft_l"

    DEFAULTS: ClassVar[Table] = {
        "gpt2-xl": {"layer": 0, "steps": 25, "lr": 5e-4, "epsilon": 5e-4},
        "llama-2-7b": {"layer": 21, "steps": 25, "lr": 5e-4, "epsilon": 5e-4},
        "smollm2-135m": {"layer": 3, "steps": 25, "lr": 2e-3, "epsilon": 1e-2},  # the largest that binds
        "factworld": {"layer": 4, "steps": 25, "lr": 2e-2, "epsilon": 6e-2},
        "factworld-llama": {"layer": 2, "steps": 25, "lr": 2e-2, "epsilon": 0.1},
    }
