"""The whole study on the embedded languages at a small setting: align, probe, fine-tune, predict, advise, report.

`run_demo` runs `xlprobe.transfer.study` on a `WorldLab` and writes what the page reads. What must be seen there: `sentence`
and `token` alignment raise held-out retrieval, shuffled pairs do not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.runs import RunFolder
from reports import xl_page
from xlprobe.transfer.result import Study
from xlprobe.transfer.study import StudyConfig, transfer_study
from xlprobe.transfer.world_lab import Sizes, WorldLab

if TYPE_CHECKING:
    from xlprobe.encoders.encoder import Encoder

__all__ = ["DEMO_PLAN", "DEMO_SIZES", "run_demo", "study_json", "write_page"]

INVENTED = "The languages are invented and the encoder is small: nothing here says what holds for XLM-R."
DEMO_PLAN = StudyConfig(seeds=2)
DEMO_SIZES = Sizes(
    bitext=800,
    train=800,
    test=200,
    held_out=150,
    align_steps=40,
    finetune_steps=50,
    head_steps=60,
    probe_batches=12,
    batch=16,
    align_lr=4e-3,
    finetune_lr=4e-3,
)


def run_demo(
    encoder: Encoder,
    out: str | Path,
    *,
    plan: StudyConfig = DEMO_PLAN,
    sizes: Sizes = DEMO_SIZES,
    seed: int = 0,
    progress: bool = True,
) -> Study:
    """Runs the study into `out` (or goes on with it), writes `out/report.html`; the study.

    Errors: `InputError` where `out` holds something else or a run with another configuration.
    """
    laboratory = WorldLab(encoder, sizes, seed=seed)
    study = transfer_study(laboratory, plan, out, workers=os.cpu_count() or 1, progress=progress)
    write_page(
        study, out, model=repr(encoder), title="What alignment does to transfer, on five embedded languages"
    )
    return study


def write_page(
    study: Study,
    out: str | Path,
    *,
    model: str,
    title: str,
    notes: Sequence[str] = (),
    caution: str = INVENTED,
) -> Path:
    """The tables that `reports.xl_page` reads, and the page, into the study's run folder; the page's path.

    `caution` says what the material cannot show.
    """
    run = RunFolder(Path(out), {})
    for name in ("cells", "predictors", "distances", "gradients"):
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
        "notes": [
            "The claims are those of arXiv 2603.18863; what counts as an answer is our choice, named in the evidence.",
            *notes,
        ],
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


def study_json(study: Study) -> dict[str, Any]:
    """One object: per pair and objective the change of retrieval, per task the change of score and the cosine with its
    yardsticks, with n and intervals; predictors, claims and advice."""
    result: dict[str, Any] = {"pairs": {}}
    for (pair, objective), group in study.cells.groupby(["pair", "objective"], sort=False):
        first = group.iloc[0]
        own = {
            name: float(first[name]) for name in ("retrieval_before", "retrieval_after", "delta_retrieval")
        }
        tasks = {str(row["task"]): _cell(row) for _, row in group.iterrows()}
        result["pairs"].setdefault(str(pair), {})[str(objective)] = {**own, "tasks": tasks}
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
        "interval": [float(row["low"]), float(row["high"])],
        "n": int(row["n"]),
        "seeds": int(row["seeds"]),
        "gradient_cosine": float(row["gradient_cosine"]),
        "cosine_interval": [float(row["cosine_low"]), float(row["cosine_high"])],
        "cosine_corrected": float(row["corrected"]),
        "norm_ratio": float(row["norm_ratio"]),
        "yardsticks": {name: float(row[name]) for name in yardsticks},
        "batches": [row["n_task"], row["n_align"]],
    }
