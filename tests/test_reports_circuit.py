"""Circuits: reading, folding, layout, escaping."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from reports.circuit import (
    MAX_NODES,
    PAGE_INCHES,
    Circuit,
    Drawing,
    Edge,
    Node,
    draw,
    fitted,
    kept,
    read,
)
from reports.circuit_layout import COLUMNS, PAGE, Paper
from reports.circuit_shapes import Box, Line
from reports.errors import InputError, IntegrityError
from reports.look import WIDTHS
from tests import reports_example as example


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    found = re.findall(r'<rect x="([-\d.]+)" y="([-\d.]+)" width="([-\d.]+)" height="(\d+)"', svg)
    return [(float(x), float(y), float(w), float(h)) for x, y, w, h in found]


def overlap(svg: str) -> bool:
    items = boxes(svg)
    return any(
        a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
        for i, a in enumerate(items)
        for b in items[:i]
    )


@pytest.mark.parametrize("units", [0, 1, 24, 40, 300])
def test_every_size_is_drawn_inside_the_picture_without_overlap(units: int) -> None:
    drawing = draw(read(example.circuit(units)))
    root = ElementTree.fromstring(drawing.svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    items = boxes(drawing.svg)
    assert len(items) == drawing.n_shown <= MAX_NODES
    assert drawing.n_shown + drawing.n_folded == units + 10
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in items)
    assert not overlap(drawing.svg)


def test_the_oracle_of_overlap_can_fail() -> None:
    one = '<rect x="0.0" y="0.0" width="10.0" height="40" /><rect x="{}" y="0.0" width="10.0" height="40" />'
    assert overlap(one.format("9.0"))
    assert not overlap(one.format("11.0"))


def test_what_is_not_drawn_is_the_weakest_and_is_said_beneath() -> None:
    units = [Node(f"u{i:03}", "neuron", i % 6, f"n{i:03}", 1.0 / (i + 1)) for i in range(100)]
    target = Node("t", "target", 6, "x", 1.0)
    edges = tuple(Edge(u.id, "t", u.score) for u in units)
    drawing = draw(Circuit("x", "p", 0.5, (*units, target), edges))
    kept = MAX_NODES - 1
    total = sum(u.score for u in units)
    assert drawing.n_folded == 100 - kept
    assert drawing.shown_share == pytest.approx(sum(u.score for u in units[:kept]) / total)
    assert "n058" in drawing.svg
    assert "n059" not in drawing.svg
    share = 0.5 * sum(u.score for u in units[:kept]) / total
    assert f"Drawn: the strongest 60 of 101 nodes, {share:.0%} of the |score|." in drawing.svg
    assert "more nodes" not in drawing.svg


def test_a_node_that_has_lost_all_its_edges_is_not_drawn() -> None:
    units = [Node(f"u{i}", "neuron", 1, f"n{i}", 1.0 / (i + 1)) for i in range(4)]
    query, target = Node("q", "query", 0, "query 0", 0.1, pos=0), Node("t", "target", 6, "x", 1.0)
    edges = (*(Edge(u.id, "t", u.score) for u in units), Edge("q", "u3", 0.1))
    drawn = draw(Circuit("x", "p", 0.5, (*units, query, target), edges), max_nodes=5)
    assert (drawn.n_shown, drawn.n_folded) == (5, 1)
    assert drawn.svg.count("<rect") == 5
    assert ">query 0<" not in drawn.svg


def test_the_share_kept_and_the_share_asked_for_stand_in_the_drawing() -> None:
    nodes = (Node("t", "target", 1, " Paris", -0.5),)
    asked = Circuit(" Paris", "In", 0.457, nodes, (), share_asked=0.8, units=40, units_total=350)
    said = "40 of 350 scored units hold 46% of their |score|; 80% was asked for"
    assert kept(asked) == f"{said}, and max_units = 40 reached first."
    assert said in draw(asked).svg
    reached = Circuit(" Paris", "In", 0.81, nodes, (), share_asked=0.8, units=24, units_total=350)
    assert kept(reached).endswith("hold 81% of their |score|; 80% was asked for.")
    assert "46%" in draw(Circuit(" Paris", "In", 0.457, nodes, ())).svg  # a file of an earlier version


def crossings(drawing: Drawing) -> list[tuple[str, str]]:
    """Which edge runs behind the box of which node that it does not begin or end at: by points along each curve."""
    found = []
    boxes = [shape for shape in drawing.shapes if isinstance(shape, Box)]
    for line in (shape for shape in drawing.shapes if isinstance(shape, Line)):
        t = np.linspace(0, 1, 41)[:, None]
        p = np.array(line.points)
        for i in range(0, len(p) - 1, 3):
            a, b, c, d = p[i : i + 4]
            curve = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
            for box in boxes:
                x, y = curve[:, 0] - box.x, curve[:, 1] - box.y
                inside = (x > 1) & (x < box.width - 1) & (y > 1) & (y < box.height - 1)
                found += [(line.title, box.title)] if inside.any() else []
    return found


@pytest.mark.parametrize("units", [1, 24, 40, 300])
@pytest.mark.parametrize("paper", [PAGE, *COLUMNS.values()], ids=["page", "one column", "two columns"])
def test_no_edge_runs_behind_a_box(units: int, paper: Paper) -> None:
    assert crossings(draw(read(example.circuit(units)), paper=paper)) == []


def test_that_oracle_can_fail() -> None:
    drawing = draw(read(example.circuit(24)))
    straight = tuple(
        dataclasses.replace(s, points=(s.points[0], s.points[0], s.points[-1], s.points[-1]))
        if isinstance(s, Line)
        else s
        for s in drawing.shapes
    )
    assert crossings(dataclasses.replace(drawing, shapes=straight))


def test_edges_within_a_row_and_downward_are_drawn_too() -> None:
    nodes = (
        Node("a", "neuron", 0, "A", 1.0),
        Node("b", "neuron", 0, "B", 1.0),
        Node("c", "neuron", 1, "C", 1.0),
    )
    edges = (Edge("a", "b", 1.0), Edge("c", "a", 1.0), Edge("c", "a", 1.0))
    drawing = draw(Circuit("x", "p", 1.0, (*nodes, Node("t", "target", 2, "x", 0.5)), edges))
    assert sum(isinstance(shape, Line) for shape in drawing.shapes) == 3
    assert crossings(drawing) == []


@pytest.mark.parametrize("columns", [1, 2])
def test_a_paper_s_column_holds_as_many_nodes_as_fit_its_page(columns: int) -> None:
    graph = read(example.circuit(300))
    drawing = fitted(graph, columns)
    most = PAGE_INCHES * drawing.width / WIDTHS[columns]
    assert drawing.height <= most < draw(graph, paper=COLUMNS[columns], max_nodes=drawing.n_shown + 6).height
    assert f"strongest {drawing.n_shown} of 310 nodes" in drawing.svg


def test_query_and_value_neurons_take_the_room_that_units_leave_and_count_for_no_share() -> None:
    units = [Node(f"u{i:03}", "neuron", i % 6, f"n{i:03}", 0.1) for i in range(30)]
    kinds = ("query", "value")
    below = [Node(f"{kind}{i:03}", kind, 0, f"{kind} {i}", 5.0, pos=0) for kind in kinds for i in range(40)]
    target = Node("t", "target", 6, "x", 1.0)
    edges = (*(Edge(n.id, "t", n.score) for n in units), Edge(below[0].id, "u000", 5.0, read=0.25))
    drawing = draw(Circuit("x", "p", 0.5, (*units, *below, target), edges))
    assert all(f">n{i:03}<" in drawing.svg for i in range(30))
    assert drawing.shown_share == pytest.approx(1.0)
    assert drawing.n_shown + drawing.n_folded == 111
    assert "query 0 → n000: +5.000 nats, 25.0% of what it reads" in drawing.svg


def test_tokens_below_target_on_top_and_layers_rise() -> None:
    graph = read(example.circuit())
    svg = draw(graph).svg
    heights: dict[str, float] = {}
    for title, y in re.findall(r'<g><title>([^<;]*)[^<]*</title><rect x="[^"]*" y="([\d.]+)"', svg):
        heights.setdefault(title, float(y))
    assert heights["·English"] == min(heights.values())
    assert heights["The"] == max(heights.values())
    assert heights["L7 H1"] < heights["L6 H2"] < heights["L4 H6"]


def test_sign_is_colour_and_dash_and_strength_is_width() -> None:
    nodes = (
        Node("a", "head", 0, "A", 1.0),
        Node("b", "head", 0, "B", -0.5),
        Node("t", "target", 1, "x", 0.5),
    )
    svg = draw(Circuit("x", "p", 1.0, nodes, (Edge("a", "t", 1.0), Edge("b", "t", -0.5)))).svg
    paths = {m[1]: m[0] for m in re.findall(r"(<path [^>]*>)<title>(\w)", svg)}
    assert "--pos" in paths["A"]
    assert "--neg" in paths["B"]
    assert "dasharray" in paths["B"]
    assert "dasharray" not in paths["A"]
    widths = {k: float(re.findall(r'stroke-width="([\d.]+)"', v)[0]) for k, v in paths.items()}
    assert widths["A"] == pytest.approx(6.0)
    assert widths["B"] == pytest.approx(0.8 + 5.2 / 2)


def test_undefined_scores_are_said_not_drawn_as_zero() -> None:
    nodes = (Node("a", "mlp", 0, "A", math.nan), Node("t", "target", 1, "x", 0.5))
    drawing = draw(Circuit("x", "p", 1.0, nodes, (Edge("a", "t", math.nan),)))
    assert "undefined" in drawing.svg
    assert "nan" not in drawing.svg
    assert math.isnan(drawing.shown_share)


def test_same_graph_same_bytes_whatever_the_order() -> None:
    data = example.circuit(80)
    turned = data | {"nodes": data["nodes"][::-1], "edges": data["edges"][::-1]}
    assert draw(read(data)).svg == draw(read(data)).svg == draw(read(turned)).svg


def test_hostile_text_is_shown_not_run() -> None:
    nodes: list[dict[str, Any]] = [
        {
            "id": f'<{i}>"',
            "kind": "token",
            "layer": -1,
            "pos": i,
            "label": text,
            "score": 0,
            "promotes": [text],
        }
        for i, text in enumerate(example.HOSTILE)
    ]
    nodes.append({"id": "t", "kind": "target", "layer": 1, "label": "<img src=x>", "score": 1.0})
    edges = [{"source": node["id"], "target": "t", "score": 0.1} for node in nodes[:-1]]
    about: dict[str, Any] = {"schema_version": 2, "target": "</title><b>", "prompt": "", "share": 1}
    svg = draw(read(about | {"nodes": nodes, "edges": edges})).svg
    ElementTree.fromstring(svg)
    assert not re.search(r"<(script|img|b|/style)\b", svg)
    assert "\u202e" not in svg
    assert "⟨U+200B⟩" in svg


def broken(change: str) -> dict[str, Any]:
    data = example.circuit(3)
    node = dict(data["nodes"][0])
    changes: dict[str, dict[str, Any]] = {
        "version": {"schema_version": 9},
        "field": {"nodes": [{k: v for k, v in node.items() if k != "label"}]},
        "kind": {"nodes": [node | {"kind": "qubit"}]},
        "type": {"share": "most"},
        "twice": {"nodes": [node, node], "edges": []},
        "nowhere": {"edges": [{"source": "t0", "target": "ghost", "score": 1.0}]},
    }
    return data | changes[change]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("version", "schema version 2, found 9"),
        ("field", "'label'"),
        ("kind", "qubit"),
        ("type", "wrong type"),
        ("twice", "'t0' occurs twice"),
        ("nowhere", "'ghost'"),
    ],
)
def test_broken_graphs_are_refused(tmp_path: Path, change: str, match: str) -> None:
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps(broken(change)), encoding="utf-8")
    with pytest.raises(IntegrityError, match=match):
        read(path)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found none"):
        read(tmp_path / "circuit.json")
    (tmp_path / "circuit.json").write_text("{", encoding="utf-8")
    with pytest.raises(IntegrityError, match="JSON"):
        read(tmp_path / "circuit.json")
