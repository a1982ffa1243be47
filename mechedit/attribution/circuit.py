"""The circuit of a result, as data: tokens → heads → target, FFN neurons → target.

Source of the scores: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141); the choice of what to show is ours.

1. The value units are the heads at their source positions and the FFN value neurons that the result holds.
2. They are ranked by |score| and kept until their |score| makes up `share` of all units' |score|, `max_units`
   at most. The share that was reached is stated.
3. Each kept head is a node with its own score and an edge to the target; a kept source position is an edge
   from its token. Each kept neuron is a node with an edge to the target and what it promotes.
4. Not subject to pruning: the embedding, an edge from the last token to the target, and any steering term.

The picture is drawn from this graph elsewhere. Scores of units overlap: an edge's score is what its unit adds
alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from reports.errors import InputError

if TYPE_CHECKING:
    from mechedit.attribution.result import Attribution

__all__ = ["SCHEMA_VERSION", "build_circuit"]

SCHEMA_VERSION = 1
_TARGET = "target"


def build_circuit(attr: Attribution, *, share: float, max_units: int) -> dict[str, Any]:
    """The graph as plain data, for `json.dumps`.

    Keys: schema_version, kind "attribution_circuit", target and prompt (text), share (of the units' |score|
    that is kept), share_asked, units (kept), units_total, nodes (id, kind, layer, pos, label, score,
    promotes), edges (source, target, score in nats).
    Kinds: "token" (layer -1, pos, score 0), "head", "neuron" (promotes: a list of strings), "target" (layer
    n_layers, score: its log-probability). A steering term has the id "steer:l" ("steer_mlp:l"), the label
    "steering" and the kind "head" ("mlp") of the sub-layer that it was added to.
    Ids are keyed by position, not by text: equal tokens are different nodes.
    Errors: `InputError` unless 0 < share <= 1 and max_units >= 1.
    """
    if not 0 < share <= 1:
        raise InputError(f"share: expected a number above 0 and at most 1, found {share!r}")
    if isinstance(max_units, bool) or not isinstance(max_units, int) or max_units < 1:
        raise InputError(f"max_units: expected an integer of at least 1, found {max_units!r}")
    positions, neurons, account = _kept_units(attr, share=share, max_units=max_units)
    nodes = _token_nodes(attr, positions)
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
        "target": attr.target_token,
        "prompt": "".join(attr.tokens),
        **account,
        "nodes": [*nodes, *units, target],
        "edges": edges,
    }


def _kept_units(
    attr: Attribution, *, share: float, max_units: int
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Step 2: the kept rows of `head_positions` and of `mlp_neurons`, and what share of all units they
    are."""
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


def _token_nodes(attr: Attribution, positions: pd.DataFrame) -> list[dict[str, Any]]:
    shown = sorted({int(pos) for pos in positions["pos"]} | {len(attr.ids) - 1})
    return [
        _node(_token(pos), "token", layer=-1, label=attr.tokens[pos], score=0.0, pos=pos) for pos in shown
    ]


def _token(pos: int) -> str:
    return f"token:{pos}"


def _steer_nodes(attr: Attribution) -> list[dict[str, Any]]:
    """Steering terms, drawn among the units of the sub-layer whose output they were added to."""
    steer = attr.layers[attr.layers["module"].str.startswith("steer")]
    kinds = {"steer": "head", "steer_mlp": "mlp"}
    return [
        _node(
            f"{row.module}:{row.layer}", kinds[row.module], layer=row.layer, label="steering", score=row.score
        )
        for row in steer.itertuples()
    ]


def _head_nodes(attr: Attribution, positions: pd.DataFrame) -> list[dict[str, Any]]:
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


def _neuron_nodes(attr: Attribution, neurons: pd.DataFrame) -> list[dict[str, Any]]:
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


def _edge(source: str, target: str, score: float) -> dict[str, Any]:
    return {"source": source, "target": target, "score": float(score)}
