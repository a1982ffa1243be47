"""The schemas of zsRE and RippleEdits, by hand-made rows of their shape and by the world's own export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechedit.data.facts import FactEdit, RippleQuery, RippleTest, load_facts
from mechedit.factworld import edits, export
from reports.errors import InputError

ZSRE = {
    "subject": "UniFirst",
    "src": "What is the product made by UniFirst?",
    "pred": "uniform",
    "rephrase": "What will be the product of UniFirst?",
    "alt": "unmanned aircraft",
    "answers": ["uniforms", "clothes"],
    "loc": "nq question: who wrote it",
    "loc_ans": "Walter",
    "cond": "uniform >> unmanned aircraft || What is the product made by UniFirst?",
}


def query(prompt: str, *names: str, about: str = "Q1") -> dict[str, Any]:
    answers = [{"value": names[0], "aliases": list(names[1:])}]
    return {"prompt": prompt, "answers": answers, "query_type": "regular", "subject_id": about}


def one_test(asked: dict[str, Any], condition: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"test_queries": [asked], "test_condition": "OR", "condition_queries": [condition or asked]}


def ripple_row() -> dict[str, Any]:
    """Wikidata ids, no names: two objects that begin alike, prompts about the subject, its alias and others."""
    head = "The name of the country of citizenship of"
    known = query("The name of the capital city of New Zealand is", "Wellington", "W", about="Q664")
    hop = query("The capital city of the country of citizenship of Ada Wong is", "Wellington", about="Q7")
    return {
        "example_type": "popular",
        "edit": {
            "prompt": f"{head} Ada Wong is New Zealand.",
            "subject_id": "Q7",
            "relation": "COUNTRY_OF_CITIZENSHIP",
            "target_id": "Q664",
            "original_fact": {"prompt": f"{head} Ada Wong is New Caledonia.", "subject_id": "Q7"},
        },
        "Relation_Specifity": [
            one_test(query("The name of the mother of Ada Wong is", "Eve", about="Q7")),
            one_test(query("The number of children Ada Wong has is", "0", about="Q7")),
        ],
        "Logical_Generalization": [],
        "Subject_Aliasing": [one_test(query(f"{head} A. Wong is", "New Zealand", about="Q7"))],
        "Compositionality_I": [one_test(hop, known)],
        "Compositionality_II": [],
        "Forgetfulness": [],
    }


def load(folder: Path, *rows: Any) -> list[FactEdit]:
    file = folder / "facts.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return load_facts(file)


def test_a_zsre_row(tmp_path: Path) -> None:
    assert load(tmp_path, ZSRE) == [
        FactEdit(
            "UniFirst",
            "What is the product made by {}?",
            "uniforms",
            "unmanned aircraft",
            case_id=0,
            paraphrase_prompts=("What will be the product of UniFirst?",),
            neighborhood_prompts=("nq question: who wrote it?",),
            neighborhood_answers=("Walter",),
            source_schema="zsre",
        )
    ]


def test_names_are_read_off_the_prompts_of_a_ripple_row(tmp_path: Path) -> None:
    with_alias, without = ripple_row(), ripple_row()
    without["Subject_Aliasing"] = []
    for fact in load(tmp_path, with_alias, without):
        assert (fact.subject, fact.target_true, fact.target_new) == (
            "Ada Wong",
            "New Caledonia",
            "New Zealand",
        )
        assert fact.prompt == "The name of the country of citizenship of {} is"
    hop = load(tmp_path, with_alias)[0].ripple[-1]
    assert hop == RippleTest(
        "CI",
        (RippleQuery("The capital city of the country of citizenship of Ada Wong is", (("Wellington",),)),),
        (RippleQuery("The name of the capital city of New Zealand is", (("Wellington",),)),),
    )


def test_a_name_that_is_given_is_taken(tmp_path: Path) -> None:
    row = ripple_row()
    row["edit"]["subject"] = "Wong"
    assert load(tmp_path, row)[0].prompt == "The name of the country of citizenship of Ada {} is"


def test_what_the_world_exports_comes_back(tmp_path: Path) -> None:
    export(tmp_path / "ripple.json", schema="ripple", limit=40, seed=5)
    for fact, loaded in zip(edits(40, seed=5), load_facts(tmp_path / "ripple.json"), strict=True):
        for name in ("subject", "prompt", "target_true", "target_new", "relation"):
            assert getattr(fact, name) == getattr(loaded, name)
        assert {test.axis for test in loaded.ripple} <= {"RS", "SA", "CI", "CII"}
        assert all(test.conditions for test in loaded.ripple)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("edit", "prompt"), None, "edit.prompt: expected a value"),
        (("edit", "original_fact"), ..., "edit.original_fact: expected the fact before the edit"),
        (
            ("edit", "original_fact", "prompt"),
            "Quite another sentence.",
            "edit.prompt: expected the original",
        ),
        (("edit", "subject_id"), None, "edit.subject_id: expected a value"),
        (("edit", "subject"), "Nobody", "edit.prompt: expected it to hold the subject str 'Nobody'"),
        (("Relation_Specifity",), "x", "Relation_Specifity: expected a list"),
        (
            ("Relation_Specifity", 0, "test_condition"),
            "NOR",
            "Relation_Specifity[0].test_condition: expected OR",
        ),
        (
            ("Relation_Specifity", 0, "test_queries"),
            [],
            "Relation_Specifity[0].queries: expected at least one",
        ),
        (
            ("Relation_Specifity", 1, "test_queries", 0, "prompt"),
            " ",
            "Relation_Specifity[1].test_queries[0].prompt",
        ),
        (
            ("Relation_Specifity", 1, "test_queries", 0, "answers"),
            [],
            "test_queries[0].answers: expected at least",
        ),
        (
            ("Compositionality_I", 0, "condition_queries", 0, "answers", 0, "value"),
            3,
            "answers[0][0]: expected a text",
        ),
    ],
)
def test_a_malformed_ripple_row_names_its_field(
    tmp_path: Path, path: tuple[Any, ...], value: Any, says: str
) -> None:
    row: Any = ripple_row()
    inner = row
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    with pytest.raises(InputError) as caught:
        load(tmp_path, ripple_row(), row)
    assert "record 1: field " in str(caught.value)
    assert says in str(caught.value)


def test_without_any_prompt_about_the_subject_its_name_must_be_given(tmp_path: Path) -> None:
    row = ripple_row()
    row["Relation_Specifity"] = []
    with pytest.raises(InputError, match=r"write it as edit\.subject"):
        load(tmp_path, row)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(ripple_row()) + list(ZSRE)), JSON)
def test_any_value_in_any_field_loads_or_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    row = (ZSRE if key in ZSRE else ripple_row()) | {key: value}
    try:
        facts = load(tmp_path, row)
    except InputError as refusal:
        message = str(refusal)
    else:
        message = "" if facts[0].subject in facts[0].rewrite_prompt else "\n"
    assert "\n" not in message
