"""Two editors on the same facts: differences paired by fact, and the facts that only one of them gets.

A fact is the same where case id, prompt and new object are (of which results of earlier versions keep the tokens that
decide). Compared are those that the unedited model knows in both runs. The interval of a difference is a percentile
bootstrap over the facts' own differences (`reports.intervals.bootstrap_mean`): what both editors find hard or easy
cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from reports import forests, sections
from reports.fact_table import TRIPLES, EditedFact, count, triple
from reports.inline import fragment
from reports.intervals import bootstrap_mean
from reports.text import visible

__all__ = ["Difference", "differences", "gets", "key", "paired"]

#: The shares that are compared where both runs have them.
_SHARES = (*(name for names in TRIPLES for name in names), "Other", "Top1")
_KL = "KL, nats"
_LISTED = 25  # facts that both edit, with the largest difference elsewhere

Pair = tuple[EditedFact, EditedFact]


@dataclass(frozen=True)
class Difference:
    """One metric on the facts that have it under both editors, second less first.

    Attributes:
        metric: Its name.
        first: Mean of the first editor.
        second: Mean of the second one.
        value: second − first.
        low: Of its 95 % interval.
        high: Of its 95 % interval.
        n: Facts.
        better: Facts on which the second is higher.
        worse: Facts on which it is lower.
    """

    metric: str
    first: float
    second: float
    value: float
    low: float
    high: float
    n: int
    better: int
    worse: int


def paired(
    first: Sequence[EditedFact], second: Sequence[EditedFact], *, prefix: str
) -> dict[str, Any] | None:
    """Returns what the page shows of two editors on the same facts; None where they share no fact.

    Args:
        first: The facts of one editor.
        second: Those of another one, or of the same one in another run.
        prefix: Starts the ids of the picture.
    """
    keys = [{key(fact): fact for fact in rows} for rows in (first, second)]
    shared = [(keys[0][name], keys[1][name]) for name in keys[0] if name in keys[1]]
    shared = [(a, b) for a, b in shared if a.new.startswith(b.new) or b.new.startswith(a.new)]
    if not shared:
        return None
    known = [pair for pair in shared if pair[0].known and pair[1].known]
    metrics = triple([fact for pair in known for fact in pair])
    table = differences(known)
    return {
        "editors": [visible(rows[0].editor) for rows in (first, second)],
        "shared": len(shared),
        "known": len(known),
        "alone": [len(rows) - len(shared) for rows in keys],
        "rows": [_written(row) for row in table],
        "forest": _forest(table, f"{second[0].editor} less {first[0].editor}", prefix),
        "metrics": metrics,
        "gets": [
            [
                _line(pair, metrics)
                for pair in known
                if gets(pair[side], metrics) and not gets(pair[1 - side], metrics)
            ]
            for side in (0, 1)
        ],
        "both": sum(gets(a, metrics) and gets(b, metrics) for a, b in known),
        "elsewhere": _elsewhere(known, metrics),
        "neither": sum(not gets(a, metrics) and not gets(b, metrics) for a, b in known),
    }


def key(fact: EditedFact) -> tuple[str, ...]:
    """What makes it the same fact under two editors."""
    return fact.case_id, fact.prompt


def gets(fact: EditedFact, metrics: Sequence[str]) -> bool:
    """Whether the edit succeeds on the fact's own prompt."""
    return bool(metrics) and fact.scores.get(metrics[0], (math.nan, 0))[0] == 1


def _elsewhere(pairs: Sequence[Pair], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """The facts that both edit and that differ most on paraphrases and neighbours."""
    sizes = []
    for pair in pairs:
        gaps = [abs(b - a) for a, b in (_scores(pair, name) for name in metrics[1:]) if math.isfinite(b - a)]
        if sum(gaps) > 0 and all(gets(fact, metrics) for fact in pair):
            sizes.append((sum(gaps), pair))
    ranked = sorted(sizes, key=lambda item: -item[0])[:_LISTED]
    return [_line(pair, metrics) for _, pair in ranked]


def differences(pairs: Sequence[Pair]) -> list[Difference]:
    """Returns a `Difference` for each metric that some pair has in both, in the order of the result's table."""
    rows = [_difference(name, [_scores(pair, name) for pair in pairs]) for name in _SHARES]
    rows.append(_difference(_KL, [(a.cost, b.cost) for a, b in pairs]))
    return [row for row in rows if row.n]


def _scores(pair: Pair, metric: str) -> tuple[float, float]:
    """The values of both; NaN where one has no prompt of that kind."""
    a, b = (fact.scores.get(metric, (math.nan, 0)) for fact in pair)
    return (a[0], b[0]) if a[1] and b[1] else (math.nan, math.nan)


def _difference(metric: str, values: Sequence[tuple[float, float]]) -> Difference:
    there = np.array([pair for pair in values if math.isfinite(pair[0]) and math.isfinite(pair[1])]).reshape(
        -1, 2
    )
    gains = there[:, 1] - there[:, 0]
    if not len(gains):
        return Difference(metric, math.nan, math.nan, math.nan, math.nan, math.nan, 0, 0, 0)
    low, high = bootstrap_mean(gains)
    first, second = map(float, there.mean(0))
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    return Difference(metric, first, second, float(gains.mean()), low, high, len(gains), better, worse)


def _written(row: Difference) -> dict[str, Any]:
    scale, digits = (1, 3) if row.metric == _KL else (100, 1)
    values = [f"{scale * value:.{digits}f}" for value in (row.first, row.second)]
    change, low, high = (sections.number(scale * value, digits) for value in (row.value, row.low, row.high))
    counts = {"n": row.n, "better": row.better, "worse": row.worse, "same": row.n - row.better - row.worse}
    return {"metric": row.metric, "values": values, "change": change, "interval": f"{low} – {high}", **counts}


def _forest(table: Sequence[Difference], title: str, prefix: str) -> dict[str, Any] | None:
    shares = [row for row in table if row.metric != _KL]
    if not shares:
        return None
    frame = pd.DataFrame(
        {"panel": title, "label": row.metric}
        | {name: 100 * getattr(row, name) for name in ("value", "low", "high")}
        for row in shares
    )
    largest = max(shares, key=lambda row: abs(row.value))
    said = (
        "Points of per cent, paired by fact; lines: 95 % intervals; filled: the interval leaves 0 out. "
        f"Largest: {largest.metric}, {sections.number(100 * largest.value, 1)}."
    )
    svg = fragment(
        forests.effect_forest(frame, xlabel="points")[0],
        prefix=prefix,
        title="Differences paired by fact",
        description=said,
    )
    return {"svg": Markup(svg), "said": said}


def _line(pair: Pair, metrics: Sequence[str]) -> dict[str, Any]:
    fact = pair[0]
    return {
        "prompt": visible(fact.prompt),
        **{name: visible(text) if text else "" for name, text in (("old", fact.old), ("new", fact.new))},
        "sides": [
            {
                "said": visible(side.after) if side.after else "",
                "counts": ", ".join(f"{name} {count(side.scores.get(name))['text']}" for name in metrics[1:]),
            }
            for side in pair
        ],
    }
