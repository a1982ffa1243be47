"""Several editors on the same facts: a line a fact with what each answered, and the first one against the others.

Differences are paired by fact as in `reports.paired`: the first editor less each other one, over the facts that the
unedited model knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reports import sections
from reports.fact_table import EditedFact, count, triple
from reports.paired import Difference, differences, gets, key
from reports.text import visible

__all__ = ["beside", "by_fact"]


def by_fact(facts: Sequence[EditedFact], order: Sequence[str] = ()) -> list[EditedFact]:
    """The same facts, those of one prompt together, their editors in `order` (others behind them).

    Args:
        facts: One editor after the other.
        order: Names of editors.
    """
    places = {name: i for i, name in enumerate(dict.fromkeys([*order, *(fact.editor for fact in facts)]))}
    prompts = {name: i for i, name in enumerate(dict.fromkeys(map(key, facts)))}
    return sorted(facts, key=lambda fact: (prompts[key(fact)], places[fact.editor]))


def beside(
    facts: Sequence[EditedFact], anchors: Sequence[str], labels: Mapping[str, str]
) -> dict[str, Any] | None:
    """Returns what the page shows of several editors; None of one.

    Args:
        facts: As `by_fact` puts them.
        anchors: For each of them where the page has its prompts, or "".
        labels: What editors are called on the page, by name.
    """
    names = list(dict.fromkeys(fact.editor for fact in facts))
    if len(names) < 2:
        return None
    metrics = triple(facts)
    lines: dict[tuple[str, ...], dict[str, tuple[EditedFact, str]]] = {}
    for fact, anchor in zip(facts, anchors, strict=True):
        lines.setdefault(key(fact), {})[fact.editor] = (fact, anchor)
    called = {name: visible(labels.get(name, name)) for name in names}
    return {
        "names": list(called.values()),
        "lines": [_line(line, called, metrics) for line in lines.values()],
        "peers": _peers(
            [{name: fact for name, (fact, _) in line.items()} for line in lines.values()], called
        ),
    }


def _line(
    line: Mapping[str, tuple[EditedFact, str]], called: Mapping[str, str], metrics: Sequence[str]
) -> dict[str, Any]:
    fact = next(iter(line.values()))[0]
    by = [called[name] for name, (edited, _) in line.items() if gets(edited, metrics)]
    return {
        "prompt": visible(fact.prompt),
        **{name: visible(getattr(fact, name)) for name in ("old", "new", "before")},
        "known": fact.known,
        "by": by,
        "of": len(line),
        "cells": [_cell(*line[name], metrics) if name in line else None for name in called],
    }


def _cell(fact: EditedFact, anchor: str, metrics: Sequence[str]) -> dict[str, Any]:
    counts = [f"{name} {count(fact.scores.get(name))['text']}" for name in metrics[1:]]
    return {
        "said": visible(fact.after),
        "gets": gets(fact, metrics),
        "counts": counts if fact.scores else [],
        "anchor": anchor,
    }


def _peers(lines: Sequence[Mapping[str, EditedFact]], called: Mapping[str, str]) -> dict[str, Any] | None:
    """The first editor less each other one."""
    first, *others = called
    rows: list[dict[str, Any]] = []
    tables: list[dict[str, dict[str, str]]] = []
    for name in others:
        pairs = [(line[name], line[first]) for line in lines if {name, first} <= line.keys()]
        known = [pair for pair in pairs if pair[0].known and pair[1].known]
        metrics = triple([fact for pair in known for fact in pair])
        got = [(gets(a, metrics), gets(b, metrics)) for a, b in known]
        tables.append({row.metric: _written(row) for row in differences(known)})
        rows.append(
            {
                "label": called[name],
                "n": len(known),
                "differences": tables[-1],
                "counts": [
                    got.count(pair) for pair in ((False, True), (True, False), (True, True), (False, False))
                ],
            }
        )
    shown = list(dict.fromkeys(metric for written in tables for metric in written))
    return {"first": called[first], "metrics": shown, "rows": rows} if shown else None


def _written(row: Difference) -> dict[str, str]:
    scale, digits = (1, 3) if row.metric.startswith("KL") else (100, 1)
    value, low, high = (sections.number(scale * x, digits) for x in (row.value, row.low, row.high))
    sort = repr(row.value) if math.isfinite(row.value) else ""
    return {"value": value, "interval": f"{low} – {high}", "sort": sort}
