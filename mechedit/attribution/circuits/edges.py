"""The edges of a circuit below its value neurons: value neuron ← query neuron ← embedding.

Source: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 3, for what a value neuron reads (`keys.py`).

1. `read`: the share of a source in what the receiver reads, (c · k) / (x · k). Exact: take the source out of the
   receiver's input, with the norm's scale held still, and the read falls by this share. A gated FFN neuron has two
   reads, `read` of the up key and `read_gate`. There is no guard: a share can be large or negative.
2. `fraction`: by how much the receiver's coefficient falls then, Σ_keys slope · (c · k); first order in c.
   Exact for attention value neurons, whose coefficient is linear in the read.
3. `score` = fraction · the receiver's score, in nats. First order in c; and the receiver's score is taken as linear
   in its coefficient. That is exact where none or all of the coefficient is gone. Between these a receiver that
   promotes loses at most this, for inc is concave in the coefficient.
4. Query neurons are receivers too, of the embedding at their position; their score is the sum of their edges.

Of all (FFN neuron, value neuron) pairs the `EDGES` largest |score| are kept, of attention and of FFN value neurons.
The scores that `query.py` ranks by are read shares, as published; the edges' scores also know the activation's slope.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mechedit.attribution.circuits.keys import Keys, mlp_keys
from mechedit.attribution.circuits.query import Source
from mechedit.attribution.ranking.neurons import Ranked
from mechedit.models.hooked import HookedModel
from mechedit.models.residual import ResidualView

__all__ = ["EDGES", "read_edges"]

#: How many edges from query neurons to value neurons of either kind a result holds.
EDGES = 100
_COLUMNS = ("source", "source_layer", "source_neuron", "pos", "target", "layer", "head", "dim", "neuron")


def read_edges(
    model: HookedModel,
    view: ResidualView,
    attn: Ranked,
    mlp: Ranked,
    keys: Keys,
    sources: Sequence[Source],
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The edges as a frame, and how much was left out.

    Args:
        model: The model, as it is now.
        view: The forward pass.
        attn: Attention value neurons.
        mlp: FFN value neurons.
        keys: Centred, of `attn` and then of `mlp`.
        sources: All that the keys read.

    Returns:
        The frame: source ("embed" | "mlp"), source_layer and source_neuron (−1 for the embedding), pos (where it is
        read), target ("attn" | "mlp": a value neuron, "query": an FFN neuron that is a source), layer, head, dim,
        neuron (−1 where the target has none), read, read_gate (NaN where there is one key), fraction, score,
        target_score. And the account of the edges from query neurons: edges (kept), edges_total, total (the |score| of
        all of them, by the kind of their value neuron: "attn", "mlp").
    """
    owner = _owner(len(attn.score), len(mlp.score), keys)
    scores = torch.cat([attn.score, mlp.score]).to(keys.score)
    kinds = {"attn": range(len(attn.score)), "mlp": range(len(attn.score), len(scores))}
    strongest = {kind: _strongest(sources, keys, owner, scores, of=of) for kind, of in kinds.items()}
    picked = [edges for kept, _, _ in strongest.values() for edges in kept]
    names = _names(attn, mlp, length=len(view.ids), width=model.shape.d_head)
    embed = sources[0].read[None]
    values = torch.arange(len(scores), device=owner.device)
    parts = [
        _rows(embed, values * 0, values, keys, owner, scores) | {"source": "embed"} | _pick(names, values)
    ]
    parts[0] |= {"source_layer": -1, "source_neuron": [-1] * len(values)}
    for source, unit, value in picked:
        assert source.neurons is not None
        rows = _rows(source.neurons, unit, value, keys, owner, scores) | _pick(names, value)
        parts.append(rows | {"source": "mlp", "source_layer": source.layer, "source_neuron": unit.tolist()})
    for part in parts:
        part |= {name: [part[name]] * len(part["pos"]) for name in ("source", "source_layer")}
    frame = pd.DataFrame({name: [value for part in parts for value in part[name]] for name in parts[0]})
    frame = pd.concat([frame, _query_rows(model, view, frame)], ignore_index=True)
    account = {
        "edges": int((frame["source"] == "mlp").sum()),
        "edges_total": sum(count for _, count, _ in strongest.values()),
        "total": {kind: total for kind, (_, _, total) in strongest.items()},
    }
    return frame[[*_COLUMNS, "read", "read_gate", "fraction", "score", "target_score"]], account


def _owner(n_attn: int, n_mlp: int, keys: Keys) -> Tensor:
    """Which value neuron each key belongs to, attention ones first."""
    times = (len(keys.score) - n_attn) // max(1, n_mlp)
    return torch.cat([torch.arange(n_attn), n_attn + torch.arange(n_mlp).repeat(times)]).to(keys.pos.device)


def _strongest(
    sources: Sequence[Source], keys: Keys, owner: Tensor, scores: Tensor, *, of: range
) -> tuple[list[tuple[Source, Tensor, Tensor]], int, float]:
    """The `EDGES` of largest |score| to the value neurons `of`; how many there are that are not 0, and their sum.

    The edges by layer: the source, which of its neurons, which value neurons.
    """
    total, count, n = 0.0, 0, len(of)
    best: list[tuple[Source, Tensor, Tensor]] = []
    read = (owner >= of.start) & (owner < of.stop)  # the keys of one value neuron lie n apart
    weight = (keys.slope * scores[owner])[read]
    for source in sources:
        if source.neurons is None:
            continue
        size = (source.neurons[:, read] * weight.to(source.neurons)).unflatten(1, (-1, n)).sum(dim=1).abs_()
        total += float(size.sum(dtype=torch.float64))
        count += int(size.count_nonzero())
        best.append((source, *size.flatten().topk(min(EDGES, size.numel()))))
    candidates = torch.cat([sizes for _, sizes, _ in best])
    least = candidates.topk(min(EDGES, len(candidates))).values[-1]
    kept = [(source, place[(sizes >= least) & (sizes > 0)]) for source, sizes, place in best]
    return [(source, place // n, of.start + place % n) for source, place in kept if len(place)], count, total


def _fold(per_key: Tensor, owner: Tensor, n: int) -> Tensor:
    """[rows, n] from [rows, keys]: summed over the keys of each value neuron."""
    return per_key.new_zeros(len(per_key), n).index_add_(1, owner, per_key)


def _rows(
    reads: Tensor, unit: Tensor, value: Tensor, keys: Keys, owner: Tensor, scores: Tensor
) -> dict[str, Any]:
    """The columns with numbers of edges from rows `unit` of `reads` [rows, keys] to the value neurons `value`."""
    reads = reads[unit].double()
    edge = torch.arange(len(unit), device=owner.device)
    fraction = _fold(reads * keys.slope, owner, len(scores))[edge, value]
    owned = owner[None] == torch.arange(len(scores), device=owner.device)[:, None]
    first, last = owned.int().argmax(1), owned.shape[1] - 1 - owned.flip(1).int().argmax(1)
    share = reads / keys.read
    gate = torch.where(first == last, torch.nan, 1.0)[value] * share[edge, last[value]]
    return {
        "pos": keys.pos[first[value]].tolist(),
        "read": share[edge, first[value]].tolist(),
        "read_gate": gate.tolist(),
        "fraction": fraction.tolist(),
        "score": (fraction * scores[value]).tolist(),
        "target_score": scores[value].tolist(),
    }


def _names(attn: Ranked, mlp: Ranked, *, length: int, width: int) -> dict[str, list[Any]]:
    """The columns that name the value neurons, attention ones first."""
    head, dim, _ = attn.places(width=width, length=length)
    n_attn, n_mlp = len(attn.score), len(mlp.score)
    return {
        "target": ["attn"] * n_attn + ["mlp"] * n_mlp,
        "layer": attn.layer.tolist() + mlp.layer.tolist(),
        "head": head.tolist() + [-1] * n_mlp,
        "dim": dim.tolist() + [-1] * n_mlp,
        "neuron": [-1] * n_attn + mlp.index.tolist(),
    }


def _pick(names: dict[str, list[Any]], value: Tensor) -> dict[str, Any]:
    return {name: [column[i] for i in value.tolist()] for name, column in names.items()}


def _query_rows(model: HookedModel, view: ResidualView, frame: pd.DataFrame) -> pd.DataFrame:
    """What the embedding is to each query neuron: step 4."""
    from_ffn = frame[frame["source"] == "mlp"]
    place = ["source_layer", "source_neuron", "pos"]
    queries = from_ffn.groupby(place, sort=False, as_index=False)["score"].sum()
    if queries.empty:
        return frame.head(0)
    device = view.resid_pre_all.device
    layer, neuron, pos = (torch.tensor(queries[name].tolist(), device=device) for name in place)
    scores = torch.tensor(queries["score"].tolist(), dtype=torch.float64, device=device)
    keys = mlp_keys(model, view, Ranked(scores, layer, neuron), centre=True, pos=pos)
    embed = (view.resid_pre_all[0, keys.pos].double() * keys.key.double()).sum(dim=1)
    values = torch.arange(len(scores), device=device)
    rows = _rows(embed[None], values * 0, values, keys, _owner(0, len(scores), keys), scores)
    target = {"target": "query", "layer": layer.tolist(), "head": -1, "dim": -1, "neuron": neuron.tolist()}
    return pd.DataFrame(rows | target | {"source": "embed", "source_layer": -1, "source_neuron": -1})
