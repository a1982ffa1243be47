"""Where the heads of a circuit look, and what they bring from there: attention patterns, and a heat that sums.

1. Heads: those that the circuit names, the `k` of largest |score|.
2. Patterns: each head's whole softmax [query, key], as the model computes it on the attributed tokens.
3. Heat: a head writes v = Σ_pos v_pos (`terms.py`), one term a source position. Its score inc(base, v) is not linear
   in v, so what the positions add *alone* (`head_positions`, the circuit's edges from tokens) overlaps and does not sum
   to it. The heat divides the score itself: it is gathered while v grows from nothing to the whole,

       heat_pos = ∫₀¹ ∇ logp(t | base + α v) · v_pos dα = B_t · v_pos − E_p̄[B v_pos],  p̄ = ∫₀¹ softmax(b + α B v) dα

   with b = B base + c. So Σ_pos heat_pos = inc(base, v): nothing is left over.

Source of the heat: Aumann & Shapley, Values of Non-Atomic Games, 1974; in this field integrated gradients, whose axiom
of completeness the sum is: Sundararajan, Taly & Yan, ICML 2017 (arXiv 1703.01365).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechedit.attribution.frames import summed
from mechedit.attribution.layers import PLACE
from mechedit.attribution.passes import Pass, run_pass
from mechedit.attribution.projection import Projection
from mechedit.attribution.result import Attribution
from mechedit.attribution.units import UNITS, as_code, check_top
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import Hook
from mechedit.models.selfcheck import TOLERANCE
from reports.errors import InputError
from reports.figures import token_heatmap
from reports.plot import Plot, after
from reports.results import Result
from reports.text import visible

__all__ = ["HeadAttention", "divided", "head_attention"]

Head = tuple[int, int]
# Gauss-Legendre: 1e-8 nats while the logits of base and base + v are within 20 of each other, 1e-6 within 50
_NODES = 64


@dataclass(frozen=True, repr=False, eq=False)
class HeadAttention(Result):
    """Where the `k` strongest heads of a circuit look, and what they bring from there.

    With a target of several tokens the heat is the sum over the passes and the patterns are those of the last one.

    Attributes:
        heat: Layer, head, pos, score (nats; over the positions of a head they sum to its score).
        patterns: Layer, head, query, key, weight (positions; 0 where key > query, and 1 in sum over the keys of a
            query).
        heads: Layer, head, score (nats, that of `Attribution.heads`), largest |score| first.
        tokens: One string a position.
        target: The tokens that were scored, as text.
        gap: Σ heat − Σ heads.score, what the integration missed.
        provenance: That of the attribution.
    """

    kind: ClassVar[str] = "head_attention"
    heat: pd.DataFrame
    patterns: pd.DataFrame
    heads: pd.DataFrame
    tokens: tuple[str, ...]
    target: str
    gap: float
    provenance: dict[str, Any] = field(default_factory=dict)

    def plot(self, ax: Any = None) -> Plot:
        """The heat, heads × tokens."""
        title = (
            f"Where heads read {visible(self.target, spaces=True)}, {after(visible(''.join(self.tokens)))}"
        )
        return Plot(token_heatmap(self.heat, self.tokens, ax), title=title)

    def _repr_html_(self) -> str:
        """The heat, tokens × heads, and its sums; all text escaped."""
        names = [f"L{row.layer} H{row.head}" for row in self.heads.itertuples()]
        keys = list(self.heads[["layer", "head"]].itertuples(index=False, name=None))
        table = self.heat.pivot(index="pos", columns=["layer", "head"], values="score")[keys]
        table.columns = pd.Index(names)
        table.insert(0, "all", table.sum(axis=1))
        table.loc[len(self.tokens)] = table.sum()
        table.index = pd.Index([visible(token, spaces=True) for token in self.tokens] + ["sum"])
        title = f"<p><strong>Token heat</strong> of {as_code(self.target)}, nats; gap {self.gap:.1e}</p>"
        shown = table.to_html(escape=True, border=0, float_format=lambda score: f"{score:+.3f}")
        return f"<div>{title}{shown}</div>"


@torch.no_grad()
def head_attention(model: HookedModel, attr: Attribution, *, k: int = 8) -> HeadAttention:
    """Patterns and heat of the strongest heads of a circuit.

    Cost: a forward pass for each scored token and one for the patterns.

    Args:
        model: The attributed model, inside the same edit.
        attr: The attribution.
        k: How many heads.

    Raises:
        InputError: k < 1, or the model is another than the attributed one (its log p differs).

    >>> import mechedit as me
    >>> model = me.load_model("factworld")
    >>> attr = me.attribute(model, "The mother tongue of", " English", top_k=20)
    >>> attention = me.head_attention(model, attr, k=2)
    >>> attention.patterns.groupby(["layer", "head", "query"])["weight"].sum().round(5).unique().tolist()
    [1.0]
    >>> abs(attention.gap) < 1e-5
    True
    """
    check_top(k, "heads", ("heads",))
    passes = _passes(model, attr)
    heads = _strongest(attr, k)
    chosen = list(heads[["layer", "head"]].itertuples(index=False, name=None))
    heat = summed([_heat(forward, chosen) for forward in passes], keys=UNITS["head_positions"])
    return HeadAttention(
        heat=heat,
        patterns=_patterns(model, passes[-1].view.ids, chosen),
        heads=heads,
        tokens=attr.tokens,
        target=attr.target_token,
        gap=float(heat["score"].sum() - heads["score"].sum()),
        provenance=attr.provenance,
    )


def divided(projection: Projection, log_p: Tensor, parts: Tensor, *, target: int) -> Tensor:
    """The heat [n, T] (fp64, nats) of vectors that are sums; row i sums to inc(base_i, Σ_t parts[i, t]).

    Args:
        projection: B.
        log_p: The log-probabilities at each vector's base [n, d_vocab].
        parts: What the vectors are the sums of [n, T, d_model].
        target: Token id.

    >>> B = Projection(W_U=torch.eye(2), scale=torch.ones(2).double(), centre=False, constant=None, sigma=1.0)
    >>> base, parts = B.log_probs(torch.zeros(1, 2)), torch.tensor([[[1.0, 0.0], [0.0, 0.5]]]).double()
    >>> divided(B, base, parts, target=0)
    tensor([[ 0.4381, -0.2191]], dtype=torch.float64)
    """
    moved = projection.directions(parts.sum(dim=1)).double()
    mean, base = torch.zeros_like(moved), log_p.double()
    for node, weight in zip(*np.polynomial.legendre.leggauss(_NODES), strict=True):
        mean += weight / 2 * torch.softmax(base + (node + 1) / 2 * moved, dim=-1)
    gradient = projection.column(target) - projection.expectations(mean.to(projection.dtype))
    return torch.einsum("ntd,nd->nt", parts.double(), gradient)


def _passes(model: HookedModel, attr: Attribution) -> list[Pass]:
    """The attributed forward passes again; `InputError` where they give another log p."""
    scored = attr.target_ids[: attr.n_scored]
    passes = []
    for n, token in enumerate(scored):
        ids = torch.tensor(attr.ids[: attr.prompt_length + n], device=model.device)
        passes.append(run_pass(model, model.residual_view(ids), token, biases=attr.biases))  # type: ignore[arg-type]
    logp = sum(forward.acc.logp for forward in passes)
    if abs(logp - attr.logp) > 10 * TOLERANCE[model.dtype] * max(1.0, abs(logp)):
        raise InputError(
            f"model: expected log p {attr.logp:.4f} of the attribution, found {logp:.4f}: it is another model or "
            "otherwise edited; give the attributed one, inside the same edit"
        )
    return passes


def _strongest(attr: Attribution, k: int) -> pd.DataFrame:
    """layer, head, score of the heads that the circuit names, the k of largest |score|."""
    named = {node["id"] for node in attr.circuit()["nodes"]}
    ids = [f"head:{row.layer}.{row.head}" for row in attr.heads.itertuples()]
    heads = attr.heads[[name in named for name in ids]]
    ranked = heads.sort_values("score", key=abs, ascending=False, kind="stable")
    return ranked.head(k).reset_index(drop=True)


def _heat(forward: Pass, heads: Sequence[Head]) -> pd.DataFrame:
    """layer, head, pos, score of one pass."""
    length = len(forward.view.ids)
    if heads:
        parts = torch.stack([forward.terms[layer].positions(head) for layer, head in heads])
        log_p = forward.acc.log_p[[layer for layer, _ in heads], PLACE["attn"]]
        scores = divided(forward.projection, log_p, parts, target=forward.target).flatten().cpu().numpy()
    else:
        scores = np.zeros(0)
    return pd.DataFrame(
        {
            "layer": np.repeat([layer for layer, _ in heads], length).astype(int),
            "head": np.repeat([head for _, head in heads], length).astype(int),
            "pos": np.tile(np.arange(length), len(heads)),
            "score": scores,
        }
    )


def _patterns(model: HookedModel, ids: Tensor, heads: Sequence[Head]) -> pd.DataFrame:
    """layer, head, query, key, weight, of one forward pass over ids [T]."""
    patterns: dict[int, Tensor] = {}
    layers = sorted({layer for layer, _ in heads})
    hooks: list[Hook] = [(f"blocks.{i}.attn.hook_pattern", partial(_keep, patterns, i)) for i in layers]
    with model.hooks(hooks):
        model.run(*model.pad([ids]), logits_to_keep=1)
    precision = torch.promote_types(model.dtype, torch.float32)
    weights = [patterns[layer][head].to("cpu", precision).flatten().numpy() for layer, head in heads]
    n, length = len(heads), len(ids)
    return pd.DataFrame(
        {
            "layer": np.repeat([layer for layer, _ in heads], length**2).astype(int),
            "head": np.repeat([head for _, head in heads], length**2).astype(int),
            "query": np.tile(np.repeat(np.arange(length), length), n),
            "key": np.tile(np.arange(length), n * length),
            "weight": np.concatenate(weights) if n else np.zeros(0, dtype=np.float32),
        }
    )


def _keep(store: dict[int, Tensor], layer: int, tensor: Tensor, hook: object) -> None:
    """Of the one prompt [1, H, T, T]; a copy, because the model may go on to change a tensor in place."""
    store[layer] = tensor[0].detach().clone()
