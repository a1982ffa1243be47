"""One attribution circuit as a layered SVG, written on the server side.

Tokens stand at the bottom, layers rise, the target is on top (`circuit_layout`). An edge's width grows with |score|;
its colour and dash give the sign (blue, whole: promotes; orange, dashed: suppresses). Hovering shows a node's or an
edge's numbers (`<title>`); the picture reads, prints and diffs without scripts. `explorer` has all of the graph.

Steps of `draw`:

1. check the graph (`reports.graph.read`): an edge to nowhere, or two nodes of one id, is refused;
2. fold: keep the target, the tokens with the strongest edges and the units with the largest |score|, then
   query and value neurons, `MAX_NODES` in all; everything else becomes one node that says how much |score| it holds;
3. place them (`circuit_layout.layout`);
4. write the SVG: the same graph gives the same bytes.
"""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reports.circuit_labels import edge_width, label, lines, number, read_share, sign, size, story
from reports.circuit_layout import (
    GAP_Y,
    HEIGHT,
    MARGIN,
    UNIT_PLACES,
    WIDTH,
    Place,
    box,
    layout,
)
from reports.colours import paint
from reports.graph import SCHEMA_VERSION, Circuit, Edge, Node, read
from reports.text import visible

__all__ = [
    "MAX_NODES",
    "SCHEMA_VERSION",
    "Circuit",
    "Drawing",
    "Edge",
    "Node",
    "draw",
    "read",
]

MAX_NODES = 60
_MAX_TOKENS = 24
_BELOW = ("query", "value")  # their scores are parts of other units' scores
_FOLDED = "\0folded"  # no id of a JSON graph: visible ids only


@dataclass(frozen=True)
class Drawing:
    """An SVG for the inside of HTML, and what it leaves out.

    Attributes:
        svg: The picture.
        n_shown: Number of nodes drawn.
        n_folded: Number of nodes folded into one.
        shown_share: |score| of the units drawn over that of all units (nan where all scores are 0).
    """

    svg: str
    n_shown: int
    n_folded: int
    shown_share: float

    def _repr_html_(self) -> str:
        return self.svg


def draw(circuit: Circuit, *, prefix: str = "circuit") -> Drawing:
    """Draws `circuit` in layers.

    Args:
        circuit: The graph.
        prefix: Starts the ids in the SVG and must be unique on a page.

    >>> nodes = (Node("w", "token", -1, " Paris", 0.0, pos=0), Node("t", "target", 2, " France", 1.5))
    >>> drawing = draw(Circuit(" France", "Paris", 1.0, nodes, (Edge("w", "t", 1.5),)))
    >>> drawing.n_shown, drawing.n_folded, "·France" in drawing.svg
    (2, 0, True)
    """
    nodes, edges, n_folded, share = _fold(circuit)
    placed = layout(nodes, edges)
    rows, places, height = placed.rows, placed.places, placed.height
    by_id = {node.id: node for node in nodes}
    parts = _edges(edges, places, by_id)
    parts += [_node(node, places[node.id]) for row in rows for node in row]
    parts += _gutter(rows)
    n_shown = sum(node.id != _FOLDED for node in nodes)
    title = f"Attribution circuit of {visible(circuit.target, spaces=True)}"
    about = f"{n_shown} nodes and {len(edges)} edges in layers, tokens below, the target on top."
    if n_folded:
        about += f" {n_folded} further nodes are folded into one."
    head = (
        f'<svg role="img" class="circuit" aria-labelledby="{prefix}-title {prefix}-desc" '
        f'viewBox="0 0 {WIDTH} {height}" font-size="12">'
        f'<title id="{prefix}-title">{_escape(title)}</title><desc id="{prefix}-desc">{_escape(about)}</desc>'
    )
    return Drawing(head + "".join(parts) + "</svg>", n_shown, n_folded, share)


def _fold(circuit: Circuit) -> tuple[list[Node], list[Edge], int, float]:
    """The nodes and edges to draw, how many nodes are folded, and the share of |score| that is drawn."""
    strength: dict[str, float] = defaultdict(float)
    for edge in circuit.edges:
        strength[edge.source] += size(edge.score)
    tokens = _strongest((n for n in circuit.nodes if n.kind == "token"), strength)[:_MAX_TOKENS]
    units = [n for n in circuit.nodes if n.kind not in ("token", "target")]
    sizes = {n.id: size(n.score) for n in units}
    ranked = _strongest((n for n in units if n.kind not in _BELOW), sizes)
    ranked += _strongest((n for n in units if n.kind in _BELOW), sizes)
    targets = [n for n in circuit.nodes if n.kind == "target"]
    room = MAX_NODES - len(targets) - len(tokens) - 1  # one for the folded node
    kept = {n.id for n in (*targets, *tokens, *ranked[:room])}
    nodes = [n for n in circuit.nodes if n.id in kept]
    edges = [e for e in circuit.edges if e.source in kept and e.target in kept]
    total = sum(size(n.score) for n in units if n.kind not in _BELOW)
    shown = sum(size(n.score) for n in ranked[:room] if n.kind not in _BELOW)
    share = shown / total if total else math.nan
    n_folded = len(circuit.nodes) - len(nodes)
    if n_folded:
        lost_units = [n for n in ranked[room:] if n.kind not in _BELOW]
        nodes.append(_folded_node(lost_units, n_folded, total))
        ends = {n.id for n in targets}
        for end in sorted(ends):
            lost = [e.score for e in circuit.edges if e.target == end and e.source not in kept]
            if lost:
                edges.append(Edge(_FOLDED, end, math.fsum(lost)))
    return nodes, edges, n_folded, share


def _folded_node(units: list[Node], n_folded: int, total: float) -> Node:
    score = math.fsum(n.score for n in units if math.isfinite(n.score))
    part = sum(size(n.score) for n in units) / total if total else 0.0
    return Node(_FOLDED, "folded", 0, f"{n_folded} more nodes ({part:.0%} of |score|)", score)


def _strongest(nodes: Iterable[Node], strength: Mapping[str, float]) -> list[Node]:
    return sorted(nodes, key=lambda n: (-strength.get(n.id, 0.0), n.id))


def _node(node: Node, place: tuple[float, float]) -> str:
    (x, y), width = place, box(node)
    first, second = lines(node)
    look = {
        "token": f'rx="12" fill="{paint("band")}" stroke="none"',
        "target": f'rx="4" fill="{paint("paper")}" stroke="{paint("ink")}" stroke-width="2.5"',
        "folded": f'rx="4" fill="{paint("paper")}" stroke="{paint("muted")}" stroke-dasharray="3 3"',
        "mlp": f'rx="4" fill="{paint("band")}" stroke="{paint("muted")}"',
        "neuron": f'rx="14" fill="{paint("paper")}" stroke="{paint("muted")}"',
        "value": f'rx="4" fill="{paint("paper")}" stroke="{paint("muted")}" stroke-dasharray="1 2"',
        "query": f'rx="14" fill="{paint("paper")}" stroke="{paint("muted")}" stroke-dasharray="1 2"',
    }.get(node.kind, f'rx="4" fill="{paint("paper")}" stroke="{paint("muted")}"')
    left, middle = x - width / 2, y + HEIGHT / 2
    text = _text(x, middle + (-3 if second else 4), first, "ink", 12, bold=node.kind == "target")
    text += _text(x, middle + 12, second, sign(node.score), 10) if second else ""
    rect = f'<rect x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{HEIGHT}" {look}/>'
    return f"<g><title>{_escape(story(node))}</title>{rect}{text}</g>"


def _ports(
    edges: list[Edge], places: Mapping[str, Place], nodes: Mapping[str, Node]
) -> dict[Edge, tuple[float, float]]:
    """Where each edge leaves and enters, spread over the node's side in the order of the other ends."""
    leaving, entering = defaultdict(list), defaultdict(list)
    for edge in edges:
        leaving[edge.source].append(edge)
        entering[edge.target].append(edge)
    starts: dict[Edge, float] = {}
    ends: dict[Edge, float] = {}
    for side, groups, far_end in ((starts, leaving, "target"), (ends, entering, "source")):
        for name, group in groups.items():
            group.sort(key=lambda e: (places[getattr(e, far_end)][0], getattr(e, far_end)))
            room = min(0.85 * box(nodes[name]), 11.0 * (len(group) - 1))
            for i, edge in enumerate(group):
                side[edge] = places[name][0] + (
                    room * (i / (len(group) - 1) - 0.5) if len(group) > 1 else 0.0
                )
    return {edge: (starts[edge], ends[edge]) for edge in edges}


def _edge(
    edge: Edge, ports: tuple[float, float], ys: tuple[float, float], names: tuple[str, str], width: float
) -> str:
    (x1, x2), (y1, y2) = ports, ys
    if y1 == y2:  # within one row: an arc above it
        path = f"M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 - 30:.1f} {x2:.1f} {y2 - 30:.1f} {x2:.1f} {y2:.1f}"
    else:
        end = y2 + HEIGHT
        bend = (y1 - end) / 2
        path = f"M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 - bend:.1f} {x2:.1f} {end + bend:.1f} {x2:.1f} {end:.1f}"
    dash = ' stroke-dasharray="6 3"' if edge.score < 0 else ""
    title = _escape(f"{names[0]} → {names[1]}: {number(edge.score)} nats{read_share(edge)}")
    stroke = f'stroke="{paint(sign(edge.score))}" stroke-width="{width:.2f}" stroke-opacity="0.62"'
    return f'<path d="{path}" fill="none" {stroke}{dash}><title>{title}</title></path>'


def _edges(edges: list[Edge], places: Mapping[str, Place], nodes: Mapping[str, Node]) -> list[str]:
    """All edges, the weakest first, so that the strongest are drawn over them."""
    largest = max((size(edge.score) for edge in edges), default=0.0) or 1.0
    ports = _ports(edges, places, nodes)
    names = {name: label(node) for name, node in nodes.items()}
    parts = []
    for edge in sorted(edges, key=lambda e: (size(e.score), e.source, e.target)):
        ys = (places[edge.source][1], places[edge.target][1])
        parts.append(
            _edge(edge, ports[edge], ys, (names[edge.source], names[edge.target]), edge_width(edge, largest))
        )
    return parts


def _gutter(rows: list[list[Node]]) -> list[str]:
    """The name of each row at the left edge; the continuation of a row has none."""
    parts, last = [], ""
    for level, row in enumerate(rows):
        kind = row[0].kind
        module = "attn" if kind in UNIT_PLACES else "MLP"
        name = {"token": "tokens", "target": "target", "folded": "folded"}.get(
            kind, f"L{row[0].layer} {module}"
        )
        y = MARGIN + (len(rows) - 1 - level) * (HEIGHT + GAP_Y) + HEIGHT / 2 + 4
        if name != last:
            parts.append(_text(4, y, name, "muted", 11, anchor="start"))
        last = name
    return parts


def _text(
    x: float, y: float, text: str, colour: str, height: int, *, anchor: str = "middle", bold: bool = False
) -> str:
    weight = ' font-weight="700"' if bold else ""
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{height}"{weight}'
    return f'<text {where} fill="{paint(colour)}">{_escape(text)}</text>'


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
