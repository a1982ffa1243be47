"""RippleEdits' axes on the embedded model: against a naive reading of the rules, case by case, and by hand."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments.runs import RunFolder
from mechedit.data.facts import FactEdit, RippleQuery, RippleTest, load_facts
from mechedit.editors import NoEdit
from mechedit.evaluation.metrics import starts_answer
from mechedit.evaluation.ripple import RippleEvaluation, holds, ripple
from mechedit.factworld import export
from mechedit.models.hooked import HookedModel
from reports.errors import InputError


@dataclass(frozen=True)
class Say:
    """Pushes the new object's first token behind every prompt that names the subject, or behind all."""

    everywhere: bool = False
    name: str = "say"
    needs_selection = False

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[HookedModel]:
        assert not isinstance(facts, FactEdit)
        (fact,) = facts
        subject = model.tokenize(" " + fact.subject).tolist()[-1]
        first = model.continuation(fact.rewrite_prompt, fact.target_new)[1][0]
        named: list[torch.Tensor] = []

        def look(module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            if ids.shape[1] > 1:
                named[:] = [(ids == subject).any(1) | self.everywhere, torch.tensor(True)]
            else:
                named[1] = torch.tensor(False)

        def push(logits: torch.Tensor, hook: object) -> torch.Tensor:
            moved = logits.clone()
            moved[:, -1, first] += 100.0 * (named[0] & named[1])
            return moved

        handle = model.hf.register_forward_pre_hook(look, with_kwargs=True)
        try:
            with model.hooks([("unembed.hook_out", push)]):
                yield model
        finally:
            handle.remove()


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> list[FactEdit]:
    file = tmp_path_factory.mktemp("ripple") / "ripple.json"
    export(file, schema="ripple", limit=30, seed=2)
    found = load_facts(file)
    hops = [fact for fact in found if any(test.axis in ("CI", "CII") for test in fact.ripple)]
    return [*hops[:3], *[fact for fact in found if fact not in hops][:2]]


def naive(model: HookedModel, editor: Say | NoEdit, fact: FactEdit) -> tuple[str, list[tuple[str, float]]]:
    """One prompt at a time, in the words of the rules."""

    def text(prompt: str) -> str:
        return model.generate([prompt], max_new_tokens=30)[0]

    def token(prompt: str) -> str:
        return str(model.tokenizer.decode([int(model.logits([prompt])[0].argmax())]))

    def p(prompt: str, target: str) -> float:
        first = int(model.continuation(prompt, target)[1][0])
        return float(model.logits([prompt])[0].softmax(-1)[first])

    if not text(fact.rewrite_prompt).startswith(f" {fact.target_true}"):
        return "PREV_FACT_UNKNOWN", [("", math.nan)] * len(fact.ripple)
    before = [(all(holds(text(q.prompt), q.answers) for q in t.conditions)) for t in fact.ripple]
    started = [starts_answer(token(t.conditions[0].prompt), t.conditions[0].answers[0]) for t in fact.ripple]
    found = []
    with editor.apply(model, [fact]):
        shows = fact.target_new in text(fact.rewrite_prompt)
        likelier = p(fact.rewrite_prompt, fact.target_new) > p(fact.rewrite_prompt, fact.target_true)
        for test, met, first in zip(fact.ripple, before, started, strict=True):
            passed = holds(text(test.queries[0].prompt), test.queries[0].answers)
            said = starts_answer(token(test.queries[0].prompt), test.queries[0].answers[0])
            free = test.axis == "SA"  # the world's condition is the test itself
            result = "NOT_EXECUTED" if not (met or free) else "PASSED" if passed else "FAILED"
            counts = likelier and (first == 1 or free)
            found.append((result if shows else "", said if counts else math.nan))
    return ("EXECUTED" if shows else "EDIT_FAILED"), found


@pytest.mark.parametrize("editor", [Say(), Say(everywhere=True), NoEdit()], ids=["say", "everywhere", "none"])
def test_every_case_equals_the_naive_reading(
    factworld_gpt2: HookedModel, facts: list[FactEdit], editor: Say | NoEdit
) -> None:
    result = ripple(factworld_gpt2, editor, facts, progress=False)
    for fact, outcome in zip(facts, result.cases["outcome"], strict=True):
        expected, tests = naive(factworld_gpt2, editor, fact)
        assert outcome == expected
        own = result.tests[result.tests["case_id"] == str(fact.case_id)]
        assert own["result"].tolist() == [name for name, _ in tests]
        pd.testing.assert_series_equal(
            own["sake"], pd.Series([s for _, s in tests], index=own.index, name="sake", dtype=float)
        )


def test_an_edit_that_spoils_everything_is_told_from_one_that_does_not(
    factworld_gpt2: HookedModel, facts: list[FactEdit]
) -> None:
    neat, wild, none = (
        ripple(factworld_gpt2, editor, facts, progress=False)
        for editor in (Say(), Say(everywhere=True), NoEdit())
    )
    assert neat.outcomes()["EXECUTED"] == wild.outcomes()["EXECUTED"] > 0
    assert none.outcomes() == {"EXECUTED": 0, "EDIT_FAILED": len(facts), "PREV_FACT_UNKNOWN": 0}
    assert none.summary()["value"].isna().all()
    table = wild.summary().set_index(["family", "metric"])
    assert table.loc[("sake", "RS"), "value"] == 0.0
    assert table.loc[("sake", "SA"), "value"] == 1.0


def test_an_unknown_fact_is_not_edited(factworld_gpt2: HookedModel, facts: list[FactEdit]) -> None:
    wrong = replace(facts[0], target_true="basketball", case_id=99)
    result = ripple(factworld_gpt2, Say(), [wrong], progress=False)
    assert result.outcomes()["PREV_FACT_UNKNOWN"] == 1
    assert set(result.tests["result"]) == {""}


def test_and_asks_for_all_queries_or_for_one(factworld_gpt2: HookedModel, facts: list[FactEdit]) -> None:
    fact = next(f for f in facts if any(t.axis == "RS" for t in f.ripple))
    known = next(t.queries[0] for t in fact.ripple if t.axis == "RS")
    unknown = RippleQuery(known.prompt + " the", (("Atlantis",),))
    tests = [
        RippleTest("LG", (known, unknown), (), any_of=True),
        RippleTest("LG", (known, unknown), (), any_of=False),
        RippleTest("LG", (known,), (unknown,)),
        RippleTest("LG", (known, known), (known,), any_of=False),
    ]
    neat = ripple(factworld_gpt2, Quiet(), [replace(fact, ripple=tuple(tests))], progress=False)
    assert neat.tests["result"].tolist() == ["PASSED", "FAILED", "NOT_EXECUTED", "PASSED"]


@dataclass(frozen=True)
class Quiet(Say):
    """Says the new object behind the rewrite prompt alone."""

    name: str = "quiet"

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[HookedModel]:
        assert not isinstance(facts, FactEdit)
        (fact,) = facts
        ids, target = model.continuation(fact.rewrite_prompt, fact.target_new)
        mine: list[torch.Tensor] = []

        def look(module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
            found = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            same = [torch.equal(row[-len(ids) :], ids) for row in found]
            mine[:] = [torch.tensor(same)]

        def push(logits: torch.Tensor, hook: object) -> torch.Tensor:
            moved = logits.clone()
            moved[:, -1, target[0]] += 100.0 * mine[0]
            return moved

        handle = model.hf.register_forward_pre_hook(look, with_kwargs=True)
        try:
            with model.hooks([("unembed.hook_out", push)]):
                yield model
        finally:
            handle.remove()


def test_the_table_by_hand() -> None:
    rows = [
        ("0", "RS", 0, "PASSED", 1.0, ""),
        ("0", "RS", 1, "FAILED", 0.0, ""),
        ("1", "RS", 0, "PASSED", 1.0, ""),
        ("1", "RS", 1, "NOT_EXECUTED", math.nan, ""),
        ("2", "CI", 0, "FAILED", 1.0, ""),
    ]
    tests = pd.DataFrame(rows, columns=["case_id", "axis", "index", "result", "sake", "text"])
    table = RippleEvaluation(tests, pd.DataFrame(), "e", "m").summary().set_index(["family", "metric"])
    source, sake = table.loc[("ripple", "RS")], table.loc[("sake", "RS")]
    assert (source["value"], source["n"], source["n_tests"], source["n_not_executed"]) == (0.75, 2, 3, 1)
    assert sake["value"] == pytest.approx(2 / 3)
    assert (sake["n"], sake["n_tests"], sake["interval"]) == (2, 3, "bootstrap")
    assert table.loc[("sake", "CI"), "interval"] == "wilson"
    assert table.loc[("ripple", "CI"), "value"] == 0.0
    assert table.loc[("ripple", "FN"), "n"] == 0
    assert math.isnan(table.loc[("ripple", "FN"), "value"])


def test_a_run_goes_on_and_another_editor_is_refused(
    factworld_gpt2: HookedModel, facts: list[FactEdit], tmp_path: Path
) -> None:
    folder = RunFolder.open(tmp_path / "run", {"editor": "say"}, provenance={"model": {}})
    first = ripple(factworld_gpt2, Say(), facts[:2], progress=False, run=folder)
    assert ripple(factworld_gpt2, Say(), facts[:2], progress=False, run=folder).equals(first)
    assert RippleEvaluation.load(first.save(tmp_path / "saved")).equals(first)
    with pytest.raises(InputError, match=r"settings of say in .*'everywhere' is False there and True now"):
        ripple(factworld_gpt2, Say(everywhere=True), facts[:2], progress=False, run=folder)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="expected RippleEdits' tests"):
        ripple(None, NoEdit(), [FactEdit("Ann", "{} speaks", "Dutch", "Greek")])  # type: ignore[arg-type]
