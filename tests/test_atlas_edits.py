"""The edits of the atlas agree with its tables, and every rule here finds what breaks it; its interface.

A rule goes from one edit to a list of faults. Each has breakers: edits in which it must find one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from experiments.case_ids import check_case_id
from mechedit.data import atlas
from mechedit.data.atlas.build import all_facts, draw, edit_of
from mechedit.data.atlas.hops import hop_templates, implication_table, paraphrase_table
from mechedit.data.atlas.tables import Atlas, load
from mechedit.data.records import FactEdit, RippleQuery, RippleTest
from mechedit.editors.steering.paraphrases import implications, paraphrases
from reports.errors import InputError

ATLAS = load()
ARTICLES = ("the ", "a ", "an ")


# -- rules of an edit ------------------------------------------------------------------------------------------


@cache
def asked(relation: str) -> dict[str, str]:
    """Every prompt of a relation about every subject -> the subject."""
    r = ATLAS.relations[relation]
    return {t.replace("{}", s): s for t in (*r.templates, *r.held_out) for s in r.objects}


def measured(fact: FactEdit) -> set[str]:
    """All that an evaluation asks after the edit, but for the rewrite prompt."""
    queries = {query.prompt for test in fact.ripple for query in test.queries}
    return {*fact.paraphrase_prompts, *fact.neighborhood_prompts} | queries


def bad_object(fact: FactEdit) -> list[str]:
    """A new object that is no object of the relation, is the old one by some name, or begins like it."""
    r = ATLAS.relations[fact.relation]
    old, new = ATLAS.names(fact.target_true), ATLAS.names(fact.target_new)
    faults = [] if fact.target_true == r.objects[fact.subject] else ["the old object is not true"]
    faults += [] if fact.target_new in set(r.objects.values()) else ["no object of the relation"]
    faults += ["the subject"] if fact.target_new in ATLAS.names(fact.subject) else []
    faults += ["the old object"] if {*old} & {*new} else []
    letters = 1 if min(len(fact.target_new), len(fact.target_true)) <= 2 else 2
    bare = [[name.removeprefix("the ").lower()[:letters] for name in names] for names in (old, new)]
    return faults + ([f"{old} and {new} begin alike"] if {*bare[0]} & {*bare[1]} else [])


def bad_neighbours(fact: FactEdit) -> list[str]:
    """Neighbours that are the subject, come twice, are answered falsely, or do not share where others do."""
    r = ATLAS.relations[fact.relation]
    subjects = [asked(fact.relation).get(prompt, "") for prompt in fact.neighborhood_prompts]
    answers = fact.neighborhood_answers or (fact.target_true,) * len(subjects)
    faults = [] if 1 <= len(subjects) <= 10 else [f"{len(subjects)} neighbours"]
    faults += ["one prompt twice"] if len(set(fact.neighborhood_prompts)) < len(subjects) else []
    for subject, answer in zip(subjects, answers, strict=True):
        if subject in ("", fact.subject) or r.objects[subject] != answer:
            faults.append(f"{subject!r} with {answer!r}")
    sharing = [s for s in r.subjects_of(fact.target_true) if s != fact.subject]
    if bool(sharing) == bool(fact.neighborhood_answers):
        faults.append("own answers, or the old object's, where there should be the other")
    touched = {fact.target_true, fact.target_new} if not sharing else set()
    return faults + [s for s in subjects if s in touched or r.objects.get(s) in touched]


def fitted_on_measured(fact: FactEdit) -> list[str]:
    """What an editor finds to be fitted on, where an evaluation asks it or a template is held out."""
    r = ATLAS.relations[fact.relation]
    held_out = {t.replace("{}", fact.subject) for t in r.held_out}
    faults = (
        [] if set(fact.paraphrase_prompts) == held_out else ["paraphrases are not the held-out templates"]
    )
    fitted = {t.replace("{}", fact.subject) for t in atlas.templates(fact.relation)}
    if set(paraphrases(fact, paraphrase_table(ATLAS))) != fitted:
        faults.append("an editor does not find the templates")
    fitted |= {t.replace("{}", fact.subject) for t in implication_table(ATLAS).get(fact.relation, ())}
    return faults + sorted(fitted & measured(fact))


def follows(fact: FactEdit) -> dict[tuple[str, str], str]:
    """Oracle of the tests: axis and prompt -> the answer after the edit, by rewriting the one fact and reading on."""
    r = ATLAS.relations[fact.relation]
    changed = {(f.subject, f.relation): f.object for f in all_facts(ATLAS)}
    before = dict(changed)
    changed[fact.subject, fact.relation] = fact.target_new
    answers = {("SA", r.ask(name)): fact.target_new for name in ATLAS.names(fact.subject)[1:]}
    for (subject, name), value in changed.items():
        if subject == fact.subject and name != fact.relation:
            answers["RS", ATLAS.relations[name].ask(subject)] = value
        for hop in ATLAS.relations[name].hops:
            if (after := changed.get((value, hop))) is None:
                continue
            if after != before.get((before[subject, name], hop)):
                axis = "CI" if subject == fact.subject else "CII"
                for template in hop_templates(ATLAS, name, hop, held_out=True):
                    answers[axis, template.replace("{}", subject)] = after
    if r.symmetric:
        answers["LG", r.ask(fact.target_new)] = fact.subject
    return answers


def bad_tests(fact: FactEdit) -> list[str]:
    """A test whose answer does not follow, a condition that is not true, or no test where there is something to ask."""
    expected, true = follows(fact), truths()
    faults = []
    for test in fact.ripple:
        for query in test.queries:
            if query.answers[0][0] != expected.get((test.axis, query.prompt)):
                faults.append(f"{test.axis} {query}")
        faults += [f"{q}" for q in test.conditions if q.answers[0][0] != true.get(q.prompt)]
    for axis in sorted({axis for axis, _ in expected}):
        faults += [] if any(test.axis == axis for test in fact.ripple) else [f"no {axis}"]
    return faults


@cache
def truths() -> dict[str, str]:
    """Every rewrite prompt -> its object."""
    return {ATLAS.relations[f.relation].ask(f.subject): f.object for f in all_facts(ATLAS)}


def bad_names(fact: FactEdit) -> list[str]:
    """Names that are not the tables', an answer behind an article, prompts that do not ask for what they should."""
    faults = [] if fact.aliases == ATLAS.names(fact.subject)[1:] else ["aliases"]
    answers = [*fact.target_new_aliases, *(n for t in fact.ripple for q in t.queries for n in q.answers[0])]
    faults += [f"answer {name!r}" for name in answers if name.lower().startswith(ARTICLES)]
    r = ATLAS.relations[fact.relation]
    have = {s for s, value in r.objects.items() if value == fact.target_new}
    faults += [p for p in fact.attribute_prompts if asked(fact.relation).get(p) not in have]
    about = [p for p in fact.generation_prompts if fact.subject in p and p not in measured(fact)]
    return faults + ([] if len(about) == len(set(about)) == 3 else ["generation prompts"])


EditRule = Callable[[FactEdit], list[str]]
EDIT_RULES: list[EditRule] = [bad_object, bad_neighbours, fitted_on_measured, bad_tests, bad_names]
LYON, FRANCE, HOT = (
    edit_of(ATLAS, relation, subject)
    for relation, subject in (("city_country", "Lyon"), ("capital", "France"), ("opposite", "hot"))
)
EURO = edit_of(ATLAS, "currency", "France")


def with_test(fact: FactEdit, axis: Any, prompt: str, answer: str) -> FactEdit:
    return replace(fact, ripple=(*fact.ripple, RippleTest(axis, (RippleQuery(prompt, ((answer,),)),))))


EDIT_BREAKERS: list[tuple[EditRule, FactEdit]] = [
    (bad_object, replace(LYON, target_new="Mumbai")),
    (bad_object, replace(LYON, target_true="Italy", target_new="Spain")),
    (bad_object, replace(FRANCE, target_new="Paramaribo")),
    (bad_object, replace(HOT, target_new="hot")),
    (bad_neighbours, replace(LYON, neighborhood_prompts=("Lyon is a city in the country of",))),
    (bad_neighbours, replace(LYON, neighborhood_prompts=(ATLAS.relations["city_country"].ask("Rome"),))),
    (bad_neighbours, replace(LYON, neighborhood_prompts=LYON.neighborhood_prompts[:1] * 2)),
    (bad_neighbours, replace(LYON, neighborhood_prompts=())),
    (bad_neighbours, replace(FRANCE, neighborhood_answers=("Paris",) * 10)),
    (bad_neighbours, replace(FRANCE, neighborhood_answers=())),
    (
        bad_neighbours,
        replace(
            HOT,
            neighborhood_prompts=(ATLAS.relations["opposite"].ask("cold"),),
            neighborhood_answers=("hot",),
        ),
    ),
    (fitted_on_measured, replace(FRANCE, paraphrase_prompts=FRANCE.paraphrase_prompts[:3])),
    (
        fitted_on_measured,
        with_test(FRANCE, "RS", ATLAS.relations["capital"].templates[2].replace("{}", "France"), "Paris"),
    ),
    (bad_tests, with_test(LYON, "CI", LYON.rewrite_prompt, "France")),
    (bad_tests, replace(LYON, target_new="Japan" if LYON.target_new != "Japan" else "Kenya")),
    (bad_tests, replace(EURO, ripple=tuple(t for t in EURO.ripple if t.axis != "CII"))),
    (bad_tests, replace(EURO, ripple=tuple(t for t in EURO.ripple if t.axis != "SA"))),
    (bad_names, replace(FRANCE, aliases=())),
    (bad_names, replace(FRANCE, target_new_aliases=("the City",))),
    (bad_names, replace(FRANCE, attribute_prompts=(FRANCE.rewrite_prompt,))),
    (bad_names, replace(FRANCE, generation_prompts=FRANCE.paraphrase_prompts[:3])),
]


@cache
def every_edit() -> tuple[FactEdit, ...]:
    return tuple(edit_of(ATLAS, fact.relation, fact.subject) for fact in all_facts(ATLAS))


@pytest.mark.parametrize("rule", EDIT_RULES, ids=lambda rule: rule.__name__)
def test_edits_keep_the_rule(rule: EditRule) -> None:
    edits = every_edit() if rule is not bad_tests else draw(ATLAS, 150, seed=3)
    assert {fact.case_id: rule(fact) for fact in edits if rule(fact)} == {}


@pytest.mark.parametrize(("rule", "fact"), EDIT_BREAKERS, ids=lambda x: getattr(x, "__name__", ""))
def test_edit_rule_finds_the_fault(rule: EditRule, fact: FactEdit) -> None:
    assert rule(fact)


def test_every_edit_rule_has_a_breaker() -> None:
    assert {rule for rule, _ in EDIT_BREAKERS} == set(EDIT_RULES)


# -- the interface ---------------------------------------------------------------------------------------------


def test_case_ids_name_one_file_each() -> None:
    """Also behind the name of an editor and its mode (`mechedit.data.case_keys`)."""
    ids = [check_case_id(f"ripple-a-long-editors-name-sequential-{fact.case_id}") for fact in every_edit()]
    assert len({text.lower() for text in ids}) == len(ids) == len(atlas.facts())


def test_edits_fill_every_field_and_axis() -> None:
    """Every field of a record is used by some edit, and every axis but FN, which needs a subject with two objects."""
    empty = FactEdit("Ann", "{} speaks", "Dutch", "Greek")
    for field in dataclasses.fields(FactEdit):
        if field.name == "space":  # both texts decide
            continue
        assert any(getattr(fact, field.name) != getattr(empty, field.name) for fact in every_edit())
    axes = {test.axis for fact in every_edit() for test in fact.ripple}
    assert axes == {"RS", "LG", "SA", "CI", "CII"}


def test_a_draw_is_the_same_again_and_another_by_its_seed() -> None:
    first = atlas.edits(60)
    assert first == atlas.edits(60)
    assert first[:20] == atlas.edits(20)
    other = atlas.edits(60, seed=1)
    assert {fact.case_id for fact in first} != {fact.case_id for fact in other}
    same = {fact.case_id: fact for fact in first}
    assert all(same.get(fact.case_id, fact) == fact for fact in other)


def test_a_draw_is_balanced_and_skips() -> None:
    first = atlas.edits(2 * len(atlas.relations()))
    assert set(Counter(fact.relation for fact in first).values()) == {2}
    second = atlas.edits(200, seed=5, skip=first)
    subjects = [fact.subject for fact in (*first, *second)]
    assert len(set(subjects)) == len(subjects)
    assert {fact.relation for fact in atlas.edits(30, relations=["river", "sport"])} == {"river", "sport"}
    chosen = atlas.edits(3, relations=["symbol"])
    assert [atlas.edit("symbol", fact.subject) for fact in chosen] == chosen


def test_what_editors_read_is_reachable() -> None:
    fact = atlas.edit("city_country", "Lyon")
    assert paraphrases(fact, atlas.paraphrase_table())[0] == fact.rewrite_prompt
    assert all("Lyon" in prompt for prompt in implications(fact, atlas.implication_table()))
    assert not set(atlas.held_out("city_country")) & set(atlas.templates("city_country"))
    assert atlas.relation("city_country").templates == atlas.templates("city_country")
    assert atlas.aliases("Beijing") == ("Peking",)
    assert atlas.aliases("Lyon") == ()


def alike() -> Atlas:
    """An atlas in which no next token can tell the two objects from each other."""
    symbol = replace(ATLAS.relations["symbol"], objects={"gold": "Au", "silver": "Ag"})
    return Atlas({"symbol": symbol}, {})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: atlas.edits(0), "n: expected 1 to"),
        (lambda: atlas.edits(10**6), "n: expected 1 to"),
        (lambda: atlas.edits(True), "n: expected 1 to"),
        (lambda: atlas.edits(3, relations=["nothing"]), "relation: expected one of"),
        (lambda: atlas.edits(3, relations="capital"), "in a list"),
        (lambda: atlas.edit("capital", "Atlantis"), "subject: expected one of capital's"),
        (lambda: atlas.templates("nothing"), "relation: expected one of"),
        (lambda: edit_of(alike(), "symbol", "gold"), "begins otherwise than str 'Au'"),
    ],
)
def test_a_wrong_argument_is_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


def test_a_new_object_that_is_the_old_one_cannot_be_built() -> None:
    with pytest.raises(InputError, match="target_new: expected another object than target_true"):
        replace(LYON, target_new="France")
