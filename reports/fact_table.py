"""The facts of an evaluation one by one: what was said before and after each edit, its scores, what the gate did.

Read are the frames of every result of the kind "evaluation" in `results` of a run folder. Results of earlier versions
lack the texts: there a fact that is known was answered by its old object, the token after the prompt stands for the
answer after the edit, and a paraphrase or neighbour has no answer before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reports.errors import IntegrityError
from reports.reading import read_frame, read_object
from reports.text import visible

__all__ = ["TRIPLES", "EditedFact", "count", "facts", "read", "triple"]

#: Success of the edit itself, on paraphrases and on neighbours, by family of metrics; the first measured one is shown.
TRIPLES = (("Acc", "Gen", "Spec"), ("ES", "PS", "NS"), ("Rel_all", "Gen_all", "Loc_all"), ("DI", "DII"))
_AMISS = ("not edited", "paraphrases missed", "neighbours changed")
_DOUBTED = ("given up in doubt", "given up for the old object")
_ROLES = {
    "neighborhood": "neighbour",
    "doubt_1": "doubt",
    "doubt_2": "doubt, old object offered",
    "other_relation": "other relation",
}
_FOREIGN = ("neighborhood", "other_relation")
_DETAILED = 300  # facts with their prompts on the page: more would make it many megabytes
_FRAMES = ("cases", "records", "prompts")


@dataclass(frozen=True)
class EditedFact:
    """One fact under one editor.

    Attributes:
        editor: The editor's name.
        case_id: Of the fact.
        subject: Of the fact.
        prompt: The rewrite prompt.
        old: The old object.
        new: The new object.
        known: Whether the unedited model answers it.
        before: What the unedited model says behind the prompt.
        after: What the edited model says there.
        scores: By metric the value, and the number of prompts behind it (Top1: of passages).
        cost: KL on running text in nats per token; NaN where that was not measured.
        prompts: Its prompts as they were scored.
    """

    editor: str
    case_id: str
    subject: str
    prompt: str
    old: str
    new: str
    known: bool
    before: str
    after: str
    scores: Mapping[str, tuple[float, int]]
    cost: float
    prompts: Sequence[dict[str, Any]]


def read(folder: Path) -> list[EditedFact]:
    """Reads the facts of every evaluation in the run `folder`, in their order.

    Raises:
        IntegrityError: A file is missing or damaged.
    """
    rows: list[EditedFact] = []
    for record in sorted((folder / "results").glob("*/result.json")):
        about = read_object(record)
        if about.get("kind") == "evaluation":
            try:
                rows += _facts_of(record.parent, str(about["values"]["editor"]))
            except (KeyError, TypeError, ValueError) as error:
                raise IntegrityError(f"{record.parent}: not what the report expects ({error})") from error
    return rows


def _facts_of(saved: Path, editor: str) -> list[EditedFact]:
    frames = {name: read_frame(saved, name) for name in _FRAMES}
    if missing := [name for name, frame in frames.items() if frame is None]:
        raise IntegrityError(f"{saved}: expected {missing[0]}.parquet, found none")
    cases, records, prompts = (_by_case(frame) for frame in frames.values())
    costs = _by_case(read_frame(saved, "elsewhere"))
    return [
        _fact(editor, rows[0], records.get(name, []), prompts.get(name, []), costs.get(name, []))
        for name, rows in cases.items()
    ]


def _by_case(frame: pd.DataFrame | None) -> dict[str, list[dict[str, Any]]]:
    by_case: dict[str, list[dict[str, Any]]] = {}
    for row in [] if frame is None else frame.to_dict("records"):
        by_case.setdefault(str(row["case_id"]), []).append({str(key): value for key, value in row.items()})
    return by_case


def _fact(
    editor: str,
    case: dict[str, Any],
    records: list[dict[str, Any]],
    prompts: list[dict[str, Any]],
    costs: list[dict[str, Any]],
) -> EditedFact:
    rewrite: dict[str, Any] = next((row for row in prompts if row["role"] == "rewrite"), {})
    old = case.get("old") or str(rewrite.get("scored_true", "")).strip()
    known = bool(case["known"])
    scores = {str(row["metric"]): (float(row["value"]), int(row["n_prompts"])) for row in records}
    if costs:
        scores["Top1"] = float(costs[0]["Top1"]), int(costs[0]["n_prompts"])
    return EditedFact(
        editor=editor,
        case_id=str(case["case_id"]),
        subject=str(case["subject"]),
        prompt=str(case.get("prompt") or rewrite.get("prompt") or case["subject"]),
        old=str(old),
        new=str(case.get("new") or str(rewrite.get("scored_new", "")).strip()),
        known=known,
        before=rewrite.get("base_answer") or (str(old) if known else ""),
        after=_after(rewrite),
        scores=scores,
        cost=float(costs[0]["KL"]) if costs else math.nan,
        prompts=prompts,
    )


def _after(prompt: dict[str, Any]) -> str:
    return str(prompt.get("answer") or prompt.get("next_token") or "")


def triple(rows: Sequence[EditedFact]) -> tuple[str, ...]:
    """The metrics of the first family that some fact has."""
    measured = {name for fact in rows for name in fact.scores}
    return next((names for names in TRIPLES if measured.intersection(names)), ())


def count(score: tuple[float, int] | None) -> dict[str, str]:
    """A score over a fact's prompts as a count, and the number to sort by.

    >>> count((0.75, 4)), count((1.0, 0))["text"]
    ({'text': '3/4', 'sort': '0.75'}, 'none')
    """
    if score is None or score[1] == 0:
        return {"text": "none", "sort": ""}
    value, n = score
    if math.isnan(value):
        return {"text": "undefined", "sort": ""}
    return {"text": f"{round(value * n)}/{n}", "sort": repr(value)}


def facts(rows: Sequence[EditedFact]) -> dict[str, Any] | None:
    """Returns what the section of facts shows; None without facts."""
    if not rows:
        return None
    metrics = triple(rows)
    return {
        "metrics": metrics,
        "editors": len({fact.editor for fact in rows}) > 1,
        "gate": any(prompt.get("gate_fired") in (True, False) for fact in rows for prompt in fact.prompts),
        "cost": any(math.isfinite(fact.cost) for fact in rows),
        "rows": [_row(i, fact, metrics) for i, fact in enumerate(rows)],
        "detailed": _DETAILED,
    }


def _row(i: int, fact: EditedFact, metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "anchor": f"fact-{i}" if i < _DETAILED and fact.prompts else "",
        "editor": visible(fact.editor),
        "prompt": visible(fact.prompt),
        "case_id": visible(fact.case_id),
        **{name: _text(getattr(fact, name)) for name in ("old", "new", "before", "after")},
        "counts": [count(fact.scores.get(name)) for name in metrics],
        "outcome": _outcome(fact, metrics),
        "gate": _gate(fact),
        "cost": _number(fact.cost),
        "prompts": [_prompt(row) for row in fact.prompts] if i < _DETAILED else [],
    }


def _text(text: str) -> str:
    return visible(text) if text else ""


def _outcome(fact: EditedFact, metrics: Sequence[str]) -> str:
    words = [] if fact.known else ["not known before"]
    if not fact.scores:
        return ", ".join([*words, "not measured"])
    missed = [
        said
        for name, said in zip(metrics, _DOUBTED if "DI" in metrics else _AMISS, strict=True)
        if name in fact.scores and fact.scores[name][1] and fact.scores[name][0] != 1
    ]
    return ", ".join([*words, *(missed or ["as wanted"])])


def _gate(fact: EditedFact) -> dict[str, Any]:
    """Whether the gate opened on the rewrite prompt, and on how many of the fact's own and foreign prompts."""
    asked = [row for row in fact.prompts if row.get("gate_fired") in (True, False)]
    at = [bool(row["gate_fired"]) for row in asked if row["role"] == "rewrite"]
    own, foreign = (
        [
            bool(row["gate_fired"])
            for row in asked
            if row["role"] != "rewrite" and (row["role"] in _FOREIGN) is far
        ]
        for far in (False, True)
    )
    rest = [
        f"{name} {sum(fired)}/{len(fired)}" for name, fired in (("own", own), ("foreign", foreign)) if fired
    ]
    return {"rewrite": "" if not at else "open" if at[0] else "closed", "rest": rest}


def _prompt(row: dict[str, Any]) -> dict[str, Any]:
    fired = row.get("gate_fired")
    return {
        "role": _ROLES.get(row["role"], visible(str(row["role"]))),
        "prompt": visible(str(row["prompt"])),
        "before": _text(str(row.get("base_answer") or "")),
        "after": _text(_after(row)),
        "new": _number(float(row["p_new"])),
        "old": _number(float(row["p_true"])),
        "gate": ("open" if fired else "closed") if fired in (True, False) else "",
    }


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else ""
