"""Is the advice worth following? It is tested on pairs whose gradients it has not seen, against simpler ways.

For each pair held out, the advice comes from the *other* pairs' gradients (`Study.gradients`); then the task is
fine-tuned on both losses in each step, in each of these ways, with the same seeds:

`advice` (its objective, weight and frozen layers), `plain sum` (the same objective, weight 1, nothing frozen),
`upgrad`, `pcgrad`, `cagrad` (the same objective, conflicts settled by TorchJD), and none, with which all are compared.
Where the advice is not to align, `advice` is none itself, and the others take the objective that had the largest
cosine.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.cases import every_case, settings_digest
from experiments.runs import RunFolder
from xlprobe.training.conflict import AGGREGATORS
from xlprobe.transfer.advice import Advice, advise
from xlprobe.transfer.effects import effects_of, paired_differences
from xlprobe.transfer.laboratory import JointPlan, Laboratory, Score
from xlprobe.transfer.reach import common_rows
from xlprobe.transfer.result import Study
from xlprobe.transfer.study import METHOD

__all__ = ["WAYS", "advice_trial"]

WAYS = ("advice", "plain sum", *AGGREGATORS)


def advice_trial(
    laboratory: Laboratory, study: Study, out: str | Path, *, seeds: int = 3, progress: bool = True
) -> pd.DataFrame:
    """Frame pair (held out), way, task, delta_score, low, high, score, baseline, seed_sd, n, seeds.

    Args:
        laboratory: The study's material.
        study: Gives the gradients.
        out: A run folder of its own, in which a stopped trial goes on.
        seeds: The number of seeds.
        progress: Show a progress bar.

    Raises:
        InputError: `out` holds something else.
    """
    pairs = list(dict.fromkeys(study.gradients["pair"]))
    tasks = list(dict.fromkeys(study.gradients["task"]))
    facts = laboratory.encoder.provenance(data=laboratory.data, seeds={str(s): s for s in range(seeds)})
    run = RunFolder.open(out, {"study": study.laboratory, "pairs": pairs, "seeds": seeds}, provenance=facts)
    todo = [(p, t, s) for p in pairs for t in tasks if not laboratory.lacks(p, t) for s in range(seeds)]
    keys = [f"{pair}-{task}-{seed}" for pair, task, seed in todo]
    method = settings_digest("advice", METHOD)
    cases = every_case(
        run,
        keys,
        lambda i: _case(laboratory, study, *todo[i]) | {"settings": method},
        label="advice",
        settings=[method] * len(keys),
        progress=progress,
    )
    rows = []
    for (pair, task, seed), stored in zip(todo, cases, strict=True):
        none = Score(**stored["scores"]["none"])
        for way in WAYS:
            score = Score(**stored["scores"][way])
            row = {
                "pair": pair,
                "objective": way,
                "task": task,
                "seed": seed,
                "delta": score.accuracy - none.accuracy,
            }
            row |= {"score": score.accuracy, "baseline": none.accuracy}
            rows.append({**row, "by_sentence": paired_differences(score, none)})
    return effects_of(pd.DataFrame(rows)).rename(columns={"objective": "way"})


def _case(laboratory: Laboratory, study: Study, pair: str, task: str, seed: int) -> dict[str, Any]:
    rest = study.gradients[(study.gradients["pair"] != pair) & (study.gradients["task"] == task)]
    advice = advise(rest, task=task)
    objective = advice.objective if advice.objective != "none" else _nearest(rest)
    plans: dict[str, JointPlan | None] = {"none": None, "advice": _followed(advice, pair)}
    plans["plain sum"] = JointPlan(objective, pair, weight=1.0)
    plans |= {name: JointPlan(objective, pair, aggregator=name) for name in AGGREGATORS}
    scores = {}
    for way, plan in plans.items():
        model = laboratory.finetuned(
            laboratory.encoder, task, seed=seed, joint=plan, source=laboratory.source(pair)
        )
        scores[way] = asdict(laboratory.score(model, task, pair))
    return {"advice": asdict(advice), "objective": objective, "scores": scores}


def _followed(advice: Advice, pair: str) -> JointPlan | None:
    if advice.objective == "none":
        return None
    return JointPlan(advice.objective, pair, weight=advice.weight, frozen=advice.freeze)


def _nearest(gradients: pd.DataFrame) -> str:
    return str(common_rows(gradients)[0].groupby("objective")["cosine"].mean().idxmax())
