"""Two runs side by side on one page: what was asked of each, every score with its difference, the figures on one scale.

Both runs must be of one kind (`reports.overview`). Two runs of one line each are compared in it, whatever their editors
are called; of several lines those of one name. Where both runs keep their facts one by one, the differences are paired
by fact (`reports.paired`). Else a difference is second less first, with the interval that follows from the two
intervals if the runs are independent (`reports.intervals.difference_interval`); runs on the same facts are not, and for
them it is too wide. The page says which it is, off the hash of the facts in the provenance.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from reports import (
    batch,
    fact_table,
    figures,
    forests,
    formats,
    html,
    overview,
    page,
    paired,
    probe_page,
    sections,
)
from reports.errors import InputError, IntegrityError
from reports.inline import fragment
from reports.intervals import difference_interval
from reports.overview import COLUMNS, Estimate, Overview
from reports.parsing import parse_toml
from reports.reading import read_frame, read_object
from reports.text import visible

__all__ = ["build", "render"]

_FOREST = 4  # metrics that the picture has room for
_SIDES = ("first", "second")


def build(first: str | os.PathLike[str], second: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Writes the comparison of the two run folders to `out`, in the format of its suffix.

    Raises:
        InputError: As `render` and `reports.formats.save`.
        IntegrityError: As `render`.
    """
    formats.check(Path(out).suffix.lower().removeprefix("."))
    return formats.save(render(first, second), out)


def render(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> str:
    """Returns the HTML page about both runs.

    Raises:
        InputError: One is no run, has no `summary.json`, or is of another kind than the other.
        IntegrityError: A file of one is damaged.
    """
    folders = [batch.find([name]) for name in (first, second)]
    if any(len(matches) != 1 for matches in folders):
        raise InputError(
            f"runs: expected two run folders to compare, found {first} and {second}, of which one holds many"
        )
    runs = [matches[0] for matches in folders]
    if runs[0].resolve() == runs[1].resolve():
        raise InputError(f"runs: expected two runs to compare, found {first} twice")
    for run in runs:
        if not overview.has_page(run):
            raise InputError(f"runs: expected two finished runs, found no summary.json in {run}")
    lines = [overview.read(run) for run in runs]
    if lines[0].kind != lines[1].kind:
        kinds = " and ".join(line.kind for line in lines)
        raise InputError(
            f"runs: expected two runs of one kind, found {kinds}; their scores have nothing in common"
        )
    return html.render("compare.html.j2", _context(runs, lines))


def _context(runs: list[Path], lines: list[Overview]) -> dict[str, Any]:
    names = _names(runs)
    facts = [dict(_settings(run)) for run in runs]
    keys = list(dict.fromkeys([*facts[0], *facts[1]]))
    differing = [key for key in keys if facts[0].get(key) != facts[1].get(key)]
    hashes = [settings.get("provenance: data.facts") for settings in facts]
    pairs = _paired(runs)
    return {
        "summary": {"title": "Two runs side by side", "subtitle": f"{names[0]} and {names[1]}"},
        "names": [visible(name) for name in names],
        "titles": [{"title": visible(line.title), "model": visible(line.model)} for line in lines],
        "what": COLUMNS[lines[0].kind][0],
        "unit": COLUMNS[lines[0].kind][1],
        "both": _both(names, lines),
        "paired": pairs,
        "rows": [] if pairs and len(lines[0].rows) == len(lines[1].rows) == 1 else _rows(lines),
        "only": [_only(lines[0], lines[1]), _only(lines[1], lines[0])],
        "same_facts": None if None in hashes else hashes[0] == hashes[1],
        "settings": [(key, *(settings.get(key, "absent") for settings in facts)) for key in differing],
        "shared": len(keys) - len(differing),
        "forest": _forest(names, lines),
        **_pictures(runs),
    }


def _names(runs: list[Path]) -> list[str]:
    """The folders' own names, or as much of their paths as tells them apart."""
    parts = [run.resolve().parts for run in runs]
    length = 1
    while parts[0][-length:] == parts[1][-length:] and length < max(map(len, parts)):
        length += 1
    return ["/".join(path[-length:]) for path in parts]


def _settings(run: Path) -> list[tuple[str, str]]:
    """What the run was given: its provenance, the settings of its editors, and the lines of its configuration."""
    if probe_page.kind_of(run) is not None:
        held = probe_page.parts(run)
        return [(f"provenance: {k}", v) for k, v in sections.flat(held.get("settings") or held["provenance"])]
    file = run / "provenance.json"
    facts = read_object(file) if file.is_file() else {}
    editors = sections.settings(facts.pop("settings", {}))
    rows = [(f"provenance: {k}", v) for k, v in sections.flat(facts)]
    rows += [(f"{editor['name']}: {k}", v) for editor in editors for k, v in editor["rows"]]
    return rows + [(f"config: {k}", v) for k, v in sections.flat(_config(run / "config.toml"))]


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{path}: not readable as TOML ({error})") from error


def _both(names: list[str], lines: list[Overview]) -> dict[str, Any] | None:
    """The one line of each run with all its scores; None where one has several."""
    if any(len(line.rows) != 1 for line in lines):
        return None
    metrics = [name for name in lines[0].metrics if name in lines[1].metrics]
    rows = [
        {
            "run": visible(name),
            "label": visible(line.rows[0][0]),
            "cells": [overview.text(metric, line.rows[0][1][metric]) for metric in metrics],
        }
        for name, line in zip(names, lines, strict=True)
    ]
    return {"metrics": metrics, "rows": rows} if metrics else None


def _paired(runs: list[Path]) -> list[dict[str, Any]]:
    """The editors of both runs, paired by fact: the only one of each, or those of one name."""
    editors: list[dict[str, list[fact_table.EditedFact]]] = []
    for run in runs:
        editors.append({})
        for fact in fact_table.read(run):
            editors[-1].setdefault(fact.editor, []).append(fact)
    first, second = editors
    names = [(name, name) for name in first if name in second]
    if len(first) == len(second) == 1:
        names = list(zip(first, second, strict=True))
    pairs = [paired.paired(first[a], second[b], prefix=f"paired{i}") for i, (a, b) in enumerate(names)]
    return [pair for pair in pairs if pair is not None]


def _labels(lines: list[Overview]) -> list[tuple[str, str]]:
    """The labels of the lines that are compared: the one of each run, or those of one name."""
    first, second = ([label for label, _ in line.rows] for line in lines)
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    return [(label, label) for label in first if label in second]


def _rows(lines: list[Overview]) -> list[dict[str, Any]]:
    """A row for each metric of the lines that are compared."""
    first, second = (dict(line.rows) for line in lines)
    rows = []
    for label, beside in _labels(lines):
        for name in (name for name in first[label] if name in second[beside]):
            a, b = first[label][name], second[beside][name]
            rows.append(
                {
                    "label": visible(label if label == beside else f"{beside} less {label}"),
                    "metric": name,
                    "cells": [overview.text(name, score) for score in (a, b)],
                    "change": overview.text(
                        f"Change, {name}" if name != "Cosine" else name, _difference(a, b)
                    ),
                }
            )
    return rows


def _difference(a: Estimate, b: Estimate) -> Estimate:
    return Estimate(
        b.value - a.value, *difference_interval((a.value, a.low, a.high), (b.value, b.low, b.high))
    )


def _only(line: Overview, compared: Overview) -> str:
    one_each = len(line.rows) == len(compared.rows) == 1
    compared_rows = dict(compared.rows)
    lines = [visible(label) for label, _ in line.rows if not one_each and label not in compared_rows]
    metrics = [name for name in line.metrics if name not in compared.metrics]
    return ", ".join([*lines, *metrics])


def _forest(names: list[str], lines: list[Overview]) -> dict[str, Any] | None:
    """Fractions of both runs in one picture; a study's points are in the table alone."""
    shared = [name for name in lines[0].metrics if name in lines[1].metrics][:_FOREST]
    if lines[0].kind in ("transfer", *probe_page.TITLES) or not shared:
        return None
    labels = {pair[1]: f"{pair[0]}, {pair[1]}" for pair in _labels(lines) if pair[0] != pair[1]}
    labels |= {pair[0]: f"{pair[0]}, {pair[1]}" for pair in _labels(lines) if pair[0] != pair[1]}
    rows = [
        {"panel": metric, "label": labels.get(label, label), "run": name, **_fractions(scores[metric])}
        for name, line in zip(names, lines, strict=True)
        for label, scores in dict(line.rows).items()
        for metric in shared
        if metric in scores
    ]
    if not rows:
        return None
    sentence = f"Filled circles: {names[0]}. Hollow squares: {names[1]}. Lines: 95 % intervals."
    svg = fragment(
        forests.paired_forest(pd.DataFrame(rows))[0],
        prefix="forest",
        title="Scores of both runs",
        description=sentence,
    )
    return {"svg": Markup(svg), "said": visible(sentence)}


def _fractions(score: Estimate) -> dict[str, float]:
    return {"value": score.value / 100, "low": score.low / 100, "high": score.high / 100}


def _pictures(runs: list[Path]) -> dict[str, Any]:
    """Layer curves and heat maps of heads of both runs, each pair on one scale; None where one run has none."""
    contrasts, maps = ([read_frame(run, name) for run in runs] for name in ("contrast", "heads"))
    made: dict[str, Any] = {"layers": None, "heads": None}
    try:
        if all(frame is not None and not frame.empty for frame in contrasts):
            made["layers"] = _curves([frame for frame in contrasts if frame is not None], runs)
        if all(frame is not None and not frame.empty for frame in maps):
            both = [frame for frame in maps if frame is not None]
            limit = sections.largest_score(*both)
            made["heads"] = [
                sections.heads(frame, prefix=f"{side}-heads", limit=limit)
                for side, frame in zip(_SIDES, both, strict=True)
            ]
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{runs[0]}, {runs[1]}: tables are not what the report expects ({error})"
        ) from error
    return made


def _curves(frames: list[pd.DataFrame], runs: list[Path]) -> list[dict[str, Any]]:
    windows = [page.read_summary(run).get("window") for run in runs]
    drawn = [
        figures.layer_panels(frame, window=tuple(window) if window else None)
        for frame, window in zip(frames, windows, strict=True)
    ]
    limits = [panels[0].get_ylim() for panels in drawn]
    pictures = []
    for side, panels, frame in zip(_SIDES, drawn, frames, strict=True):
        panels[0].set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        sentence = sections.largest_layer(frame)
        svg = fragment(
            panels[0], prefix=f"{side}-layers", title=f"Layer curves of the {side} run", description=sentence
        )
        pictures.append({"svg": Markup(svg), "said": sentence})
    return pictures
