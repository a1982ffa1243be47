"""Query neurons and layers: which earlier FFN neurons, and which layers, switch the best value neurons on.

Source: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 3; what a value neuron reads is in `keys.py`.

1. The `N_VALUES` best value neurons of a kind (attention, FFN), with scores s, read x · k.
2. Every FFN neuron (l', i) that lies before one, at the position it reads, gets
   `q += s · (m_i^{l'}[pos] · W_out^{l'}[i] · k) / (x · k)`, summed over the value neurons. Of a gated value
   neuron the up and the gate key take a half of s each.
3. Query layers: the same ratio for what a whole sub-layer wrote there, and for the embedding. These are all
   sources, so their shares sum to 1 and the scores to Σ s. An FFN value neuron reads behind its own layer's
   attention, which is one of its sources. What a hook added is a row of its own ("steer", "steer_mlp").
4. The denominator can be negative or nearly zero, and then one value neuron dominates the ranking. Guard [our
   choice]: its size is floored at `GUARD` · ‖x‖ · ‖k‖, sign kept; then shares sum to less than 1. The guard is off with
   `biases="drop"`, which reproduces the reference; keys are not centred there either.

Cost: one product of W_out and one of W_O with all keys a layer; no loop over neurons. Wrong as a mechanism where
the denominator is negative (the shares of a negative whole): read it beside the counts in the certificate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechedit.attribution.circuits.keys import GUARD, Keys
from mechedit.attribution.ranking.neurons import Ranked, Sign
from mechedit.attribution.terms import LayerTerms, product
from mechedit.models.hooked import HookedModel
from mechedit.models.outlets import Gain
from mechedit.models.residual import ResidualView

__all__ = ["N_VALUES", "Source", "key_account", "key_weights", "layer_reads", "query_layers", "query_neurons"]

N_VALUES = 30
# A rest of this many units in the last place of the sizes that were added up is rounding, not an intervention.
_ULPS, _ULPS_HALF = 64, 8


@dataclass(frozen=True, eq=False)
class Source:
    """One sub-layer as the keys read it.

    Attributes:
        layer: Which layer; −1 for the embedding.
        module: As in `Attribution.query_layers`.
        read: c · k of what the sub-layer wrote [n], fp64; 0 for keys before it.
        neurons: Of an FFN, c · k of what each neuron wrote [d_mlp, n].
    """

    layer: int
    module: str
    read: Tensor
    neurons: Tensor | None = None


def layer_reads(
    model: HookedModel, view: ResidualView, terms: Sequence[LayerTerms], keys: Keys
) -> list[Source]:
    """All sources of what the keys read, in the order of the computation; the reads of one key sum to x · k."""
    k = keys.key.double()
    sources = [Source(-1, "embed", (view.resid_pre_all[0, keys.pos].double() * k).sum(dim=1))]
    for term in terms:
        i = term.layer
        x_pre, x_mid = (part[i, keys.pos].double() for part in (view.resid_pre_all, view.resid_mid_all))
        gain, outlet = view.attn_gain(model, i, keys.pos), model.attn_outlet(i)
        attn = _neurons(term.attn.directions, view.z[i, keys.pos], keys, keys.after(i, attention=True), gain)
        added = ((x_mid - x_pre) * k).sum(dim=1)
        sources += _split(
            term, "attn", keys, added, attn, _constant(k, gain, model.b_O(i), outlet.shift), x=x_mid
        )
        if i + 1 == len(terms):  # nothing reads the last FFN
            nothing = attn.new_zeros(len(term.mlp.directions), len(keys.pos))
            return [*sources, Source(i, "mlp", torch.zeros_like(added), nothing)]
        after = view.resid_pre_all[i + 1, keys.pos].double()
        gain, outlet = view.mlp_gain(model, i, keys.pos), model.mlp_outlet(i)
        mlp = _neurons(
            term.mlp.directions, view.mlp_post[i, keys.pos], keys, keys.after(i, attention=False), gain
        )
        added = ((after - x_mid) * k).sum(dim=1)
        sources += _split(
            term, "mlp", keys, added, mlp, _constant(k, gain, model.b_out(i), outlet.shift), x=after
        )
    return sources


def query_neurons(
    sources: Sequence[Source], weights: Tensor, *, k: int | None, sign: Sign
) -> tuple[Ranked, Ranked]:
    """The best FFN neurons by step 2, for attention and for FFN value neurons.

    Args:
        sources: All of them.
        weights: Those of the keys, as `key_weights` gives them.
        k: How many; None: all.
        sign: Whether the largest or the lowest scores are the best.
    """
    scored = [(ffn.layer, ffn.neurons.double() @ weights) for ffn in sources if ffn.neurons is not None]
    kinds = [[Ranked.of_layer(layer, scores[:, kind]) for layer, scores in scored] for kind in (0, 1)]
    attn, mlp = (Ranked.best(parts, k=k, sign=sign) for parts in kinds)
    return attn, mlp


def query_layers(sources: Sequence[Source], weights: Tensor) -> list[tuple[int, str, float, float]]:
    """Layer, module and step 3's score for attention and for FFN value neurons, in the order of the computation."""
    return [(source.layer, source.module, *(source.read @ weights).tolist()) for source in sources]


def key_weights(keys: Keys, *, guard: bool) -> Tensor:
    """The weights s / (x · k) [n, 2] of the keys of attention value neurons (column 0) and of FFN ones (column 1).

    In the column of the other kind a key's weight is 0.
    """
    weight = keys.score * keys.weight / keys.denominators(guard=guard)
    return torch.stack([torch.where(keys.mid, 0.0, weight), torch.where(keys.mid, weight, 0.0)], dim=1)


def key_account(keys: Keys, of: Tensor, *, guard: bool) -> dict[str, Any]:
    """How the denominators of some keys are.

    Args:
        keys: All keys.
        of: Which of them are counted [n], bool.
        guard: Whether the guard is on.

    Returns:
        values (how many value neurons were used), keys, negative and below_guard (how many keys are so, whether or not
        the guard is on) and guard.
    """
    return {
        "values": round(float(keys.weight[of].sum())),
        "keys": int(of.sum()),
        "negative": int((keys.read < 0)[of].sum()),
        "below_guard": int((keys.read.abs() < keys.least)[of].sum()),
        "guard": GUARD if guard else 0.0,
    }


def _neurons(directions: Tensor, coefficients: Tensor, keys: Keys, sees: Tensor, gain: Gain) -> Tensor:
    """`G(c_i · W[i]) · k` [rows, n] of coefficients [n, rows] at the keys' positions; 0 for keys that lie before."""
    key = gain.pull(keys.key)
    if bool(sees.all()):
        reads = product(directions, key.T)
        return reads.mul_(coefficients.T)
    out = keys.key.new_zeros(len(directions), len(sees))
    if bool(sees.any()):
        out[:, sees] = product(directions, key[sees].T).mul_(coefficients[sees].T).to(out)
    return out


def _constant(k: Tensor, gain: Gain, bias: Tensor | None, shift: Tensor | None) -> Tensor | float:
    """What keys k [n, d_model] read of a sub-layer's bias and of its norm's, [n]."""
    read = 0.0 if bias is None else gain.pull(k) @ bias.to(k)
    return read if shift is None else read + k @ shift.to(k)


def _split(
    term: LayerTerms,
    module: str,
    keys: Keys,
    added: Tensor,
    neurons: Tensor,
    constant: Tensor | float,
    *,
    x: Tensor,
) -> list[Source]:
    """What was `added` [n] as the sub-layer's own read and what a hook put on top; 0 where a key lies before."""
    sees = keys.after(term.layer, attention=module == "attn").to(added)
    read = neurons.sum(dim=0, dtype=torch.float64) + sees * constant
    added = added * sees
    size = neurons.norm(1, dim=0).double() + x.norm(dim=1) * keys.key.double().norm(dim=1)
    limit = _limit(term) * sees * size
    kept = neurons if module == "mlp" else None
    if bool(((added - read).abs() <= limit).all()):
        return [Source(term.layer, module, added, kept)]
    steer = "steer" if module == "attn" else "steer_mlp"
    return [Source(term.layer, module, read, kept), Source(term.layer, steer, added - read)]


def _limit(term: LayerTerms) -> float:
    precision = torch.finfo(term.attn.directions.dtype)
    return (_ULPS if precision.bits > 16 else _ULPS_HALF) * precision.eps
