"""The page of a single result of xlprobe, from the folder it was saved in: the same files give the same bytes.

A folder holds a saved result (`result.json`: distances, gradients or the scores of a task) or a training
(`training.json`, the checkpoint's `progress.json`, and `retrieval.json` of an alignment). As `reports.page`: no
network, no script, every string escaped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reports import html, probe_sections, sections
from reports.errors import InputError, IntegrityError
from reports.reading import read_frame, read_object

__all__ = ["TITLES", "kind_of", "parts", "render", "state"]

#: The kinds of page, and their titles.
TITLES = {
    "distances": "How close two languages lie",
    "gradients": "Task and alignment, by their gradients",
    "scores": "A task, learned in one language and asked in others",
    "training": "A training",
}
_SAVED = {"distances": "distances", "gradients": "gradients", "transfer_scores": "scores"}
_FRAMES = {"distances": ("layers",), "gradients": ("cells", "first_order"), "scores": ("scores",)}


def kind_of(folder: Path) -> str | None:
    """Returns distances, gradients, scores or training, by the folder's files; None where it is none of them."""
    if (folder / "result.json").is_file():
        try:
            return _SAVED.get(str(read_object(folder / "result.json").get("kind")))
        except IntegrityError:
            return None
    return "training" if (folder / "training.json").is_file() else None


def state(folder: Path) -> tuple[str, str]:
    """Returns (complete | unfinished | damaged, reason)."""
    if kind_of(folder) != "training":
        lost = [name for name in _FRAMES[str(kind_of(folder))] if not (folder / f"{name}.parquet").is_file()]
        return ("damaged", f"{lost[0]}.parquet is missing") if lost else ("complete", "")
    file = folder / "checkpoint" / "progress.json"
    if not file.is_file():
        return "unfinished", "no checkpoint yet"
    progress = read_object(file)
    if progress.get("finished"):
        return "complete", ""
    return "unfinished", f"{len(progress.get('losses', []))} steps are done"


def parts(folder: Path) -> dict[str, Any]:
    """Returns what the folder holds: frames and values of a result, or progress, settings and retrieval of a training.

    Raises:
        InputError: A training without a checkpoint, of which nothing can be shown yet.
        IntegrityError: A file is missing or damaged.
    """
    kind = kind_of(folder)
    if kind is None:
        raise InputError(f"folder: expected a saved result or a training, found none in {folder}")
    if kind == "training":
        file = folder / "checkpoint" / "progress.json"
        if not file.is_file():
            raise InputError(
                f"folder: the training in {folder} has no checkpoint yet; there is nothing to show"
            )
        retrieval = folder / "retrieval.json"
        return {
            "progress": read_object(file),
            "settings": read_object(folder / "training.json").get("settings", {}),
            "retrieval": read_object(retrieval) if retrieval.is_file() else None,
        }
    record = read_object(folder / "result.json")
    frames = {name: read_frame(folder, name) for name in _FRAMES[kind]}
    if lost := [name for name, frame in frames.items() if frame is None]:
        raise IntegrityError(f"{folder / lost[0]}.parquet: expected this table of the result, found none")
    return {"frames": frames, "values": record.get("values", {}), "provenance": record.get("provenance", {})}


def render(folder: Path) -> str:
    """Returns the HTML page of the folder.

    Raises:
        InputError: As `parts`.
        IntegrityError: As `parts`, or a table lacks a column.
    """
    kind, held = kind_of(folder), parts(folder)
    try:
        if kind == "training":
            facts, made = probe_sections.training(held["progress"], held["retrieval"])
            provenance = sections.flat(held["settings"])
            objective = " ".join(name for name, _ in provenance if "objective" in name)
        else:
            facts, made = getattr(probe_sections, str(kind))(held["frames"], held["values"])
            provenance = sections.flat(held["provenance"])
            objective = str(held["values"].get("alignment", ""))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise IntegrityError(f"{folder}: its tables are not what the report expects ({error})") from error
    title = TITLES[str(kind)]
    summary = {"title": title, "subtitle": ""}
    context: dict[str, Any] = {"summary": summary, "facts": facts, "sections": made}
    context |= {
        "reading": probe_sections.READING[str(kind)] + [probe_sections.HICTL] * ("hictl" in objective),
        "provenance": provenance or None,
        "config": None,
    }
    return html.render("probe.html.j2", context)
