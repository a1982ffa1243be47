"""The graph of one attribution circuit, and its JSON file.

`{"schema_version": 2, "target", "share", "prompt", "nodes": [{"id", "kind", "layer", "pos", "label", "score",
"promotes"}], "edges": [{"source", "target", "score", "read"}]}`; a node's kind is token, query (an FFN neuron that
switches others on), value (an attention neuron), head, mlp, neuron (an FFN value neuron) or target. What the viewers of
other projects want besides (`reports.viewer`) is read there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.errors import InputError, IntegrityError
from reports.parsing import parse

__all__ = ["SCHEMA_VERSION", "Circuit", "Edge", "Node", "read"]

SCHEMA_VERSION = 2
_KINDS = ("token", "query", "value", "head", "mlp", "neuron", "target")


@dataclass(frozen=True)
class Node:
    """A unit of the circuit.

    Attributes:
        score: Its score in nats.
        pos: The token position that it reads; None is the last.
        promotes: The tokens that its output vector moves up most.
    """

    id: str
    kind: str
    layer: int
    label: str
    score: float
    pos: int | None = None
    promotes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Edge:
    """What one node passes to another.

    Attributes:
        source: The id of the sender.
        target: The id of the receiver.
        score: What is passed, in nats.
        read: Its share of what the receiver reads, where that is a neuron.
    """

    source: str
    target: str
    score: float
    read: float | None = None


@dataclass(frozen=True)
class Circuit:
    """An attribution graph.

    Attributes:
        share: The part of the |score| of all scored units that its units hold (0..1).
        tokens: Those of the prompt, where the file has them.
        share_asked: The part that was asked for, where the file has it.
        units: How many units it holds, likewise.
        units_total: How many were scored, likewise.
    """

    target: str
    prompt: str
    share: float
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    tokens: tuple[str, ...] = ()
    share_asked: float | None = None
    units: int | None = None
    units_total: int | None = None


def read(source: str | os.PathLike[str] | Mapping[str, Any]) -> Circuit:
    """Reads the circuit in a JSON file, or in the object parsed from one.

    Raises:
        InputError: There is no such file.
        IntegrityError: Something in it is missing or wrong; the message names it.

    >>> node = {"id": "t", "kind": "target", "layer": 1, "pos": None, "label": "Paris", "score": 2.0}
    >>> about = {"schema_version": 2, "target": "Paris", "prompt": "In", "share": 1.0}
    >>> read(about | {"nodes": [node], "edges": []}).nodes[0].label
    'Paris'
    """
    if isinstance(source, Mapping):
        return _parse(source, "circuit")
    path = Path(source)
    if not path.is_file():
        raise InputError(f"source: expected a circuit file, found none at {path}")
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{path}: not readable as JSON ({error})") from error
    return _parse(data, str(path))


def _parse(data: Mapping[str, Any], where: str) -> Circuit:
    if not isinstance(data, Mapping) or data.get("schema_version") != SCHEMA_VERSION:
        version = data.get("schema_version") if isinstance(data, Mapping) else type(data).__name__
        raise IntegrityError(
            f"{where}: expected a circuit of schema version {SCHEMA_VERSION}, found {version!r}"
        )
    try:
        nodes = tuple(_parse_node(item) for item in data["nodes"])
        edges = tuple(_parse_edge(item) for item in data["edges"])
        tokens = tuple(str(token) for token in data.get("tokens", ()))
        about = (str(data["target"]), str(data["prompt"]), float(data["share"]))
        asked, counts = data.get("share_asked"), [data.get(name) for name in ("units", "units_total")]
        circuit = Circuit(
            *about,
            nodes,
            edges,
            tokens,
            None if asked is None else float(asked),
            *(None if count is None else int(count) for count in counts),
        )
    except KeyError as error:
        raise IntegrityError(f"{where}: expected a field {error.args[0]!r}, found none") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise IntegrityError(f"{where}: a field has the wrong type ({error})") from error
    ids = [node.id for node in nodes]
    if len(set(ids)) < len(ids):
        raise IntegrityError(f"{where}: node id {next(i for i in ids if ids.count(i) > 1)!r} occurs twice")
    for edge in edges:
        for end in (edge.source, edge.target):
            if end not in set(ids):
                raise IntegrityError(f"{where}: an edge names node {end!r}, which does not exist")
    return circuit


def _parse_edge(item: Mapping[str, Any]) -> Edge:
    read = None if item.get("read") is None else float(item["read"])
    return Edge(str(item["source"]), str(item["target"]), float(item["score"]), read)


def _parse_node(item: Mapping[str, Any]) -> Node:
    if item["kind"] not in _KINDS:
        raise ValueError(f"kind {item['kind']!r}, expected one of {', '.join(_KINDS)}")
    pos = None if item.get("pos") is None else int(item["pos"])
    promotes = tuple(str(token) for token in item.get("promotes") or ())
    score = float(item["score"])
    return Node(str(item["id"]), item["kind"], int(item["layer"]), str(item["label"]), score, pos, promotes)
