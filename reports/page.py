"""One self-contained HTML page from a run folder.

The page is built from the folder's files alone, so it can be built again at any time: the same files give the
same bytes (no date, no random id). It needs no network and runs no script: styles and pictures are inline,
and a content-security policy forbids everything else, so even a hole in the escaping could load nothing.
Every string of the run goes through Jinja's autoescaping, every token through `reports.text.visible` first.

Read in the folder, all but the first optional: `summary.json`, `contrast.parquet`, `heads.parquet`,
`window.parquet`, `neurons.parquet`, `circuit.json`, `provenance.json`, `config.toml`, `results/gates`, and
`results/anatomy` or `results/faithfulness`, which give the page the sections of such a study. A section without its
file says so; a file that is there but is not what it should be stops the build, naming file and reason.

Steps of `build`: read, make each section's figures and tables (`reports.sections`), fill the template, write
to a temporary name, rename.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from reports import anatomy_sections, faithfulness, gates, sections
from reports.circuit import Circuit
from reports.circuit import read as read_circuit
from reports.codec import decode
from reports.colours import DARK, LIGHT
from reports.errors import InputError, IntegrityError
from reports.text import visible

__all__ = ["build"]

_TEMPLATES = Path(__file__).parent / "templates"


def build(run_folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the page of `run_folder` to `out` (by default `report.html` in the folder) and return its path.

    Errors: `InputError` if there is no such folder or it holds no `summary.json`; `IntegrityError`, naming
    the file, if one of its files is damaged or lacks a column or field.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "summary.json").write_text('{"title": "A run", "n": 0, "editors": []}')
    ...     page = build(folder).read_text(encoding="utf-8")
    >>> "<h1>A run</h1>" in page, "http://" in page
    (True, False)
    """
    folder = Path(run_folder)
    if not (folder / "summary.json").is_file():
        raise InputError(f"run_folder: expected a run folder with summary.json, found none in {folder}")
    context = _context(folder)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    text = environment.get_template("page.html.j2").render(context)
    target = Path(out) if out is not None else folder / "report.html"
    _write(target, text)
    return target


def _context(folder: Path) -> dict[str, Any]:
    summary = _summary(folder / "summary.json")
    window = _window(summary, folder / "summary.json")
    frames = {name: _frame(folder, name) for name in ("contrast", "heads", "window", "neurons")}
    path = folder / "circuit.json"
    circuit: Circuit | None = read_circuit(path) if path.is_file() else None
    provenance = folder / "provenance.json"
    config = folder / "config.toml"
    made: dict[str, Any] = {
        "layers": _section(folder, "contrast.parquet", sections.layers, frames["contrast"], window),
        "heads": _section(folder, "heads.parquet", sections.heads, frames["heads"]),
        "windows": _section(folder, "window.parquet", sections.windows, frames["window"], window),
        "neurons": _section(folder, "neurons.parquet", sections.neurons, frames["neurons"]),
        "circuit": sections.circuit(circuit) if circuit else None,
        "result": _section(folder, "summary.json", sections.result, summary),
        "study": _study(folder, window),
        "faithfulness": _faithfulness(folder),
        "gates": _gates(folder),
        "provenance": sections.flat(_object(provenance)) if provenance.is_file() else None,
        "config": _lines(config) if config.is_file() else None,
    }
    return {"summary": summary, "window": window, "light": LIGHT, "dark": DARK, **made}


def _gates(folder: Path) -> dict[str, Any] | None:
    """The section of the gates, where the run has measured them."""
    return _saved(folder, "gates", gates.FRAMES, gates.gates)


def _study(folder: Path, window: tuple[int, int] | None) -> dict[str, Any] | None:
    """The sections of an anatomy study, where the run has one."""
    return _saved(folder, "anatomy", anatomy_sections.FRAMES, anatomy_sections.study, window)


def _faithfulness(folder: Path) -> dict[str, Any] | None:
    """The sections of a faithfulness study, where the run has one."""
    return _saved(folder, "faithfulness", faithfulness.FRAMES, faithfulness.faithfulness)


def _saved(folder: Path, name: str, names: Sequence[str], make: Any, *more: Any) -> dict[str, Any] | None:
    """What `make` says of the frames of a saved result, where the run has one."""
    saved = folder / "results" / name
    if not (saved / "result.json").is_file():
        return None
    frames = {frame: _frame(saved, frame) for frame in names}
    if missing := [frame for frame, found in frames.items() if found is None]:
        raise IntegrityError(f"{saved}: expected {missing[0]}.parquet, found none")
    return dict(_section(saved, "result.json", make, frames, *more))


def _summary(path: Path) -> dict[str, Any]:
    """The summary with every optional part present, each checked as far as the template relies on it."""
    summary = {"subtitle": "", "model": "", "notes": [], "not_done": [], "verdicts": []} | _object(path)
    for name, kind in (
        ("title", str),
        ("editors", list),
        ("notes", list),
        ("not_done", list),
        ("verdicts", list),
    ):
        if not isinstance(summary.get(name), kind):
            found = "none" if name not in summary else type(summary[name]).__name__
            raise IntegrityError(f"{path}: {name}: expected a {kind.__name__}, found {found}")
    for verdict in summary["verdicts"]:
        if not isinstance(verdict, dict) or not {"claim", "answer", "evidence"} <= verdict.keys():
            raise IntegrityError(
                f"{path}: verdicts: expected claim, answer and evidence in each, found {verdict!r}"
            )
    return summary


def _lines(path: Path) -> str:
    return "\n".join(visible(line) if line else "" for line in path.read_text(encoding="utf-8").split("\n"))


def _section(folder: Path, name: str, make: Any, data: Any, *more: Any) -> Any:
    if data is None:
        return None
    try:
        return make(data, *more)
    except (InputError, KeyError, TypeError, ValueError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise IntegrityError(f"{folder / name}: not what the report expects ({reason})") from error


def _object(path: Path) -> dict[str, Any]:
    try:
        data = decode(json.loads(path.read_text(encoding="utf-8")), Any)
    except ValueError as error:
        raise IntegrityError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(data, dict):
        raise IntegrityError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def _window(summary: dict[str, Any], path: Path) -> tuple[int, int] | None:
    window = summary.get("window")
    if window is None:
        return None
    if not (isinstance(window, list) and len(window) == 2 and all(isinstance(edge, int) for edge in window)):
        raise IntegrityError(f"{path}: window: expected [first, last], found {window!r}")
    return window[0], window[1]


def _frame(folder: Path, name: str) -> pd.DataFrame | None:
    path = folder / f"{name}.parquet"
    if not path.is_file():
        return None
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (ValueError, OSError) as error:  # pyarrow's errors are one or the other
        raise IntegrityError(f"{path}: not readable as Parquet ({error})") from error


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
