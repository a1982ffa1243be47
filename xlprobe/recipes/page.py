"""What a study says: its page, written from the tables in the run folder, and one object with its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.runs import RunFolder
from reports import probe_sections, xl_page
from xlprobe.transfer.result import Study
from xlprobe.transfer.world_lab import WorldLab

__all__ = ["study_json", "write_page"]

INVENTED = "The languages are invented and the encoder is small: nothing here says what holds for XLM-R."
ONE = "One encoder, and the pairs and tasks that are named: other encoders may behave otherwise."


def write_page(
    study: Study,
    out: str | Path,
    *,
    model: str = "",
    title: str = "What alignment does to transfer",
    notes: Sequence[str] = (),
    caution: str = "",
) -> Path:
    """Write the page, and the tables that `reports.xl_page` reads, into the study's run folder; the page's path.

    Args:
        study: The study.
        out: Its run folder.
        model: What the page calls the encoder; by default its name.
        title: Title of the page.
        notes: Sentences on the material.
        caution: What the material cannot show; by default a sentence on the embedded languages, or on one encoder.

    >>> import tempfile
    >>> from xlprobe.encoders.encoder import load_encoder
    >>> from xlprobe.transfer.laboratory import Sizes
    >>> from xlprobe.transfer.study import StudyConfig, transfer_study
    >>> sizes = Sizes(16, 16, 8, 8, align_steps=1, finetune_steps=1, head_steps=1, probe_batches=2, batch=8)
    >>> laboratory = WorldLab(load_encoder("langworld", device="cpu"), sizes)
    >>> plan = StudyConfig(("source-half",), ("sentence",), ("topic",), seeds=1, shuffled=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_page(transfer_study(laboratory, plan, folder, progress=False), folder)
    ...     page.name, "langworld" in page.read_text()
    ('report.html', True)
    """
    model = model or str(study.provenance.get("model", {}).get("name", "not named"))
    caution = caution or (INVENTED if study.laboratory == WorldLab.name else ONE)
    run = RunFolder(Path(out), {})
    for name in ("cells", "predictors", "distances", "gradients", "angles", "contest"):
        run.write_frame(name, getattr(study, name))
    tasks = list(dict.fromkeys(study.cells["task"]))
    summary = {
        "title": title,
        "subtitle": f"{study.cells['pair'].nunique()} pairs, {len(tasks)} tasks, {study.seeds} seeds",
        "model": model,
        "seeds": study.seeds,
        "layer": study.layer,
        "claims": study.claims,
        "advice": [asdict(study.advice(task)) for task in tasks],
        "notes": [*_notes(study), *notes],
        "not_done": [
            caution,
            "Task and alignment of the study follow each other; training on both at once is the advice recipe's.",
            "Advice is read off gradients; whether following it helps is not tested in this run.",
        ],
    }
    run.write_json("summary", summary)
    target = xl_page.build(run.path)
    run.finish({"claims": study.claims})
    return target


def _notes(study: Study) -> list[str]:
    """What is ours: of the answers to the claims, and of an objective."""
    notes = [
        "The claims are those of arXiv 2603.18863; what counts as an answer is our choice, named in the evidence."
    ]
    if study.cells["objective"].str.startswith("hictl").any():
        notes.append(" ".join(probe_sections.HICTL))
    return notes


def study_json(study: Study) -> dict[str, Any]:
    """One object with the study's numbers.

    It holds, for each pair and objective, the change of retrieval and, for each task, the change of score and the
    cosine with its yardsticks, with n and intervals; then predictors, claims and advice.
    """
    result: dict[str, Any] = {"pairs": {}}
    for (pair, objective), group in study.cells.groupby(["pair", "objective"], sort=False):
        first = group.iloc[0]
        retrieval = {
            name: float(first[name]) for name in ("retrieval_before", "retrieval_after", "delta_retrieval")
        }
        tasks = {str(row["task"]): _cell(row) for _, row in group.iterrows()}
        result["pairs"].setdefault(str(pair), {})[str(objective)] = {**retrieval, "tasks": tasks}
    result["predictors"] = study.predictors.to_dict("records")
    result["claims"] = study.claims
    result["advice"] = {task: asdict(study.advice(task)) for task in dict.fromkeys(study.cells["task"])}
    return result | {"layer": study.layer, "seeds": study.seeds, "laboratory": study.laboratory}


def _cell(row: pd.Series) -> dict[str, Any]:
    yardsticks = (
        "task_halves",
        "align_halves",
        "source_target",
        "shuffled_cosine",
        "align_shuffled",
        "random_sd",
    )
    return {
        "delta_score": float(row["delta_score"]),
        **{name: float(row[name]) for name in map(str, row.index) if name.endswith(("_all", "_head"))},
        "interval": [float(row["low"]), float(row["high"])],
        "n": int(row["n"]),
        "seeds": int(row["seeds"]),
        "gradient_cosine": float(row["gradient_cosine"]),
        "cosine_interval": [float(row["cosine_low"]), float(row["cosine_high"])],
        "cosine_corrected": float(row["corrected"]),
        "norm_ratio": float(row["norm_ratio"]),
        "common": _two(row, "common"),
        "all_layers": _two(row, "whole"),
        "yardsticks": {name: float(row[name]) for name in yardsticks},
        "batches": [row["n_task"], row["n_align"]],
    }


def _two(row: pd.Series, name: str) -> dict[str, float]:
    return {key: float(row.get(f"{name}_{key}", math.nan)) for key in ("cosine", "ratio")}
