"""What follows from an edit: RippleEdits' six axes, and the four of them that SAKE reports.

Sources: Cohen et al., TACL 2024 [edenbiran/RippleEdits]; SAKE, arXiv 2503.01751 [axa-rev-research/knowledge-editing].
Axes: RS relation specificity, LG logical generalisation, SA subject aliasing, CI and CII compositionality, FN
forgetfulness. Steps, for each fact:

1. *Unedited*: the fact itself is asked. A model that does not know it: `PREV_FACT_UNKNOWN`, and nothing is edited.
   Conditions of the tests are asked; a test of which one is not answered is `NOT_EXECUTED`.
2. *Edited*: the new fact is asked. An edit that does not show: `EDIT_FAILED`. Else `EXECUTED`: a test is `PASSED` where
   one (OR) or all (AND) of its queries are answered, else `FAILED`.

A query is answered where the greedy continuation of `TOKENS` tokens holds a name of each of its targets, somewhere; the
source also finds names in the prompt itself. An edit that failed is what it is in the source; that an unknown fact is
not edited is this project's rule (an insertion is no edit), the source edits it and counts it.

*SAKE's reading*, over tests and without generation: only the first query of a test, success where the stripped argmax
next token (behind a bare space: with what follows) starts a name of its first target; only tests whose first condition
is so answered by the unedited model; only edits after which p(new) > p(old); RS also counts a silent gate.

Conditions of SA are asked of the *edited* model in both. Where such a condition is the test's own query, as RippleEdits
writes it, it would make every test pass, and is left out: that the edit shows is asked anyway.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

import numpy as np
import pandas as pd

from experiments.cases import every_case
from experiments.runs import RunFolder
from experiments.settings import fingerprint
from mechedit.data.case_keys import ripple_key
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.data.records import Axis, RippleQuery, RippleTest
from mechedit.editors.base import Editor
from mechedit.editors.settings import resolved
from mechedit.evaluation.evaluate import known_facts
from mechedit.evaluation.measure import measure
from mechedit.evaluation.metrics import starts_answer
from mechedit.evaluation.questions import Question
from mechedit.models.deciding import read_anew, written_text
from mechedit.models.hooked import HookedModel
from reports.errors import InputError
from reports.intervals import bootstrap_mean, wilson
from reports.results import Result

__all__ = ["TOKENS", "RippleEvaluation", "check_tests", "holds", "ripple"]

TOKENS = 30
EXECUTED, EDIT_FAILED, UNKNOWN = "EXECUTED", "EDIT_FAILED", "PREV_FACT_UNKNOWN"
PASSED, FAILED, NOT_EXECUTED = "PASSED", "FAILED", "NOT_EXECUTED"
_SAKE_AXES: tuple[Axis, ...] = ("CI", "CII", "RS", "SA")
_TEST_COLUMNS = ["case_id", "axis", "index", "result", "sake", "text"]


@dataclass(frozen=True, repr=False, eq=False)
class RippleEvaluation(Result):
    """What `ripple` measured.

    Attributes:
        tests: Columns case_id, axis, index, result (PASSED, FAILED, NOT_EXECUTED, or "" where the fact was not
            EXECUTED), sake (1.0, 0.0, NaN where SAKE's reading leaves it out), text (what the edited model wrote behind
            the first query).
        cases: Columns case_id, subject, outcome (EXECUTED, EDIT_FAILED, PREV_FACT_UNKNOWN).
        editor: The editor's name.
        model: The model's name.
    """

    kind: ClassVar[str] = "ripple"
    tests: pd.DataFrame
    cases: pd.DataFrame
    editor: str
    model: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> pd.DataFrame:
        """One row an axis and reading.

        Columns: family, metric, value, low, high, interval, n, n_tests, n_not_executed. The family "ripple" is the
        source's: accuracy of a fact over its executed tests, mean over the n facts that have one. The family "sake" is
        the share of the n_tests that count. Intervals are a bootstrap over facts, or Wilson's for "sake" where no fact
        has two tests.
        """
        rows = [_axis_row(axis, self.tests[self.tests["axis"] == axis]) for axis in get_args(Axis)]
        rows += [_sake_row(axis, self.tests[self.tests["axis"] == axis]) for axis in _SAKE_AXES]
        return pd.DataFrame(rows)

    def outcomes(self) -> dict[str, int]:
        """How many facts came to each outcome."""
        counts = self.cases["outcome"].value_counts()
        return {name: int(counts.get(name, 0)) for name in (EXECUTED, EDIT_FAILED, UNKNOWN)}


def ripple(
    model: HookedModel,
    editor: Editor,
    facts: Sequence[FactEdit],
    *,
    progress: bool = True,
    run: RunFolder | None = None,
) -> RippleEvaluation:
    """Edit each fact alone and run its `FactEdit.ripple` tests (`load_facts` of a RippleEdits file).

    Args:
        model: The unedited model.
        editor: What edits it.
        facts: The edits, with their tests.
        progress: Whether a bar is shown.
        run: Each case is written as it ends, as `ripple-<editor>-<case_id>`, and read where it exists.

    Raises:
        InputError: No fact has tests, two facts have one case_id, or a case in `run` is of another model, editor or
            fact.

    >>> import mechedit as me
    >>> query = RippleQuery("Anna Novak is a native speaker of", (("Greek",),))
    >>> fact = dataclasses.replace(me.factworld.edits(1)[0], ripple=(RippleTest("RS", (query,)),))
    >>> ripple(me.load_model("factworld"), me.editors.NoEdit(), [fact], progress=False).outcomes()["EDIT_FAILED"]
    1
    """
    check_tests(facts)
    keys = [ripple_key(editor.name, fact) for fact in facts]
    if len(set(keys)) < len(keys):
        raise InputError("facts: a case_id occurs twice; give each its own")
    known = known_facts(model, facts)
    used = resolved(editor, model)
    mark = fingerprint(used)
    if run is not None:
        run.settle(editor.name, used, cases=keys)
    settings = [
        [model.hash, str(model.dtype), facts_hash([fact]), mark, *_read_anew(model, fact)] for fact in facts
    ]

    def make(i: int) -> dict[str, Any]:
        results = _case(model, editor, facts[i]) if known[i] else _not_edited(facts[i])
        return {"settings": settings[i], "made_with": {editor.name: mark}, **results}

    label = f"{editor.name}, ripple"
    cases = every_case(run, keys, make, settings=settings, label=label, progress=progress)
    return _gather(model, editor, used, facts, cases)


def _read_anew(model: HookedModel, fact: FactEdit) -> list[str]:
    queries = (query for test in fact.ripple for query in (*test.queries, *test.conditions))
    pairs = [(query.prompt, query.answers[0][0], "") for query in queries]
    for pair in [(fact.rewrite_prompt, fact.target_new, fact.target_true), *pairs]:
        with contextlib.suppress(
            InputError
        ):  # an answer whose tokens join the prompt's is only looked for as text
            if anew := read_anew(model, [pair], space=fact.space):
                return anew
    return []


def check_tests(facts: Sequence[FactEdit]) -> None:
    """Checks that there is something to test; call it before a run folder is made.

    Raises:
        InputError: No fact has RippleEdits' tests.
    """
    if not any(fact.ripple for fact in facts):
        raise InputError("facts: expected RippleEdits' tests on some, found none; load a file of its schema")


def holds(text: str, answers: Sequence[Sequence[str]]) -> bool:
    """Whether `text` holds a name of every target.

    >>> holds(" Athens, Greece.", [["Greece", "Hellas"], ["Athens"]]), holds(" Athens.", [["Greece", "Hellas"]])
    (True, False)
    """
    return all(any(name in text for name in names) for names in answers)


# --- one fact ---------------------------------------------------------------------------------------


def _not_edited(fact: FactEdit) -> dict[str, Any]:
    tests = [{"result": "", "sake": math.nan, "text": ""} for _ in fact.ripple]
    return {"outcome": UNKNOWN, "tests": tests}


def _case(model: HookedModel, editor: Editor, fact: FactEdit) -> dict[str, Any]:
    before = _Answers(model, [q for test in fact.ripple if test.axis != "SA" for q in test.conditions])
    with editor.apply(model, [fact]) as edited:
        queries = [query for test in fact.ripple for query in (*test.queries, *_aliased(test))]
        after = _Answers(edited, [*queries, RippleQuery(fact.rewrite_prompt, ((fact.target_new,),))])
        score = measure(edited, [Question("rewrite", 0, fact.rewrite_prompt, fact, fact.target_true)])[0]
        fired = edited.gate_fired([test.queries[0].prompt for test in fact.ripple]) if fact.ripple else None
    new = (fact.target_new, *fact.target_new_aliases)
    shows = holds(after.text[fact.rewrite_prompt], [new])
    tests = []
    for i, test in enumerate(fact.ripple):
        sake = _sake(test, before, after) if score.p_new > score.p_true else math.nan
        if test.axis == "RS" and fired is not None and not fired[i] and not math.isnan(sake):
            sake = 1.0
        result = _result(test, before, after) if shows else ""
        tests.append({"result": result, "sake": sake, "text": after.text[test.queries[0].prompt]})
    return {"outcome": EXECUTED if shows else EDIT_FAILED, "tests": tests}


def _result(test: RippleTest, before: _Answers, after: _Answers) -> str:
    held = after if test.axis == "SA" else before
    if not all(held.answered(query) for query in _conditions(test)):
        return NOT_EXECUTED
    answered = [after.answered(query) for query in test.queries]
    return PASSED if (any(answered) if test.any_of else all(answered)) else FAILED


def _sake(test: RippleTest, before: _Answers, after: _Answers) -> float:
    """SAKE's reading of one test: NaN where its condition does not hold."""
    held = after if test.axis == "SA" else before
    if not all(held.started(query) == 1 for query in _conditions(test)[:1]):
        return math.nan
    return after.started(test.queries[0])


def _conditions(test: RippleTest) -> tuple[RippleQuery, ...]:
    return _aliased(test) if test.axis == "SA" else test.conditions


def _aliased(test: RippleTest) -> tuple[RippleQuery, ...]:
    """Conditions of an SA test but for its own queries, which would make it pass."""
    queried = {query.prompt for query in test.queries}
    return (
        tuple(query for query in test.conditions if query.prompt not in queried) if test.axis == "SA" else ()
    )


class _Answers:
    """What a model says to prompts, each asked once: greedy text, and next token."""

    def __init__(self, model: HookedModel, queries: Sequence[RippleQuery]) -> None:
        prompts = list(dict.fromkeys(query.prompt for query in queries))
        self.text: dict[str, str] = {}
        self._next: dict[str, str] = {}
        if prompts:
            texts = model.generate(prompts, max_new_tokens=TOKENS)
            self.text = dict(zip(prompts, texts, strict=True))
            self._next = dict(zip(prompts, written_text(model, prompts), strict=True))

    def answered(self, query: RippleQuery) -> bool:
        return holds(self.text[query.prompt], query.answers)

    def started(self, query: RippleQuery) -> float:
        return starts_answer(self._next[query.prompt], query.answers[0])


# --- tables -----------------------------------------------------------------------------------------


def _gather(
    model: HookedModel,
    editor: Editor,
    used: dict[str, Any],
    facts: Sequence[FactEdit],
    cases: Sequence[Mapping[str, Any]],
) -> RippleEvaluation:
    return RippleEvaluation(
        tests=pd.DataFrame(list(_test_rows(facts, cases)), columns=_TEST_COLUMNS).astype({"sake": float}),
        cases=pd.DataFrame(
            [
                {"case_id": str(fact.case_id), "subject": fact.subject, "outcome": case["outcome"]}
                for fact, case in zip(facts, cases, strict=True)
            ]
        ),
        editor=editor.name,
        model=model.name,
        provenance={
            "model": {"name": model.name, "source": model.source, "hash": model.hash, **model.stored},
            "editor": repr(editor) if dataclasses.is_dataclass(editor) else editor.name,
            "settings": used,
        },
    )


def _test_rows(facts: Sequence[FactEdit], cases: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, ...]]:
    for fact, case in zip(facts, cases, strict=True):
        for i, (test, row) in enumerate(zip(fact.ripple, case["tests"], strict=True)):
            yield str(fact.case_id), test.axis, i, row["result"], row["sake"], row["text"]


def _axis_row(axis: str, tests: pd.DataFrame) -> dict[str, Any]:
    executed = tests[tests["result"].isin([PASSED, FAILED])]
    by_fact = (
        executed.assign(passed=executed["result"] == PASSED).groupby("case_id", sort=False)["passed"].mean()
    )
    low, high = bootstrap_mean(by_fact.to_numpy(dtype=float))
    return {
        "family": "ripple",
        "metric": axis,
        "value": float(by_fact.mean()) if len(by_fact) else math.nan,
        "low": low,
        "high": high,
        "interval": "bootstrap",
        "n": len(by_fact),
        "n_tests": len(executed),
        "n_not_executed": int((tests["result"] == NOT_EXECUTED).sum()),
    }


def _sake_row(axis: str, tests: pd.DataFrame) -> dict[str, Any]:
    counted = tests[tests["sake"].notna()]
    by_fact = counted.groupby("case_id", sort=False)["sake"].mean()
    alone = len(by_fact) == len(counted)
    if alone:
        low, high = wilson(int(counted["sake"].sum()), len(counted))
    else:
        low, high = _ratio_interval(counted.groupby("case_id", sort=True)["sake"])
    return {
        "family": "sake",
        "metric": axis,
        "value": float(counted["sake"].mean()) if len(counted) else math.nan,
        "low": low,
        "high": high,
        "interval": "wilson" if alone else "bootstrap",
        "n": len(by_fact),
        "n_tests": len(counted),
        "n_not_executed": len(tests) - len(counted),
    }


def _ratio_interval(by_fact: Any, *, seed: int = 0, n_resamples: int = 2000) -> tuple[float, float]:
    """Bootstrap of Σ successes / Σ tests, whole facts drawn."""
    sums, counts = by_fact.sum().to_numpy(), by_fact.size().to_numpy()
    drawn = np.random.default_rng(seed).integers(len(sums), size=(n_resamples, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)
