"""The circuit of an attribution as an object: what its JSON file holds, drawn in a notebook and saved as a picture."""

from __future__ import annotations

import functools
import hashlib
import html as escaping
import json
import os
from pathlib import Path
from typing import Any, Self

import pandas as pd

from reports import circuit_figure, explorer, html, look, sections
from reports.circuit import Circuit, Drawing, draw, fitted, kept, read
from reports.circuit_shapes import svg_file
from reports.errors import InputError
from reports.files import write
from reports.parsing import parse
from reports.text import clip, visible

__all__ = ["AttributionCircuit", "check_path"]

_SUFFIXES = (".svg", ".pdf", ".png", ".html", ".json")


def check_path(path: str | os.PathLike[str]) -> Path:
    """The path of a file that a circuit can be saved as.

    Raises:
        InputError: Another suffix.
    """
    target = Path(path)
    if target.suffix.lower() not in _SUFFIXES:
        raise InputError(f"path: expected a name that ends in {', '.join(_SUFFIXES)}, found {target.name!r}")
    return target


class AttributionCircuit(dict[str, Any]):
    """An attribution graph: the object of its JSON file, with frames and pictures.

    As the last line of a notebook's cell it is drawn and can be explored. What the keys hold: `reports.circuit_data`.

    >>> node = {"id": "t", "kind": "target", "layer": 1, "pos": None, "label": " Paris", "score": -0.5}
    >>> about = {"schema_version": 2, "target": " Paris", "prompt": "In", "share": 1.0}
    >>> circuit = AttributionCircuit(about | {"nodes": [node], "edges": []})
    >>> circuit
    AttributionCircuit('·Paris' after 'In': 1 nodes, 0 edges; its units hold 100% of the |score| of all scored units)
    >>> circuit.nodes[["id", "score"]].values.tolist()
    [['t', -0.5]]
    """

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a circuit's JSON file, as `save` and a run write it.

        Raises:
            InputError: There is no such file.
            IntegrityError: Something in it is missing or wrong.
        """
        read(path)
        return cls(parse(Path(path).read_text(encoding="utf-8")))

    @property
    def share(self) -> float:
        """The part of the |score| of all scored units that the circuit's units hold."""
        return float(self["share"])

    @property
    def nodes(self) -> pd.DataFrame:
        """One row a node: id, kind, layer, pos, label, score (nats), promotes (a list of tokens)."""
        columns = ["id", "kind", "layer", "pos", "label", "score", "promotes"]
        return pd.DataFrame(self["nodes"], columns=columns).astype({"pos": "Int64", "score": float})

    @property
    def edges(self) -> pd.DataFrame:
        """One row an edge: source, target, score (nats), read and read_gate (shares of what the target reads)."""
        columns = ["source", "target", "score", "read", "read_gate"]
        return pd.DataFrame(self["edges"], columns=columns).astype(dict.fromkeys(columns[2:], float))

    def save(self, path: str | os.PathLike[str], *, columns: int | None = 1, dpi: int = 300) -> Path:
        """Writes the circuit as .svg, .pdf, .png, .html or .json, by the suffix of `path`; returns the path.

        A picture has the width of one column of a paper (3.3 inches), its words at 6 points and more. Where that has no
        room for every node, the weakest are left out, and the picture says how many and what share of all scores is
        drawn. The page (.html) can be explored and, like the JSON, holds all nodes.

        Args:
            path: The file.
            columns: 1 or 2 columns of a paper (3.3 or 6.9 inches); None for a picture as in a notebook.
            dpi: Dots an inch of a PNG.

        Raises:
            InputError: Another suffix or number of columns.
        """
        target = check_path(path)
        suffix = target.suffix.lower()
        if columns not in (None, *look.WIDTHS):
            raise InputError(f"columns: expected 1, 2 or None, found {columns!r}")
        if suffix == ".json":
            return write(target, json.dumps(self, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        if suffix == ".html":
            return write(target, self._page(frame=False))
        drawing = self._drawing if columns is None else fitted(read(self), columns)
        width = drawing.width / 96 if columns is None else look.WIDTHS[columns]
        if suffix == ".svg":
            inches = (width, width * drawing.height / drawing.width)
            return write(target, svg_file(drawing.svg, drawing.shapes, inches=inches))
        target.parent.mkdir(parents=True, exist_ok=True)
        return look.save(circuit_figure.paint(drawing, inches=width), target, dpi=dpi)

    @functools.cached_property
    def _drawing(self) -> Drawing:
        digest = hashlib.sha256(json.dumps(self, sort_keys=True).encode()).hexdigest()
        return draw(read(self), prefix=f"circuit-{digest[:8]}")

    def _page(self, *, frame: bool) -> str:
        graph = read(self)
        context = {
            "summary": {"title": self._title(graph), "subtitle": kept(graph)},
            "circuit": sections.circuit(graph) | {"frame": frame},
        }
        return html.render("circuit.html.j2", context, scripts=explorer.SCRIPTS)

    @staticmethod
    def _title(graph: Circuit) -> str:
        return f"Circuit of {visible(graph.target, spaces=True)}"

    def __repr__(self) -> str:
        graph = read(self)
        share = kept(graph).removesuffix(".")
        return (
            f"{type(self).__name__}({visible(graph.target, spaces=True)!r} after {clip(visible(graph.prompt), 60)!r}: "
            f"{len(graph.nodes)} nodes, {len(graph.edges)} edges; {share[0].lower() + share[1:]})"
        )

    def _repr_html_(self) -> str:
        """The picture and, folded away beneath it, the graph to explore, in a frame of its own."""
        frame = escaping.escape(self._page(frame=True), quote=True)
        svg = self._drawing.svg.replace("<svg ", '<svg style="max-width: 980px; background: #fefefe" ', 1)
        return (
            f"<div>{svg}<details><summary>Explore: drag, zoom, filter, click a node</summary>"
            f'<iframe title="The circuit to explore" style="width: 100%; height: 720px; border: 0" '
            f'srcdoc="{frame}"></iframe></details></div>'
        )
