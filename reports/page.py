"""One self-contained HTML page from a run folder.

The page is built from the folder's files alone, so it can be built again at any time: the same files give the
same bytes (no date, no random id). It needs no network: styles, pictures and, where there is a circuit to explore,
scripts are inline, and a content-security policy forbids everything else, so even a hole in the escaping could load or
run nothing.
Every string of the run goes through Jinja's autoescaping, every token through `reports.text.visible` first.

Read in the folder, all but the first optional: `summary.json`, `contrast.parquet`, `heads.parquet`,
`window.parquet`, `neurons.parquet`, `circuit.json`, with it `attention.parquet` and `token_heat.parquet`,
`provenance.json`, `config.toml`, every evaluation in `results`, `results/gates`, and `results/anatomy`,
`results/faithfulness` or `results/checkpoints`, which give the page the sections of such a study. What has no file is
named in one sentence; a file that is there but is not what it should be stops the build, naming file and reason.

Steps of `build`: read, make each section's figures and tables (`reports.sections`), fill the template, write
to a temporary name, rename.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports import (
    anatomy_sections,
    attention,
    checkpoints,
    explorer,
    fact_table,
    faithfulness,
    gates,
    html,
    sections,
)
from reports.beside import beside, by_fact
from reports.circuit import Circuit
from reports.circuit import read as read_circuit
from reports.errors import InputError, IntegrityError
from reports.files import write
from reports.readable import METRICS_MEAN, metric_words
from reports.reading import read_frame, read_lines, read_object

__all__ = ["build", "read_summary", "render"]

# What the page of an edit has where the run wrote it, and what the sentence about the rest calls it.
_PARTS = {
    "layers": "layer curves",
    "heads": "heads",
    "windows": "window",
    "neurons": "neurons",
    "circuit": "circuit",
    "attention": "attention patterns",
    "provenance": "provenance",
    "config": "configuration",
}


def build(run_folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes the page of `run_folder` and returns its path; errors as `render`.

    Args:
        run_folder: The run.
        out: The page; by default `report.html` in the folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "summary.json").write_text('{"title": "A run", "n": 0, "editors": []}')
    ...     page = build(folder).read_text(encoding="utf-8")
    >>> "<h1>A run</h1>" in page, "http://" in page
    (True, False)
    """
    text = render(run_folder)
    return write(Path(out) if out is not None else Path(run_folder) / "report.html", text)


def render(run_folder: str | os.PathLike[str]) -> str:
    """Returns the HTML page of `run_folder`.

    Raises:
        InputError: There is no such folder, or it holds no `summary.json`.
        IntegrityError: One of its files is damaged or lacks a column or field; the message names it.
    """
    folder = Path(run_folder)
    if not (folder / "summary.json").is_file():
        raise InputError(f"run_folder: expected a run folder with summary.json, found none in {folder}")
    context = _context(folder)
    scripts = [
        *(explorer.SCRIPTS if context["circuit"] else ()),
        *(attention.SCRIPTS if context["attention"] else ()),
        *(("index.js",) if context["facts"] else ()),
    ]
    return html.render("page.html.j2", context, scripts=scripts)


def _context(folder: Path) -> dict[str, Any]:
    summary = read_summary(folder)
    window = _window(summary, folder / "summary.json")
    frames = {name: read_frame(folder, name) for name in ("contrast", "heads", "window", "neurons")}
    path = folder / "circuit.json"
    circuit: Circuit | None = read_circuit(path) if path.is_file() else None
    looks = attention.read(folder, circuit.tokens if circuit else ())
    provenance = folder / "provenance.json"
    facts = read_object(provenance) if provenance.is_file() else None
    settings = facts.pop("settings", None) if facts is not None else None
    rows = None if facts is None else sections.flat(facts)
    made: dict[str, Any] = {
        "layers": _section(folder, "contrast.parquet", sections.layers, frames["contrast"], window),
        "heads": _section(folder, "heads.parquet", sections.heads, frames["heads"]),
        "windows": _section(folder, "window.parquet", sections.windows, frames["window"], window),
        "neurons": _section(folder, "neurons.parquet", sections.neurons, frames["neurons"]),
        "circuit": sections.circuit(circuit) if circuit else None,
        "attention": attention.attention(looks) if looks else None,
        "result": _section(folder, "summary.json", sections.result, summary),
        "metrics_mean": _metrics(summary["editors"]),
        "study": _study(folder, window),
        "faithfulness": _faithfulness(folder),
        **_facts(folder, summary["editors"]),
        "gates": _gates(folder),
        "checkpoints": _checkpoints(folder),
        "provenance": rows,
        "settings": _section(folder, "provenance.json", sections.settings, settings),
        "config": read_lines(folder / "config.toml"),
    }
    special = made["study"] or made["faithfulness"] or made["checkpoints"]
    parts = ("provenance", "config") if special else tuple(_PARTS)
    absent = [_PARTS[name] for name in parts if made[name] is None]
    stored = sorted(
        {value for key, value in rows or () if key.startswith("model.") and key.endswith("quantization")}
    )
    weights = f"{', '.join(stored)}, dequantised" if stored else ""
    return {"summary": summary, "window": window, "weights": weights, "absent": ", ".join(absent), **made}


def _metrics(editors: Sequence[Any]) -> dict[str, str]:
    """What the metrics of the run's table are."""
    keys = {str(key) for row in editors if isinstance(row, dict) for key in row}
    return metric_words([name for names in METRICS_MEAN for name in names if name.lower() in keys])


def _facts(folder: Path, editors: Sequence[Any]) -> dict[str, Any]:
    """The facts one by one; of several editors, in the order of the run's table, side by side."""
    named = [row for row in editors if isinstance(row, dict) and "name" in row]
    labels = {str(row["name"]): str(row.get("label", row["name"])) for row in named}
    rows = by_fact(fact_table.read(folder), list(labels))
    section = fact_table.facts(rows)
    anchors = [row["anchor"] for row in section["rows"]] if section else []
    return {"facts": section, "beside": beside(rows, anchors, labels)}


def _gates(folder: Path) -> dict[str, Any] | None:
    """The section of the gates, where the run has measured them."""
    return _saved(folder, "gates", gates.FRAMES, gates.gates)


def _checkpoints(folder: Path) -> dict[str, Any] | None:
    """The sections of two checkpoints, where the run has contrasted them."""
    return _saved(folder, "checkpoints", checkpoints.FRAMES, checkpoints.checkpoints)


def _study(folder: Path, window: tuple[int, int] | None) -> dict[str, Any] | None:
    """The sections of an anatomy study, where the run has one."""
    return _saved(folder, "anatomy", anatomy_sections.FRAMES, anatomy_sections.study, window)


def _faithfulness(folder: Path) -> dict[str, Any] | None:
    """The sections of a faithfulness study, where the run has one."""
    return _saved(folder, "faithfulness", faithfulness.FRAMES, faithfulness.faithfulness)


def _saved(
    folder: Path, name: str, names: Sequence[str], make: Any, *arguments: Any
) -> dict[str, Any] | None:
    """What `make` says of the frames of a saved result, where the run has one."""
    saved = folder / "results" / name
    if not (saved / "result.json").is_file():
        return None
    frames = {key: read_frame(saved, key) for key in names}
    if missing := [key for key, frame in frames.items() if frame is None]:
        raise IntegrityError(f"{saved}: expected {missing[0]}.parquet, found none")
    return dict(_section(saved, "result.json", make, frames, *arguments))


def read_summary(folder: Path) -> dict[str, Any]:
    """Reads the summary of a run, every optional part present, each checked as far as a page relies on it.

    Raises:
        IntegrityError: The file is damaged, or a part has another type.
    """
    path = folder / "summary.json"
    summary = {"subtitle": "", "model": "", "notes": [], "not_done": [], "verdicts": []} | read_object(path)
    for name, kind in (
        ("title", str),
        ("editors", list),
        ("notes", list),
        ("not_done", list),
        ("verdicts", list),
    ):
        if not isinstance(summary.get(name), kind):
            actual = "none" if name not in summary else type(summary[name]).__name__
            raise IntegrityError(f"{path}: {name}: expected a {kind.__name__}, found {actual}")
    for verdict in summary["verdicts"]:
        if not isinstance(verdict, dict) or not {"claim", "answer", "evidence"} <= verdict.keys():
            raise IntegrityError(
                f"{path}: verdicts: expected claim, answer and evidence in each, found {verdict!r}"
            )
    return summary


def _section(folder: Path, name: str, make: Any, data: Any, *arguments: Any) -> Any:
    if data is None:
        return None
    try:
        return make(data, *arguments)
    except (InputError, KeyError, TypeError, ValueError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise IntegrityError(f"{folder / name}: not what the report expects ({reason})") from error


def _window(summary: dict[str, Any], path: Path) -> tuple[int, int] | None:
    window = summary.get("window")
    if window is None:
        return None
    if not (isinstance(window, list) and len(window) == 2 and all(isinstance(edge, int) for edge in window)):
        raise IntegrityError(f"{path}: window: expected [first, last], found {window!r}")
    return window[0], window[1]
