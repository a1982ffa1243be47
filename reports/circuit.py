"""One attribution circuit as a layered drawing.

Tokens stand at the bottom, layers rise, the target is on top (`circuit_layout`). An edge's width grows with |score|;
its colour and dash give the sign (blue, whole: promotes; orange, dashed: suppresses), and no edge runs behind a box
(`circuit_routes`). In SVG, hovering shows a node's or an edge's numbers; the picture reads, prints and diffs without
scripts. What is not drawn, and what share of all scores is, stands beneath. `explorer` has all of the graph.

Steps of `draw`:

1. check the graph (`reports.graph.read`): an edge to nowhere, or two nodes of one id, is refused;
2. choose: the target, the tokens with the strongest edges and the units with the largest |score|, then query and value
   neurons, as many nodes as there is room for; what has lost all its edges by that goes too;
3. place nodes and edges;
4. write the shapes down (`circuit_shapes`): the same graph gives the same bytes.
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reports.circuit_labels import edge_width, label, lines, number, read_share, sign, size, story
from reports.circuit_layout import (
    COLUMNS,
    MARGIN,
    PAGE,
    UNIT_PLACES,
    CircuitLayout,
    Paper,
    Place,
    box,
    layout,
)
from reports.circuit_routes import routes
from reports.circuit_shapes import Box, Line, Shape, Words, svg
from reports.graph import SCHEMA_VERSION, Circuit, Edge, Node, read
from reports.look import WIDTHS
from reports.text import visible

__all__ = [
    "MAX_NODES",
    "PAGE_INCHES",
    "SCHEMA_VERSION",
    "Circuit",
    "Drawing",
    "Edge",
    "Node",
    "draw",
    "fitted",
    "kept",
    "read",
]

MAX_NODES = 60
PAGE_INCHES = 9.0  # height of a page's text
_MAX_TOKENS = 24
_BELOW = ("query", "value")  # their scores are parts of other units' scores
_NOTE, _NOTE_CELL, _NOTE_LINE = 10.0, 6.1, 14  # size, width of a letter and distance of the lines beneath
_PROMPT = 160  # letters of it beneath the picture
#: Corner, fill, stroke, width and dash of a box; a head's where there is none.
_LOOKS: dict[str, tuple[float, str, str | None, float, tuple[float, ...]]] = {
    "token": (12, "band", None, 1, ()),
    "target": (4, "paper", "ink", 2.5, ()),
    "mlp": (4, "band", "muted", 1, ()),
    "neuron": (14, "paper", "muted", 1, ()),
    "value": (4, "paper", "muted", 1, (1, 2)),
    "query": (14, "paper", "muted", 1, (1, 2)),
    "head": (4, "paper", "muted", 1, ()),
}
_KINDS = {
    "head": "square: head",
    "neuron": "round: FFN neuron",
    "query": "dotted, round: query neuron",
    "value": "dotted, square: value neuron of a head",
}


@dataclass(frozen=True)
class Drawing:
    """A drawn circuit, and what it leaves out.

    Attributes:
        shapes: What is drawn, in this order.
        width: Of the picture, at a font size of 12.
        height: Likewise.
        prefix: Starts the ids in its SVG.
        title: Names the picture.
        description: What it shows, in words.
        n_shown: Number of nodes drawn.
        n_folded: Number of nodes left out.
        shown_share: |score| of the units drawn over that of all units (nan where all scores are 0).
    """

    shapes: tuple[Shape, ...]
    width: float
    height: float
    prefix: str
    title: str
    description: str
    n_shown: int
    n_folded: int
    shown_share: float

    @functools.cached_property
    def svg(self) -> str:
        """An SVG for the inside of HTML."""
        return svg(
            self.shapes,
            width=self.width,
            height=self.height,
            prefix=self.prefix,
            title=self.title,
            description=self.description,
        )

    def _repr_html_(self) -> str:
        return self.svg


def draw(
    circuit: Circuit, *, prefix: str = "circuit", paper: Paper = PAGE, max_nodes: int = MAX_NODES
) -> Drawing:
    """Draws `circuit` in layers.

    Args:
        circuit: The graph.
        prefix: Starts the ids in the SVG and must be unique on a page.
        paper: How wide it is drawn, and how much its boxes say.
        max_nodes: How many nodes are drawn at most.

    >>> nodes = (Node("w", "token", -1, " Paris", 0.0, pos=0), Node("t", "target", 2, " France", 1.5))
    >>> drawing = draw(Circuit(" France", "Paris", 1.0, nodes, (Edge("w", "t", 1.5),)))
    >>> drawing.n_shown, drawing.n_folded, "·France" in drawing.svg
    (2, 0, True)
    """
    nodes, edges, share = _chosen(circuit, max_nodes)
    placed = layout(nodes, edges, paper)
    n_folded = len(circuit.nodes) - len(nodes)
    about = f"{len(nodes)} nodes and {len(edges)} edges in layers, tokens below, the target on top."
    if n_folded:
        about += f" {n_folded} further nodes are not drawn."
    by_id = {node.id: node for node in nodes}
    shapes: list[Shape] = [*_edges(edges, placed, by_id, paper)]
    shapes += [_node(node, placed.places[node.id], paper) for row in placed.rows for node in row]
    shapes += _gutter(placed, paper)
    notes = _notes(circuit, nodes, n_folded, share, width=int((paper.width - MARGIN) / _NOTE_CELL))
    first = placed.height + 6
    shapes += [
        Words(4, first + i * _NOTE_LINE, note, "muted", _NOTE, anchor="start") for i, note in enumerate(notes)
    ]
    height = first + len(notes) * _NOTE_LINE - 4
    title = f"Attribution circuit of {visible(circuit.target, spaces=True)}"
    return Drawing(tuple(shapes), paper.width, height, prefix, title, about, len(nodes), n_folded, share)


def fitted(circuit: Circuit, columns: int) -> Drawing:
    """The drawing for one or two columns of a paper, of as many nodes as stand on a page of it (`PAGE_INCHES`)."""
    paper = COLUMNS[columns]
    most = PAGE_INCHES * paper.width / WIDTHS[columns]
    drawings = (draw(circuit, paper=paper, max_nodes=n) for n in range(MAX_NODES, 2, -2))
    return next(drawing for drawing in drawings if drawing.height <= most)


def _chosen(circuit: Circuit, max_nodes: int) -> tuple[list[Node], list[Edge], float]:
    """Step 2: the nodes and edges to draw, and the share of |score| that is drawn."""
    strength: dict[str, float] = defaultdict(float)
    for edge in circuit.edges:
        strength[edge.source] += size(edge.score)
    tokens = _strongest((n for n in circuit.nodes if n.kind == "token"), strength)
    tokens = tokens[: min(_MAX_TOKENS, max(1, int(0.4 * max_nodes)))]
    units = [n for n in circuit.nodes if n.kind not in ("token", "target")]
    sizes = {n.id: size(n.score) for n in units}
    ranked = _strongest((n for n in units if n.kind not in _BELOW), sizes)
    ranked += _strongest((n for n in units if n.kind in _BELOW), sizes)
    targets = [n for n in circuit.nodes if n.kind == "target"]
    room = max_nodes - len(targets) - len(tokens)
    kept = {n.id for n in (*targets, *tokens, *ranked[:room])}
    edges = [e for e in circuit.edges if e.source in kept and e.target in kept]
    had = {end for edge in circuit.edges for end in (edge.source, edge.target)}
    has = {end for edge in edges for end in (edge.source, edge.target)}
    lost = {n.id for n in circuit.nodes if n.kind in ("token", *_BELOW) and n.id in had - has}
    nodes = [n for n in circuit.nodes if n.id in kept - lost]
    total = sum(size(n.score) for n in units if n.kind not in _BELOW)
    shown = sum(size(n.score) for n in ranked[:room] if n.kind not in _BELOW)
    return nodes, edges, shown / total if total else math.nan


def _strongest(nodes: Iterable[Node], strength: Mapping[str, float]) -> list[Node]:
    return sorted(nodes, key=lambda n: (-strength.get(n.id, 0.0), n.id))


def _notes(circuit: Circuit, nodes: list[Node], n_folded: int, shown: float, *, width: int) -> list[str]:
    """What stands beneath: prompt, share kept and asked for, what is not drawn, and the key."""
    prompt = visible(circuit.prompt)
    prompt = prompt if len(prompt) <= _PROMPT else f"…{prompt[1 - _PROMPT :]}"
    notes = [f"{visible(circuit.target, spaces=True)} after “{prompt}”", kept(circuit)]
    if n_folded:
        of_all = f", {shown * circuit.share:.0%} of the |score|" if math.isfinite(shown) else ""
        notes.append(f"Drawn: the strongest {len(nodes)} of {len(circuit.nodes)} nodes{of_all}.")
    kinds = {node.kind for node in nodes}
    notes.append("; ".join(text for kind, text in _KINDS.items() if kind in kinds))
    notes.append("blue: promotes; orange, dashed: suppresses; width: |score|; scores in nats")
    return [line for note in notes if note for line in textwrap.wrap(note, width)]


def kept(circuit: Circuit) -> str:
    """The share of all scored units that a circuit holds, and that was asked for, in one sentence."""
    share = f"{circuit.share:.0%}" if math.isfinite(circuit.share) else "an undefined part"
    if circuit.units is None or circuit.units_total is None:
        return f"Its units hold {share} of the |score| of all scored units."
    text = f"{circuit.units} of {circuit.units_total} scored units hold {share} of their |score|"
    if circuit.share_asked is None:
        return f"{text}."
    text += f"; {circuit.share_asked:.0%} was asked for"
    short = circuit.share < circuit.share_asked - 1e-9
    return f"{text}, and max_units = {circuit.units} reached first." if short else f"{text}."


def _node(node: Node, place: Place, paper: Paper) -> Box:
    (x, y), width = place, box(node, paper)
    first, second = lines(node, short=paper.short)
    corner, fill, stroke, line, dash = _LOOKS.get(node.kind, _LOOKS["head"])
    middle, bold = y + paper.box / 2, node.kind == "target"
    words = [Words(x, middle + (-3 if second else 4), first, "ink", 12, bold=bold)]
    colour = "muted" if node.kind == "target" else sign(node.score)  # a log p is no contribution
    words += [Words(x, middle + (10 if paper.short else 12), second, colour, 10)] if second else []
    left = x - width / 2
    return Box(
        left, y, width, paper.box, corner, fill, stroke, line, dash, words=tuple(words), title=story(node)
    )


def _edges(edges: list[Edge], placed: CircuitLayout, nodes: Mapping[str, Node], paper: Paper) -> list[Line]:
    """All edges, the weakest first, so that the strongest are drawn over them."""
    largest = max((size(edge.score) for edge in edges), default=0.0) or 1.0
    names = {name: label(node) for name, node in nodes.items()}
    drawn = sorted(edges, key=lambda e: (size(e.score), e.source, e.target))
    thin = 0.7 if paper.short else 1.0
    return [
        Line(
            points=tuple(curve),
            colour=sign(edge.score),
            width=thin * edge_width(edge, largest),
            dash=(6, 3) if edge.score < 0 else (),
            title=f"{names[edge.source]} → {names[edge.target]}: {number(edge.score)} nats{read_share(edge)}",
        )
        for edge, curve in zip(drawn, routes(drawn, placed, paper), strict=True)
    ]


def _gutter(placed: CircuitLayout, paper: Paper) -> list[Words]:
    """The name of each row at the left edge; the continuation of a row has none."""
    parts, last = [], ""
    for row in placed.rows:
        kind = row[0].kind
        module = "attn" if kind in UNIT_PLACES else "MLP"
        name = {"token": "tokens", "target": "target"}.get(kind, f"L{row[0].layer} {module}")
        if name != last:
            y = placed.places[row[0].id][1] + paper.box / 2 + 4
            parts.append(Words(4, y, name, "muted", 11, anchor="start"))
        last = name
    return parts
