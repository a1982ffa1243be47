"""The page of what is saved: made by saving one of each on the embedded model, and reading what lies there.

Steps of `page`:

1. an attribution, its circuit, an evaluation's run folder, an edit book and a change of weights are made and saved;
2. of every JSON and TOML file its keys are listed, each with the type and a value of this very run; of every Parquet
   file its columns;
3. beneath stand all result classes with their kind and fields, by their docstrings.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import tomllib
import typing
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open

import mechedit as me
from docs.site import api
from docs.site.markdown import cell, code, table
from docs.site.recipes import attributes
from mechedit.cli import main
from reports.attribution_circuit import AttributionCircuit
from reports.results import Result

__all__ = ["keys", "page", "result_classes"]

#: What a file of a run folder is for.
FILES = {
    "config.toml": "What was asked for; a recipe that gives the same run again.",
    "provenance.json": "What the numbers depend on besides; a resumed run must agree with it.",
    "cases/ID.json": "One finished case. Those that exist are not made again.",
    "manifest.json": "Name, size and sha256 of every file. Written last: where it is, the run is finished.",
    "summary.json": "What the page shows at the top.",
    "report.html": "The page.",
}


def keys(value: Any, before: str = "", depth: int = 3) -> Iterator[tuple[str, str, str]]:
    """The keys of a JSON object: path, type, value; of a list the first entry's.

    >>> list(keys({"a": 1, "b": [{"c": "x"}], "d": []}))
    [('a', 'integer', '1'), ('b[].c', 'text', '"x"'), ('d', 'list', '')]
    """
    if isinstance(value, dict) and value and depth:
        for key, item in value.items():
            yield from keys(item, f"{before}.{key}" if before else key, depth - 1)
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        yield from keys(value[0], f"{before}[]", depth)
    else:
        yield before, _kind(value), _short(value)


def _kind(value: Any) -> str:
    names = {bool: "true | false", int: "integer", float: "number", str: "text", dict: "table", list: "list"}
    return "null" if value is None else names[type(value)]


def _short(value: Any) -> str:
    if value in ({}, [], None):
        return ""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 48 else text[:47] + "…"


def result_classes() -> dict[str, type[Result]]:
    """Every class of results, by its kind."""
    classes = {name.value for name in api.names() if name.kind == "class"}
    found = [cls for cls in classes if issubclass(cls, Result) and hasattr(cls, "kind")]
    return {cls.kind: cls for cls in sorted(found, key=lambda cls: cls.kind)}


def page() -> str:
    """The page."""
    with tempfile.TemporaryDirectory() as folder:
        _make(Path(folder))
        shown = [
            _run_folder(Path(folder) / "run"),
            _result(Path(folder) / "attribution"),
            _record("Edits: steering", "`EditBook.save`", Path(folder) / "book"),
            _record("Edits: weights", "`WeightChange.save`", Path(folder) / "change"),
            _circuit(Path(folder) / "circuit.json"),
        ]
    head = [
        "# What is saved",
        "",
        "JSON, TOML, Parquet and safetensors, never pickle: every file opens without this project. The tables below",
        "were read off files that were saved when this page was built (a fact of the embedded world); values are of",
        "that run. New fields get defaults, so that what an earlier version saved still opens; another schema is",
        "refused.",
        'JSON has no nan: `{"$float": "nan"}` stands for it.',
        "",
    ]
    return "\n".join([*head, *shown, _classes()])


def _make(out: Path) -> None:
    """One of each, on the embedded model."""
    model, facts = me.load_model("factworld"), me.factworld.edits(2)
    attribution = me.attribute(model, facts[0].rewrite_prompt, facts[0].target_true, top_k=5)
    attribution.save(out / "attribution")
    attribution.circuit().save(out / "circuit.json")
    mega = me.editors.MEGA(window=(5, 7), alpha=1.0, gate="always")
    me.editors.EditBook.of(model, [mega.fit(model, facts[0])]).save(out / "book")
    me.editors.FT(layer=6).change(model, facts[0]).save(out / "change")
    me.save_facts(facts, out / "facts.json")
    options = ["--editor", "ft", "--data", "facts.json", "--out", "run", "--quiet"]
    with chdir(out), redirect_stdout(StringIO()):
        if main(["evaluate", *options]) != 0:
            raise RuntimeError("the example of a run folder could not be made")


def _keys_table(value: Any, depth: int = 3) -> str:
    rows = (
        [code(path), kind.replace("|", "or"), code(shown)] for path, kind, shown in keys(value, depth=depth)
    )
    return table(["key", "type", "here"], rows)


def _run_folder(run: Path) -> str:
    files = sorted({_general(file.relative_to(run)) for file in run.rglob("*") if file.is_file()})
    lines = ["## Run folders", "", "What `--out` of a command, and `mechedit run`, write.", ""]
    lines += [
        table(["file", ""], ([code(name), cell(FILES.get(name, _result_file(name)))] for name in files))
    ]
    case = next(iter(sorted((run / "cases").glob("*.json"))))
    for name, text in (
        ("config.toml", tomllib.loads((run / "config.toml").read_text("utf-8"))),
        ("provenance.json", json.loads((run / "provenance.json").read_text("utf-8"))),
        ("cases/ID.json", json.loads(case.read_text("utf-8"))),
        ("manifest.json", json.loads((run / "manifest.json").read_text("utf-8"))),
    ):
        lines += [f"### {name}", "", _keys_table(text, depth=2), ""]
    return "\n".join(lines)


def _general(path: Path) -> str:
    return "cases/ID.json" if path.parts[0] == "cases" else path.as_posix()


def _result_file(name: str) -> str:
    return "A saved result (below)." if name.startswith("results/") else ""


def _result(folder: Path) -> str:
    record = json.loads((folder / "result.json").read_text("utf-8"))
    lines = [
        "## Results",
        "",
        "`result.save(folder)`: a `result.json`, and a Parquet file for each frame. Here an `Attribution`.",
        "",
    ]
    lines += ["### result.json", "", _keys_table(record, depth=2), ""]
    for file in sorted(folder.glob("*.parquet")):
        frame = pd.read_parquet(file)
        rows = ([code(name), code(kind)] for name, kind in frame.dtypes.items())
        lines += [f"### {file.name}", "", table(["column", "type"], rows), ""]
    return "\n".join(lines)


def _record(title: str, by: str, folder: Path) -> str:
    file = next(folder.glob("*.json"))
    lines = [
        f"## {title}",
        "",
        f"{by} writes {' and '.join(f'`{f.name}`' for f in sorted(folder.iterdir()))}.",
        "",
    ]
    lines += [_keys_table(json.loads(file.read_text("utf-8"))), ""]
    with safe_open(next(folder.glob("*.safetensors")), "pt") as tensors:
        rows = []
        for name in list(tensors.keys())[:12]:
            shape = tensors.get_slice(name)
            rows.append([code(name), code(shape.get_dtype()), code(shape.get_shape())])
    return "\n".join([*lines, table(["tensor", "type", "shape"], rows), ""])


def _circuit(file: Path) -> str:
    record = json.loads(file.read_text("utf-8"))
    said = f'`circuit().save("x.json")` writes it. {api.summary(AttributionCircuit)}'
    return "\n".join(["## Circuits", "", said, "", _keys_table(record), ""])


def _classes() -> str:
    lines = [
        "## Every kind of result",
        "",
        "`kind` is what `result.json` says; a field that is a frame is a Parquet file.",
        "",
    ]
    for kind, cls in result_classes().items():
        said, hints = attributes(cls), typing.get_type_hints(cls)
        rows = [
            [code(field.name), code(_type(hints[field.name])), cell(said.get(field.name, ""))]
            for field in dataclasses.fields(typing.cast(Any, cls))
            if field.init
        ]
        lines += [f"### {kind}", "", f"`{cls.__module__}.{cls.__name__}`. {cell(api.summary(cls))}", ""]
        lines += [table(["field", "type", ""], rows), ""]
    return "\n".join(lines)


def _type(hint: Any) -> str:
    if hint is pd.DataFrame:
        return "frame"
    return str(getattr(hint, "__name__", hint) if not typing.get_args(hint) else hint).replace("typing.", "")
