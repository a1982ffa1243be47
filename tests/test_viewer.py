"""The circuit's query part, and its file for circuit-tracer's and Neuronpedia's viewers."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mechedit.attribution import Attribution, attribute
from reports.circuit import draw, read
from reports.errors import InputError, IntegrityError
from reports.viewer import save_viewer, viewer_graph
from tests.tiny import ARCHS, Arch, tiny_model

PROMPT, TARGET = "The mother tongue of Anna is", " French"

# What circuit-tracer 0.5's pydantic models and Neuronpedia's JSON schema 1.0.0 require, and of which type.
METADATA: dict[str, type] = {
    "slug": str,
    "scan": str,
    "transcoder_list": list,
    "prompt_tokens": list,
    "prompt": str,
}
QPARAMS: dict[str, type] = {
    "pinnedIds": list,
    "supernodes": list,
    "linkType": str,
    "clickedId": str,
    "sg_pos": str,
}
NODE: dict[str, type] = {
    "node_id": str,
    "feature": int,
    "layer": str,
    "ctx_idx": int,
    "feature_type": str,
    "jsNodeId": str,
}
NODE |= {"clerp": str, "token_prob": float, "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int}
LINK: dict[str, type] = {"source": str, "target": str, "weight": float}


@cache
def attributed(arch: Arch) -> Attribution:
    return attribute(tiny_model(arch), PROMPT, TARGET, top_k=30)


def circuit(arch: Arch = "llama-gqa", **options: Any) -> dict[str, Any]:
    return attributed(arch).circuit(**options)


# ------------------------------------------------------------------------------------------ the query part


@pytest.mark.parametrize("arch", ARCHS)
def test_a_circuit_leads_from_tokens_over_query_neurons_to_value_neurons(arch: Arch) -> None:
    graph = json.loads(json.dumps(circuit(arch), allow_nan=False))
    kinds = {node["id"]: node["kind"] for node in graph["nodes"]}
    steps = {(kinds[edge["source"]], kinds[edge["target"]]) for edge in graph["edges"]}
    assert {("token", "query"), ("token", "value"), ("query", "value"), ("value", "head")} <= steps
    assert ("query", "neuron") in steps or ("neuron", "neuron") in steps
    assert not steps & {("query", "target"), ("value", "target"), ("query", "head"), ("head", "query")}
    assert len(kinds) == len(graph["nodes"])
    layers = {node["id"]: node["layer"] for node in graph["nodes"]}
    for edge in graph["edges"]:
        below = kinds[edge["source"]] in ("query", "neuron") and kinds[edge["target"]] != "target"
        assert layers[edge["source"]] < layers[edge["target"]] if below else True
        reads = kinds[edge["target"]] in ("query", "value") or (below and kinds[edge["target"]] == "neuron")
        assert (edge["read"] is not None) == (
            reads or (kinds[edge["source"]], kinds[edge["target"]]) == ("token", "neuron")
        )
    drawn = draw(read(graph)).svg
    assert "query " in drawn
    assert "of what it reads" in drawn


@pytest.mark.parametrize("arch", ARCHS)
def test_a_query_neurons_score_is_the_sum_of_its_kept_edges_and_each_edge_is_a_row(arch: Arch) -> None:
    graph, attr = circuit(arch), attributed(arch)
    known = attr.reads[attr.reads["source"] == "mlp"]["score"].tolist()
    queries = [node for node in graph["nodes"] if node["kind"] == "query"]
    assert queries
    for node in queries:
        passed = [edge["score"] for edge in graph["edges"] if edge["source"] == node["id"]]
        assert node["score"] == pytest.approx(math.fsum(passed))
        assert all(score in known for score in passed)
    for node in graph["nodes"]:
        if node["kind"] == "value":
            (edge,) = (edge for edge in graph["edges"] if edge["source"] == node["id"])
            assert edge["score"] == node["score"]
            assert edge["target"].startswith("head:")


def test_the_share_of_the_queries_is_stated_of_all_pairs() -> None:
    attr = attributed("llama")
    total = sum(attr.certificate["reads"]["total"].values())
    names = {node["id"]: node["kind"] for node in circuit("llama")["nodes"]}
    for limit in (0, 3, 24, 1000):
        graph = circuit("llama", max_edges=limit)
        names = {node["id"]: node["kind"] for node in graph["nodes"]}
        kept = [
            abs(edge["score"])
            for edge in graph["edges"]
            if names[edge["source"]] in ("query", "neuron") and names[edge["target"]] in ("value", "neuron")
        ]
        assert graph["query_edges"] == len(kept) <= 2 * limit
        assert graph["query_share"] == pytest.approx(sum(kept) / total)
        assert graph["query_edges_total"] == attr.certificate["reads"]["edges_total"] > 200
    few = circuit("llama", max_edges=1000, share=0.01)
    assert few["query_edges"] <= circuit("llama", max_edges=1000)["query_edges"]
    with pytest.raises(InputError, match="max_edges: expected an integer of at least 0"):
        circuit("llama", max_edges=-1)


def test_a_query_neuron_that_is_a_value_neuron_too_is_one_node() -> None:
    graph = circuit("gpt2", share=1.0, max_units=10_000, max_edges=200)
    both = [
        edge
        for edge in graph["edges"]
        if edge["source"].startswith("neuron:") and edge["target"].startswith("neuron:")
    ]
    assert both
    last = len(graph["tokens"]) - 1
    ids = {node["id"] for node in graph["nodes"]}
    for edge in both:
        assert edge["source"].replace("neuron:", "query:") + f"@{last}" not in ids


# ------------------------------------------------------------------------------------------ the viewers' file


def assert_valid(graph: dict[str, Any]) -> None:
    """Fields, types, and what the viewers' code relies on."""
    assert graph.keys() == {"metadata", "qParams", "nodes", "links"}
    parts: list[tuple[dict[str, Any], list[Any]]] = [
        (METADATA, [graph["metadata"]]),
        (QPARAMS, [graph["qParams"]]),
        (NODE, graph["nodes"]),
        (LINK, graph["links"]),
    ]
    for fields, items in parts:
        for item in items:
            for name, kind in fields.items():
                assert type(item[name]) is kind, f"{name}: {item[name]!r}"
    ids = [node["node_id"] for node in graph["nodes"]]
    assert len(set(ids)) == len(ids), "a node occurs twice"
    features = {(node["layer"], node["feature"], node["ctx_idx"]) for node in graph["nodes"]}
    assert len(features) == len(ids), "two nodes are one feature"
    assert {link[end] for link in graph["links"] for end in ("source", "target")} <= set(ids), (
        "a link to nowhere"
    )
    n_tokens = len(graph["metadata"]["prompt_tokens"])
    for node in graph["nodes"]:
        assert 0 <= node["ctx_idx"] < n_tokens
        assert node["layer"] == "E" if node["feature_type"] == "embedding" else node["layer"].isdigit()
        if node["feature_type"] == "logit":
            assert 0 <= float(node["clerp"].split("(p=")[1].split(")")[0]) <= 1
    assert sum(node["is_target_logit"] for node in graph["nodes"]) == 1


@pytest.mark.parametrize("arch", ARCHS)
def test_the_file_is_what_the_viewers_read_and_says_what_the_circuit_says(arch: Arch, tmp_path: Path) -> None:
    graph = circuit(arch)
    path = save_viewer(graph, tmp_path / "graphs")
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert_valid(saved)
    assert saved == viewer_graph(graph)
    assert [link["weight"] for link in saved["links"]] == [edge["score"] for edge in graph["edges"]]
    assert len(saved["nodes"]) == len(graph["nodes"])
    for node, made in zip(graph["nodes"], saved["nodes"], strict=True):
        if node["kind"] in ("query", "neuron"):
            layer, neuron = map(int, node["id"].split(":")[1].split("@")[0].split("."))
            w = (math.isqrt(8 * made["feature"] + 1) - 1) // 2  # the viewers' own decoding of the pair
            assert made["feature"] - w * (w + 1) // 2 == neuron
            assert w - (made["feature"] - w * (w + 1) // 2) == layer == int(made["layer"])
    assert saved["metadata"]["pruning_settings"]["query_share"] == graph["query_share"]


def test_a_wrong_file_is_not_valid() -> None:
    spoilt: tuple[tuple[Callable[[Any], None], str], ...] = (
        (lambda g: g["nodes"][3].update(feature=None), "feature"),
        (lambda g: g["links"][0].update(source="E_0_99"), "nowhere"),
        (lambda g: g["nodes"].append(g["nodes"][-1]), "twice"),
    )
    for spoil, message in spoilt:
        graph = viewer_graph(circuit())
        spoil(graph)
        with pytest.raises(AssertionError, match=message):
            assert_valid(graph)


def test_circuit_tracers_own_models_take_the_file() -> None:
    spec = importlib.util.find_spec("circuit_tracer")
    if spec is None or spec.origin is None:
        pytest.skip(
            "circuit-tracer is not installed: its pins exclude this project's transformers (pip --no-deps)"
        )
    # the file alone: the package's __init__ wants what its pins want
    models = Path(spec.origin).parent / "frontend" / "graph_models.py"
    loaded = importlib.util.spec_from_file_location("graph_models", models)
    assert loaded is not None
    assert loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    graph = viewer_graph(circuit())
    model = module.Model.model_validate(graph)
    dumped = json.loads(model.model_dump_json())
    assert dumped["nodes"] == graph["nodes"]
    assert dumped["links"] == graph["links"]
    del graph["nodes"][0]["ctx_idx"]
    with pytest.raises(ValueError, match="ctx_idx"):
        module.Model.model_validate(graph)


def test_a_folder_lists_its_graphs_and_replaces_one_of_the_same_name(tmp_path: Path) -> None:
    for slug in ("one", "two", "one"):
        assert save_viewer(circuit(), tmp_path, slug=slug) == tmp_path / f"{slug}.json"
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert [graph["slug"] for graph in listed] == ["two", "one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph-metadata.json", "one.json", "two.json"]


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="slug"):
        save_viewer(circuit(), tmp_path / "new", slug="../up")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="folder: expected a folder"):
        save_viewer(circuit(), file)
    (tmp_path / "graph-metadata.json").write_text("[]")
    with pytest.raises(IntegrityError, match="list of graphs"):
        save_viewer(circuit(), tmp_path)
    bare = {key: value for key, value in circuit().items() if key != "ids"}
    with pytest.raises(IntegrityError, match="'ids'"):
        viewer_graph(bare)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "graph-metadata.json"]


def test_a_target_that_looks_like_the_viewers_own_marks_is_still_read() -> None:
    graph = circuit() | {"logp": -1.0}
    graph["nodes"] = [
        node | ({"label": ' "a (p=9)'} if node["kind"] == "target" else {}) for node in graph["nodes"]
    ]
    assert_valid(viewer_graph(graph))
