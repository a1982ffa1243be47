"""The page of a transfer study, from its run folder alone: the same files give the same bytes.

Read: `summary.json` (title, model, seeds, layer, claims, advice, notes, not_done), `cells.parquet`,
`predictors.parquet`, `distances.parquet`, `gradients.parquet`, optionally `norms.parquet`, `angles.parquet` and
`contest.parquet`, and the run's own `provenance.json` and `config.toml`. As `reports.page`: no network, no script,
every string escaped.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from reports import forests, html, sections, xl_figures
from reports.errors import InputError, IntegrityError
from reports.files import write
from reports.inline import fragment
from reports.reading import read_frame, read_lines, read_object
from reports.text import visible

__all__ = ["build", "read_summary", "render"]

_REQUIRED = ("cells", "predictors", "distances", "gradients")
_PREDICTORS = {
    "delta_retrieval": "change of retrieval",
    "delta_strong": "change of strong retrieval",
    "delta_csls": "change of retrieval by CSLS",
    "delta_gap_early": "change of similarity, a third up",
    "delta_gap": "change of similarity",
    "delta_gap_last": "change of similarity, last layer",
    "delta_cka": "change of linear CKA",
    "gradient_cosine": "gradient cosine",
    "agreeing": "parameters without conflict",
    "norm_ratio": "norm ratio (log)",
}
_CURVES = {"cosine": "cosine", "weak_retrieval": "retrieval (weak)", "cka": "linear CKA"}


def build(run_folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes the page of `run_folder` and returns its path; errors as `render`.

    Args:
        run_folder: The run.
        out: The page; by default `report.html` in the folder.
    """
    text = render(run_folder)
    return write(Path(out) if out is not None else Path(run_folder) / "report.html", text)


def render(run_folder: str | os.PathLike[str]) -> str:
    """Returns the HTML page of `run_folder`.

    Raises:
        InputError: The folder holds no study's `summary.json`.
        IntegrityError: One of its files is missing, damaged or lacks a column; the message names it.
    """
    folder = Path(run_folder)
    if not (folder / "summary.json").is_file():
        raise InputError(f"run_folder: expected a run folder with summary.json, found none in {folder}")
    return html.render("transfer.html.j2", _context(folder))


def _context(folder: Path) -> dict[str, Any]:
    summary = read_summary(folder)
    frames = {}
    for name in _REQUIRED:
        frame = read_frame(folder, name)
        if frame is None or frame.empty:
            raise IntegrityError(f"{folder / name}.parquet: expected this table of the study, found none")
        frames[name] = frame
    norms, angles, contest = (read_frame(folder, name) for name in ("norms", "angles", "contest"))
    provenance = folder / "provenance.json"
    try:
        made = {
            "claims": _table(["Claim", "Answer", "Evidence"], [_claim(c) for c in summary["claims"]]),
            "effects": _effects(frames["cells"]),
            "distances": _distances(frames["distances"]),
            "gradients": _gradients(frames["cells"], frames["gradients"], norms),
            "angles": _angles(angles),
            "prediction": _prediction(frames["cells"], frames["predictors"]) | _contest(contest),
            "advice": _advice(summary["advice"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{folder}: its tables are not what the report expects ({error})") from error
    return {
        "summary": summary,
        "provenance": sections.flat(read_object(provenance)) if provenance.is_file() else None,
        "config": read_lines(folder / "config.toml"),
        **made,
    }


def read_summary(folder: Path) -> dict[str, Any]:
    """Reads the summary of a study, its optional parts present.

    Raises:
        IntegrityError: The file is not the summary of a study.
    """
    summary = read_object(folder / "summary.json")
    if missing := [k for k in ("title", "model", "seeds", "layer", "claims", "advice") if k not in summary]:
        raise IntegrityError(
            f"{folder / 'summary.json'}: expected the summary of a study, found no {missing[0]!r}"
        )
    return {"subtitle": "", "notes": [], "not_done": []} | summary


def _table(
    head: list[str], rows: list[list[str]], *, caption: str = "", numeric: bool = False
) -> dict[str, Any]:
    return {"head": head, "rows": rows, "caption": caption, "numeric": numeric}


def _claim(claim: dict[str, Any]) -> list[str]:
    return [visible(str(claim[key])) for key in ("claim", "answer", "evidence")]


def _effects(cells: pd.DataFrame) -> dict[str, Any]:
    points = cells.assign(**{c: 100 * cells[c] for c in ("delta_score", "low", "high", "score", "baseline")})
    labels = points["pair"] + ", " + points["objective"]
    frame = points.assign(panel=points["task"], label=labels, value=points["delta_score"])
    best = points.loc[points["delta_score"].idxmax()]
    clear = int(((points["low"] > 0) | (points["high"] < 0)).sum())
    sentence = (
        f"Largest: {best['pair']}, {best['objective']}, {best['task']} {_signed(best['delta_score'], 1)} points. "
        f"{clear} of {len(points)} intervals lie on one side of 0 (filled points)."
    )
    axes = forests.effect_forest(frame)[0]
    rows = [
        [
            visible(f"{row.pair}, {row.objective}, {row.task}"),
            f"{row.baseline:.1f}",
            f"{row.score:.1f}",
            f"{_signed(row.delta_score, 1)} [{_signed(row.low, 1)}, {_signed(row.high, 1)}]",
            _signed(100 * row.delta_retrieval, 1),
            str(row.n),
        ]
        for row in points.itertuples()
    ]
    head = ["Pair, objective, task", "None", "Aligned", "Change (points)", "Retrieval (points)", "n"]
    for part, title in (("head", "Head alone (points)"), ("all", "Whole model (points)")):
        if f"delta_score_{part}" in cells:  # the second trained part, beside the first
            head.append(title)
            for row, change in zip(rows, _changes(cells, part), strict=True):
                row.append(change)
    return _picture(axes, "effects", "Change of score", sentence) | {
        "table": _table(head, rows, numeric=True)
    }


def _changes(cells: pd.DataFrame, part: str) -> list[str]:
    """The changes of score of a second trained part, each with its interval."""
    columns = [100 * cells[f"{name}_{part}"] for name in ("delta_score", "low", "high")]
    return [
        f"{_signed(value, 1)} [{_signed(low, 1)}, {_signed(high, 1)}]"
        for value, low, high in zip(*columns, strict=True)
    ]


def _distances(distances: pd.DataFrame) -> list[dict[str, Any]]:
    """One picture a pair: gap against layer for each measure, a line each objective."""
    rows = distances[(distances["level"] == "sentence") & distances["metric"].isin(_CURVES)]
    rows = rows[rows["stage"].isin(["pretrained", "aligned"])]
    keys = ["pair", "metric", "objective", "layer"]
    mean = rows.groupby(keys, sort=False)[["gap", "low", "high"]].mean().reset_index()
    pictures = []
    for index, (pair, part) in enumerate(mean.groupby("pair", sort=False)):
        tried = part[(part["metric"] == "weak_retrieval") & (part["objective"] != "shuffled")]
        top = tried.sort_values("gap").iloc[-1]
        points = 100 * top["gap"]
        sentence = (
            f"Best retrieval: {top['objective']}, layer {top['layer']}, {points:.0f} points above chance."
        )
        axes = xl_figures.distance_curves(part, line="objective", titles=_CURVES)[0]
        picture = _picture(axes, f"distances{index}", f"Distances by layer: {pair}", sentence)
        pictures.append(picture | {"caption": str(pair)})
    return pictures


def _gradients(cells: pd.DataFrame, gradients: pd.DataFrame, norms: pd.DataFrame | None) -> dict[str, Any]:
    rows = []
    for row in cells.dropna(subset=["gradient_cosine"]).itertuples():
        numbers = (row.corrected, row.task_halves, row.align_halves, row.source_target, row.shuffled_cosine)
        interval = f"[{_signed(row.cosine_low)}, {_signed(row.cosine_high)}]"
        rows.append(
            [
                visible(f"{row.pair}, {row.objective}, {row.task}"),
                f"{_signed(row.gradient_cosine)} {interval}",
                *(_signed(value) for value in numbers),
                f"{row.random_sd:.4f}",
                f"{row.norm_ratio:.3g}",
                f"{row.n_task:.0f} / {row.n_align:.0f}",
                *([_signed(row.whole_cosine)] if "whole_cosine" in cells else []),
            ]
        )
    head = ["Pair, objective, task", "Cosine", "Corrected", "Task halves", "Alignment halves"]
    head += ["Source–target", "Shuffled", "Random sd", "Norm ratio", "Batches"]
    head += ["Cosine, all layers"] if "whole_cosine" in cells else []
    maps = []
    whole = gradients[gradients["scope"] == "cell"]
    for index, ((objective, task), part) in enumerate(whole.groupby(["objective", "task"], sort=False)):
        mean = part.groupby(["layer", "group"], sort=False)["cosine"].mean().reset_index()
        place = mean.loc[mean["cosine"].abs().idxmax()]
        sentence = (
            f"Mean over pairs. Largest: layer {place['layer']}, {place['group']}, {_signed(place['cosine'])}."
        )
        title = f"{objective} against {task}"
        maps.append(
            _picture(xl_figures.cosine_heatmap(mean), f"maps{index}", title, sentence) | {"caption": title}
        )
    made = {"table": _table(head, rows, numeric=True), "maps": maps, "norms": None}
    if norms is not None and not norms.empty:
        sentence = "A line each objective; above 1 the alignment's gradient is the larger one."
        made["norms"] = _picture(xl_figures.norm_curves(norms), "norms", "Norm ratio", sentence)
    return made


def _angles(angles: pd.DataFrame | None) -> dict[str, Any] | None:
    """The picture of each layer's cosine beside what useful gradients make, and a table of the encoder's answers."""
    if angles is None or angles.empty:
        return None
    layers = angles[angles["layer"] > 0]
    shown = ["cosine", "task_halves", "source_target", "bound"]
    keys = ["objective", "task", "layer"]
    mean = layers.groupby(keys, sort=False)[shown].mean()
    half = (layers["high"] - layers["low"]) / 2
    grouped = layers.assign(square=half**2).groupby(keys, sort=False)["square"]
    error = (grouped.sum(min_count=1) ** 0.5) / grouped.size()  # of a mean of independent estimates
    mean = mean.assign(low=mean["cosine"] - error, high=mean["cosine"] + error).reset_index()
    mean["panel"] = mean["objective"] + ", " + mean["task"]
    pictures = []
    for index, (objective, part) in enumerate(mean.groupby("objective", sort=False)):
        inside = int(((part["low"] >= -part["bound"]) & (part["high"] <= part["bound"])).sum())
        sentence = (
            f"{objective}, mean over pairs: in {inside} of {len(part)} layers the whole interval lies within a third "
            "of what two useful gradients make."
        )
        title = f"{objective}: orthogonal to what?"
        picture = _picture(xl_figures.angle_layers(part)[0], f"angles{index}", title, sentence)
        pictures.append(picture | {"caption": title})
    rows = [
        [
            visible(f"{row.pair}, {row.objective}, {row.task}"),
            f"{_signed(row.cosine)} [{_signed(row.low)}, {_signed(row.high)}]",
            _signed(row.task_halves),
            _signed(row.source_target),
            _signed(row.shuffled),
            f"±{row.bound:.3f}",
            visible(str(row.answer)),
        ]
        for row in angles[angles["layer"] < 0].itertuples()
    ]
    head = [
        "Pair, objective, task",
        "Cosine",
        "Task, halves",
        "Task, languages",
        "Shuffled",
        "A third",
        "Answer",
    ]
    return {"pictures": pictures, "table": _table(head, rows, numeric=True)}


def _contest(contest: pd.DataFrame | None) -> dict[str, Any]:
    """The best predictor against each of the others."""
    if contest is None or contest.empty:
        return {"contest": None}
    rows = [
        [
            _PREDICTORS.get(row.rival, visible(str(row.rival))),
            f"{_signed(row.difference, 2)} [{_signed(row.low, 2)}, {_signed(row.high, 2)}]",
            "more than 10,000" if row.cells > 1e4 else f"{math.ceil(row.cells):,}",
            str(row.n),
        ]
        for row in contest.itertuples()
    ]
    best = str(contest["predictor"].iloc[0])
    caption = f"Largest |ρ|: {_PREDICTORS.get(best, visible(best))}. How much larger than another's:"
    head = ["Than that of", "Difference of |ρ|", "Cells to tell them apart", "n"]
    return {"contest": _table(head, rows, caption=caption, numeric=True)}


def _prediction(cells: pd.DataFrame, predictors: pd.DataFrame) -> dict[str, Any]:
    tried = cells[cells["objective"] != "shuffled"]
    scaled = tried.assign(**{c: 100 * tried[c] for c in ("delta_retrieval", "delta_score", "low", "high")})
    axes = xl_figures.outcome_scatter(
        scaled, x="delta_retrieval", xlabel="change of retrieval (points)", ylabel="change of score (points)"
    )
    rows = [
        [
            _PREDICTORS.get(row.predictor, visible(str(row.predictor))),
            f"{_signed(row.spearman, 2)} [{_signed(row.low, 2)}, {_signed(row.high, 2)}]",
            f"{row.sign_agreement:.0%} [{row.sign_low:.0%}, {row.sign_high:.0%}]",
            _signed(row.q2, 2),
            str(row.n),
        ]
        for row in predictors.itertuples()
    ]
    sentence = "One mark a pair, objective and task; vertical lines: 95 % intervals."
    head = ["Predictor", "Spearman's ρ", "Same sign", "q² (leave one pair out)", "n"]
    made: dict[str, Any] = {"forest": None}
    if "partial" in predictors:  # studies of earlier versions have none
        head.insert(2, "Given the pair")
        for cell, row in zip(rows, predictors.itertuples(), strict=True):
            inside = f"[{_signed(row.partial_low, 2)}, {_signed(row.partial_high, 2)}]"
            cell.insert(2, f"{_signed(row.partial, 2)} {inside}")
        labels = [_PREDICTORS.get(name, name) for name in predictors["predictor"]]
        forest = xl_figures.predictor_forest(predictors.assign(label=labels))
        clear = int(((predictors["low"] > 0) | (predictors["high"] < 0)).sum())
        told = f"{clear} of {len(predictors)} intervals lie on one side of 0 (filled marks)."
        made["forest"] = _picture(forest, "forest", "Predictors side by side", told)
    table = _table(head, rows, numeric=True)
    return (
        _picture(axes, "scatter", "Change of retrieval against change of score", sentence)
        | {"table": table}
        | made
    )


def _advice(advice: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [
        [
            visible(str(item["task"])),
            visible(str(item["objective"])),
            f"{item['weight']:.3g}",
            ", ".join(map(str, item["freeze"])) or "none",
            visible(str(item["verdict"])),
            visible(str(item["reason"])),
        ]
        for item in advice
    ]
    return _table(["Task", "Objective", "Weight", "Freeze layers", "Verdict", "Why"], rows)


def _picture(axes: Any, prefix: str, title: str, sentence: str) -> dict[str, Any]:
    return {"svg": Markup(fragment(axes, prefix=prefix, title=title, description=sentence)), "said": sentence}


def _signed(value: float, digits: int = 3) -> str:
    """`sections.number`, with a dash for what was not measured."""
    return "–" if isinstance(value, float) and math.isnan(value) else sections.number(float(value), digits)
