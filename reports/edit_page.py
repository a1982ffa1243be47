"""The page of one edit, made of the files that `mechedit edit --out` saves (a result of the kind "explanation").

What the model writes behind every prompt of the fact before and after the edit; of the margin, log p(wanted) −
log p(against), the share of each layer and head on the rewrite prompt; and for each prompt the units that the edit
raised most, and those that speak against it most.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from reports import figures, html, sections
from reports.errors import IntegrityError
from reports.inline import fragment
from reports.reading import read_frame, read_object
from reports.text import visible

__all__ = ["is_edit", "render", "shares", "title"]

_KINDS = {"sublayer": "Sub-layers", "head": "Heads", "neuron": "FFN neurons"}
_ROLES = {"rewrite": "rewrite", "paraphrase": "paraphrase", "neighborhood": "neighbour"}
_MODULES = {"attention": "attn", "MLP": "mlp"}
_TOP = 5


def is_edit(folder: Path) -> bool:
    """Whether `folder` holds a saved explanation of one edit."""
    file = folder / "result.json"
    try:
        return file.is_file() and read_object(file).get("kind") == "explanation"
    except IntegrityError:
        return False


def title(folder: Path) -> tuple[str, str, str]:
    """Returns what was edited, and the names of editor and model.

    Raises:
        IntegrityError: The record lacks a field.
    """
    values = _values(folder)
    return (
        f"{values['subject']}: {values['target_true']} → {values['target_new']}",
        str(values["editor"]),
        str(values["model"]),
    )


def shares(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns by role of prompt on how many the model writes what is wanted after the edit, and their number.

    Raises:
        IntegrityError: A file is missing or damaged.
    """
    groups = _frame(folder, "texts").groupby("role", sort=False)["ok"]
    return {_ROLES.get(str(role), str(role)): (int(ok.sum()), len(ok)) for role, ok in groups}


def render(folder: Path) -> str:
    """The HTML page of a saved explanation.

    Raises:
        IntegrityError: A file is missing, damaged or not what the page expects.
    """
    values, texts, units = _values(folder), _frame(folder, "texts"), _frame(folder, "units")
    try:
        return html.render("edit.html.j2", _context(folder, values, texts, units), scripts=("index.js",))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"{folder}: not what the report expects of an edit ({error})") from error


def _values(folder: Path) -> dict[str, Any]:
    record = read_object(folder / "result.json")
    values: dict[str, Any] = record.get("values", {}) | {"provenance": record.get("provenance", {})}
    for name in ("editor", "model", "subject", "target_new", "target_true"):
        if name not in values:
            raise IntegrityError(
                f"{folder / 'result.json'}: expected a field {name!r} of an edit, found none"
            )
    return values


def _frame(folder: Path, name: str) -> pd.DataFrame:
    frame = read_frame(folder, name)
    if frame is None:
        raise IntegrityError(f"{folder}: expected {name}.parquet, found none")
    return frame


def _context(
    folder: Path, values: dict[str, Any], texts: pd.DataFrame, units: pd.DataFrame
) -> dict[str, Any]:
    provenance = dict(values["provenance"])
    settings = provenance.pop("settings", {})
    rewrite = units[(units["role"] == "rewrite") & (units["index"] == 0)]
    return {
        "summary": {
            "title": title(folder)[0],
            "subtitle": "What one edit changes, and which units decide it",
        },
        "facts": [("model", values["model"]), ("editor", values["editor"]), *_counts(folder)],
        "prompts": [_prompt(i, row, units) for i, row in enumerate(texts.to_dict("records"))],
        "layers": _layers(rewrite),
        "heads": _heads(rewrite),
        "provenance": sections.flat(provenance),
        "settings": [
            {"name": visible(str(values["editor"])), "rows": sections.flat(settings)}
            for _ in (1,)
            if settings
        ],
        "config": None,
    }


def _counts(folder: Path) -> list[tuple[str, str]]:
    return [(f"{role}, as wanted", f"{ok}/{n}") for role, (ok, n) in shares(folder).items()]


def _prompt(i: int, row: dict[str, Any], units: pd.DataFrame) -> dict[str, Any]:
    own = units[(units["role"] == row["role"]) & (units["index"] == row["index"])]
    return {
        "anchor": f"prompt-{i}",
        "role": _ROLES.get(str(row["role"]), visible(str(row["role"]))),
        **{name: visible(str(row[name])) for name in ("prompt", "before", "after")},
        "wanted": visible(str(row["wanted"]), spaces=True),
        "against": visible(str(row["against"]), spaces=True),
        "behind": visible(str(row["behind"]), spaces=True) if row.get("behind") else "",
        "ok": bool(row["ok"]),
        "margins": [sections.number(float(row[f"margin_{stage}"]), 2) for stage in ("before", "after")],
        "tables": [
            table for kind, name in _KINDS.items() for table in _tables(own[own["kind"] == kind], name)
        ],
    }


def _tables(units: pd.DataFrame, name: str) -> list[dict[str, Any]]:
    """The units of one kind that rose most, and those that are lowest after the edit."""
    if units.empty:
        return []
    rose = units[units["delta"] > 0].sort_values("delta", ascending=False, kind="stable").head(_TOP)
    low = units[units["after"] < 0].sort_values("after", kind="stable").head(_TOP)
    parts = ((f"{name} that rose most", rose, "delta"), (f"{name} most against it", low, "after"))
    return [_table(label, part, column, len(units)) for label, part, column in parts if len(part)]


def _table(name: str, units: pd.DataFrame, column: str, total: int) -> dict[str, Any]:
    largest = float(units[column].abs().max()) or 1.0
    rows = []
    for row in units.to_dict("records"):
        scores = [{"text": sections.number(float(row[key]), 2)} for key in ("before", "after", "delta")]
        value = float(row[column])
        at = ("before", "after", "delta").index(column)
        bar: dict[str, Any] = {"score": scores[at]["text"], "sign": "neg" if value < 0 else "pos"}
        bar["width"] = f"{100 * abs(value) / largest:.1f}" if math.isfinite(value) else "0"
        rows.append(
            [{"text": visible(str(row["unit"]))}, *(bar if i == at else s for i, s in enumerate(scores))]
        )
    return {"name": name, "head": ["Unit", "Before", "After", "Change"], "rows": rows, "total": total}


def _layers(units: pd.DataFrame) -> dict[str, Any] | None:
    """The terms of every sub-layer on the rewrite prompt, before and after."""
    parts = units[units["kind"] == "sublayer"]
    if parts.empty:
        return None
    names = parts["unit"].str.rsplit(" L", n=1).str[0]
    frame = pd.concat(
        pd.DataFrame(
            {
                "layer": parts["layer"],
                "module": names.map(_MODULES).fillna(names),
                "stage": stage,
                "score": parts[stage],
            }
        )
        for stage in ("before", "after")
    )
    said = sections.largest_layer(frame)
    svg = fragment(
        figures.layer_panels(frame)[0],
        prefix="layers",
        title="Layers' shares of the margin",
        description=said,
    )
    return {"svg": Markup(svg), "said": said}


def _heads(units: pd.DataFrame) -> list[dict[str, Any]]:
    """The change of every head on the rewrite prompt."""
    parts = units[units["kind"] == "head"]
    if parts.empty:
        return []
    heads = parts["unit"].str.rsplit("H", n=1).str[1].astype(int)
    frame = pd.DataFrame({"layer": parts["layer"], "head": heads, "score": parts["delta"]})
    return sections.heads(frame) or []
