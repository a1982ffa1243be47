"""log p of a target in a forward pass without some value neurons: the intervention that tests a static score.

A neuron is ablated where the attribution reads it, at the last position (value neurons of earlier positions, and what
they wrote before the last position looked, stay):

1. FFN neuron (l, i): its activation m_i becomes 0, or m̄_i, its mean over the last positions of other prompts.
2. Attention value neuron (l, h, j, pos): V[pos, h, j], as the last position reads it, becomes 0, or V̄[h, j], its mean
   over all positions of other prompts (source positions of two prompts do not correspond). The weight A[h, last, pos]
   is kept: z[h, j] −= A[h, last, pos] · (V[pos, h, j] − V̄[h, j]). With grouped keys and values only this head loses it.

A and V are those of the ablated pass itself, so that what an ablated neuron did to later layers is undone there too.
Many sets are ablated in one batch, a row each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mechedit.attribution.result import Attribution
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import Hook, in_block, post
from reports.errors import InputError

__all__ = ["Means", "Neurons", "logp_without", "mean_activations", "top_neurons"]


@dataclass(frozen=True)
class Neurons:
    """A set of value neurons.

    Attributes:
        mlp: FFN neurons (layer, neuron).
        attn: Attention value neurons (layer, head, dim, pos).
    """

    mlp: Sequence[tuple[int, int]] = ()
    attn: Sequence[tuple[int, int, int, int]] = ()


@dataclass(frozen=True, eq=False)
class Means:
    """What ablated neurons are set to.

    Attributes:
        mlp: Activations [L, d_mlp].
        attn: Values [L, n_kv_heads, d_head].
    """

    mlp: Tensor
    attn: Tensor


def top_neurons(attr: Attribution, k: int, *, kind: str = "both") -> Neurons:
    """The k best neurons of an attribution, of each kind, or of `kind` "mlp" or "attn" alone."""

    def places(frame: pd.DataFrame, *columns: str) -> list[Any]:
        return list(frame[list(columns)].head(k).astype(int).itertuples(index=False, name=None))

    return Neurons(
        mlp=places(attr.mlp_neurons, "layer", "neuron") if kind != "attn" else [],
        attn=places(attr.attn_neurons, "layer", "head", "dim", "pos") if kind != "mlp" else [],
    )


def mean_activations(model: HookedModel, prompts: Sequence[str]) -> Means:
    """m̄ over the last positions of `prompts`, V̄ over all their positions, each prompt weighing the same.

    Raises:
        InputError: There is no prompt, or a text in the place of a list.

    >>> import mechedit as me
    >>> mean_activations(me.load_model("factworld"), ["The mother tongue of Anna is"]).mlp.shape
    torch.Size([8, 384])
    """
    if isinstance(prompts, str) or not prompts:
        raise InputError(f"prompts: expected a list of at least one text, found {prompts!r}")
    views = [model.residual_view(model.tokenize(prompt)) for prompt in prompts]
    mlp = torch.stack([view.mlp_post[:, -1].double() for view in views]).mean(dim=0)
    attn = torch.stack([view.v.double().mean(dim=1) for view in views]).mean(dim=0)
    return Means(mlp.to(model.dtype), attn.to(model.dtype))


@torch.no_grad()
def logp_without(
    model: HookedModel,
    ids: Tensor,
    target: int,
    *,
    sets: Sequence[Neurons],
    means: Means | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Log p(target | ids) [n] (fp64, nats) without each of the n `sets`; an empty set changes nothing.

    Hooks attached earlier remain active. Cost: a forward pass of `ids` for each set.

    Args:
        model: Any model, under its hooks.
        ids: Token ids of the prompt [T].
        target: Id of the scored token.
        sets: The neurons that are ablated together.
        means: What the neurons are set to; None: zero.
        batch_size: Sets that run together.

    Raises:
        InputError: The model or the prompt does not have a neuron, or a set has one twice.

    >>> import mechedit as me
    >>> model = me.load_model("factworld")
    >>> ids, target = model.continuation("The mother tongue of Anna is", " French")
    >>> logp_without(model, ids, int(target[0]), sets=[Neurons(), Neurons(mlp=[(7, 0), (7, 1)])]).shape
    torch.Size([2])
    """
    for neurons in sets:
        _check(model, neurons, length=len(ids))
    scores = []
    for start in range(0, len(sets), batch_size):
        batch = sets[start : start + batch_size]
        rows = ids.expand(len(batch), -1)
        hooks, patterns = _hooks(model, batch, means)
        with model.hooks(hooks):
            logits = model.run(rows, torch.ones_like(rows), logits_to_keep=1)[0][:, -1]
            # Where a pattern is told only behind its use (GPT-J), the pass before has it, one layer more each time.
            for _ in [one for one in patterns if one.get("late")]:
                logits = model.run(rows, torch.ones_like(rows), logits_to_keep=1)[0][:, -1]
        scores.append(logits.double().log_softmax(dim=-1)[:, target])
    return torch.cat(scores) if scores else torch.empty(0, dtype=torch.float64)


def _hooks(
    model: HookedModel, batch: Sequence[Neurons], means: Means | None
) -> tuple[list[Hook], list[dict[str, Any]]]:
    """The hooks, and what they see of each layer whose attention neurons are taken."""
    patterns: list[dict[str, Any]] = []
    mlp: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    attn: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for row, neurons in enumerate(batch):
        for layer, *place in neurons.mlp:
            mlp[layer].append((row, *place))
        for layer, *place in neurons.attn:
            attn[layer].append((row, *place))
    hooks: list[Hook] = []
    for layer, places in mlp.items():
        row, neuron = torch.tensor(places, device=model.device).T
        value = None if means is None else means.mlp[layer, neuron]
        hooks.append((post(layer), partial(_set_mlp, row, neuron, value)))
    group = model.shape.n_heads // model.shape.n_kv_heads
    for layer, places in attn.items():
        row, head, dim, pos = torch.tensor(places, device=model.device).T
        mean = None if means is None else means.attn[layer, head // group, dim]
        seen: dict[str, Any] = {}
        patterns.append(seen)
        hooks += [
            (in_block(layer, "attn.hook_v"), partial(_keep, seen, "v")),
            (in_block(layer, "attn.hook_pattern"), partial(_keep, seen, "A")),
            (in_block(layer, "attn.hook_z"), partial(_take_values, (row, head, dim, pos), group, mean, seen)),
        ]
    return hooks, patterns


def _set_mlp(row: Tensor, neuron: Tensor, value: Tensor | None, acts: Tensor, hook: object) -> Tensor:
    changed = acts.clone()
    changed[row, -1, neuron] = 0.0 if value is None else value.to(acts)
    return changed


def _keep(seen: dict[str, Any], name: str, tensor: Tensor, hook: object) -> None:
    seen[name] = tensor


def _take_values(
    place: tuple[Tensor, ...],
    group: int,
    mean: Tensor | None,
    seen: dict[str, Any],
    z: Tensor,
    hook: object,
) -> Tensor | None:
    if "A" not in seen:
        seen["late"] = True
        return None
    row, head, dim, pos = place
    v = seen["v"][row, pos, head // group, dim]
    excess = v if mean is None else v - mean.to(v)
    last = torch.full_like(row, z.shape[1] - 1)
    taken = -seen["A"][row, head, last, pos] * excess
    return z.clone().index_put_((row, last, head, dim), taken.to(z), accumulate=True)


def _check(model: HookedModel, neurons: Neurons, *, length: int) -> None:
    s = model.shape
    for kind, bounds in (
        ("mlp", (s.n_layers, s.d_mlp)),
        ("attn", (s.n_layers, s.n_heads, s.d_head, length)),
    ):
        places = list(getattr(neurons, kind))
        if len(set(places)) != len(places):
            raise InputError(f"sets: an {kind} neuron occurs twice in one set; give each once")
        for place in places:
            if len(place) != len(bounds) or not all(0 <= i < n for i, n in zip(place, bounds, strict=True)):
                raise InputError(f"sets: expected {kind} neurons below {bounds}, found {place}")
