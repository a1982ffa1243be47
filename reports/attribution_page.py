"""The page of one attribution, of the difference of two, and of a folder of prompts, made of their files alone.

One attribution or difference is what its `save` writes (`result.json` and a Parquet file a frame); a folder of prompts
is the run folder of `attribute_many` (one JSON file a prompt), finished or not. Steps:

1. read the results as records: plain fields and frames, without a model;
2. one: its account, layers, heads, neurons in words, circuit. Many: a table of the prompts, the means over them, the
   neurons that most of them share, and each prompt with its best units and its circuit;
3. fill the template.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
from markupsafe import Markup

from reports import explorer, figures, html, sections
from reports.circuit import draw, kept, read
from reports.circuit_data import build_circuit
from reports.errors import InputError, IntegrityError
from reports.inline import fragment
from reports.intervals import bootstrap_mean
from reports.look import row
from reports.parsing import parse_toml
from reports.plot import after
from reports.readable import DIFFERENCE_MEANS, SCORE_MEANS, account_line, prompt_text, readable
from reports.reading import read_frame, read_lines, read_object
from reports.text import visible

__all__ = ["is_attribution", "is_prompts", "read_one", "read_prompts", "render", "title"]

_TOP = 15
_CIRCUITS = 40  # prompts of a folder whose circuits are drawn; a page stays below a few megabytes
_CIRCUIT_NODES = 30
_SHARED = 20  # neurons in the table of those that several prompts share
_WORDS = {
    "layer": "Layer",
    "head": "Head",
    "neuron": "Neuron",
    "dim": "Dim",
    "pos": "Position",
    "token": "Token",
    "score": "Score (nats)",
    "reads": "Reads most from",
    "promotes": "Promotes",
    "demotes": "Demotes",
}
#: What a page takes for granted of an attribution.
_FIELDS = (
    *(
        "ids",
        "tokens",
        "target_token",
        "target_id",
        "logp",
        "embedding_logp",
        "prior_logp",
        "completeness_gap",
    ),
    *("biases", "sign", "method", "layers", "heads", "head_positions", "mlp_neurons", "attn_neurons"),
    *("promotes", "reads", "certificate"),
)
_CHIPS = ("token", "reads", "promotes", "demotes")


def is_attribution(folder: Path) -> bool:
    """Whether `folder` holds a saved attribution, or the difference of two."""
    file = folder / "result.json"
    try:
        return file.is_file() and read_object(file).get("kind") in ("attribution", "attribution_contrast")
    except IntegrityError:
        return False


def is_prompts(folder: Path) -> bool:
    """Whether `folder` is a run of `attribute_many`."""
    file = folder / "config.toml"
    try:
        return (
            file.is_file() and parse_toml(file.read_text(encoding="utf-8")).get("command") == "attribute_many"
        )
    except ValueError:
        return False


def read_one(folder: Path) -> SimpleNamespace:
    """The saved attribution in `folder` as a record: its fields and frames as attributes.

    Raises:
        IntegrityError: A file is missing or damaged.
    """
    record = read_object(folder / "result.json")
    frames = {name: read_frame(folder, name) for name in record.get("frames", {})}
    if missing := [name for name, frame in frames.items() if frame is None]:
        raise IntegrityError(f"{folder}: expected {missing[0]}.parquet, found none")
    values = record.get("values", {}) | {"provenance": record.get("provenance", {})}
    make = _difference if record.get("kind") == "attribution_contrast" else _record
    return make(values, frames, str(folder / "result.json"))


def read_prompts(folder: Path) -> list[SimpleNamespace]:
    """The attributions of the prompts in `folder` that are done, in their order.

    Raises:
        IntegrityError: A file is damaged.
    """
    files = [file for file in (folder / "cases").glob("*.json") if file.stem.isdecimal()]
    records = []
    for file in sorted(files, key=lambda file: int(file.stem)):
        case = read_object(file)
        try:
            frames = {
                name: pd.DataFrame(
                    {
                        key: pd.Series(column, dtype=frame["dtypes"][key])
                        for key, column in frame["columns"].items()
                    }
                )
                for name, frame in case["frames"].items()
            }
            records.append(_record(case["values"] | {"index": int(file.stem)}, frames, str(file)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(
                f"{file}: expected an attribution, found something else ({error})"
            ) from error
    return records


def _record(values: dict[str, Any], frames: dict[str, Any], where: str) -> SimpleNamespace:
    record = SimpleNamespace(**values, **frames)
    if missing := [name for name in _FIELDS if not hasattr(record, name)]:
        raise IntegrityError(f"{where}: expected a field {missing[0]!r} of an attribution, found none")
    scored = len(getattr(record, "scored_ids", ())) or 1
    record.prompt = prompt_text(record.tokens, len(record.ids) - scored + 1)
    record.about = record.provenance.get("model", {})
    record.targets = [visible(record.target_token, spaces=True)]
    record.facts = [("log p", sections.number(record.logp)), ("p", f"{math.exp(record.logp):.3f}")]
    record.settings = f"biases: {record.biases}; sign: {record.sign}; method: {record.method}"
    return record


def _difference(values: dict[str, Any], frames: dict[str, Any], where: str) -> SimpleNamespace:
    """A difference of two attributions as a record like theirs; it has no circuit."""
    record = SimpleNamespace(**values, **frames)
    sides = (record.a, record.b)
    record.prompt, record.sign, record.promotes = prompt_text(record.tokens), "both", None
    record.about = record.provenance.get("a", {}).get("model", {})
    record.aligned = getattr(record, "aligned", "")
    record.targets = [visible(side["label"]) if record.aligned else _side(side) for side in sides]
    record.facts = [(f"log p, {_side(side)}", sections.number(side["logp"])) for side in sides]
    record.logp, record.embedding_logp = (sides[0][key] - sides[1][key] for key in ("logp", "embedding_logp"))
    record.completeness_gap = record.logp - record.embedding_logp - float(record.layers["score"].sum())
    record.settings = f"biases: {record.biases}"
    return record


def _side(side: dict[str, Any]) -> str:
    target = visible(side["target_token"], spaces=True)
    return target if side["label"] == side["target_token"] else f"{target} ({visible(side['label'])})"


def title(record: SimpleNamespace) -> str:
    """Target, or both sides, and prompt of a record."""
    aligned = getattr(record, "aligned", "")
    where = f", aligned by {visible(aligned)}" if aligned else f" after {after(record.prompt)}"
    return f"{' less '.join(record.targets)}{where}"


def render(folder: Path) -> str:
    """The HTML page of a saved attribution or a folder of prompts.

    Raises:
        IntegrityError: A file is missing, damaged or not what the page expects.
        InputError: No prompt of the folder is done.
    """
    records = [read_one(folder)] if is_attribution(folder) else read_prompts(folder)
    if not records:
        raise InputError(f"run_folder: expected prompts that are done, found none in {folder}; run it on")
    try:
        return _one(records[0]) if is_attribution(folder) else _many(folder, records)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"{folder}: not what the report expects of an attribution ({error})") from error


# -- one attribution -----------------------------------------------------------------------------------------------


def _one(record: SimpleNamespace) -> str:
    whole = record.promotes is not None
    circuit = sections.circuit(read(_circuit(record))) if whole else None
    context = {
        "summary": {"title": title(record), "subtitle": ""},
        "record": _account(record),
        "means": SCORE_MEANS if whole else DIFFERENCE_MEANS,
        "layers": _layers(record.layers, "What each layer adds to log p"),
        "heads": sections.heads(record.heads),
        "tables": _tables(record, _TOP),
        "circuit": circuit,
        "provenance": sections.flat(record.provenance),
        "config": None,
    }
    return html.render("attribution.html.j2", context, scripts=explorer.SCRIPTS if circuit else ())


def _circuit(record: SimpleNamespace) -> dict[str, Any]:
    return build_circuit(record, share=0.8, max_units=40, max_edges=12)


def _account(record: SimpleNamespace) -> dict[str, Any]:
    """The facts above the figures: what was scored, and how log p adds up."""
    aligned = getattr(record, "aligned", "")
    return {
        "tokens": [] if aligned else [visible(token, spaces=True) for token in record.tokens],
        "targets": record.targets,
        "model": str(record.about.get("name", "")),
        "weights": str(record.about.get("quantization", "")),
        "facts": record.facts,
        "account": f"{'Δ ' if len(record.targets) > 1 else ''}{account_line(record)}.",
        "settings": record.settings,
    }


def _layers(frame: pd.DataFrame, name: str) -> dict[str, Any]:
    said = sections.largest_layer(frame[["layer", "module", "score"]])
    axes = figures.layer_curve(frame, row(1, width=7.2, height=3.0)[0])
    axes.legend()
    svg = fragment(axes, prefix="layers", title=name, description=said)
    return {"svg": Markup(svg), "said": said}


def _tables(record: SimpleNamespace, top: int) -> list[dict[str, Any]]:
    """The best heads, FFN neurons and attention neurons, in words."""
    tables = []
    for name, unit, more in (
        ("Heads", "heads", {"positions": record.head_positions}),
        ("FFN neurons", "mlp_neurons", {"promotes": record.promotes}),
        ("Attention neurons", "attn_neurons", {}),
    ):
        frame: pd.DataFrame = getattr(record, unit).dropna(subset="score")
        size = frame["score"].abs() if record.sign == "both" else frame["score"]
        ranked = frame.loc[size.sort_values(ascending=record.sign == "suppress", kind="stable").index].head(
            top
        )
        if len(ranked):
            tokens = () if getattr(record, "aligned", "") else record.tokens
            tables.append(_table(name, readable(ranked, tokens, **more), total=len(frame)))
    return tables


def _table(name: str, frame: pd.DataFrame, *, total: int) -> dict[str, Any]:
    largest = float(frame["score"].abs().max()) or 1.0
    rows = [
        [_cell(column, value, largest) for column, value in row.items()] for row in frame.to_dict("records")
    ]
    return {
        "name": name,
        "head": [_WORDS.get(column, column) for column in frame],
        "rows": rows,
        "total": total,
    }


def _cell(column: Any, value: Any, largest: float) -> dict[str, Any]:
    if column in ("a", "b"):
        return {"text": sections.number(value)}
    if column == "score":
        sign = "neg" if value < 0 else "pos"
        return {"score": sections.number(value), "sign": sign, "width": f"{100 * abs(value) / largest:.1f}"}
    if column in _CHIPS:
        return {"chips": [token for token in str(value).split(" ") if token]}
    return {"text": str(value)}


# -- many prompts --------------------------------------------------------------------------------------------------


def _many(folder: Path, records: Sequence[SimpleNamespace]) -> str:
    provenance = folder / "provenance.json"
    asked = parse_toml((folder / "config.toml").read_text(encoding="utf-8")).get("n", len(records))
    done = f"{len(records)} prompts" if len(records) == asked else f"{len(records)} of {asked} prompts"
    context = {
        "summary": {"title": f"Attribution of {done}", "subtitle": ""},
        "model": str(records[0].about.get("name", "")),
        "weights": str(records[0].about.get("quantization", "")),
        "n": len(records),
        "means": SCORE_MEANS,
        "prompts": [_line(record) for record in records],
        "layers": _layers(_mean_layers(records), "What each layer adds to log p, mean over prompts"),
        "heads": sections.heads(_mean([record.heads for record in records], ["layer", "head"])),
        "shared": _shared(records),
        "records": [_part(record, drawn=len(records) <= _CIRCUITS) for record in records],
        "most_drawn": _CIRCUITS,
        "provenance": sections.flat(read_object(provenance)) if provenance.is_file() else None,
        "config": read_lines(folder / "config.toml"),
    }
    return html.render("prompts.html.j2", context, scripts=("index.js",))


def _line(record: SimpleNamespace) -> dict[str, Any]:
    """A row of the table of prompts."""
    layers, heads = record.layers, record.heads
    layer, head = layers.loc[layers["score"].idxmax()], heads.loc[heads["score"].idxmax()]
    best = record.mlp_neurons.sort_values("score", ascending=False, kind="stable").head(1)
    neuron = readable(best, record.tokens, promotes=record.promotes).to_dict("records")
    return {
        "index": record.index,
        "prompt": record.prompt,
        "target": visible(record.target_token, spaces=True),
        "logp": sections.number(record.logp),
        "sort": repr(record.logp),
        "p": f"{math.exp(record.logp):.3f}",
        "layer": f"{layer['module']} {layer['layer']}",
        "head": f"{int(head['layer'])}.{int(head['head'])}",
        "neuron": f"{neuron[0]['layer']}.{neuron[0]['neuron']}" if neuron else "",
        "promotes": neuron[0]["promotes"].split(" ") if neuron else [],
    }


def _part(record: SimpleNamespace, *, drawn: bool) -> dict[str, Any]:
    """What stands of one prompt beneath the table."""
    part: dict[str, Any] = {
        "index": record.index,
        "title": title(record),
        **_account(record),
        "tables": _tables(record, 5),
    }
    if drawn:
        graph = read(_circuit(record))
        drawing = draw(graph, prefix=f"circuit{record.index}", max_nodes=_CIRCUIT_NODES)
        part |= {"svg": Markup(drawing.svg), "kept": kept(graph)}
    return part


def _mean_layers(records: Sequence[SimpleNamespace]) -> pd.DataFrame:
    """layer, module, score, and from two prompts on low and high (95 %, a bootstrap over prompts)."""
    whole = pd.concat([record.layers for record in records])
    rows = []
    for (layer, module), group in whole.groupby(["layer", "module"], sort=False):
        scores = group["score"].to_numpy()
        low, high = bootstrap_mean(scores) if len(scores) > 1 else (math.nan, math.nan)
        rows.append((layer, module, scores.mean(), low, high))
    return pd.DataFrame(rows, columns=["layer", "module", "score", "low", "high"])


def _mean(frames: Sequence[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    return pd.concat(frames).groupby(keys, as_index=False)["score"].mean()


def _shared(records: Sequence[SimpleNamespace]) -> dict[str, Any] | None:
    """The FFN neurons among the best `_TOP` of most prompts."""
    if len(records) < 2:
        return None
    parts = [
        readable(
            record.mlp_neurons.sort_values("score", ascending=False, kind="stable").head(_TOP),
            record.tokens,
            promotes=record.promotes,
        )
        for record in records
    ]
    groups = pd.concat(parts).groupby(["layer", "neuron"], sort=False)
    frame = groups.agg(
        n=("score", "size"), score=("score", "mean"), promotes=("promotes", "first")
    ).reset_index()
    ranked = frame[frame["n"] > 1].sort_values(["n", "score"], ascending=False, kind="stable").head(_SHARED)
    if ranked.empty:
        return None
    return _table("Neurons of several prompts", ranked.rename(columns={"n": "Prompts"}), total=len(frame))
