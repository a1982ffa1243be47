"""A circuit as the attribution-graph JSON that circuit-tracer's and Neuronpedia's viewers read.

Format: metadata, qParams, nodes, links, as in circuit-tracer's `frontend/graph_models.py` (0.5) and Neuronpedia's
`api/graph/graph-schema.json` (1.0.0); conventions of Ameisen et al., "Circuit Tracing", Transformer Circuits (2025).

| circuit (`reports.graph`) | node | feature_type | where |
|---|---|---|---|
| token | `E_{token id}_{pos}` | embedding | layer "E" |
| query, neuron | `{layer}_{neuron}_{pos}` | mlp neuron | its position; a value neuron's is the last |
| value | `{layer}_n{number}_{pos}` | attention neuron | the position it reads |
| head, steering | `{layer}_n{number}_{pos}` | attention head, steering | the last position |
| target | `{n_layers + 1}_{token id}_{pos}` | logit | the last position |

A link's weight is the edge's score in nats. `feature` is the Cantor pair of layer and neuron for FFN neurons, as the
viewers decode it, and a negative number for what has no page in a feature dictionary. `influence` is the share of all
nodes' |score| that this node and the stronger ones hold, which is what the viewers' pruning slider reads.

Two limits of the viewers: Neuronpedia's refuses a graph with nothing above layer 0; both read a logit's probability
from behind "(p=" in its label, so that these three characters are changed in a target's text.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reports.errors import InputError, IntegrityError
from reports.files import write
from reports.graph import Circuit, Node, read
from reports.parsing import parse

__all__ = ["save_viewer", "viewer_graph"]

_INDEX = "graph-metadata.json"
_TYPES = {"token": "embedding", "target": "logit", "query": "mlp neuron", "neuron": "mlp neuron"}
_TYPES |= {"value": "attention neuron", "head": "attention head", "mlp": "mlp"}


def viewer_graph(circuit: Mapping[str, Any], *, slug: str | None = None) -> dict[str, Any]:
    """Returns the graph of `circuit` as plain data in the viewers' format.

    Args:
        circuit: The circuit of an attribution, as its JSON file holds it.
        slug: The graph's name there; None makes one from the prompt, the target and their hash.

    Raises:
        InputError: The slug has other characters than letters, digits, "-" and "_".
        IntegrityError: The data are no circuit.

    >>> node = {"id": "target", "kind": "target", "layer": 2, "pos": None, "label": " Paris", "score": -0.1}
    >>> graph = {"schema_version": 2, "target": " Paris", "prompt": "In", "share": 1.0, "nodes": [node], "edges": []}
    >>> about = {"tokens": ["In"], "ids": [3], "target_id": 7, "logp": -0.1, "model": "tiny"}
    >>> viewer_graph(graph | about)["nodes"][0]["clerp"]
    'Output " Paris" (p=0.905)'
    """
    graph = read(circuit)
    for name in ("tokens", "ids", "target_id", "logp", "model"):
        if name not in circuit:
            raise IntegrityError(f"circuit: expected a field {name!r}, found none")
    slug = _slug(graph) if slug is None else slug
    if not re.fullmatch(r"[A-Za-z0-9_-]+", slug):
        raise InputError(f"slug: expected letters, digits, - and _, found {slug!r}")
    names = {node.id: _name(node, number, circuit) for number, node in enumerate(graph.nodes)}
    influence = _influence(graph)
    return {
        "metadata": _metadata(circuit, slug),
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [_node(node, names[node.id], circuit, influence.get(node.id)) for node in graph.nodes],
        "links": [
            {"source": names[edge.source][0], "target": names[edge.target][0], "weight": edge.score}
            for edge in graph.edges
        ],
    }


def save_viewer(
    circuit: Mapping[str, Any], folder: str | os.PathLike[str], *, slug: str | None = None
) -> Path:
    """Writes `<slug>.json` into `folder`, lists it in graph-metadata.json there, and returns the file's path.

    `circuit-tracer start-server --graph_file_dir FOLDER` shows the folder; Neuronpedia takes the file. A graph of the
    same slug is replaced, others stay. Nothing is written where there is an error.

    Args:
        circuit: As for `viewer_graph`.
        folder: Made where it is absent.
        slug: As for `viewer_graph`.

    Raises:
        InputError: As `viewer_graph`; `folder` is a file.
        IntegrityError: As `viewer_graph`; its graph-metadata.json is damaged.
    """
    graph = viewer_graph(circuit, slug=slug)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"folder: expected a folder, found a file at {folder}")
    name = graph["metadata"]["slug"]
    listed = [known for known in _listed(folder / _INDEX) if known.get("slug") != name]
    written = write(folder / f"{name}.json", _text(graph))
    write(folder / _INDEX, _text({"graphs": [*listed, graph["metadata"]]}))
    return written


def _listed(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        graphs = parse(path.read_text(encoding="utf-8"))["graphs"]
        return [dict(graph) for graph in graphs]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path}: expected a viewer's list of graphs, found something else") from error


def _text(data: Any) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _slug(graph: Circuit) -> str:
    text = f"{graph.prompt}{graph.target}"
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")
    return "-".join(filter(None, (words, hashlib.sha256(text.encode()).hexdigest()[:8])))


def _metadata(circuit: Mapping[str, Any], slug: str) -> dict[str, Any]:
    kept = {name: circuit.get(name) for name in ("share", "units", "units_total", "query_share")}
    kept |= {name: circuit.get(name) for name in ("query_edges", "query_edges_total")}
    return {
        "slug": slug,
        "scan": str(circuit["model"]),
        "transcoder_list": [],
        "prompt_tokens": [str(token) for token in circuit["tokens"]],
        "prompt": str(circuit["prompt"]),
        "node_threshold": 1.0,
        "schema_version": 1,
        "info": {
            "description": "Neuron-level knowledge attribution: links are log-probability of the target, in nats.",
            "generator": {"name": "mechedit"},
        },
        "pruning_settings": kept,
    }


def _name(node: Node, number: int, circuit: Mapping[str, Any]) -> tuple[str, int, str, int]:
    """(node_id, feature, layer, ctx_idx); `number` stands for what is no FFN neuron."""
    pos = len(circuit["tokens"]) - 1 if node.pos is None else node.pos
    if node.kind == "token":
        return f"E_{circuit['ids'][pos]}_{pos}", pos, "E", pos
    if node.kind == "target":
        layer = str(node.layer + 1)
        return f"{layer}_{circuit['target_id']}_{pos}", int(circuit["target_id"]), layer, pos
    if node.kind in ("query", "neuron"):
        neuron = int(node.id.split(".")[1].split("@")[0])
        pair = (node.layer + neuron) * (node.layer + neuron + 1) // 2 + neuron
        return f"{node.layer}_{neuron}_{pos}", pair, str(node.layer), pos
    return f"{node.layer}_n{number}_{pos}", -2 - number, str(node.layer), pos


def _node(
    node: Node, name: tuple[str, int, str, int], circuit: Mapping[str, Any], influence: float | None
) -> dict[str, Any]:
    node_id, feature, layer, pos = name
    steering = node.id.startswith("steer")
    target = node.kind == "target"
    probability = math.exp(circuit["logp"]) if target else 0.0
    label = node.label
    if target:
        text = node.label.replace('"', "'").replace("(p=", "(p =")
        label = f'Output "{text}" (p={probability:.3f})'
    elif node.promotes:
        label = f"{node.label} → {' '.join(node.promotes)}"
    return {
        "node_id": node_id,
        "feature": feature,
        "layer": layer,
        "ctx_idx": pos,
        "feature_type": "steering" if steering else _TYPES[node.kind],
        "token_prob": probability,
        "is_target_logit": target,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": node_id,
        "clerp": label,
        "influence": influence,
        "activation": None,
    }


def _influence(graph: Circuit) -> dict[str, float]:
    """The share of |score| that a node and the stronger ones hold; tokens and the target have none."""
    units = [node for node in graph.nodes if node.kind not in ("token", "target")]
    ranked = sorted(units, key=lambda node: (-abs(node.score), node.id))
    total = math.fsum(abs(node.score) for node in ranked) or 1.0
    held, shares = 0.0, {}
    for node in ranked:
        held += abs(node.score)
        shares[node.id] = min(1.0, held / total)
    return shares
