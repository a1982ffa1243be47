"""MEMIT: many associations at once, spread over the W_out of several layers. AlphaEdit's null space is an option.

Source: Meng et al., "Mass-Editing Memory in a Transformer", ICLR 2023, section 4.3; kmeng01/memit. For facts 1..n:

1. z_i = h_i + δ_i at the last layer of the range: the layer's output at subject i's last token, and δ from
   `mechedit.editors.weights.value_search`, which makes it say the new object;
2. for each layer of the range, rising, with the layers below already changed: keys K [d_mlp, n] at the subjects' last
   tokens (half of the bare prompt's, half of the mean behind contexts), what is still missing of z, shared out evenly
   over the layers that are left, R = (z − h) / (layers left) [n, d_model], and

       W' = W + (λ C + K Kᵀ)⁻¹ K R,        the least squares of  ‖Kᵀ Δ − R‖² + λ tr(Δᵀ C Δ).

Where C has no inverse (fewer tokens than neurons, or neurons that never fire) it gets ROME's ridge, which is logged;
what is then still too ill-conditioned to be solved in fp64 is refused.

AlphaEdit (Fang et al., ICLR 2025, arXiv 2410.02355, section 3.3): P projects onto the directions in which C has
eigenvalues below `null_space`, so that what the text's keys say stays as it is. With K_p the keys of the edits that the
model is already under (each edit keeps its own in `WeightChange.keys`),

       W' = W + (P (K_p K_pᵀ + K Kᵀ) + ridge·I)⁻¹ P K R,

so that an edit in a sequence also leaves what the earlier ones wrote. The projector is of C of all tokens, as in its
reference code, and ridge is its L2 = 10. C and P are those of the model before its first edit.

Where a norm or a factor stands between W_out and the stream, δ is added to what W_out writes, z is the layer's output
then, and R is what W_out must write for the stream to move so.

The rank of each layer's change is the number of facts.
"""

from __future__ import annotations

import contextlib
import logging
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
from mechedit.editors.weights.covariance import Covariance, covariance_for, factored, regularising
from mechedit.editors.weights.subject import edit_batch, subject_ids
from mechedit.editors.weights.upper_layers import mlp_output, upper_part
from mechedit.editors.weights.value_search import Search, find_delta
from mechedit.editors.weights.weight_edit import (
    LowRank,
    WeightChange,
    WeightEditor,
    combine,
    edits_of,
    low_rank,
    weight_edit,
)
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import post, resid_post
from mechedit.models.states import last_states
from reports.errors import InputError

__all__ = ["MEMIT", "AlphaEdit", "null_space_spread", "spread"]

log = logging.getLogger(__name__)

BATCH = 32  # facts whose δ are optimised together


@dataclass(frozen=True)
class MEMIT(WeightEditor):
    """The editor; what is AUTO is chosen by the model (`ready`).

    Attributes:
        layers: First and last layer that are changed.
        steps: As lr, weight_decay, kl_factor and clamp of the search for z (`mechedit.editors.weights.value_search`).
        lam: λ, how much C counts.
        contexts: (number, tokens) of the texts before the prompt.
        null_space: Eigenvalues of C below it span AlphaEdit's null space (None: MEMIT itself).
        ridge: AlphaEdit's.
        covariances: C by layer; None: `covariance_for(model, layer)`.

    >>> import mechedit as me
    >>> model, facts = me.load_model("factworld"), me.factworld.edits(2)
    >>> with MEMIT().apply(model, facts) as edited:
    ...     texts = edited.generate([fact.rewrite_prompt for fact in facts], max_new_tokens=3)
    >>> [text.startswith(f" {fact.target_new}") for text, fact in zip(texts, facts)]
    [True, True]
    """

    layers: tuple[int, int] = AUTO
    steps: int = AUTO
    lr: float = AUTO
    weight_decay: float = AUTO
    kl_factor: float = AUTO
    clamp: float = AUTO
    lam: float = AUTO
    contexts: Lengths = AUTO
    null_space: float | None = None
    ridge: float = AUTO
    covariances: dict[int, Covariance] | None = field(default=None, repr=False)
    name: str = "memit"

    LAYERS: ClassVar[tuple[str, ...]] = ("layers",)
    DEFAULTS: ClassVar[Table] = {
        "gpt2-xl": {"layers": (13, 17), "steps": 20, "lr": 0.5, "weight_decay": 0.5, "kl_factor": 0.0625,
                    "clamp": 0.75, "lam": 20000.0, "ridge": 10.0, "contexts": ((5, 10),)},
        "llama-2-7b": {"layers": (4, 8), "steps": 25, "lr": 0.5, "weight_decay": 1e-3, "kl_factor": 0.0625,
                       "clamp": 4.0, "lam": 15000.0, "ridge": 10.0, "contexts": ((5, 10),)},
        "smollm2-135m": {"layers": (4, 7), "steps": 25, "lr": 0.5, "weight_decay": 1e-3, "kl_factor": 0.0625,
                         "clamp": 4.0, "lam": 15000.0, "ridge": 10.0, "contexts": ((5, 10),)},
        "factworld": {"layers": (0, 2), "steps": 20, "lr": 2.0, "weight_decay": 1e-3, "kl_factor": 0.0625,
                      "clamp": 10.0, "lam": 10.0, "ridge": 0.1, "contexts": ((3, 6),)},
        "factworld-llama": {"layers": (0, 2), "steps": 20, "lr": 4.0, "weight_decay": 1e-3, "kl_factor": 0.0625,
                            "clamp": 10.0, "lam": 10.0, "ridge": 0.1, "contexts": ((3, 6),)},
    }  # fmt: skip

    def change(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> WeightChange:
        """The edit as data; the model is left as it is."""
        ready, facts, digest = self.ready(model), as_facts(facts), model.hash
        first, last = ready.layers
        with contextlib.ExitStack() as below, unsteered(model):
            before = contexts(model, ready.contexts)
            covariance = {layer: ready._covariance(model, layer) for layer in range(first, last + 1)}
            bare = [subject_ids(model, fact.prompt, fact.subject) for fact in facts]
            goals = ready._goals(model, facts, before, bare)
            done: list[dict[str, tuple[LowRank, ...]]] = []
            kept: dict[int, Tensor] = {}
            for layer in range(first, last + 1):
                keys = ready._keys(model, facts, before, layer)
                (now,) = last_states(model, bare, [resid_post(last)])
                rest = _written(model, layer, bare, (goals - now) / (last - layer + 1))
                if ready.null_space is None:
                    rows = spread(covariance[layer].regular, keys, lam=ready.lam)
                else:
                    kept[layer] = keys
                    rows = null_space_spread(
                        covariance[layer].matrix,
                        keys,
                        below=ready.null_space,
                        ridge=ready.ridge,
                        earlier=ready._earlier(model, before, layer),
                    )
                done.append(low_rank(model, layer, rows=rows.to(goals.dtype), columns=rest))
                if layer < last:
                    below.enter_context(weight_edit(model, WeightChange(self.name, facts, digest, done[-1])))
        return WeightChange(
            ready.name, facts, digest, combine(done), model.name, kept, resolved(ready, model)
        )

    def reads(self, model: HookedModel) -> dict[str, Any]:
        """The covariances of the layers, and the texts before the prompt."""
        ready = self.ready(model)
        first, last = ready.layers
        known = {str(layer): ready._covariance(model, layer).settings for layer in range(first, last + 1)}
        return {"covariances": known, "context_texts": list(contexts(model, ready.contexts))}

    def _covariance(self, model: HookedModel, layer: int) -> Covariance:
        if self.covariances is None:
            return covariance_for(model, layer)
        if layer not in self.covariances:
            raise InputError(
                f"covariances: expected one for layer {layer}, found layers {sorted(self.covariances)}"
            )
        return self.covariances[layer]

    def _goals(
        self, model: HookedModel, facts: Sequence[FactEdit], before: Sequence[str], bare: Sequence[Tensor]
    ) -> Tensor:
        """For each fact z, the layer's output that says the new object: [n, d_model], fp32."""
        search = Search(self.steps, self.lr, self.weight_decay, self.kl_factor, self.clamp)
        last = self.layers[1]
        start, keys = last_states(model, bare, [resid_post(last), post(last)])
        outlet, written = model.mlp_outlet(last), mlp_output(model, last, keys)
        size = (
            start if outlet.plain else start * (written.norm(dim=-1) / outlet(written).norm(dim=-1))[:, None]
        )
        goals = []
        for i in range(0, len(facts), BATCH):
            batch = edit_batch(model, facts[i : i + BATCH], before)
            upper = upper_part(model, last, batch.texts, batch.starts)
            own = slice(i, i + BATCH)
            delta = find_delta(upper, batch, size[own], search)
            moved = delta if outlet.plain else outlet(written[own] + delta) - outlet(written[own])
            goals.append(start[own] + moved)
        return torch.cat(goals)

    def _keys(
        self, model: HookedModel, facts: Sequence[FactEdit], before: Sequence[str], layer: int
    ) -> Tensor:
        """K [d_mlp, n], fp64."""
        cut = [subject_ids(model, fact.prompt, fact.subject, context=c) for fact in facts for c in before]
        (keys,) = last_states(model, cut, [post(layer)])
        bare, *behind = keys.double().unflatten(0, (len(facts), len(before))).unbind(1)
        return ((bare + torch.stack(behind).mean(0)) / 2 if behind else bare).mT

    def _earlier(self, model: HookedModel, before: Sequence[str], layer: int) -> Tensor | None:
        """K_p [d_mlp, N]: the layer's keys of all edits of this kind that the model is under, or None."""
        keys = [
            # A change that was saved without them: its facts' keys are read off the model as it is now.
            edited.change.keys.get(layer, None)
            if edited.change.keys
            else self._keys(model, edited.change.facts, before, layer)
            for edited in edits_of(model)[::-1]
            if edited.change.editor == self.name
        ]
        known = [of_edit for of_edit in keys if of_edit is not None]
        return torch.cat(known, dim=1) if known else None


@dataclass(frozen=True)
class AlphaEdit(MEMIT):
    """MEMIT that writes into the null space of what the text's keys, and the earlier edits' keys, say.

    >>> import mechedit as me
    >>> model, (first, second) = me.load_model("factworld"), me.factworld.edits(2)
    >>> with AlphaEdit().apply(model, first) as once, AlphaEdit().apply(once, second) as edited:
    ...     edited.generate([first.rewrite_prompt], max_new_tokens=3)[0].startswith(f" {first.target_new}")
    True
    """

    name: str = "alphaedit"

    DEFAULTS: ClassVar[Table] = {
        family: {**chosen, "null_space": 2e-2} for family, chosen in MEMIT.DEFAULTS.items()
    }


def _written(model: HookedModel, layer: int, bare: Sequence[Tensor], wanted: Tensor) -> Tensor:
    """What W_out must write more [n, d_model] for the stream to move by `wanted` at the subjects' last tokens.

    Where a norm or a factor stands between the two (`mechedit.models.outlets`), a norm's scale is held still.
    """
    outlet = model.mlp_outlet(layer)
    if outlet.plain:
        return wanted
    (keys,) = last_states(model, bare, [post(layer)])
    written = mlp_output(model, layer, keys)
    sigma = 1.0 if outlet.norm is None else outlet.norm.scale(written)
    return outlet.frozen(sigma).back(wanted.to(written.dtype))


def spread(C: Tensor, K: Tensor, *, lam: float) -> Tensor:
    """(λ C + K Kᵀ)⁻¹ K [d_mlp, n] for C [d_mlp, d_mlp] and K [d_mlp, n], all fp64.

    Where that matrix has no inverse, C gets the ridge of `Covariance.ridge`, which is logged.

    Raises:
        InputError: λ is not positive, or the matrix is too ill-conditioned to be solved.

    >>> spread(torch.eye(2), torch.tensor([[1.0], [0.0]]), lam=1.0).tolist()
    [[0.5], [0.0]]
    """
    if not lam > 0:
        raise InputError(f"lam: expected a positive number, found {lam}")
    factor = factored(lam * C + K @ K.mT)
    if factor is None and (ridge := regularising(C, "a layer")):
        log.warning(
            "C has no inverse; ridge %.0e of its mean eigenvalue added", ridge / float(C.diagonal().mean())
        )
        factor = factored(lam * (C + ridge * torch.eye(len(C)).to(C)) + K @ K.mT)
    if factor is None:
        weight = float(K.square().sum() / (lam * C.diagonal().sum()))
        raise InputError(
            f"lam: expected one with which C outweighs rounding beside the keys, found {lam}, where the keys weigh "
            f"{weight:.0e} times λ C and fp64 cannot solve for the change; take a larger lam, or C of more tokens"
        )
    return torch.cholesky_solve(K, factor)


def null_space_spread(
    C: Tensor, K: Tensor, *, below: float, ridge: float, earlier: Tensor | None = None
) -> Tensor:
    """(P (K_p K_pᵀ + K Kᵀ) + ridge·I)⁻¹ P K [d_mlp, n], with P the projector on C's eigenvectors under `below`.

    It is solved as the last n columns of P G (Gᵀ P G + ridge·I)⁻¹ with G = [K_p K].

    Args:
        C: Of the text's keys [d_mlp, d_mlp], fp64.
        K: The facts' keys [d_mlp, n], fp64.
        below: Directions with eigenvalues of C below it may be written to.
        ridge: Not negative.
        earlier: K_p [d_mlp, N], the keys of the edits before.

    Raises:
        InputError: There is no such eigenvector, so that nothing could be changed; or the facts' keys are too alike
            for that ridge.

    >>> C, K = torch.diag(torch.tensor([1.0, 0.0])).double(), torch.ones(2, 1).double()
    >>> null_space_spread(C, K, below=0.1, ridge=1.0).round(decimals=6).tolist()
    [[0.0], [0.5]]
    """
    values, vectors = torch.linalg.eigh(C)
    free = vectors[:, values < below]
    if not free.shape[1]:
        raise InputError(
            f"null_space: expected eigenvalues of C below {below}, found none (smallest {float(values[0]):.3g}); "
            "take a larger threshold"
        )
    together = K if earlier is None else torch.cat([earlier.to(K), K], dim=1)
    projected = free @ (free.mT @ together)
    gram = together.mT @ projected + ridge * torch.eye(together.shape[1], dtype=K.dtype, device=K.device)
    factor = factored(gram)
    if factor is None:
        raise InputError(
            f"ridge: expected one that tells the keys of {together.shape[1]} edits apart, found {ridge}; "
            "take a larger one"
        )
    return torch.cholesky_solve(projected.mT, factor).mT[:, -K.shape[1] :]
