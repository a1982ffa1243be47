"""`docs/paper-pairs.md` and `docs/guidelines.md`, made from the run folders of transfer studies.

    .venv/bin/python -m tests.study_pages results docs/paper-pairs.md runs/paper-pairs runs/paper-langworld
    .venv/bin/python -m tests.study_pages guidelines docs/guidelines.md runs/paper-pairs runs/paper-langworld

Every number on the pages is read from the runs; what is written here is only how to read it.
"""

from __future__ import annotations

import datetime
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import config
from xlprobe.transfer.contest import ceiling
from xlprobe.transfer.result import Study
from xlprobe.transfer.verdict import needed, takes

PAPER = 0.01  # the size of the paper's gains, as a digest of its text has it
RESULTS = """# The second paper's setting: four pairs, HiCTL, the whole model or its head

Made by `python -m tests.study_pages results` from the run folders named below; no number is written by hand. Changes
are of zero-shot accuracy in points, against no alignment with the same seed; intervals are 95 %. The claims are those
of arXiv 2603.18863; what counts as an answer is our choice, and stands in the evidence. What is known of the paper's
setting (pairs, HiCTL, tasks, trained parts) is from a digest of its text; corpora, sizes, rates and the source language
of a pair (its first: the task is learned there and asked in the other) are ours, and HiCTL's formula is from memory of
the field. The control, `shuffled`, aligns by `sentence` on pairs that do not belong together.

The encoder of the real text is multilingual-e5-small with the tokens of this text alone
(`xlprobe.encoders.used_tokens`). On real text the learning rates were chosen by scores on Kazakh test sentences, so
levels are slightly flattered; changes are not chosen so: both sides of each are trained at the same rates. Each part
holds the cases that were done of a recipe in `experiments/recipes`, of which its first line says which. Gradients are
read before any training.
"""
READING = """
## What these runs cannot show

The paper's gains are between 0.00 and 0.01. The tables "How small a change" say what the intervals allow: half the
width of a cell's interval, and the test sentences a cell that would bring it down to one point (0.01), if nothing but
test text were added. SIB-200 has 204 test items a language, and no more can be had. Where half an interval is wider
than 1.0 point, a change of the paper's size is not shown, nor that there is none. Wrong pairs can collapse an encoder's
states, of which its training warns; a control that falls shows that then, and not what alignment takes.
"""
CHANGES = """A row is a cell: one pair, objective and task. *none*: the score without alignment, of the part that is
trained first (the whole model), in percent; *change*: its change by alignment; beside it that of the other part,
against its own score without alignment; *retrieval*: the change of retrieval of held-out translations in points, and
where it started; *gradient cosine*, *norm ratio*: of the alignment's and the task's mean gradients; *n*: test
sentences.
"""
GUIDELINES = """# Guidelines: combining alignment with a task

Made by `python -m tests.study_pages guidelines` from the run folders named below. Each line has the figure that it
stands on and the condition under which it was found; it is *shown* only where an interval allows it (the rules stand in
`xlprobe.transfer.guidelines`), and is a guess otherwise. The same frame for your own study: `study.advice()`; one
task's objective, weight and layers from gradients alone: `study.advice("pos")`. The encoder of the real text is
multilingual-e5-small with the tokens of this text alone. The tables behind these lines: [results](paper-pairs.md).
"""


def results_page(runs: Sequence[Path]) -> str:
    """The page of what the studies found, in their order."""
    return RESULTS + "".join(_results(run) for run in runs) + READING


def advice_page(runs: Sequence[Path]) -> str:
    """The page of the studies' guidelines, in their order."""
    return GUIDELINES + "".join(_advice(run) for run in runs)


def _results(run: Path) -> str:
    study = Study.load(run / "results" / "study")
    parts = [_head(run, study), _settings(run), "\n### Claims\n"]
    claims = [[claim[key] for key in ("claim", "answer", "evidence")] for claim in study.claims]
    parts.append(_table(["claim", "answer", "evidence"], claims))
    parts += [
        "\n### Changes of score\n",
        CHANGES,
        _changes(study),
        "\n### How small a change\n",
        _small(study.cells),
    ]
    parts += ["\n### What predicts the change\n", _predictors(study)]
    parts += ["\n### Orthogonal to what?\n", _angles(study.angles)]
    return "\n".join(part for part in parts if part) + "\n"


def _advice(run: Path) -> str:
    study = Study.load(run / "results" / "study")
    frame = study.advice()
    rows = [
        [str(row["guideline"]), "shown" if row["shown"] else "not shown", str(row["figure"])]
        for row in frame.to_dict("records")
    ]
    condition = str(frame["condition"].iloc[0])
    head = _head(run, study)
    return f"{head}\nFound under: {condition}.\n\n" + _table(["line", "", "figure"], rows) + "\n"


def _head(run: Path, study: Study) -> str:
    about = study.provenance
    encoder = about.get("model", {}).get("name", "one encoder")
    file = run / "results" / "study" / "result.json"
    date = datetime.date.fromtimestamp(file.stat().st_mtime).isoformat()
    pairs, objectives, tasks = (
        ", ".join(dict.fromkeys(map(str, study.cells[key]))) for key in ("pair", "objective", "task")
    )
    return (
        f"\n## {encoder} on {study.laboratory}\n\n`{run.name}`: pairs {pairs}; objectives {objectives}; tasks {tasks}; "
        f"{study.seeds} seed{'s' if study.seeds > 1 else ''}; {date}, {about.get('device_name', 'one processor')}.\n"
        f"{_gaps(study)}"
    )


def _gaps(study: Study) -> str:
    """What the run is too small for: one seed has no spread, and a stopped run lacks gradients."""
    tried = study.cells[study.cells["objective"] != "shuffled"]
    measured = tried[tried["gradient_cosine"].notna()]
    pairs, known = ", ".join(dict.fromkeys(map(str, measured["pair"]))), len(measured)
    told = ""
    if study.seeds == 1:
        told += "\nOne seed: an interval holds the spread over test sentences alone, not that of another training.\n"
    if known < len(tried):
        told += f"\nGradients were measured in {known} of {len(tried)} cells ({pairs}); "
        told += "what is said of gradients is of these.\n"
    return told


def _settings(run: Path) -> str:
    """The sizes of the run, from its config.toml."""
    file = run / "config.toml"
    if not file.is_file():
        return ""
    sizes = config.read_table(file).get("sizes", {})
    return "Sizes: " + ", ".join(f"{key} {value}" for key, value in sizes.items()) + ".\n"


def _changes(study: Study) -> str:
    cells = study.cells
    other = next((part for part in ("head", "all") if f"delta_score_{part}" in cells), None)
    head = ["pair, objective, task", "none", "change", "retrieval", "gradient cosine", "norm ratio", "n"]
    if other:
        head.insert(3, {"head": "head alone", "all": "whole model"}[other])
    rows = []
    for row in cells.to_dict("records"):
        cosine = row["gradient_cosine"]
        line = [
            f"{row['pair']}, {row['objective']}, {row['task']}",
            f"{100 * row['baseline']:.1f}",
            _interval(row, "", 100, 1),
            f"{_signed(100 * row['delta_retrieval'], 1)} from {100 * row['retrieval_before']:.0f}",
            ""
            if math.isnan(cosine)
            else f"{_signed(cosine, 3)} [{_signed(row['cosine_low'], 3)}, {_signed(row['cosine_high'], 3)}]",
            "" if math.isnan(row["norm_ratio"]) else f"{row['norm_ratio']:.2f}",
            str(row["n"]),
        ]
        if other:
            line.insert(3, _interval(row, f"_{other}", 100, 1))
        rows.append(line)
    return _table(head, rows)


def _small(cells: pd.DataFrame) -> str:
    """The half width of the cells' intervals, and the n at which it is the paper's gain."""
    rows = []
    for task, group in cells.groupby("task", sort=False):
        half = float(((group["high"] - group["low"]) / 2).median())
        n = float(group["n"].median())
        rows.append(
            [
                str(task),
                f"{n:.0f}",
                f"±{100 * half:.1f} points",
                takes(needed(half, [PAPER], n=n), "test sentences"),
            ]
        )
    share = ceiling(cells[cells["objective"] != "shuffled"])
    told = (
        ""
        if math.isnan(share)
        else (
            f"\nOf the changes' spread over cells, {share:.0%} is more than the noise of test sentences and seeds.\n"
        )
    )
    head = ["task", "test sentences", "half an interval, median", f"to show a change of {PAPER}"]
    return _table(head, rows) + "\n" + told


def _predictors(study: Study) -> str:
    rows = [
        [
            str(row["predictor"]),
            _of(row, "spearman", "low", "high"),
            _of(row, "partial", "partial_low", "partial_high"),
            _signed(row["q2"], 2),
            str(row["n"]),
        ]
        for row in study.predictors.to_dict("records")
    ]
    table = _table(["predictor", "ρ", "given the pair", "q², leave one pair out", "cells"], rows)
    contest = study.contest
    if contest.empty:
        return table
    best = str(contest["predictor"].iloc[0])
    told = "; ".join(
        f"{row['rival']} {_of(row, 'difference', 'low', 'high')}, {takes(row['cells'], 'cells')}"
        for row in contest.head(3).to_dict("records")
    )
    return f"{table}\n\nLargest |ρ|: {best}. How much larger than its nearest rivals': {told}.\n"


def _angles(angles: pd.DataFrame) -> str:
    """The encoder's row of each cell, and how many layers give which answer."""
    rows = []
    for row in angles[angles["layer"] < 0].to_dict("records"):
        same = (angles[key] == row[key] for key in ("pair", "objective", "task"))
        layers = angles[(angles["layer"] > 0) & pd.concat(list(same), axis=1).all(axis=1)]
        counts = layers["answer"].value_counts()
        rows.append(
            [
                f"{row['pair']}, {row['objective']}, {row['task']}",
                _of(row, "cosine", "low", "high", digits=3),
                _signed(row["task_halves"], 2),
                _signed(row["source_target"], 2),
                _signed(row["shuffled"], 3),
                str(row["answer"]),
                ", ".join(f"{name} {count}" for name, count in counts.items()),
            ]
        )
    head = [
        "pair, objective, task",
        "cosine",
        "task, halves",
        "task, languages",
        "shuffled",
        "encoder",
        "layers",
    ]
    return _table(head, rows)


def _interval(row: dict[Any, Any], suffix: str, scale: float, digits: int) -> str:
    value, low, high = (scale * row[f"{name}{suffix}"] for name in ("delta_score", "low", "high"))
    return f"{_signed(value, digits)} [{_signed(low, digits)}, {_signed(high, digits)}]"


def _of(row: dict[Any, Any], value: str, low: str, high: str, *, digits: int = 2) -> str:
    return f"{_signed(row[value], digits)} [{_signed(row[low], digits)}, {_signed(row[high], digits)}]"


def _signed(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:+.{digits}f}".replace("-", "−")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


if __name__ == "__main__":
    made = {"results": results_page, "guidelines": advice_page}[sys.argv[1]]
    Path(sys.argv[2]).write_text(made([Path(run) for run in sys.argv[3:]]), encoding="utf-8")
