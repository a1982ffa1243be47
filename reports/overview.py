"""What a run says in one line of a table over several: title, model, and scores with n and intervals.

A run is a folder with `config.toml` or `summary.json`, or a saved result. The kinds are told apart by their files:
`edit` (editors and their metrics), `explanation` (one edit and its prompts: `reports.edit_page`), `anatomy` (editors
and the share of edits that succeed as set), `faithfulness` (model, kind of neuron and method, with the change of log
p), `checkpoints` (what an edited checkpoint differs in from its base), `transfer` (a study of `xlprobe`: pair,
objective and task, with the change of the score and the cosine of the gradients), `attribution` and `prompts` (one
attribution, and those of many prompts: `reports.attribution_page`), and single results of `xlprobe`: `distances`,
`gradients`, `scores` and `training` (`reports.probe_page`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports import attribution_page, edit_page, page, probe_page, sections, xl_page
from reports.errors import IntegrityError
from reports.intervals import bootstrap_mean, wilson
from reports.probe_sections import METRICS
from reports.reading import read_frame, read_object

__all__ = ["COLUMNS", "Estimate", "Overview", "has_page", "is_run", "kind_of", "read", "render", "state"]

#: The name of what a line is about, and the heading of its table, by kind of run.
COLUMNS = {
    "edit": ("Editor", "Edits, per cent"),
    "explanation": ("Fact", "Single edits, prompts as wanted, per cent"),
    "anatomy": ("Editor", "Anatomy of edits: success as set, per cent"),
    "faithfulness": ("Model, neurons, method", "Faithfulness: change of log p in nats, by neurons ablated"),
    "checkpoints": ("Checkpoint, fact", "Edited checkpoints beside their base: change of log p in nats"),
    "transfer": ("Pair, objective, task", "Alignment and transfer: points, and cosine of the gradients"),
    "distances": ("Level, layer", "Distances: matched − random"),
    "gradients": ("Losses, parameters", "Gradients of task and alignment"),
    "scores": ("Language", "Scores of a task, per cent"),
    "training": ("Training", "Trainings: loss in nats, retrieval in per cent"),
    "attribution": ("Target, prompt", "Attributions: log p of the target in nats"),
    "prompts": ("Prompts", "Attributions of many prompts: log p of the targets in nats"),
}
_PLAIN = {"Cosine": 3, "Norm ratio": 3, "Loss": 3}  # decimals of what is no percentage
_GAP = "Gap, "  # the beginning of a metric of distances
_NATS = "Change at k"  # the beginning of a metric in nats


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval (nan where there is none) and n; fractions and points are given times 100."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int | None = None


@dataclass(frozen=True)
class Overview:
    """One run.

    Attributes:
        kind: One of `COLUMNS`.
        title: As the page has it.
        model: Its name.
        rows: (what a line is about, metric -> score).
    """

    kind: str
    title: str
    model: str
    rows: tuple[tuple[str, dict[str, Estimate]], ...]

    @property
    def metrics(self) -> list[str]:
        """Every metric of the run, in the order of its first line."""
        return list(dict.fromkeys(name for _, scores in self.rows for name in scores))


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run, finished or not, or a saved result."""
    named = any((folder / name).is_file() for name in ("config.toml", "summary.json"))
    return named or _is_result(folder) or probe_page.kind_of(folder) is not None


def _is_result(folder: Path) -> bool:
    """Whether `folder` is a saved result of mechedit that has a page of its own."""
    return attribution_page.is_attribution(folder) or edit_page.is_edit(folder)


def has_page(folder: Path) -> bool:
    """Whether what a page is made of is there."""
    if (folder / "summary.json").is_file() or kind_of(folder) in ("attribution", "prompts", "explanation"):
        return True
    return probe_page.kind_of(folder) is not None and probe_page.state(folder)[0] != "damaged"


def kind_of(folder: Path) -> str:
    """Returns which of `COLUMNS` the run is, by its files."""
    if edit_page.is_edit(folder):
        return "explanation"
    if attribution_page.is_attribution(folder):
        return "attribution"
    if attribution_page.is_prompts(folder):
        return "prompts"
    single = None if (folder / "config.toml").is_file() else probe_page.kind_of(folder)
    if single is not None:
        return single
    if (folder / "cells.parquet").is_file():
        return "transfer"
    studies = ("anatomy", "faithfulness", "checkpoints")
    return next((name for name in studies if (folder / "results" / name / "result.json").is_file()), "edit")


def render(folder: Path) -> str:
    """Returns the HTML page of a run of any kind; errors as `reports.page.render`."""
    kind = kind_of(folder)
    if kind in probe_page.TITLES:
        return probe_page.render(folder)
    if kind in ("attribution", "prompts"):
        return attribution_page.render(folder)
    if kind == "explanation":
        return edit_page.render(folder)
    return (xl_page if kind == "transfer" else page).render(folder)


def read(folder: Path) -> Overview:
    """Reads the overview of a run that has its summary.

    Raises:
        IntegrityError: A file of it is not what it should be.
    """
    kind = kind_of(folder)
    if kind in probe_page.TITLES:
        return _single(folder, kind)
    if kind in ("attribution", "prompts"):
        return _attributions(folder, kind)
    if kind == "explanation":
        return _explanation(folder)
    summary = (xl_page if kind == "transfer" else page).read_summary(folder)
    try:
        rows = _ROWS[kind](folder, summary)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{folder}: its tables are not what the report expects ({error})") from error
    return Overview(kind, str(summary["title"]), str(summary["model"]), tuple(rows))


def state(folder: Path) -> tuple[str, str]:
    """Returns (complete | unfinished | damaged, reason): whether the manifest's files are there, of their size."""
    if kind_of(folder) in probe_page.TITLES:
        return probe_page.state(folder)
    if _is_result(folder):
        return "complete", ""
    if not (folder / "manifest.json").is_file():
        cases = len(list((folder / "cases").glob("[!.]*.json")))
        return "unfinished", f"no manifest.json; {cases} cases are done"
    try:
        files = read_object(folder / "manifest.json").get("files", [])
        for entry in files:
            file = folder / entry["path"]
            if ".." in file.parts or not file.is_relative_to(folder):
                return "damaged", f"manifest.json names {entry['path']!r}, which is no file of the run"
            if file.name.startswith("report."):
                continue  # made from the others, and again with every version of this code
            if not file.is_file():
                return "damaged", f"{entry['path']} is missing"
            if file.stat().st_size != entry["size"]:
                return (
                    "damaged",
                    f"{entry['path']} has {file.stat().st_size} bytes, the manifest says {entry['size']}",
                )
    except (IntegrityError, KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        return "damaged", f"manifest.json is not readable ({error})"
    return "complete", ""


def text(name: str, score: Estimate) -> dict[str, str]:
    """Returns `score` of the metric `name` as a table shows it: value, interval, n, and the number to sort by."""
    signed = name == "Cosine" or name.startswith(("Change", "log p", _GAP))
    digits = (
        3
        if name.startswith(("log p", "Change of log p", _GAP))
        else 2
        if name.startswith(_NATS)
        else _PLAIN.get(name, 1)
    )

    def written(value: float) -> str:
        return sections.number(value, digits) if signed else f"{value:.{digits}f}"

    known = math.isfinite(score.low) and math.isfinite(score.high)
    return {
        "value": written(score.value) if math.isfinite(score.value) else "undefined",
        "interval": f"{written(score.low)} – {written(score.high)}" if known else "",
        "n": "" if score.n is None else str(score.n),
        "sort": repr(score.value) if math.isfinite(score.value) else "",
    }


def _single(folder: Path, kind: str) -> Overview:
    """The overview of a single result."""
    held = probe_page.parts(folder)
    try:
        rows = _SINGLE[kind](held)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise IntegrityError(f"{folder}: its tables are not what the report expects ({error})") from error
    model = _model(held)
    return Overview(kind, probe_page.TITLES[kind], model, tuple(rows))


def _model(held: dict[str, Any]) -> str:
    """The encoder's name, of a training the beginning of its hash (it may have none)."""
    if "settings" in held:
        return str(held["settings"].get("encoder.weights", "new"))[:12]
    name = held["provenance"].get("model", {}).get("name", "not named")
    return str(held["values"].get("encoder", name))


def _distances(held: dict[str, Any]) -> list[tuple[str, dict[str, Estimate]]]:
    frame = held["frames"]["layers"]
    return [
        (
            f"{level}, layer {layer}",
            {
                f"{_GAP}{METRICS[r['metric']]}": Estimate(r["gap"], r["low"], r["high"], int(r["n"]))
                for r in part.to_dict("records")
            },
        )
        for (level, layer), part in frame.groupby(["level", "layer"], sort=False)
    ]


def _gradients(held: dict[str, Any]) -> list[tuple[str, dict[str, Estimate]]]:
    cells, values = held["frames"]["cells"], held["values"]
    whole = cells[cells["scope"].isin(["encoder", "whole"]) & (cells["group"] == "all")]
    return [
        (
            f"{values['task']}; {values['alignment']}; {r['scope']}",
            {
                "Cosine": Estimate(r["cosine"], r["low"], r["high"]),
                "Norm ratio": Estimate(r["ratio"]),
            },
        )
        for r in whole.to_dict("records")
    ]


def _scores(held: dict[str, Any]) -> list[tuple[str, dict[str, Estimate]]]:
    frame = held["frames"]["scores"]
    return [
        (
            str(language),
            {
                "Accuracy": Estimate(100 * part["accuracy"].mean(), n=int(part["n"].max())),
                "Macro F1": Estimate(100 * part["macro_f1"].mean(), n=int(part["n"].max())),
            },
        )
        for language, part in frame.groupby("language", sort=False)
    ]


def _training(held: dict[str, Any]) -> list[tuple[str, dict[str, Estimate]]]:
    settings, retrieval = held["settings"], held["retrieval"] or {}
    objectives = [key.removeprefix("objective.") for key in settings if key.startswith("objective.")]
    label = "+".join(objectives) or str(settings.get("task.kind") or settings.get("name", "training"))
    scores = {"Loss": Estimate(float(held["progress"]["losses"][-1]))}
    for name in ("before", "after"):
        if name in retrieval:
            scores[f"Retrieval {name}"] = Estimate(100 * float(retrieval[name]), n=int(retrieval["n"]))
    return [(label, scores)]


def _attributions(folder: Path, kind: str) -> Overview:
    if kind == "attribution":
        record = attribution_page.read_one(folder)
        name = attribution_page.title(record)
        row, about = (
            (name, {"Change of log p" if len(record.targets) > 1 else "log p": Estimate(record.logp)}),
            record.about,
        )
    else:
        records = attribution_page.read_prompts(folder)
        name = f"Attribution of {len(records)} prompts"
        scores = [record.logp for record in records]
        low, high = bootstrap_mean(scores)
        mean = math.fsum(scores) / len(scores) if scores else math.nan
        row = (f"{len(records)} prompts", {"log p, mean": Estimate(mean, low, high, len(records))})
        about = records[0].about if records else {}
    return Overview(kind, name, str(about.get("name", "")), (row,))


def _explanation(folder: Path) -> Overview:
    name, editor, model = edit_page.title(folder)
    scores = {}
    for role, (ok, n) in edit_page.shares(folder).items():
        low, high = wilson(ok, n)
        scores[role.capitalize()] = Estimate(100 * ok / n, 100 * low, 100 * high, n)
    return Overview("explanation", name, model, ((f"{name} ({editor})", scores),))


def _edit(folder: Path, summary: dict[str, Any]) -> list[tuple[str, dict[str, Estimate]]]:
    names = sections.metric_names()
    return [
        (
            str(editor.get("label") or editor["name"]),
            {label: _fraction(editor[key]) for key, label in names.items() if key in editor},
        )
        for editor in summary["editors"]
    ]


def _fraction(cell: Any) -> Estimate:
    values = sections.proportion(cell)
    n = cell.get("n") if isinstance(cell, dict) else None
    value, low, high = (100 * values[key] for key in ("value", "low", "high"))
    return Estimate(value, low, high, None if n is None else int(n))


def _anatomy(folder: Path, summary: dict[str, Any]) -> list[tuple[str, dict[str, Estimate]]]:
    frame = read_frame(folder / "results" / "anatomy", "outcomes")
    if frame is None:
        raise IntegrityError(f"{folder / 'results' / 'anatomy'}: expected outcomes.parquet, found none")
    first_settings = frame.drop_duplicates(
        "editor"
    )  # the first setting of an editor is the one that it is meant to have
    return [
        (
            str(r["editor"]),
            {"Success": Estimate(100 * r["success"], 100 * r["low"], 100 * r["high"], int(r["n"]))},
        )
        for r in first_settings.to_dict("records")
    ]


def _transfer(folder: Path, summary: dict[str, Any]) -> list[tuple[str, dict[str, Estimate]]]:
    cells = read_frame(folder, "cells")
    assert cells is not None  # this is what makes it a transfer study
    return [
        (
            f"{r['pair']}, {r['objective']}, {r['task']}",
            {
                "Change of score": Estimate(
                    100 * r["delta_score"], 100 * r["low"], 100 * r["high"], int(r["n"])
                ),
                "Change of retrieval": Estimate(100 * r["delta_retrieval"]),
                "Cosine": Estimate(r["gradient_cosine"], r["cosine_low"], r["cosine_high"]),
            },
        )
        for r in cells.to_dict("records")
    ]


def _faithfulness(folder: Path, summary: dict[str, Any]) -> list[tuple[str, dict[str, Estimate]]]:
    frame = read_frame(folder / "results" / "faithfulness", "curve")
    if frame is None:
        raise IntegrityError(f"{folder / 'results' / 'faithfulness'}: expected curve.parquet, found none")
    rows = []
    for (model, kind, method), curve in frame.groupby(["model", "kind", "method"], sort=False):
        scores = {
            f"Change at k = {r['k']}": Estimate(r["delta"], r["low"], r["high"], int(r["n"]))
            for r in curve.to_dict("records")
        }
        rows.append((f"{model}, {kind}, {method}", scores))
    return rows


def _checkpoints(folder: Path, summary: dict[str, Any]) -> list[tuple[str, dict[str, Estimate]]]:
    record = read_object(folder / "results" / "checkpoints" / "result.json")
    values, changed = record["values"], record["frames"]["weights"]["rows"]
    label = f"{values['edited']}, {changed} of {values['n_weights']} weights: {summary['subtitle']}"
    logp = values["logp"]
    sides = [side for side in ("new", "old") if f"{side}_after" in logp]
    return [
        (
            label,
            {
                f"Change of log p, {side} object": Estimate(logp[f"{side}_after"] - logp[f"{side}_before"])
                for side in sides
            },
        )
    ]


_SINGLE = {"distances": _distances, "gradients": _gradients, "scores": _scores, "training": _training}
_ROWS = {
    "edit": _edit,
    "anatomy": _anatomy,
    "faithfulness": _faithfulness,
    "checkpoints": _checkpoints,
    "transfer": _transfer,
}
