"""The whole graph of a circuit to explore in a browser: drag, zoom, filter by share and sign, click for the numbers.

The picture of `reports.circuit` stays the page's own; this is beside it, drawn by Cytoscape.js (MIT, in `vendor/`) with
the same places and looks, and nothing is folded away. The page loads nothing: library, script and data are inline.

1. Edges are ranked by |score|; each carries the share of all edges' |score| that stronger ones hold. The filter shows
   edges below a share, and the nodes at their ends.
2. At first so much is shown that `MAX_NODES` nodes are not exceeded.
3. Data are one JSON block, `<` written as an escape, and reach the page as text only: no token can become markup.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from markupsafe import Markup

from reports.circuit import MAX_NODES, Circuit, Edge, Node
from reports.circuit_labels import edge_width, label, lines, number, read_share, sign, size
from reports.circuit_layout import PAGE, Place, box, layout
from reports.text import visible

__all__ = ["SCRIPTS", "data_block", "explorer"]

#: What the page has to run, in this order (`reports.html.render`).
SCRIPTS = ("cytoscape.min.js", "circuit.js")
_STEP = 5  # per cent, of the filter


def explorer(circuit: Circuit) -> dict[str, Any]:
    """Prepares the graph for `circuit.js`.

    Returns:
        `block` (the JSON, as markup), `start` (per cent shown at first), `nodes` (id and label of each, the target
        first), `n_nodes` and `n_edges`.
    """
    ranked = sorted(circuit.edges, key=lambda e: (-size(e.score), e.source, e.target))
    placed = layout(circuit.nodes, circuit.edges)
    first = sorted(circuit.nodes, key=lambda n: (n.kind != "target", -size(n.score), n.id))
    nodes = [_node(node, placed.places[node.id]) for node in first]
    before = _before(ranked)
    data = {"nodes": nodes, "edges": _edges(ranked, before), "box": PAGE.box}
    return {
        "block": data_block("circuit-data", data),
        "start": _start(ranked, before),
        "nodes": [(node["id"], f"{node['label']} ({node['score']})") for node in nodes],
        "n_nodes": len(nodes),
        "n_edges": len(ranked),
    }


def _node(node: Node, place: Place) -> dict[str, Any]:
    return {
        "id": node.id,
        "kind": node.kind,
        "layer": node.layer,
        "pos": node.pos,
        "label": label(node),
        "lines": lines(node),
        "score": number(node.score),
        "promotes": [visible(token, spaces=True) for token in node.promotes],
        "x": round(place[0], 1),
        "y": round(place[1] + PAGE.box / 2, 1),
        "width": round(box(node), 1),
    }


def _edges(ranked: list[Edge], before: list[float]) -> list[dict[str, Any]]:
    largest = max((size(edge.score) for edge in ranked), default=0.0) or 1.0
    return [
        {
            "id": f"edge {i}",
            "source": edge.source,
            "target": edge.target,
            "before": held,
            "score": f"{number(edge.score)} nats{read_share(edge)}",
            "sign": sign(edge.score),
            "width": round(edge_width(edge, largest), 2),
        }
        for i, (edge, held) in enumerate(zip(ranked, before, strict=True))
    ]


def _before(ranked: list[Edge]) -> list[float]:
    """For each edge the share of all |score| that stronger ones hold."""
    sizes = [size(edge.score) for edge in ranked]
    total = sum(sizes) or 1.0
    return [0.0, *(part / total for part in itertools.accumulate(sizes))][: len(sizes)]


def data_block(name: str, data: Any) -> Markup:
    r"""Returns `data` as a JSON block of this id for a script of the page; nothing in it can end the block.

    >>> data_block("d", ["</script>"])
    Markup('<script type="application/json" id="d">["\\u003c/script>"]</script>')
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace(
        "<", "\\u003c"
    )
    return Markup(f'<script type="application/json" id="{name}">{text}</script>')


def _start(ranked: list[Edge], before: list[float]) -> int:
    """The largest share, in steps of the filter, at which at most `MAX_NODES` nodes are shown (at least one step)."""
    fits = _STEP
    for share in range(_STEP, 101, _STEP):
        kept = [edge for edge, held in zip(ranked, before, strict=True) if 100 * held < share]
        if len({end for edge in kept for end in (edge.source, edge.target)}) <= MAX_NODES:
            fits = share
    return fits
