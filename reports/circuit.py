"""One attribution circuit as a layered SVG, written on the server side.

Tokens stand at the bottom in reading order, layers rise from 0, the target is on top; within a layer heads
stand below the MLP, as the residual stream meets them, and a head's value neurons below it. An edge's width
grows with |score|; its colour and dash give the sign (blue, whole: promotes; orange, dashed: suppresses).
Hovering shows a node's or an edge's numbers (`<title>`); the picture reads, prints and diffs without scripts,
and needs no layout library.

Steps of `draw`:

1. check the graph (`reports.graph.read`): an edge to nowhere, or two nodes of one id, is refused;
2. fold: keep the target, the tokens with the strongest edges and the units with the largest |score|, then
   query and value neurons, `MAX_NODES` in all; everything else becomes one node that says how much |score| it holds;
3. put nodes in rows, order each row by the weighted mean place of its neighbours (the barycentre heuristic of
   Sugiyama, Tagawa & Toda, IEEE Trans. SMC 11 (1981), a few sweeps down and up), break rows too long;
4. write the SVG. Ties break by id, so the same graph gives the same bytes.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from reports.colours import paint
from reports.graph import SCHEMA_VERSION, Circuit, Edge, Node, read
from reports.text import clip, visible

__all__ = ["MAX_NODES", "SCHEMA_VERSION", "Circuit", "Drawing", "Edge", "Node", "draw", "read"]

MAX_NODES = 60
_MAX_TOKENS = 24
_PLACES = {"value": 0, "head": 1}  # within a layer, from below; FFN neurons stand above them
_BELOW = ("query", "value")  # their scores are parts of other units' scores
_FOLDED = "\0folded"  # no id of a JSON graph: visible ids only
Place: TypeAlias = tuple[float, float]
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN, _GUTTER = 980, 40, 12, 46, 14, 74


@dataclass(frozen=True)
class Drawing:
    """An SVG for the inside of HTML, and what it leaves out.

    `shown_share` is the |score| of the units drawn over that of all units (nan where all scores are 0).
    """

    svg: str
    n_shown: int
    n_folded: int
    shown_share: float

    def _repr_html_(self) -> str:
        return self.svg


def draw(circuit: Circuit, *, prefix: str = "circuit") -> Drawing:
    """The layered picture of `circuit`. `prefix` starts the ids in the SVG and must be unique on a page.

    >>> nodes = (Node("w", "token", -1, " Paris", 0.0, pos=0), Node("t", "target", 2, " France", 1.5))
    >>> drawing = draw(Circuit(" France", "Paris", 1.0, nodes, (Edge("w", "t", 1.5),)))
    >>> drawing.n_shown, drawing.n_folded, "·France" in drawing.svg
    (2, 0, True)
    """
    nodes, edges, n_folded, share = _fold(circuit)
    rows = _order(_rows(nodes), edges)
    places = _places(rows, edges)
    height = 2 * _MARGIN + len(rows) * _HEIGHT + (len(rows) - 1) * _GAP_Y
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
        f'viewBox="0 0 {_WIDTH} {height}" font-size="12">'
        f'<title id="{prefix}-title">{_escape(title)}</title><desc id="{prefix}-desc">{_escape(about)}</desc>'
    )
    return Drawing(head + "".join(parts) + "</svg>", n_shown, n_folded, share)


def _fold(circuit: Circuit) -> tuple[list[Node], list[Edge], int, float]:
    """The nodes and edges to draw, how many nodes are folded, and the share of |score| that is drawn."""
    strength: dict[str, float] = defaultdict(float)
    for edge in circuit.edges:
        strength[edge.source] += _size(edge.score)
    tokens = _strongest((n for n in circuit.nodes if n.kind == "token"), strength)[:_MAX_TOKENS]
    units = [n for n in circuit.nodes if n.kind not in ("token", "target")]
    sizes = {n.id: _size(n.score) for n in units}
    ranked = _strongest((n for n in units if n.kind not in _BELOW), sizes)
    ranked += _strongest((n for n in units if n.kind in _BELOW), sizes)
    targets = [n for n in circuit.nodes if n.kind == "target"]
    room = MAX_NODES - len(targets) - len(tokens) - 1  # one for the folded node
    kept = {n.id for n in (*targets, *tokens, *ranked[:room])}
    nodes = [n for n in circuit.nodes if n.id in kept]
    edges = [e for e in circuit.edges if e.source in kept and e.target in kept]
    total = sum(_size(n.score) for n in units if n.kind not in _BELOW)
    shown = sum(_size(n.score) for n in ranked[:room] if n.kind not in _BELOW)
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
    part = sum(_size(n.score) for n in units) / total if total else 0.0
    return Node(_FOLDED, "folded", 0, f"{n_folded} more nodes ({part:.0%} of |score|)", score)


def _strongest(nodes: Iterable[Node], strength: Mapping[str, float]) -> list[Node]:
    return sorted(nodes, key=lambda n: (-strength.get(n.id, 0.0), n.id))


def _size(score: float) -> float:
    return abs(score) if math.isfinite(score) else 0.0


def _rows(nodes: list[Node]) -> list[list[Node]]:
    """Rows from the bottom upward; a row that is wider than the picture goes on in the next one."""
    groups: dict[tuple[float, int], list[Node]] = defaultdict(list)
    top = max((n.layer for n in nodes if n.kind != "target"), default=0)
    heights = {"token": (-math.inf, 0), "folded": (top + 1, 0), "target": (top + 2, 0)}
    for node in nodes:
        groups[heights.get(node.kind, (node.layer, _PLACES.get(node.kind, 2)))].append(node)
    rows: list[list[Node]] = []
    for _, group in sorted(groups.items()):
        first = [math.inf if n.pos is None else n.pos for n in group]
        ordered = [n for _, n in sorted(zip(first, group, strict=True), key=lambda p: (p[0], p[1].id))]
        broken = _break(ordered)
        rows += reversed(broken) if group[0].kind == "token" else broken  # text is read from above
    return rows


def _break(group: list[Node]) -> list[list[Node]]:
    rows: list[list[Node]] = [[]]
    room = _WIDTH - _GUTTER - _MARGIN
    for node in group:
        used = sum(_box(n) + _GAP_X for n in rows[-1])
        if rows[-1] and used + _box(node) > room:
            rows.append([])
        rows[-1].append(node)
    return rows


def _order(rows: list[list[Node]], edges: list[Edge]) -> list[list[Node]]:
    """Each row ordered by where its neighbours stand, tokens left in reading order."""
    around = _neighbours(edges)
    place = {n.id: (i + 0.5) / len(row) for row in rows for i, n in enumerate(row)}
    for sweep in range(6):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            if row[0].kind == "token":
                continue
            row.sort(key=lambda n: (_mean(around[n.id], place, place[n.id]), n.id))
            place |= {n.id: (i + 0.5) / len(row) for i, n in enumerate(row)}
    return rows


def _places(rows: list[list[Node]], edges: list[Edge]) -> dict[str, tuple[float, float]]:
    """Centre x and top y of each node: as near to its neighbours as the row's order and width allow."""
    top = {
        n.id for n in rows[-1] if n.kind == "target"
    }  # pulls every unit to the middle, so it does not count
    around = _neighbours([edge for edge in edges if edge.target not in top])
    middle = (_GUTTER + _WIDTH - _MARGIN) / 2
    centre: dict[str, float] = {}
    for sweep in range(6):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            if row[0].kind in ("token", "target"):
                gap = min(44.0, (_WIDTH - _MARGIN - _GUTTER - sum(map(_box, row))) / len(row))
                total = sum(map(_box, row)) + gap * (len(row) - 1)
                wanted, x = [], middle - total / 2
                for node in row:
                    wanted.append(x + _box(node) / 2)
                    x += _box(node) + gap
            else:
                step = (_WIDTH - _MARGIN - _GUTTER) / len(row)
                even = [_GUTTER + (i + 0.5) * step for i in range(len(row))]
                pulled = [_mean(around[n.id], centre, x) for n, x in zip(row, even, strict=True)]
                wanted = [0.6 * near + 0.4 * x for near, x in zip(pulled, even, strict=True)]
            centre |= dict(zip((n.id for n in row), _pack(wanted, [_box(n) for n in row]), strict=True))
    pitch, last = _HEIGHT + _GAP_Y, len(rows) - 1
    return {
        n.id: (centre[n.id], float(_MARGIN + (last - i) * pitch)) for i, row in enumerate(rows) for n in row
    }


def _pack(wanted: list[float], widths: list[float]) -> list[float]:
    """Centres in the given order without overlap, moved together towards what was wanted, inside the picture."""
    lefts: list[float] = []
    for place, width in zip(wanted, widths, strict=True):
        least = lefts[-1] + widths[len(lefts) - 1] + _GAP_X if lefts else -math.inf
        lefts.append(max(place - width / 2, least))
    shift = sum(w - (x + b / 2) for w, x, b in zip(wanted, lefts, widths, strict=True)) / len(lefts)
    low, high = _GUTTER - lefts[0], _WIDTH - _MARGIN - widths[-1] - lefts[-1]
    shift = max(low, min(shift, high))
    limit = float(_WIDTH - _MARGIN)
    for i in reversed(range(len(lefts))):
        lefts[i] = min(lefts[i] + shift, limit - widths[i])
        limit = lefts[i] - _GAP_X
    return [x + b / 2 for x, b in zip(lefts, widths, strict=True)]


def _neighbours(edges: list[Edge]) -> dict[str, list[tuple[str, float]]]:
    around: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for edge in edges:
        around[edge.source].append((edge.target, _size(edge.score)))
        around[edge.target].append((edge.source, _size(edge.score)))
    return around


def _mean(near: list[tuple[str, float]], place: Mapping[str, float], default: float) -> float:
    known = [(place[name], weight + 1e-9) for name, weight in near if name in place]
    return sum(x * w for x, w in known) / sum(w for _, w in known) if known else default


def _node(node: Node, place: tuple[float, float]) -> str:
    (x, y), width = place, _box(node)
    first, second = _lines(node)
    look = {
        "token": f'rx="12" fill="{paint("band")}" stroke="none"',
        "target": f'rx="4" fill="{paint("paper")}" stroke="{paint("ink")}" stroke-width="2.5"',
        "folded": f'rx="4" fill="{paint("paper")}" stroke="{paint("muted")}" stroke-dasharray="3 3"',
        "mlp": f'rx="4" fill="{paint("band")}" stroke="{paint("muted")}"',
        "neuron": f'rx="14" fill="{paint("paper")}" stroke="{paint("muted")}"',
        "value": f'rx="4" fill="{paint("paper")}" stroke="{paint("muted")}" stroke-dasharray="1 2"',
        "query": f'rx="14" fill="{paint("paper")}" stroke="{paint("muted")}" stroke-dasharray="1 2"',
    }.get(node.kind, f'rx="4" fill="{paint("paper")}" stroke="{paint("muted")}"')
    left, middle = x - width / 2, y + _HEIGHT / 2
    text = _text(x, middle + (-3 if second else 4), first, "ink", 12, bold=node.kind == "target")
    text += _text(x, middle + 12, second, _sign(node.score), 10) if second else ""
    box = f'<rect x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_HEIGHT}" {look}/>'
    return f"<g><title>{_escape(_story(node))}</title>{box}{text}</g>"


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
    for side, groups, other in ((starts, leaving, "target"), (ends, entering, "source")):
        for name, group in groups.items():
            group.sort(key=lambda e: (places[getattr(e, other)][0], getattr(e, other)))
            room = min(0.85 * _box(nodes[name]), 11.0 * (len(group) - 1))
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
        end = y2 + _HEIGHT
        bend = (y1 - end) / 2
        path = f"M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 - bend:.1f} {x2:.1f} {end + bend:.1f} {x2:.1f} {end:.1f}"
    dash = ' stroke-dasharray="6 3"' if edge.score < 0 else ""
    title = _escape(f"{names[0]} → {names[1]}: {_number(edge.score)} nats{_share(edge)}")
    stroke = f'stroke="{paint(_sign(edge.score))}" stroke-width="{width:.2f}" stroke-opacity="0.62"'
    return f'<path d="{path}" fill="none" {stroke}{dash}><title>{title}</title></path>'


def _share(edge: Edge) -> str:
    return "" if edge.read is None else f", {edge.read:.1%} of what it reads"


def _edges(edges: list[Edge], places: Mapping[str, Place], nodes: Mapping[str, Node]) -> list[str]:
    """All edges, the weakest first, so that the strongest are drawn over them."""
    largest = max((_size(edge.score) for edge in edges), default=0.0) or 1.0
    ports = _ports(edges, places, nodes)
    names = {
        name: visible(node.label, spaces=node.kind in ("token", "target")) for name, node in nodes.items()
    }
    parts = []
    for edge in sorted(edges, key=lambda e: (_size(e.score), e.source, e.target)):
        ys = (places[edge.source][1], places[edge.target][1])
        width = 0.8 + 5.2 * _size(edge.score) / largest
        parts.append(_edge(edge, ports[edge], ys, (names[edge.source], names[edge.target]), width))
    return parts


def _gutter(rows: list[list[Node]]) -> list[str]:
    """The name of each row at the left edge; the continuation of a row has none."""
    parts, last = [], ""
    for number, row in enumerate(rows):
        kind = row[0].kind
        module = "attn" if kind in _PLACES else "MLP"
        name = {"token": "tokens", "target": "target", "folded": "folded"}.get(
            kind, f"L{row[0].layer} {module}"
        )
        y = _MARGIN + (len(rows) - 1 - number) * (_HEIGHT + _GAP_Y) + _HEIGHT / 2 + 4
        if name != last:
            parts.append(_text(4, y, name, "muted", 11, anchor="start"))
        last = name
    return parts


def _lines(node: Node) -> tuple[str, str]:
    if node.kind == "token":
        return clip(visible(node.label, spaces=True), 16), ""
    label = clip(visible(node.label, spaces=node.kind == "target"), 40)
    first = f" → {clip(visible(node.promotes[0], spaces=True), 12)}" if node.promotes else ""
    return label, _number(node.score) + first


def _story(node: Node) -> str:
    parts = [visible(node.label, spaces=node.kind in ("token", "target"))]
    if node.kind != "token":
        parts.append(f"score {_number(node.score)} nats")
    if node.pos is not None:
        parts.append(f"position {node.pos}")
    if node.promotes:
        parts.append("promotes " + ", ".join(visible(token, spaces=True) for token in node.promotes[:10]))
    return "; ".join(parts)


def _box(node: Node) -> float:
    first, second = _lines(node)
    width = max(7.2 * _columns(first), 6.1 * _columns(second)) + 18
    return max(width, 260.0) if node.kind == "target" else width  # room for the edges of every unit


def _columns(text: str) -> int:
    """Width in character cells: East Asian wide characters and emoji take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def _text(
    x: float, y: float, text: str, colour: str, size: int, *, anchor: str = "middle", bold: bool = False
) -> str:
    weight = ' font-weight="700"' if bold else ""
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{weight}'
    return f'<text {where} fill="{paint(colour)}">{_escape(text)}</text>'


def _sign(score: float) -> str:
    return "muted" if not math.isfinite(score) else "neg" if score < 0 else "pos"


def _number(score: float) -> str:
    return f"{score:+.3f}".replace("-", "−") if math.isfinite(score) else "undefined"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
