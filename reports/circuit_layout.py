"""Where the nodes of a circuit stand: rows, their order, and places without overlap.

Tokens stand at the bottom in reading order, layers rise from 0, the target is on top; within a layer heads stand below
the MLP, as the residual stream meets them, and a head's value neurons below it. Each row is ordered by the weighted
mean place of its neighbours (the barycentre heuristic of Sugiyama, Tagawa & Toda, IEEE Trans. SMC 11 (1981), a few
sweeps down and up); a row that is too long is broken. Ties break by id, so the same graph stands in the same way.
"""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from reports.circuit_labels import lines, size
from reports.graph import Edge, Node

__all__ = ["COLUMNS", "MARGIN", "PAGE", "UNIT_PLACES", "CircuitLayout", "Paper", "Place", "box", "layout"]

Place: TypeAlias = tuple[float, float]
MARGIN = 14
UNIT_PLACES = {"value": 0, "head": 1}  # within a layer, from below; FFN neurons stand above them


@dataclass(frozen=True)
class Paper:
    """What a circuit is drawn on, in pixels at a font size of 12.

    Attributes:
        width: Of the picture.
        gutter: Of the rows' names at its left edge.
        box: Height of a box.
        gaps: The least room between two boxes of a row, and between two rows.
        short: Whether boxes say less.
        least_target: The least width of the target's box: every unit's edge ends there.
    """

    width: int
    gutter: int
    box: int
    gaps: tuple[int, int]
    short: bool
    least_target: float


#: A page, and one and two columns of a paper (3.3 and 6.9 inches), where the smallest words have 6 points.
PAGE = Paper(width=980, gutter=74, box=40, gaps=(22, 46), short=False, least_target=260.0)
COLUMNS = {
    1: Paper(width=395, gutter=56, box=32, gaps=(11, 26), short=True, least_target=150.0),
    2: Paper(width=828, gutter=74, box=38, gaps=(18, 36), short=False, least_target=240.0),
}


@dataclass(frozen=True)
class CircuitLayout:
    """Where everything stands.

    Attributes:
        rows: The nodes, from the bottom row upward.
        places: Centre x and top y of each node, by id.
        height: Height of the picture.
    """

    rows: list[list[Node]]
    places: dict[str, Place]
    height: int


def layout(nodes: Sequence[Node], edges: Sequence[Edge], paper: Paper = PAGE) -> CircuitLayout:
    """Places every node inside the width of `paper`.

    >>> nodes = [Node("w", "token", -1, "In", 0.0, pos=0), Node("t", "target", 1, "x", 1.0)]
    >>> found = layout(nodes, [Edge("w", "t", 1.0)])
    >>> [row[0].id for row in found.rows], found.places["w"][0] == found.places["t"][0]
    (['w', 't'], True)
    """
    rows = _order(_rows(nodes, paper), edges)
    height = 2 * MARGIN + len(rows) * paper.box + (len(rows) - 1) * paper.gaps[1]
    return CircuitLayout(rows, _places(rows, edges, paper), height)


def box(node: Node, paper: Paper = PAGE) -> float:
    """The width of a node's box."""
    first, second = lines(node, short=paper.short)
    width = max(7.2 * _columns(first), 6.1 * _columns(second)) + (10 if paper.short else 18)
    return max(width, paper.least_target) if node.kind == "target" else width


def _rows(nodes: Sequence[Node], paper: Paper) -> list[list[Node]]:
    """Rows from the bottom upward; a row that is wider than the picture goes on in the next one."""
    groups: dict[tuple[float, int], list[Node]] = defaultdict(list)
    heights = {"token": (-math.inf, 0), "target": (math.inf, 0)}
    for node in nodes:
        groups[heights.get(node.kind, (node.layer, UNIT_PLACES.get(node.kind, 2)))].append(node)
    rows: list[list[Node]] = []
    for _, group in sorted(groups.items()):
        first = [math.inf if n.pos is None else n.pos for n in group]
        ordered = [n for _, n in sorted(zip(first, group, strict=True), key=lambda p: (p[0], p[1].id))]
        broken = _break(ordered, paper)
        rows += reversed(broken) if group[0].kind == "token" else broken  # text is read from above
    return rows


def _break(group: list[Node], paper: Paper) -> list[list[Node]]:
    rows: list[list[Node]] = [[]]
    room = paper.width - paper.gutter - MARGIN
    for node in group:
        used = sum(box(n, paper) + paper.gaps[0] for n in rows[-1])
        if rows[-1] and used + box(node, paper) > room:
            rows.append([])
        rows[-1].append(node)
    return rows


def _order(rows: list[list[Node]], edges: Sequence[Edge]) -> list[list[Node]]:
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


def _places(rows: list[list[Node]], edges: Sequence[Edge], paper: Paper) -> dict[str, tuple[float, float]]:
    """Centre x and top y of each node: as near to its neighbours as the row's order and width allow."""
    top = {
        n.id for n in rows[-1] if n.kind == "target"
    }  # pulls every unit to the middle, so it does not count
    around = _neighbours([edge for edge in edges if edge.target not in top])
    left, right = paper.gutter, paper.width - MARGIN
    centre: dict[str, float] = {}
    for sweep in range(6):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            widths = [box(n, paper) for n in row]
            if row[0].kind in ("token", "target"):
                gap = min(44.0, (right - left - sum(widths)) / len(row))
                wanted, x = [], (left + right - sum(widths) - gap * (len(row) - 1)) / 2
                for width in widths:
                    wanted.append(x + width / 2)
                    x += width + gap
            else:
                step = (right - left) / len(row)
                even = [left + (i + 0.5) * step for i in range(len(row))]
                pulled = [_mean(around[n.id], centre, x) for n, x in zip(row, even, strict=True)]
                wanted = [0.6 * near + 0.4 * x for near, x in zip(pulled, even, strict=True)]
            packed = pack(wanted, widths, gap=paper.gaps[0], left=left, right=right)
            centre |= dict(zip((n.id for n in row), packed, strict=True))
    pitch, last = paper.box + paper.gaps[1], len(rows) - 1
    return {
        n.id: (centre[n.id], float(MARGIN + (last - i) * pitch)) for i, row in enumerate(rows) for n in row
    }


def pack(
    wanted: Sequence[float], widths: Sequence[float], *, gap: float, left: float, right: float
) -> list[float]:
    """Centres in the given order without overlap, moved together towards what was wanted, between left and right.

    >>> pack([5.0, 5.0], [4.0, 4.0], gap=2.0, left=0.0, right=20.0)
    [2.0, 8.0]
    """
    lefts: list[float] = []
    for place, width in zip(wanted, widths, strict=True):
        least = lefts[-1] + widths[len(lefts) - 1] + gap if lefts else -math.inf
        lefts.append(max(place - width / 2, least))
    shift = sum(w - (x + b / 2) for w, x, b in zip(wanted, lefts, widths, strict=True)) / len(lefts)
    low, high = left - lefts[0], right - widths[-1] - lefts[-1]
    shift = max(low, min(shift, high))
    limit = float(right)
    for i in reversed(range(len(lefts))):
        lefts[i] = min(lefts[i] + shift, limit - widths[i])
        limit = lefts[i] - gap
    return [x + b / 2 for x, b in zip(lefts, widths, strict=True)]


def _neighbours(edges: Sequence[Edge]) -> dict[str, list[tuple[str, float]]]:
    around: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for edge in edges:
        around[edge.source].append((edge.target, size(edge.score)))
        around[edge.target].append((edge.source, size(edge.score)))
    return around


def _mean(near: list[tuple[str, float]], place: Mapping[str, float], default: float) -> float:
    known = [(place[name], weight + 1e-9) for name, weight in near if name in place]
    return sum(x * w for x, w in known) / sum(w for _, w in known) if known else default


def _columns(text: str) -> int:
    """Width in character cells: East Asian wide characters and emoji take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)
