"""`docs/real-model.md`, made from run folders on a really pre-trained model: of `demo`, `compare`, `evaluate`,
`anatomy`, `faithfulness`.

    make demo-real
    .venv/bin/python -m tests.real_model_page docs/real-model.md runs/demo-real

The sections of these runs take the place of those with the same heading; others stay as they are. Every number is
read from the runs; what is written here is only how to read it.
"""

from __future__ import annotations

import datetime
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechedit.anatomy.study import AnatomyStudy
from mechedit.faithfulness.study import FaithfulnessStudy
from mechedit.recipes.compare import CELLS

COLUMNS = {**CELLS, "mean": "mean"}
INTRODUCTION = """# What was found on a real model

Made by `python -m tests.real_model_page` from the run folders named below; no number is written by hand. Intervals are
95 % bootstrap intervals over facts. Window, targets, rank and gate were chosen on facts about other subjects.
"""
READING = """
## How to read it

Spec counts a closed gate as success: the row without a gate stands beside it, and "Gate alone" steers nothing. The
atlas' paraphrases are templates that nothing is fitted on. EasyEdit's rephrase, one of CounterFact's *generation*
prompts, leans on many facts rather than asking for them ("People around X speak the language of", for a continent): the
gate learns such phrasings from indirect templates of the package's own and still takes some for another question, which
costs Gen there. Other asks about the same subject under other relations, in words that no fit and no gate reads. Behind
the first tokens of an object of several tokens maps of their own steer, where the model does not go on by itself.
"""


def page(runs: Sequence[Path], before: str = "") -> str:
    """The page of finished runs, in their order, behind the sections of other runs that stand in the page `before`."""
    sections = dict(_sections(before)) | dict(pair for run in runs for pair in _sections(_run(run)))
    sections.pop(READING.split("\n")[1], None)
    return INTRODUCTION + "".join(sections.values()) + READING


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Heading and text of each section of a page."""
    for part in text.split("\n## ")[1:]:
        yield f"## {part.split(chr(10))[0]}", "\n## " + part.rstrip("\n") + "\n"


def _run(run: Path) -> str:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    about = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    versions = about["versions"]
    date = datetime.date.fromtimestamp((run / "summary.json").stat().st_mtime).isoformat()
    lines = [
        f"\n## {summary['title']}\n",
        f"{summary['subtitle']}. Model: {summary['model']}, weights "
        f"{_weights(about['model'])}. {date}, {about['device_name']}, "
        f"torch {versions['torch']}, transformers {versions['transformers']}, "
        f"TransformerLens {versions['transformer-lens']}.\n",
        *([_table(summary["editors"])] if summary["editors"] else []),
        *([_ablations(run)] if (run / "results" / "faithfulness").exists() else []),
        *([_claims(run)] if (run / "results" / "anatomy").exists() else []),
    ]
    if summary.get("verdicts"):
        lines += ["\n| claim | answer | evidence |\n|---|---|---|"]
        lines += [f"| {v['claim']} | {v['answer']} | {v['evidence']} |" for v in summary["verdicts"]]
    lines += ["", *(f"- {note}" for note in summary.get("notes", []))]
    return "\n".join(lines) + "\n"


def _weights(model: Mapping[str, Any]) -> str:
    """Of the model, or of each of several by its name."""
    each = [model] if "hash" in model else list(model.values())
    return ", ".join(sorted({one.get("quantization") or "as trained" for one in each}))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    lines = ["| | " + " | ".join(COLUMNS[key] for key in keys) + " | n |", "|---" * (len(keys) + 2) + "|"]
    for row in rows:
        cells = [_cell(row.get(key), digits=3 if key == "kl" else 2) for key in keys]
        lines.append(f"| {row['label']} | {' | '.join(cells)} | {row['acc']['n']} |")
    return "\n".join(lines)


def _ablations(run: Path) -> str:
    """NLKA's neurons against those of each peer, as many of them taken out."""
    study = FaithfulnessStudy.load(run / "results" / "faithfulness")
    lines = [
        "| neurons | k | NLKA against | Δ log p, NLKA − the other, nats | n | whose matter more |",
        "|---" * 6 + "|",
    ]
    for row in study.differences.to_dict("records"):
        interval = f"{row['delta']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        lines.append(
            f"| {row['kind']} | {row['k']} | {row['peer']} | {interval} | {row['n']} | {row['better'] or 'not shown'} |"
        )
    return "\n".join(lines)


def _claims(run: Path) -> str:
    """Outcomes under each editor and setting, and the paper's claims on them."""
    study = AnatomyStudy.load(run / "results" / "anatomy")
    lines = ["| editor | setting | n | succeed | on all paraphrases too |", "|---" * 5 + "|"]
    for row in study.outcomes.to_dict("records"):
        lines.append(
            f"| {row['editor']} | {row['setting']} | {row['n']} | {row['n_success']} | {row['n_strict']} |"
        )
    lines += ["", "| claim | editor | answer | evidence |", "|---" * 4 + "|"]
    for row in study.claims.to_dict("records"):
        lines.append(f"| {row['claim']} | {row['editor']} | {row['answer']} | {row['evidence']} |")
    return "\n".join(lines)


def _cell(cell: Mapping[str, Any] | None, *, digits: int = 2) -> str:
    if cell is None or cell["value"] is None or math.isnan(cell["value"]):
        return "-"
    value, low, high = (f"{cell[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    out = Path(sys.argv[1])
    before = out.read_text(encoding="utf-8") if out.exists() else ""
    out.write_text(page([Path(run) for run in sys.argv[2:]], before), encoding="utf-8")
