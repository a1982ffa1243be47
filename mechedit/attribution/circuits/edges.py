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
from mechedit.attribution.circuits.writers import NeuronReading, Readers
from mechedit.attribution.ranking.neurons import Ranked
from mechedit.attribution.terms import LayerTerms
from mechedit.models.hooked import HookedModel
from mechedit.models.residual import ResidualView

__all__ = ["EDGES", "Edges"]

#: How many edges from query neurons to value neurons of either kind a result holds.
EDGES = 100
_COLUMNS = ("source", "source_layer", "source_neuron", "pos", "target", "layer", "head", "dim", "neuron")
_NUMBERS = ("read", "read_gate", "fraction", "score", "target_score")
_Columns = dict[str, list[Any]]


class Edges:
    """The edges below the value neurons of one pass; `read_neurons` has to give `readings` what they ask for.

    Args:
        attn: Attention value neurons.
        mlp: FFN value neurons.
        keys: Centred, of `attn` and then of `mlp`.
    """

    def __init__(self, attn: Ranked, mlp: Ranked, keys: Keys) -> None:
        self._attn, self._mlp = attn, mlp
        scores = torch.cat([attn.score, mlp.score]).to(keys.score)
        self._receivers = _Receivers(keys, scores, n_attn=len(attn.score))
        of_kinds = self._receivers.every.split([len(attn.score), len(mlp.score)])
        tangents = self._receivers.tangents()
        self._strongest = [_Strongest(keys, tangents, of_kind) for of_kind in of_kinds]

    @property
    def readings(self) -> Sequence[NeuronReading]:
        """What has to be read of FFN neurons, by the kind of the value neuron."""
        return self._strongest

    def frame(
        self, model: HookedModel, view: ResidualView, terms: Sequence[LayerTerms]
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The edges as a frame, and how much was left out.

        Args:
            model: The model, as it is now.
            view: The forward pass.
            terms: Those of all layers.

        Returns:
            The frame: source ("embed" | "mlp"), source_layer and source_neuron (−1 for the embedding), pos (where it is
            read), target ("attn" | "mlp": a value neuron, "query": an FFN neuron that is a source), layer, head, dim,
            neuron (−1 where the target has none), read, read_gate (NaN where there is one key), fraction, score,
            target_score. And the account of the edges from query neurons: edges (kept), edges_total, total (the |score|
            of all of them, by the kind of their value neuron: "attn", "mlp").
        """
        receivers, every = self._receivers, self._receivers.every
        pos = receivers.keys.pos
        names = _names(self._attn, self._mlp, length=len(view.ids), width=model.shape.d_head)
        parts = [receivers.rows(_embedding(view, pos[every]), every) | _EMBED | _pick(names, every)]
        for best in self._strongest:
            layer, unit, value = best.edges()
            rows = receivers.rows(_written(model, view, terms, layer, unit, pos[value]), value)
            source = {"source": "mlp", "source_layer": layer.tolist(), "source_neuron": unit.tolist()}
            parts.append(rows | source | _pick(names, value))
        frame = _frame(parts)
        frame = pd.concat([frame, _query_rows(model, view, frame)], ignore_index=True)
        sums = torch.stack([best.total for best in self._strongest])
        account = {
            "edges": int((frame["source"] == "mlp").sum()),
            "edges_total": int(sums[:, 1].sum()),
            "total": dict(zip(("attn", "mlp"), sums[:, 0].tolist(), strict=True)),
        }
        return frame, account


#: The columns of an edge from the embedding.
_EMBED = {"source": "embed", "source_layer": -1, "source_neuron": -1}


class _Receivers:
    """n value neurons with the keys that they read with: number i has key i, a gated FFN's another one behind all."""

    def __init__(self, keys: Keys, scores: Tensor, *, n_attn: int) -> None:
        n, self.keys, self.scores = len(scores), keys, scores
        self.every = torch.arange(n, device=scores.device)
        self.gate = torch.where(self.every >= n_attn, self.every + len(keys.pos) - n, self.every)
        self.gated = self.gate != self.every
        self.read = keys.read

    def tangents(self) -> Tensor:
        """`score · Σ_keys slope · k` [n, d_model], fp64: what gives an edge's score."""
        sloped = self.keys.slope[:, None] * self.keys.key.double()
        return self.scores[:, None] * (sloped[self.every] + self.gated[:, None] * sloped[self.gate])

    def rows(self, wrote: Tensor, value: Tensor) -> dict[str, Any]:
        """The columns with numbers of edges from what was written [m, d_model], fp64, to the receivers `value` [m]."""
        keys, gated = self.keys, self.gated[value]
        other = self.gate[value]
        read, gate = ((wrote * keys.key[own].double()).sum(dim=1) for own in (value, other))
        fraction = keys.slope[value] * read + torch.where(gated, keys.slope[other] * gate, 0.0)
        return {
            "pos": keys.pos[value].tolist(),
            "read": (read / self.read[value]).tolist(),
            "read_gate": torch.where(gated, gate / self.read[other], torch.nan).tolist(),
            "fraction": fraction.tolist(),
            "score": (fraction * self.scores[value]).tolist(),
            "target_score": self.scores[value].tolist(),
        }


class _Strongest:
    """The `EDGES` of largest |score| to some receivers, of all pairs with an FFN neuron that lies before them.

    Args:
        keys: Those of all receivers.
        tangents: Likewise (`_Receivers.tangents`).
        value: Which receivers [n].
    """

    def __init__(self, keys: Keys, tangents: Tensor, value: Tensor) -> None:
        self._value = value
        self._key, self._pos, self._layer = tangents[value], keys.pos[value], keys.layer[value]
        self._size = self._key.new_zeros(0)
        self._edge = value.new_zeros(3, 0)
        self.total = torch.zeros(2, dtype=torch.float64, device=value.device)  # Σ |score|; how many are not 0

    def readers(self, layer: int) -> Readers:
        """`NeuronReading.readers`."""
        return Readers(self._key * (self._layer > layer)[:, None], self._pos)

    def take(self, layer: int, reads: Tensor) -> None:
        """`NeuronReading.take`."""
        size = reads.abs_()
        self.total += torch.stack([size.sum(dtype=torch.float64), size.count_nonzero()])
        least = self._size[-1] if len(self._size) == EDGES else 0.0
        unit = (size.amax(dim=0) > least).nonzero()[:, 0] if len(size) else self._value[:0]
        chosen, value = size[:, unit].T.gt(least).nonzero().unbind(1)
        unit = unit[chosen]
        edge = torch.stack([torch.full_like(unit, layer), unit, self._value[value]])
        sizes = torch.cat([self._size, size[value, unit].to(self._size)])
        self._size, kept = sizes.topk(min(EDGES, len(sizes)))
        self._edge = torch.cat([self._edge, edge], dim=1)[:, kept]

    def edges(self) -> Tensor:
        """Layer, neuron and receiver [3, m], by layer, and within it the largest first."""
        return self._edge[:, self._edge[0].sort(stable=True).indices]


def _embedding(view: ResidualView, pos: Tensor) -> Tensor:
    """What the embedding wrote at positions [n], [n, d_model]."""
    return view.resid_pre_all[0, pos].double()


def _written(
    model: HookedModel,
    view: ResidualView,
    terms: Sequence[LayerTerms],
    layer: Tensor,
    unit: Tensor,
    pos: Tensor,
) -> Tensor:
    """What FFN neurons wrote at positions [m], [m, d_model], fp64."""
    wrote = pos.new_zeros(len(unit), view.resid_pre_all.shape[-1], dtype=torch.float64)
    for i in layer.unique().tolist():
        edges = (layer == i).nonzero()[:, 0]
        directions, units, there = terms[i].mlp.directions, unit[edges], pos[edges]
        rows = directions[units.to(directions.device)].to(wrote)
        coefficients = view.mlp_post[i, there, units].double()
        wrote[edges] = view.mlp_gain(model, i, there)(coefficients[:, None] * rows)
    return wrote


def _names(attn: Ranked, mlp: Ranked, *, length: int, width: int) -> _Columns:
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


def _pick(names: _Columns, value: Tensor) -> _Columns:
    return {name: [column[i] for i in value.tolist()] for name, column in names.items()}


def _frame(parts: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows of several parts; what is no list holds for all rows of its part."""
    names = (*_COLUMNS, *_NUMBERS)
    columns: _Columns = {name: [] for name in names}
    for part in parts:
        for name in names:
            values = part[name]
            columns[name] += values if isinstance(values, list) else [values] * len(part["pos"])
    return pd.DataFrame(columns)


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
    receivers = _Receivers(keys, scores, n_attn=0)
    rows = receivers.rows(_embedding(view, pos), receivers.every)
    target = {"target": "query", "layer": layer.tolist(), "head": -1, "dim": -1, "neuron": neuron.tolist()}
    return _frame([rows | target | _EMBED])
