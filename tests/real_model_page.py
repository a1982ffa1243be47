"""`docs/real-model.md`, made from run folders on a really pre-trained model: `evaluate`, or a whole `compare`.

    mechedit known --model smollm2 --limit 260 --out known.json
    mechedit evaluate --model smollm2 --editor mega --data known.json --limit 40 --out runs/real
    .venv/bin/python -m tests.real_model_page docs/real-model.md runs/real

Every number on the page is read from the runs; what is written here is only how to read it.
"""

from __future__ import annotations

import datetime
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mechedit.evaluation.result import Evaluation
from mechedit.recipes.compare import LABELS, EditorComparison

METRICS = ("Acc", "Gen", "Spec", "DI", "DII", "mean", "KL", "Top1")

INTRODUCTION = """# What was found on a real model

Made by `python -m tests.real_model_page` from a run folder of `mechedit compare`; no number is written by hand.

Model: {model}, weights {quantization}. {n_known} facts that it knows ({n_total} given: the atlas, and CounterFact in
EasyEdit's schema), seeds {seeds}, {selection} other facts a seed to choose by. {date}, {device}, torch {torch},
transformers {transformers}, TransformerLens {lens}. Intervals are 95 % bootstrap intervals over facts.

## Editors

Mean is that of Acc, Gen, Spec, DI and DII over the facts that have all five. KL (nats a token) and Top1 compare the
edited with the unedited model on text that has nothing to do with the fact.
"""

EVALUATED = """# What was found on a real model

Made by `python -m tests.real_model_page` from run folders of `mechedit evaluate`; no number is written by hand.

Model: {model}, weights {quantization}. {date}, {device}, torch {torch}, transformers {transformers}, TransformerLens
{lens}. Intervals are 95 % bootstrap intervals over facts; window, gate and the like were chosen on others. KL (nats
a token) and Top1 compare the edited with the unedited model on text that has nothing to do with the fact.
"""

READING = """
How to read it. Spec counts a closed gate as success: the row without a gate stands beside it, and "Gate alone" steers
nothing. EasyEdit's rephrase, CounterFact's *generation* prompt, is an implication rather than a paraphrase for many
facts ("People around X speak the language of", for a continent); the gate stays shut on those whose relation is another
one, which costs Gen here what it saves elsewhere. The settings of weight editors are their tables' scaled by depth, not
tuned on this model; IKE shows the new fact alone, for want of a pool of demonstrations.
"""

ABLATIONS = """
## Ablations

One thing changed at a time, on the first {n} facts of the first seed.
"""

GATES = """
## Gates

How well each kind of gate tells a fact's own paraphrases from foreign prompts: neighbours, for the gate "asked" prompts
about the same subject under other relations too.
"""


def page(runs: Sequence[Path]) -> str:
    """The page of one run of `mechedit compare`, or of some of `mechedit evaluate`."""
    if len(runs) == 1 and (runs[0] / "results" / "comparison").is_dir():
        return _compared(runs[0])
    return _evaluated(runs)


def _evaluated(runs: Sequence[Path]) -> str:
    about = json.loads((runs[0] / "provenance.json").read_text())
    results = [Evaluation.load(run / "results" / "evaluation") for run in runs]
    text = EVALUATED.format(
        model=about["model"]["name"],
        quantization=about["model"].get("quantization") or "as trained",
        date=_date(runs[0]),
        device=about["device_name"],
        torch=about["versions"]["torch"],
        transformers=about["versions"]["transformers"],
        lens=about["versions"]["transformer-lens"],
    )
    text += "\n| editor | facts known | " + " | ".join(METRICS) + " |\n" + "|---" * (len(METRICS) + 2) + "|\n"
    for result in results:
        table = result.summary().set_index("metric")
        cells = [_cell(table.loc[name]) if name in table.index else "" for name in METRICS]
        text += f"| {result.editor} | {result.n_known} of {result.n_total} | {' | '.join(cells)} |\n"
    return text + READING


def _date(run: Path) -> str:
    return datetime.date.fromtimestamp((run / "summary.json").stat().st_mtime).isoformat()


def _compared(run: Path) -> str:
    result = EditorComparison.load(run / "results" / "comparison")
    about = json.loads((run / "provenance.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    chosen = result.choices.set_index(["seed", "key"])["value"]
    seeds = sorted(set(result.choices["seed"]))
    versions = about["versions"]
    text = INTRODUCTION.format(
        model=summary["model"],
        quantization=about["model"].get("quantization") or "as trained",
        n_known=result.n_known,
        n_total=result.n_total,
        seeds=", ".join(map(str, seeds)),
        selection=chosen[seeds[0], "n_facts"],
        date=_date(run),
        device=about["device_name"],
        torch=versions["torch"],
        transformers=versions["transformers"],
        lens=versions["transformer-lens"],
    )
    text += "\n" + _editors(result.table[result.table["part"] == "editor"]) + READING
    text += "\n## Claims\n\n| claim | answer | evidence |\n|---|---|---|\n"
    text += "".join(f"| {v['claim']} | {v['answer']} | {v['evidence']} |\n" for v in summary["verdicts"])
    text += "\n## What was chosen\n\n| seed | window | target form | rank | gate layer | missed | false openings |\n"
    text += "|---|---|---|---|---|---|---|\n"
    for seed in seeds:
        cells = [chosen[seed, key] for key in ("window", "target", "rank", "gate_layer")]
        rates = [f"{float(chosen[seed, key]):.2f}" for key in ("gate_missed", "gate_false")]
        text += f"| {seed} | {' | '.join([*map(str, cells), *rates])} |\n"
    ablations = result.table[result.table["part"] == "ablation"]
    if len(ablations):
        n = int(ablations["n"].max())
        text += ABLATIONS.format(n=n) + "\n" + _editors(ablations)
    gates = run / "results" / "gates"
    if gates.is_dir():
        areas = pd.read_parquet(next(gates.glob("areas*.parquet")))
        text += (
            GATES + "\n| gate | layer | area under the ROC | own prompts | foreign |\n|---|---|---|---|---|\n"
        )
        for row in areas.to_dict("records"):
            text += f"| {row['gate']} | {row['layer']} | {row['area']:.3f} | {row['n_own']} | {row['n_foreign']} |\n"
    return text


def _editors(table: pd.DataFrame) -> str:
    lines = ["| | " + " | ".join(METRICS) + " | n |", "|---" * (len(METRICS) + 2) + "|"]
    for editor, rows in table.groupby("editor", sort=False):
        by_metric = rows.set_index("metric")
        cells = [_cell(by_metric.loc[name]) if name in by_metric.index else "" for name in METRICS]
        lines.append(f"| {LABELS[str(editor)]} | {' | '.join(cells)} | {int(by_metric.loc['Acc', 'n'])} |")
    return "\n".join(lines) + "\n"


def _cell(row: pd.Series) -> str:
    if math.isnan(row["value"]):
        return "-"
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page([Path(run) for run in sys.argv[2:]]), encoding="utf-8")
