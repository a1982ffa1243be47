"""Many runs: a page for each, and an index with one sortable table over all of them.

Steps of `build`:

1. find the runs: folders, folders of runs at any depth, patterns (`find`);
2. for each in turn, write its page beside the index and keep one line of it; nothing else stays in memory. From eight
   runs on, two processes share the work;
3. a run that is unfinished or damaged is listed with the reason, and the others are still made;
4. write the index last.

The same runs give the same bytes, whatever the number of processes. The folder that holds index and pages can be moved
and sent: links are relative.
"""

from __future__ import annotations

import glob
import math
import multiprocessing
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from markupsafe import Markup
from tqdm.auto import tqdm

from reports import forests, formats, html, overview
from reports.errors import InputError, MechEditError
from reports.inline import fragment
from reports.overview import COLUMNS, Estimate, Overview
from reports.text import visible

__all__ = ["Entry", "RunIndex", "build", "find"]

Job: TypeAlias = "tuple[str, Path, Path]"  # name, run folder, page to write
_FIRST, _WIDE = 5, 8  # metrics beside run, model and line, and in each table below
_PANELS, _DRAWN = 3, 30  # metrics and lines of the picture
#: Units of the kinds of run whose first metrics are drawn, each with one unit.
_UNITS = dict.fromkeys(("edit", "explanation", "anatomy", "scores"), "per cent")
_UNITS |= {"faithfulness": "nats", "transfer": "points", "attribution": "nats", "prompts": "nats"}
_UNITS["checkpoints"] = "nats"
_PARALLEL = 8  # fewer runs are done before a second process has imported what it needs


@dataclass(frozen=True)
class Entry:
    """One run of the batch.

    Attributes:
        name: Its folder, relative to the folder of the runs.
        folder: Its folder.
        state: complete, unfinished or damaged.
        reason: Why it is not complete.
        page: Its page beside the index; None where none was made.
        overview: Its line of the index's table.
    """

    name: str
    folder: str
    state: str
    reason: str
    page: str | None
    overview: Overview | None


@dataclass(frozen=True)
class RunIndex:
    """The index, and what it lists."""

    index: Path
    entries: tuple[Entry, ...]


def find(runs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Finds the run folders that `runs` names, each once.

    They come in the order given, those within a folder by name (numbers by value).

    Args:
        runs: Each a run, a folder with runs in it at any depth, or a pattern (`runs/*`).

    Raises:
        InputError: A name leads to no run.
    """
    runs_by_path: dict[Path, Path] = {}
    for given in runs:
        name = str(given)
        matching = glob.glob(name, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        places = [Path(name)] if Path(name).is_dir() else sorted(map(Path, matching), key=_order)
        run_folders = [run for place in places if place.is_dir() for run in _runs_in(place)]
        if not run_folders:
            raise InputError(
                f"runs: expected a run folder, a folder of runs or a pattern, found no run at {name}"
            )
        runs_by_path |= {run.resolve(): run for run in run_folders if run.resolve() not in runs_by_path}
    return list(runs_by_path.values())


def build(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    format: str = "html",  # noqa: A002 (the command's own word)
    progress: bool = True,
    workers: int | None = None,
) -> RunIndex:
    """Writes the page of every run to the folder `<stem>-runs` beside the index, and then the index.

    Args:
        runs: As for `find`.
        out: The index; by default `report.<format>` in the folder of the runs.
        format: html, md or pdf.
        progress: Whether a bar is shown.
        workers: Number of processes; by default two from eight runs on.

    Raises:
        InputError: As `find`; the format is unknown; it is `pdf` and there is no Chromium.
    """
    formats.check(format)
    folders = find(runs)
    root = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    root = root.parent if len(folders) == 1 else root
    index = Path(out) if out is not None else root / f"report.{format}"
    names = [folder.resolve().relative_to(root).as_posix() for folder in folders]
    pages = index.with_name(f"{index.stem}-runs")
    jobs = [
        (name, folder, pages / f"{slug}.{format}")
        for name, folder, slug in zip(names, folders, _slugs(names), strict=True)
    ]
    workers = workers or (min(2, os.cpu_count() or 1) if len(jobs) >= _PARALLEL else 1)
    entries = tuple(tqdm(_all(jobs, workers), total=len(jobs), desc="reports", disable=not progress))
    formats.save(_index(entries, links=format != "pdf"), index)
    return RunIndex(index, entries)


def _all(jobs: list[Job], workers: int) -> Iterator[Entry]:
    if workers == 1:
        yield from map(_one, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        yield from pool.map(_one, jobs)


def _one(job: Job) -> Entry:
    name, folder, target = job
    state, reason = overview.state(folder)
    page = f"{target.parent.name}/{target.name}"
    if not overview.has_page(folder):
        lost = "summary.json is missing" if state == "complete" else reason
        return Entry(name, str(folder), "damaged" if state == "complete" else state, lost, None, None)
    try:
        line = overview.read(folder)
        formats.save(overview.render(folder), target)
    except MechEditError as error:
        # what is shown must not depend on where the batch lies
        told = " ".join(str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), name).split())
        return Entry(name, str(folder), "damaged", told, None, None)
    return Entry(name, str(folder), state, reason, page, line)


def _runs_in(place: Path) -> list[Path]:
    if overview.is_run(place):
        return [place]
    below = (entry for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return [run for entry in sorted(below, key=_order) for run in _runs_in(entry)]


def _order(path: Path) -> list[tuple[bool, int, str]]:
    return [
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part)
        for part in re.split(r"(\d+)", str(path))
    ]


def _slugs(names: Sequence[str]) -> list[str]:
    """File names of letters, digits, dots and hyphens, none twice (whatever the case)."""
    taken: set[str] = set()
    slugs = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:80] or "run"
        slug, number = plain, 1
        while slug.lower() in taken:
            number += 1
            slug = f"{plain}-{number}"
        taken.add(slug.lower())
        slugs.append(slug)
    return slugs


# -- the index -----------------------------------------------------------------------------------------------------


def _index(entries: Sequence[Entry], *, links: bool) -> str:
    made = sum(entry.page is not None for entry in entries)
    summary = {
        "title": f"{len(entries)} runs",
        "subtitle": f"{made} with a page, {len(entries) - made} without",
    }
    kinds = [
        kind for kind in COLUMNS if any(entry.overview and entry.overview.kind == kind for entry in entries)
    ]
    context = {
        "summary": summary,
        "tables": [_table(kind, entries, links=links) for kind in kinds],
        "amiss": [
            {
                "name": visible(e.name),
                "state": e.state,
                "reason": visible(e.reason),
                "page": e.page if links else None,
            }
            for e in entries
            if e.state != "complete"
        ],
    }
    return html.render("index.html.j2", context, scripts=("index.js",))


def _table(kind: str, entries: Sequence[Entry], *, links: bool) -> dict[str, Any]:
    listed = [(entry, entry.overview) for entry in entries if entry.overview and entry.overview.kind == kind]
    metrics = list(dict.fromkeys(name for _, line in listed for name in line.metrics))
    rows: list[dict[str, Any]] = []
    for entry, line in listed:
        for label, scores in line.rows or (("", {}),):
            n = max((score.n for score in scores.values() if score.n is not None), default=None)
            cells = [overview.text(name, scores[name]) if name in scores else None for name in metrics]
            rows.append(
                {
                    "name": visible(entry.name),
                    "page": entry.page if links else None,
                    "model": visible(line.model),
                    "label": visible(label) if label else "",
                    "n": "" if n is None else str(n),
                    "cells": cells,
                }
            )
    what, title = COLUMNS[kind]
    # the first metrics fit a page of 1200 pixels; the others stand below, in tables as wide
    places = [(0, _FIRST), *((at, at + _WIDE) for at in range(_FIRST, len(metrics), _WIDE))]
    return {
        "kind": kind,
        "title": title,
        "what": what,
        "parts": [
            {
                "metrics": metrics[low:high],
                "rows": [row | {"cells": row["cells"][low:high]} for row in rows],
            }
            for low, high in places
        ],
        "picture": _picture(kind, [(entry.name, line) for entry, line in listed], metrics),
        "lines": len(rows),
        "runs": len(listed),
    }


def _picture(kind: str, listed: list[tuple[str, Overview]], metrics: list[str]) -> dict[str, Any] | None:
    """The first metrics of the first lines, each value with its interval; per cent on one scale."""
    shown = [name for name in metrics if name != "Cosine"][:_PANELS]  # which has no unit
    lines = [
        (f"{name}: {label}" if len(line.rows) > 1 else name, scores)
        for name, line in listed
        for label, scores in line.rows
        if any(metric in scores for metric in shown)
    ]
    if len(lines) < 2 or kind not in _UNITS:
        return None
    rows = [
        {"panel": metric, "label": label, "value": score.value, "low": score.low, "high": score.high}
        for label, scores in lines[:_DRAWN]
        for metric in shown
        for score in [scores.get(metric, Estimate(math.nan))]
    ]
    frame = pd.DataFrame(rows)
    values = ["value", "low", "high"]
    if _UNITS[kind] == "per cent":
        axes = forests.forest_panels(frame.assign(**{name: frame[name] / 100 for name in values}))[0]
    else:
        axes = forests.effect_forest(frame, xlabel=_UNITS[kind], shared=False)[0]
    said = "Point: value. Line: 95 % interval."
    if len(lines) > _DRAWN:
        said += f" The first {_DRAWN} of {len(lines)} lines."
    svg = fragment(axes, prefix=f"index-{kind}", title=COLUMNS[kind][1], description=said)
    return {"svg": Markup(svg), "said": said}
