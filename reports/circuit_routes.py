"""The way of each edge of a circuit: upward from box to box, past the boxes of the rows between.

1. An edge leaves its source at the top and enters its target from below. It crosses each row between them through the
   gap between two boxes that takes it least off the straight way and is not crowded yet.
2. Edges through one gap stand side by side there; at a box they are spread over its side, in the order of where they
   come from or go to.
3. The line is a chain of cubic curves whose tangents are upright at every row, so that it bends between rows only and
   runs behind no box. An edge within one row is an arc above it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

from reports.circuit_layout import MARGIN, CircuitLayout, Paper, box, pack
from reports.graph import Edge, Node

__all__ = ["Curve", "routes"]

Curve = list[tuple[float, float]]  # a start, then two handles and an end for each piece
_CLEAR = 5.0  # between an edge's middle and a box that it passes
_ABREAST = 3.5  # between the middles of two edges in one gap
_CROWDED = 1.5  # pixels of a longer way that an edge takes for each pixel that a gap is too narrow


def routes(edges: Sequence[Edge], placed: CircuitLayout, paper: Paper) -> list[Curve]:
    """The curve of every edge.

    >>> from reports.circuit_layout import PAGE, layout
    >>> nodes = [Node("w", "token", -1, "In", 0.0, pos=0), Node("t", "target", 1, "x", 1.0)]
    >>> edge = Edge("w", "t", 1.0)
    >>> [[round(y) for _, y in curve] for curve in routes([edge], layout(nodes, [edge]), PAGE)]
    [[100, 77, 77, 54]]
    """
    level = {node.id: i for i, row in enumerate(placed.rows) for node in row}
    gaps = [_gaps(row, placed, paper) for row in placed.rows]
    crowd: dict[tuple[int, int], int] = defaultdict(int)
    ways = [_way(*_upward(edge, level), placed, level, gaps, crowd) for edge in edges]
    crossings = _abreast(ways, gaps)
    nodes = {node.id: node for row in placed.rows for node in row}
    ports = _ports(edges, crossings, placed, level, {name: box(node, paper) for name, node in nodes.items()})
    tops = [placed.places[row[0].id][1] for row in placed.rows]
    curves = []
    for edge, crossing, (start, end) in zip(edges, crossings, ports, strict=True):
        low, high = _upward(edge, level)
        if level[low] == level[high]:
            y, arc = tops[level[low]], 0.6 * paper.gaps[1]
            curves.append([(start, y), (start, y - arc), (end, y - arc), (end, y)])
            continue
        points = [(start, tops[level[low]])]
        for row in sorted(crossing):
            points += [(crossing[row], tops[row] + paper.box), (crossing[row], tops[row])]
        points.append((end, tops[level[high]] + paper.box))
        curves.append(_curve(points))
    return curves


def _upward(edge: Edge, level: Mapping[str, int]) -> tuple[str, str]:
    """The ends of an edge, the lower first."""
    ends = (edge.source, edge.target)
    return ends if level[edge.source] <= level[edge.target] else (edge.target, edge.source)


def _gaps(row: Sequence[Node], placed: CircuitLayout, paper: Paper) -> list[tuple[float, float]]:
    """Where edges can cross a row: left and right end of each gap."""
    gaps, left = [], float(paper.gutter)
    for node in sorted(row, key=lambda n: placed.places[n.id][0]):
        centre, half = placed.places[node.id][0], box(node, paper) / 2 + _CLEAR
        gaps.append((left, centre - half))
        left = centre + half
    gaps.append((left, float(paper.width - MARGIN / 2)))
    return [(low, high) for low, high in gaps if high >= low]


def _way(
    low: str,
    high: str,
    placed: CircuitLayout,
    level: Mapping[str, int],
    gaps: Sequence[Sequence[tuple[float, float]]],
    crowd: dict[tuple[int, int], int],
) -> dict[int, tuple[int, float]]:
    """For each row between two nodes the gap that is taken, which `crowd` counts, and the place wanted in it."""
    x, goal = placed.places[low][0], placed.places[high][0]
    way: dict[int, tuple[int, float]] = {}
    for row in range(level[low] + 1, level[high]):
        straight = x + (goal - x) / (level[high] - row + 1)
        costs = []
        for gap, (left, right) in enumerate(gaps[row]):
            wanted = min(max(straight, left), right)
            beyond = max(0.0, (crowd[row, gap] + 1) * _ABREAST - (right - left))
            costs.append((abs(wanted - straight) + 0.3 * abs(wanted - goal) + _CROWDED * beyond, gap, wanted))
        _, gap, x = min(costs)
        crowd[row, gap] += 1
        way[row] = (gap, x)
    return way


def _abreast(
    ways: Sequence[Mapping[int, tuple[int, float]]], gaps: Sequence[Sequence[tuple[float, float]]]
) -> list[dict[int, float]]:
    """Where each edge crosses each row: those through one gap side by side."""
    sharing: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
    for edge, way in enumerate(ways):
        for row, (gap, x) in way.items():
            sharing[row, gap].append((x, edge))
    crossings: list[dict[int, float]] = [{} for _ in ways]
    for (row, gap), wanted in sharing.items():
        left, right = gaps[row][gap]
        ordered = sorted(
            wanted, key=lambda item: (item[0], ways[item[1]].get(row - 1, (0, item[0]))[1], item[1])
        )
        width = min(_ABREAST, (right - left) / len(ordered))
        places = pack(
            [x for x, _ in ordered], [width] * len(ordered), gap=0.0, left=left, right=max(right, left)
        )
        for place, (_, edge) in zip(places, ordered, strict=True):
            crossings[edge][row] = place
    return crossings


def _ports(
    edges: Sequence[Edge],
    crossings: Sequence[Mapping[int, float]],
    placed: CircuitLayout,
    level: Mapping[str, int],
    widths: Mapping[str, float],
) -> list[tuple[float, float]]:
    """Where each edge leaves the lower node and enters the upper one, spread over the node's side."""
    sides: dict[tuple[str, str], list[tuple[float, str, int]]] = defaultdict(list)
    for i, edge in enumerate(edges):
        low, high = _upward(edge, level)
        first = crossings[i].get(level[low] + 1, placed.places[high][0])
        last = crossings[i].get(level[high] - 1, placed.places[low][0])
        sides[low, "leaves"].append((first, high, i))
        sides[high, "enters"].append((last, low, i))
    ports: dict[tuple[int, str], float] = {}
    for (name, side), ends in sides.items():
        room = min(0.85 * widths[name], 11.0 * (len(ends) - 1))
        for place, (_, _, i) in enumerate(sorted(ends)):
            share = place / (len(ends) - 1) - 0.5 if len(ends) > 1 else 0.0
            ports[i, side] = placed.places[name][0] + room * share
    return [(ports[i, "leaves"], ports[i, "enters"]) for i in range(len(edges))]


def _curve(points: Sequence[tuple[float, float]]) -> Curve:
    """Cubic pieces through the points, upright at each."""
    curve = [points[0]]
    for (x1, y1), (x2, y2) in itertools.pairwise(points):
        middle = (y1 + y2) / 2
        curve += [(x1, middle), (x2, middle), (x2, y2)]
    return curve
