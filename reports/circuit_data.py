"""The circuit of an attribution, as data: value neurons ← query neurons ← embedding, on tokens → heads → target.

Source of the scores: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141); the choice of what to show is ours.

1. The units are the heads at their source positions and the FFN value neurons that the result holds.
2. They are ranked by |score| and kept until their |score| makes up `share` of all units' |score|, `max_units`
   at most. The share that was reached is stated.
3. Each kept head is a node with its own score and an edge to the target; a kept source position is an edge
   from its token. Each kept neuron is a node with an edge to the target and what it promotes.
4. Edges from query neurons (`edges.py`) to kept FFN value neurons and to attention value neurons of kept heads
   are kept in the same way, `max_edges` of either kind at most: `query_share` of the |score| of all pairs of an
   FFN neuron and a value neuron, those that the result does not hold among them. An attention value neuron with
   a kept edge is a node that leads to its head; a query neuron is a node with the sum of its kept edges as score.
5. The embedding has an edge to every query and value neuron of step 4.
6. Never pruned: the embedding, an edge from the last token to the target, and any steering term.

How far an edge can be trusted: into the target and into heads, the score is what the unit adds alone, exactly, with
the final norm held still (scores of units overlap). From a query neuron or a token into a neuron, `read` (of a gated
neuron also `read_gate`) is the share of what the receiver reads, exactly, and the score is first order in the source
(`edges.py`). With a target of several tokens, reads are those of the last pass.

The picture is drawn from this graph elsewhere (`reports.circuit`), and so is the viewers' file (`reports.viewer`).
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import pandas as pd

from reports.errors import InputError

__all__ = ["SCHEMA_VERSION", "build_circuit"]

SCHEMA_VERSION = 2
_TARGET = "target"


class ScoredUnits(Protocol):
    """What a circuit reads of a result (`mechedit.attribution.result.Attribution` says what each is)."""

    @property
    def ids(self) -> tuple[int, ...]: ...
    @property
    def tokens(self) -> tuple[str, ...]: ...
    @property
    def target_id(self) -> int: ...
    @property
    def target_token(self) -> str: ...
    @property
    def logp(self) -> float: ...
    @property
    def embedding_logp(self) -> float: ...
    @property
    def prior_logp(self) -> float: ...
    @property
    def layers(self) -> pd.DataFrame: ...
    @property
    def heads(self) -> pd.DataFrame: ...
    @property
    def head_positions(self) -> pd.DataFrame: ...
    @property
    def mlp_neurons(self) -> pd.DataFrame: ...
    @property
    def reads(self) -> pd.DataFrame: ...
    @property
    def promotes(self) -> pd.DataFrame: ...
    @property
    def certificate(self) -> dict[str, Any]: ...
    @property
    def provenance(self) -> dict[str, Any]: ...


def build_circuit(attr: ScoredUnits, *, share: float, max_units: int, max_edges: int) -> dict[str, Any]:
    """The graph as plain data, for `json.dumps`.

    Keys: schema_version, kind "attribution_circuit", model (name), target and prompt (text), tokens, ids, target_id,
    logp (nats), share (of the units' |score| that is kept), share_asked, units (kept), units_total, query_share,
    query_edges (kept), query_edges_total, nodes (id, kind, layer, pos, label, score, promotes), edges (source, target,
    score in nats, read, read_gate: a share or None).
    Kinds: "token" (layer -1, pos, score 0), "head", "neuron" (FFN value neuron, promotes: a list of strings), "value"
    (attention value neuron, pos), "query" (FFN neuron at pos), "target" (layer n_layers, score: its log-probability).
    A query neuron at the last position that is a kept value neuron too is one node, a "neuron". A steering term has
    the id "steer:l" ("steer_mlp:l"), the label "steering" and the kind "head" ("mlp") of the sub-layer that it was
    added to. Ids are keyed by position, not by text: equal tokens are different nodes.

    Args:
        attr: The result.
        share: Of the units' |score| that is to be kept.
        max_units: How many units are kept at most.
        max_edges: How many edges from query neurons are kept at most, of either kind of value neuron.

    Raises:
        InputError: Not 0 < share <= 1, max_units < 1 or max_edges < 0.
    """
    if not 0 < share <= 1:
        raise InputError(f"share: expected a number above 0 and at most 1, found {share!r}")
    for name, value, least in (("max_units", max_units, 1), ("max_edges", max_edges, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}: expected an integer of at least {least}, found {value!r}")
    positions, neurons, account = _kept_units(attr, share=share, max_units=max_units)
    below = _Below(attr, _kept_edges(attr, positions, neurons, share=share, max_edges=max_edges), neurons)
    nodes = _token_nodes(attr, {int(pos) for pos in positions["pos"]} | below.positions())
    units = _head_nodes(attr, positions) + _neuron_nodes(attr, neurons) + _steer_nodes(attr)
    depth = int(attr.layers["layer"].max()) + 1
    target = _node(_TARGET, "target", layer=depth, label=attr.target_token, score=attr.logp)
    edges = [
        _edge(_token(row.pos), f"head:{row.layer}.{row.head}", row.score) for row in positions.itertuples()
    ]
    edges += [_edge(unit["id"], _TARGET, unit["score"]) for unit in units]
    edges.append(_edge(_token(len(attr.ids) - 1), _TARGET, attr.embedding_logp - attr.prior_logp))
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "attribution_circuit",
        "model": str(attr.provenance.get("model", {}).get("name", "")),
        "target": attr.target_token,
        "prompt": "".join(attr.tokens),
        "tokens": list(attr.tokens),
        "ids": list(attr.ids),
        "target_id": attr.target_id,
        "logp": attr.logp,
        **account,
        **below.account(),
        "nodes": [*nodes, *below.nodes(), *units, target],
        "edges": [*edges, *below.edges()],
    }


def _kept_units(
    attr: ScoredUnits, *, share: float, max_units: int
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Step 2: the kept rows of `head_positions` and of `mlp_neurons`, and what share of all units they are."""
    units = pd.concat({"pos": attr.head_positions["score"], "mlp": attr.mlp_neurons["score"]}).abs()
    ranked = units.sort_values(ascending=False, kind="stable")
    total = float(ranked.sum())
    before = ranked.cumsum() - ranked  # a unit is needed as long as those before it do not make up the share
    kept = ranked[before < share * total].head(max_units)
    chosen = {key: [i for name, i in kept.index if name == key] for key in ("pos", "mlp")}
    account = {
        "share": float(kept.sum()) / total if total > 0 else 1.0,
        "share_asked": share,
        "units": len(kept),
        "units_total": len(units),
    }
    return attr.head_positions.loc[sorted(chosen["pos"])], attr.mlp_neurons.loc[chosen["mlp"]], account


def _kept_edges(
    attr: ScoredUnits, positions: pd.DataFrame, neurons: pd.DataFrame, *, share: float, max_edges: int
) -> pd.DataFrame:
    """Step 4: the kept rows of `reads` from query neurons."""
    heads = set(zip(positions["layer"], positions["head"], strict=True))
    values = set(zip(neurons["layer"], neurons["neuron"], strict=True))
    edges = attr.reads[attr.reads["source"] == "mlp"]
    shown = [
        (row.layer, row.head) in heads if row.target == "attn" else (row.layer, row.neuron) in values
        for row in edges.itertuples()
    ]
    ranked = edges[shown].sort_values("score", key=abs, ascending=False, kind="stable")
    kept = []
    for kind, total in attr.certificate["reads"]["total"].items():
        to_kind = ranked[ranked["target"] == kind]
        size = to_kind["score"].abs()
        kept.append(to_kind[size.cumsum() - size < share * total].head(max_edges))
    return pd.concat(kept)


class _Below:
    """Steps 4 and 5: what lies below the units; `queries` are the kept edges from query neurons."""

    def __init__(self, attr: ScoredUnits, queries: pd.DataFrame, neurons: pd.DataFrame) -> None:
        self.attr, self.queries = attr, queries
        # A value neuron that is a source itself, at the last position, stays one node.
        self.units = set(zip(neurons["layer"], neurons["neuron"], strict=True))
        self.scores = self._sums()
        embed = attr.reads[attr.reads["source"] == "embed"]
        receivers = set(self.scores) | {self.target(row) for row in queries.itertuples()}
        # A query neuron that is a unit too reads the embedding as a value neuron, once.
        once = [
            self.target(row) in receivers and (row.target != "query" or self.target(row).startswith("query:"))
            for row in embed.itertuples()
        ]
        self.embed = embed[once]
        reached = queries[queries["target"] == "attn"]
        self.values = reached.drop_duplicates(["layer", "head", "dim", "pos"])

    def positions(self) -> set[int]:
        return {int(pos) for pos in self.embed["pos"]}

    def account(self) -> dict[str, Any]:
        known, kept = self.attr.certificate["reads"], float(self.queries["score"].abs().sum())
        total = sum(known["total"].values())
        return {
            "query_share": kept / total if total > 0 else 1.0,
            "query_edges": len(self.queries),
            "query_edges_total": known["edges_total"],
        }

    def nodes(self) -> list[dict[str, Any]]:
        nodes = [
            _node(
                self.target(row),
                "value",
                layer=row.layer,
                label=f"value {row.layer}.{row.head}.{row.dim}",
                score=row.target_score,
                pos=int(row.pos),
            )
            for row in self.values.itertuples()
        ]
        for name, (layer, neuron, pos, score) in self.scores.items():
            if name.startswith("query:"):
                label = f"query {layer}.{neuron}"
                nodes.append(_node(name, "query", layer=layer, label=label, score=score, pos=pos))
        return nodes

    def edges(self) -> list[dict[str, Any]]:
        edges = [
            _edge(
                self.neuron(row.source_layer, row.source_neuron, row.pos),
                self.target(row),
                row.score,
                reads=row,
            )
            for row in self.queries.itertuples()
        ]
        for row in self.embed.itertuples():
            name = self.target(row)
            # A query node's score is what its kept edges pass on, and so is the embedding's part of it.
            score = self.scores[name][3] if row.target == "query" else row.target_score
            edges.append(_edge(_token(row.pos), name, row.fraction * score, reads=row))
        return edges + [
            _edge(self.target(row), f"head:{row.layer}.{row.head}", row.target_score)
            for row in self.values.itertuples()
        ]

    def neuron(self, layer: int, neuron: int, pos: int) -> str:
        """The node of an FFN neuron at a position."""
        is_unit = pos == len(self.attr.ids) - 1 and (layer, neuron) in self.units
        return f"neuron:{layer}.{neuron}" if is_unit else f"query:{layer}.{neuron}@{pos}"

    def target(self, row: Any) -> str:
        """The node that a row of `reads` leads to."""
        if row.target == "attn":
            return f"value:{row.layer}.{row.head}.{row.dim}@{row.pos}"
        return self.neuron(row.layer, row.neuron, row.pos)

    def _sums(self) -> dict[str, tuple[int, int, int, float]]:
        """(layer, neuron, pos, score) of each query neuron."""
        sums = self.queries.groupby(["source_layer", "source_neuron", "pos"], sort=False)["score"].sum()
        return {
            self.neuron(layer, neuron, pos): (int(layer), int(neuron), int(pos), float(score))
            for (layer, neuron, pos), score in sums.items()
        }


def _token_nodes(attr: ScoredUnits, positions: set[int]) -> list[dict[str, Any]]:
    shown = sorted(positions | {len(attr.ids) - 1})
    return [
        _node(_token(pos), "token", layer=-1, label=attr.tokens[pos], score=0.0, pos=pos) for pos in shown
    ]


def _token(pos: int) -> str:
    return f"token:{pos}"


def _steer_nodes(attr: ScoredUnits) -> list[dict[str, Any]]:
    """Steering terms, drawn among the units of the sub-layer whose output they were added to."""
    steer = attr.layers[attr.layers["module"].str.startswith("steer")]
    kinds = {"steer": "head", "steer_mlp": "mlp"}
    return [
        _node(
            f"{row.module}:{row.layer}", kinds[row.module], layer=row.layer, label="steering", score=row.score
        )
        for row in steer.itertuples()
    ]


def _head_nodes(attr: ScoredUnits, positions: pd.DataFrame) -> list[dict[str, Any]]:
    scores = attr.heads.set_index(["layer", "head"])["score"]
    shown = sorted({(int(row.layer), int(row.head)) for row in positions.itertuples()})
    return [
        _node(
            f"head:{layer}.{head}",
            "head",
            layer=layer,
            label=f"head {layer}.{head}",
            score=scores[(layer, head)],
        )
        for layer, head in shown
    ]


def _neuron_nodes(attr: ScoredUnits, neurons: pd.DataFrame) -> list[dict[str, Any]]:
    promoted = attr.promotes[attr.promotes["side"] == "promotes"]
    tokens = {key: list(rows["token"]) for key, rows in promoted.groupby(["layer", "neuron"], sort=False)}
    return [
        _node(
            f"neuron:{row.layer}.{row.neuron}",
            "neuron",
            layer=row.layer,
            label=f"neuron {row.layer}.{row.neuron}",
            score=row.score,
            promotes=tokens.get((row.layer, row.neuron), []),
        )
        for row in neurons.itertuples()
    ]


def _node(
    name: str,
    kind: str,
    *,
    label: str,
    layer: int,
    score: float,
    pos: int | None = None,
    promotes: list[str] | None = None,
) -> dict[str, Any]:
    return {
        "id": name,
        "kind": kind,
        "layer": int(layer),
        "pos": pos,
        "label": label,
        "score": float(score),
        "promotes": promotes or [],
    }


def _edge(source: str, target: str, score: float, *, reads: Any = None) -> dict[str, Any]:
    shares = {name: getattr(reads, name, math.nan) for name in ("read", "read_gate")}
    known = {name: None if math.isnan(share) else float(share) for name, share in shares.items()}
    return {"source": source, "target": target, "score": float(score), **known}
