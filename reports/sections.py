"""The sections of the page: from a frame or an object of the run to figures, tables and the sentence beneath.

Each function returns what its part of the template shows, with all numbers written out: the template decides
where things stand, never what they say. A sentence beneath a figure names the largest value that it shows, so
that the finding is there for those who do not see the picture. An empty frame gives None.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
from markupsafe import Markup

from reports import figures, forests
from reports.circuit import Circuit, draw, kept
from reports.errors import InputError
from reports.explorer import explorer
from reports.inline import fragment
from reports.text import clip, visible

__all__ = [
    "circuit",
    "flat",
    "heads",
    "largest_layer",
    "largest_score",
    "layers",
    "metric_names",
    "neurons",
    "number",
    "proportion",
    "result",
    "settings",
    "windows",
]

_FAMILIES = (
    ("Argmax family", (("acc", "Acc"), ("gen", "Gen"), ("spec", "Spec"), ("mean", "Mean"))),
    ("Doubts", (("di", "DI"), ("dii", "DII"))),
    ("Same subject", (("other", "Other"),)),
    ("Probability family", (("es", "ES"), ("ps", "PS"), ("ns", "NS"), ("s", "S"))),
    # each share of tokens beside its strict form: one of three tokens is no third of a success
    (
        "Token match",
        (("rel_tok", "Rel"), ("rel_all", "Rel, all"), ("gen_tok", "Gen"), ("gen_all", "Gen, all")),
    ),
    ("Token match, locality", (("loc_tok", "Loc"), ("loc_all", "Loc, all"))),
    ("Running text", (("top1", "Top-1 kept"), ("kl", "KL, nats"))),
)
#: No fractions: in nats, so neither in per cent nor in a chart of shares.
_NATS = ("kl",)
_ROWS = 25
_MODULES = {"attn": "attention", "mlp": "MLP", "steer": "steering term"}


def number(value: float, digits: int = 3) -> str:
    """Returns `value` with its sign and a true minus; "undefined" for nan.

    >>> number(-0.5, 2), number(float("nan"))
    ('−0.50', 'undefined')
    """
    return f"{value:+.{digits}f}".replace("-", "−") if math.isfinite(value) else "undefined"


def result(summary: dict[str, Any]) -> dict[str, Any]:
    """The table of editors, the verdicts, and forest plots where there are editors to compare."""
    editors = summary["editors"]
    families: list[dict[str, Any]] = []
    for name, metrics in _FAMILIES:
        present = [(key, label) for key, label in metrics if any(key in editor for editor in editors)]
        if present:
            families.append({"name": name, "metrics": present})
    keys = [key for family in families for key, _ in family["metrics"]]
    rows = []
    for editor in editors:
        cells = [(_nats if key in _NATS else _cell)(editor[key]) if key in editor else None for key in keys]
        rows.append({"label": str(editor.get("label") or editor["name"]), "cells": cells})
    shown = [pair for family in families for pair in family["metrics"] if pair[0] not in _NATS][:4]
    return {
        "families": families,
        "rows": rows,
        "forest": _forest(editors, shown) if len(editors) > 1 else None,
        "known": summary.get("n"),
    }


def metric_names() -> dict[str, str]:
    """Returns for the key of each fraction of a summary a name that it shares with no other.

    >>> names = metric_names()
    >>> names["gen"], names["gen_tok"], len(set(names.values())) == len(names)
    ('Gen', 'Gen (token match)', True)
    """
    return {
        key: f"{label} ({family.lower()})" if family.startswith("Token match") else label
        for family, metrics in _FAMILIES
        for key, label in metrics
        if key not in _NATS
    }


def layers(frame: pd.DataFrame, window: tuple[int, int] | None) -> dict[str, Any] | None:
    """Curves of the attention and MLP contributions, with a table of their values."""
    if frame.empty:
        return None
    axes = figures.layer_panels(frame, window=window)[0]
    sentence = largest_layer(frame)
    title = "Contribution of each layer to the new and the old object"
    keys = [key for key in ("module", "object", "stage") if key in frame]
    wide = frame.pivot(index="layer", columns=keys, values="score").sort_index()
    columns = wide.columns if isinstance(wide.columns, pd.MultiIndex) else [(name,) for name in wide.columns]
    head = [", ".join(_MODULES.get(str(part), visible(str(part))) for part in names) for names in columns]
    values = zip(wide.index, wide.to_numpy(dtype=float), strict=True)
    body = [(int(layer), [number(float(v)) for v in line]) for layer, line in values]
    counts = sorted({int(n) for n in frame["n"].dropna()}) if "n" in frame else []
    return {
        "svg": Markup(fragment(axes, prefix="layers", title=title, description=sentence)),
        "said": sentence,
        "head": head,
        "body": body,
        "n": " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))) if counts else "",
        "intervals": {"low", "high"} <= set(frame),
    }


def heads(
    frame: pd.DataFrame, *, prefix: str = "heads", limit: float | None = None
) -> list[dict[str, Any]] | None:
    """Returns a heat map for each object and stage in the frame, on one scale, with its largest heads in words.

    Args:
        frame: As for `figures.head_heatmap`, with object and stage where there are several.
        prefix: Starts the ids of the pictures.
        limit: The scale is ±`limit`; by default the largest |score|.
    """
    if frame.empty:
        return None
    keys = [key for key in ("object", "stage") if key in frame]
    limit = limit or largest_score(frame)
    groups: Iterator[tuple[Any, pd.DataFrame]] = (
        iter(frame.groupby(keys, sort=False)) if keys else iter([((), frame)])
    )
    maps = []
    for index, (names, group) in enumerate(groups):
        caption = ", ".join(_phrase(key, str(name)) for key, name in zip(keys, names, strict=True))
        title = "Score of every attention head" + (f": {caption}" if caption else "")
        largest = group.loc[group["score"].abs().sort_values(ascending=False, kind="stable").index].head(5)
        sentence = "Largest: " + ", ".join(
            f"L{int(layer)} H{int(head)} ({number(float(score))})"
            for layer, head, score in zip(largest["layer"], largest["head"], largest["score"], strict=True)
        )
        undefined = int(group["score"].isna().sum())
        sentence += " nats." + (f" {undefined} undefined." if undefined else "")
        svg = fragment(
            figures.head_heatmap(group, limit=limit),
            prefix=f"{prefix}{index}",
            title=title,
            description=sentence,
        )
        maps.append({"svg": Markup(svg), "said": sentence, "caption": caption})
    return maps


def largest_score(*frames: pd.DataFrame) -> float:
    """Returns the largest |score| of the frames, 1 where none is finite and above 0."""
    largest = max((float(frame["score"].abs().max()) for frame in frames), default=math.nan)
    return largest if math.isfinite(largest) and largest > 0 else 1.0


def windows(frame: pd.DataFrame, window: tuple[int, int] | None) -> dict[str, Any] | None:
    """The candidate windows as a strip, the chosen one and the best five in words."""
    if frame.empty:
        return None
    axes = figures.window_strip(frame, window)
    best = frame.sort_values(["score", "first", "last"], ascending=[False, True, True]).head(5)
    sentence = "Highest scores: " + ", ".join(
        f"layers {int(first)}–{int(last)} ({number(float(score))})"
        for first, last, score in zip(best["first"], best["last"], best["score"], strict=True)
    )
    sentence += f". {len(frame)} candidates."
    svg = fragment(
        axes, prefix="windows", title="Candidate layer windows and their scores", description=sentence
    )
    return {"svg": Markup(svg), "said": sentence}


def neurons(frame: pd.DataFrame) -> dict[str, Any] | None:
    """The neurons with the largest |score|, and the tokens that each promotes and demotes."""
    if missing := [name for name in ("layer", "module", "unit", "score", "promotes") if name not in frame]:
        raise InputError(
            f"frame: expected a column {missing[0]!r}, found {', '.join(map(str, frame.columns))}"
        )
    if frame.empty:
        return None
    ordered = frame.loc[frame["score"].abs().sort_values(ascending=False, kind="stable").index].head(_ROWS)
    largest = float(ordered["score"].abs().max()) or 1.0
    rows = []
    for record in ordered.to_dict("records"):
        score = float(record["score"])
        rows.append(
            {
                "unit": visible(str(record["unit"])),
                "layer": int(record["layer"]),
                "module": _MODULES.get(str(record["module"]), visible(str(record["module"]))),
                "score": number(score),
                "sign": "neg" if score < 0 else "pos",
                "width": f"{100 * abs(score) / largest:.1f}" if math.isfinite(score) else "0",
                "promotes": _tokens(record["promotes"]),
                "demotes": _tokens(record.get("demotes")),
            }
        )
    return {"rows": rows, "total": len(frame), "demotes": "demotes" in frame}


def circuit(graph: Circuit) -> dict[str, Any]:
    """The circuit's picture and what it leaves out."""
    drawing = draw(graph)
    shown = f"{drawing.shown_share:.0%}" if math.isfinite(drawing.shown_share) else "undefined"
    return {
        "svg": Markup(drawing.svg),
        "target": visible(graph.target, spaces=True),
        "prompt": visible(graph.prompt),
        "kept": kept(graph),
        "frame": False,
        "shown": shown,
        "n_shown": drawing.n_shown,
        "n_folded": drawing.n_folded,
        "explorer": explorer(graph),
    }


def flat(data: Any, path: str = "") -> list[tuple[str, str]]:
    """Returns a nested object as rows (dotted path, value).

    >>> flat({"seeds": {"data": 0}, "names": ["a", "b"]})
    [('seeds.data', '0'), ('names', 'a, b')]
    """
    if isinstance(data, dict):
        return list(
            itertools.chain.from_iterable(flat(v, f"{path}.{k}" if path else str(k)) for k, v in data.items())
        )
    if isinstance(data, list) and any(isinstance(item, (dict, list)) for item in data):
        return list(itertools.chain.from_iterable(flat(v, f"{path}[{i}]") for i, v in enumerate(data)))
    text = ", ".join(map(str, data)) if isinstance(data, list) else "none" if data is None else str(data)
    return [(visible(path), visible(text))]


def settings(recorded: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """What each editor was set to and what it read: a name, and rows (dotted path, value), for each of its settings.

    Args:
        recorded: By name and fingerprint, as a run records them (`experiments.runs.RunFolder.settle`).
    """
    tables = []
    for name, versions in recorded.items():
        for i, version in enumerate(versions.values()):
            shown = {key: _quoted(version[key]) for key in version if key != "name"}
            rows = [(_readable(path), value) for path, value in flat(shown)]
            order = f", {i + 1} of {len(versions)}" if len(versions) > 1 else ""
            tables.append({"name": f"{visible(name)}{order}", "rows": rows})
    return tables


def _quoted(value: Any) -> Any:
    """Texts of a list in quotation marks, so that a reader sees where each ends."""
    texts = isinstance(value, list) and any(isinstance(item, str) and " " in item for item in value)
    return [f"“{item}”" for item in value] if texts else value


def _readable(path: str) -> str:
    return path.replace(".about.", ".").removeprefix("about.")


def _forest(editors: list[dict[str, Any]], metrics: list[tuple[str, str]]) -> Markup | None:
    rows = [
        {"panel": label, "label": str(editor.get("label") or editor["name"]), **proportion(editor.get(key))}
        for key, label in metrics
        for editor in editors
    ]
    if not rows:
        return None
    text = "The values of the table with their 95 % intervals, in per cent, a line for each editor."
    axes = forests.forest_panels(pd.DataFrame(rows))[0]
    return Markup(fragment(axes, prefix="forest", title="Scores by editor", description=text))


def proportion(cell: Any) -> dict[str, float]:
    """Returns value, low, high of a cell of the summary as floats, nan where absent; a bare number has no interval.

    Raises:
        InputError: The value is no fraction.
    """
    if not isinstance(cell, dict):
        cell = {"value": cell}
    value = _float(cell.get("value"))
    if math.isfinite(value) and not -1e-9 <= value <= 1 + 1e-9:
        raise InputError(f"value: expected a fraction in 0..1, found {value}")
    return {"value": value, "low": _float(cell.get("low")), "high": _float(cell.get("high"))}


def _cell(cell: Any) -> dict[str, str]:
    values = proportion(cell)
    texts = {k: f"{100 * v:.1f}" if math.isfinite(v) else "" for k, v in values.items()}
    n = cell.get("n") if isinstance(cell, dict) else None
    interval = f"{texts['low']} – {texts['high']}" if texts["low"] and texts["high"] else ""
    return {
        "value": texts["value"] or "undefined",
        "interval": interval,
        "n": "" if n is None else str(int(n)),
    }


def _nats(cell: Any) -> dict[str, str]:
    values = {key: _float(cell.get(key)) for key in ("value", "low", "high")}
    texts = {key: f"{value:.3f}" if math.isfinite(value) else "" for key, value in values.items()}
    interval = f"{texts['low']} – {texts['high']}" if texts["low"] and texts["high"] else ""
    return {"value": texts["value"] or "undefined", "interval": interval, "n": str(int(cell.get("n", 0)))}


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def largest_layer(frame: pd.DataFrame) -> str:
    """Names the largest change from before to after where the frame has both stages, else the largest score."""
    keys = [key for key in ("module", "object", "layer") if key in frame]
    what, values = "Largest score", frame.set_index(keys)["score"]
    if "stage" in frame and {"before", "after"} <= set(frame["stage"]):
        stages = {name: group.set_index(keys)["score"] for name, group in frame.groupby("stage")}
        what, values = "Largest change from before to after the edit", stages["after"] - stages["before"]
    if not values.notna().any():
        return "All scores are undefined."
    place = values.abs().idxmax()
    keys_of_largest = dict(zip(keys, place if isinstance(place, tuple) else (place,), strict=True))
    where = ", ".join(_phrase(key, str(value)) for key, value in keys_of_largest.items())
    return f"{what}: {where}, {number(float(values.loc[place]))} nats."


def _phrase(key: str, value: str) -> str:
    text = visible(value)
    return {
        "module": _MODULES.get(value, text),
        "object": f"{text} object",
        "stage": f"{text} the edit",
        "layer": f"layer {text}",
    }[key]


def _tokens(value: Any) -> list[str]:
    """The tokens of a unit one by one; a space in a token is marked in the file, so that one alone divides two."""
    if value is None or value != value:
        return []
    return [visible(token) for token in clip(str(value), 160).split(" ") if token]
