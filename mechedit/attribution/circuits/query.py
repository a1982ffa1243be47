"""Query layers: what wrote that which the best value neurons read, and by how much it switches them on.

Source: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 3; what a value neuron reads is in `keys.py`.

1. The `N_VALUES` best value neurons of a kind (attention, FFN), with scores s, read x · k.
2. A source with output c that lies before one, at the position it reads, gets `s · (c · k) / (x · k)`, summed over the
   value neurons. Of a gated value neuron the up and the gate key take a half of s each.
3. Sources are the embedding and what each sub-layer wrote there: these are all, so their shares sum to 1 and the scores
   to Σ s. An FFN value neuron reads behind its own layer's attention, which is one of its sources. What a hook added is
   a row of its own ("steer", "steer_mlp"). Single FFN neurons as sources are in `writers.py`.
4. The denominator can be negative or nearly zero, and then one value neuron dominates the ranking. Guard [our
   choice]: its size is floored at `GUARD` · ‖x‖ · ‖k‖, sign kept; then shares sum to less than 1. The guard is off with
   `biases="drop"`, which reproduces the reference; keys are not centred there either.

Wrong as a mechanism where the denominator is negative (the shares of a negative whole): read it beside the counts in
the certificate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechedit.attribution.circuits.keys import GUARD, Keys
from mechedit.attribution.terms import Kind, LayerTerms, own_and_steering
from mechedit.models.hooked import HookedModel
from mechedit.models.residual import ResidualView

__all__ = ["N_VALUES", "Source", "key_account", "key_weights", "layer_reads", "query_layers"]

N_VALUES = 30
_MODULES = ("attn", "steer", "mlp", "steer_mlp")
_Parts = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, eq=False)
class Source:
    """One sub-layer as the keys read it.

    Attributes:
        layer: Which layer; −1 for the embedding.
        module: As in `Attribution.query_layers`.
        read: c · k of what the sub-layer wrote [n], fp64; 0 for keys before it.
    """

    layer: int
    module: str
    read: Tensor


def layer_reads(
    model: HookedModel, view: ResidualView, terms: Sequence[LayerTerms], keys: Keys
) -> list[Source]:
    """All sources of what the keys read, in the order of the computation; the reads of one key sum to x · k."""
    positions, place = keys.pos.unique(return_inverse=True)
    names, wrote, sees = [(-1, "embed")], [view.resid_pre_all[0, positions].double()], [keys.layer >= 0]
    for term in terms:
        is_last = term.layer + 1 == len(terms)  # nothing reads the last FFN
        ffn = (wrote[0] * 0, None) if is_last else _wrote(model, view, term, positions, "mlp")
        parts = dict(zip(_MODULES, (*_wrote(model, view, term, positions, "attn"), *ffn), strict=True))
        for module, part in parts.items():
            if part is not None:
                names.append((term.layer, module))
                wrote.append(part)
                sees.append(keys.after(term.layer, attention=module in ("attn", "steer")))
    reads = torch.stack(wrote) @ keys.key.double().T
    reads = reads[:, place, torch.arange(len(place), device=place.device)] * torch.stack(sees)
    return [Source(*name, read) for name, read in zip(names, reads, strict=True)]


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


def _wrote(model: HookedModel, view: ResidualView, term: LayerTerms, pos: Tensor, kind: Kind) -> _Parts:
    """What a sub-layer wrote at positions pos [P], and what a hook put on top, [P, d_model] each."""
    i = term.layer
    if kind == "attn":
        before, after, weights, bias = view.resid_pre_all[i], view.resid_mid_all[i], view.z[i], model.b_O(i)
        gain, outlet = view.attn_gain(model, i, pos), model.attn_outlet(i)
    else:
        before, after = view.resid_mid_all[i], view.resid_pre_all[i + 1]
        weights, bias = view.mlp_post[i], model.b_out(i)
        gain, outlet = view.mlp_gain(model, i, pos), model.mlp_outlet(i)
    stream, directions = after[pos].double(), getattr(term, kind).directions
    added = stream - before[pos].double()
    return own_and_steering(
        added, directions, weights[pos], bias, gain=gain, shift=outlet.shift, stream=stream
    )
