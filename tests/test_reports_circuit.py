"""Circuits: reading, folding, layout, escaping."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from reports.circuit import MAX_NODES, Circuit, Edge, Node, draw, read
from reports.errors import InputError, IntegrityError
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
    assert len(items) == drawing.n_shown + (drawing.n_folded > 0) <= MAX_NODES
    assert drawing.n_shown + drawing.n_folded == units + 10
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in items)
    assert not overlap(drawing.svg)


def test_the_oracle_of_overlap_can_fail() -> None:
    one = '<rect x="0.0" y="0.0" width="10.0" height="40" /><rect x="{}" y="0.0" width="10.0" height="40" />'
    assert overlap(one.format("9.0"))
    assert not overlap(one.format("11.0"))


def test_folding_keeps_the_largest_and_says_the_share() -> None:
    units = [Node(f"u{i:03}", "neuron", i % 6, f"n{i:03}", 1.0 / (i + 1)) for i in range(100)]
    target = Node("t", "target", 6, "x", 1.0)
    edges = tuple(Edge(u.id, "t", u.score) for u in units)
    drawing = draw(Circuit("x", "p", 0.5, (*units, target), edges))
    kept = MAX_NODES - 2
    total = sum(u.score for u in units)
    assert drawing.n_folded == 100 - kept
    assert drawing.shown_share == pytest.approx(sum(u.score for u in units[:kept]) / total)
    assert "n057" in drawing.svg
    assert "n058" not in drawing.svg
    lost = sum(u.score for u in units[kept:])
    assert f"more nodes ({lost / total:.0%} of |score|) → x: {lost:+.3f}" in drawing.svg


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
