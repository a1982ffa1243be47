"""The gate of two questions: who by words, what by states and words, against plain computations."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mechedit as me
from mechedit.data import atlas
from mechedit.data.facts import FactEdit
from mechedit.editors import MEGA, EditBook
from mechedit.editors.steering.asked_gate import (
    SHRINKAGE,
    AskedGate,
    answered,
    learn_relations,
    names_subject,
    without_subject,
)
from mechedit.editors.steering.fit_prompts import doubts
from mechedit.editors.steering.paraphrases import paraphrases, relation_templates
from mechedit.editors.steering.relation_prompts import _written, own_relations, phrasings
from mechedit.editors.steering.relation_words import RelationWords
from mechedit.editors.steering.relations import near_relations
from mechedit.evaluation.elsewhere import N_PASSAGES, Cost, running_text
from mechedit.factworld.export import ripple_tests
from mechedit.models.hooked import HookedModel


@pytest.fixture(scope="module")
def mega(factworld_gpt2: HookedModel) -> MEGA:
    return MEGA(window=(5, 7), gate="asked", rank=0, target="avoid").select(
        factworld_gpt2, me.factworld.edits(10, seed=1)
    )


@pytest.fixture(scope="module")
def facts() -> list[FactEdit]:
    return me.factworld.edits(4, seed=0)


@pytest.mark.parametrize(
    ("text", "names", "named"),
    [
        ("The mother tongue of anna novak's is", ["Anna Novak"], True),
        ("Annabel speaks", ["Anna"], False),
        ("Who is (Anna)? She speaks", ["Anna"], True),
        ("Zoe\u0308 speaks", ["Zoë"], True),
        ("東京の首都は", ["東京"], True),
        ("The alias Nova speaks", ["Anna Novak", "Nova"], True),
        ("She speaks", ["Anna Novak"], False),
        ("C++ is written in", ["C++"], True),
    ],
)
def test_who_is_named(text: str, names: list[str], named: bool) -> None:
    assert names_subject(text, names) is named


def test_log_odds_are_those_of_a_plain_kernel_density() -> None:
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(3, 4, generator=draw) * 5
    relations = [name for name in "abc" for _ in range(40)]
    spread = torch.diag(torch.tensor([1.0, 2, 3, 4]))
    states = torch.randn(120, 4, generator=draw) @ spread + means.repeat_interleave(40, 0)
    space = learn_relations(states, relations, layer=1, width=3.0)
    inside = torch.cat([part - part.mean(0) for part in states.split(40)]).double()
    covariance = inside.T @ inside / len(inside)
    covariance += SHRINKAGE * covariance.diag().mean() * torch.eye(4).double()
    z, own = (torch.randn(n, 4, generator=draw).double() * 5 for n in (6, 2))

    def density(points: torch.Tensor) -> torch.Tensor:
        away = z[:, None] - points.double()[None]
        return torch.exp(-torch.einsum("nkd,de,nke->nk", away, covariance.inverse(), away) / 6).mean(1).log()

    expected = density(torch.cat([states[:40], own.float()])) - density(states[40:])
    centres = space.coordinates(own.float())
    scores = space.log_odds(space.coordinates(z.float()), centres, ["a"])
    assert torch.allclose(scores.double(), expected, rtol=1e-3, atol=1e-2)
    wrong = space.log_odds(space.coordinates(z.float()), centres, ["b"])
    assert not torch.allclose(wrong.double(), expected, atol=1.0)
    only = torch.zeros(6, 120, dtype=torch.bool)
    only[:, [0, 1, 50]] = True
    masked = space.log_odds(space.coordinates(z.float()), centres, ["a"], among=only)
    expected = density(torch.cat([states[:2], own.float()])) - density(states[50:51])
    assert torch.allclose(masked.double(), expected, rtol=1e-3, atol=1e-2)


def test_words_are_those_of_a_plain_naive_bayes() -> None:
    table = {"speaks": ["{} speaks", "{} speaks well"], "born": ["{} was born in", "{} comes from"]}
    words = RelationWords.of(table)
    a = 0.3
    vocabulary = 5  # speak, well, born, com, and one for what is never used
    speaks = math.log((2 + a) / (3 + a * vocabulary))
    born = math.log((0 + a) / (2 + a * vocabulary))
    assert words.log_odds("{} speaks", ["speaks"]) == pytest.approx(speaks - born)
    unseen = math.log((1 + a) / (2 + a * vocabulary))
    without = words.log_odds("{} speaks", ["speaks"], without=("speaks", "{} speaks"))
    assert without == pytest.approx(unseen - born)
    assert words.log_odds("{} speaks", ["other"]) == 0.0


@pytest.mark.parametrize(
    ("text", "names", "left"),
    [
        ("It rains. The mother tongue of Anna Novak's is", ["Anna Novak"], "the mother tongue of {}'s is"),
        ("St. John was born in", ["St. John"], "{} was born in"),
        ("Anna? Anna Novak speaks", ["Anna", "Anna Novak"], "{} speaks"),
        ("She speaks", ["Anna"], None),
    ],
)
def test_the_sentence_that_names_the_subject_is_left_without_it(
    text: str, names: list[str], left: str | None
) -> None:
    assert without_subject(text, names) == left


def test_objects_that_a_text_states_are_found() -> None:
    ids = torch.tensor([1, 2, 3, 9, 8, 3, 4])
    assert answered(ids, [(3,), (9, 8)]) == [1, 2, 4]
    assert answered(ids, [(1,), ()]) == []


def test_the_gate_opens_for_the_fact_and_for_nothing_else_about_its_subject(
    factworld_gpt2: HookedModel, mega: MEGA, facts: list[FactEdit]
) -> None:
    for fact in facts:
        foreign = [query.prompt for test in ripple_tests(fact) if test.axis == "RS" for query in test.queries]
        with mega.apply(factworld_gpt2, fact) as edited:
            own = edited.gate_fired([fact.rewrite_prompt, *fact.paraphrase_prompts])
            doubted = edited.gate_fired(doubts(fact, [fact.rewrite_prompt]))
            near = edited.gate_fired(fact.neighborhood_prompts)
            other = edited.gate_fired(foreign)
        assert all(own)
        assert all(doubted)
        assert not any(near)
        assert sum(other) <= len(other) // 4


def test_a_book_keeps_the_gate(
    factworld_gpt2: HookedModel, mega: MEGA, facts: list[FactEdit], tmp_path: Path
) -> None:
    book = EditBook.of(factworld_gpt2, mega.fit_all(factworld_gpt2, facts))
    again = EditBook.load(book.save(tmp_path / "book"))
    first, second = (edit.gate for edit in list(again.edits.values())[:2])
    assert isinstance(first, AskedGate)
    assert isinstance(second, AskedGate)
    assert first.space is second.space
    prompts = [fact.rewrite_prompt for fact in facts] + list(facts[0].neighborhood_prompts)
    with book.apply(factworld_gpt2) as edited:
        expected = edited.logits(prompts)
    with again.apply(factworld_gpt2) as edited:
        assert torch.equal(edited.logits(prompts), expected)


def test_running_text_that_names_nobody_is_not_read_again(
    mega: MEGA,
    facts: list[FactEdit],
    factworld_gpt2: HookedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What an edit costs there is 0 by its words; where the subject is named it is what the whole pass says."""
    fact, place = facts[0], tmp_path / "text.txt"
    place.write_text(
        f"{fact.rewrite_prompt} a thing that nobody in the whole town has heard of before today " * 9
    )
    plain, naming = running_text(factworld_gpt2), running_text(factworld_gpt2, place)
    ran: list[int] = []
    run = HookedModel.run

    def counted(self: HookedModel, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
        ran.append(len(ids))
        return run(self, ids, mask, **options)

    with replace(mega, alpha=3.0).apply(factworld_gpt2, fact) as edited:
        monkeypatch.setattr(HookedModel, "run", counted)
        assert plain.cost(edited) == Cost(0.0, 1.0, N_PASSAGES, plain.digest)
        assert not ran
        shut, cost = edited.shut_by_words(naming.texts), naming.cost(edited)
        assert 0 < sum(shut) < len(shut)
        assert ran == [len(shut) - sum(shut)]
        monkeypatch.setattr(type(edited), "shut_by_words", lambda self, prompts: [False] * len(prompts))
        whole = naming.cost(edited)
        assert ran[1:] == [len(shut)]
    assert cost.kl == pytest.approx(whole.kl, rel=1e-4, abs=1e-7)
    assert cost.top1 == whole.top1
    with replace(mega, alpha=3.0, gate="always").apply(factworld_gpt2, fact) as edited:
        assert not any(edited.shut_by_words(plain.texts))


def test_relations_are_found_by_words_and_none_where_none_fits() -> None:
    table = {
        "P103": ["{} is a native speaker of"],
        "P36": ["The capital of {} is"],
        "P1303": ["{} plays the"],
        "P413": ["{} plays as"],
    }
    assert near_relations("{}, a native", table) == ["P103"]
    assert near_relations("{}'s capital,", table) == ["P36"]
    assert sorted(near_relations("{} plays", table)) == ["P1303", "P413"]
    assert near_relations("{}, in", table) == []


def test_indirect_templates_teach_the_gate_and_no_fit() -> None:
    fact = FactEdit("Ann Lee", "{} is a native speaker of", "Dutch", "Greek")
    table = phrasings(fact)
    indirect = {name: {*table[name]} - {*direct} for name, direct in relation_templates().items()}
    assert all(len(templates) >= 3 for templates in indirect.values())
    assert all(t.count("{}") == 1 for templates in indirect.values() for t in templates)
    assert not {t.replace("{}", "Ann Lee") for t in indirect["P103"]} & {*paraphrases(fact)}
    written = _written([fact], [[fact.rewrite_prompt]], [own_relations(fact)], random.Random(0))
    foreign = {prompt.template for prompt in written if prompt.kind == "foreign"}
    assert foreign & {*indirect["P1412"]}
    assert not foreign & {*table["P103"]}  # "{} was born in" is the place of birth's too


@pytest.mark.real
def test_a_question_that_leans_on_the_fact_opens_the_gate_and_another_does_not(smollm2: HookedModel) -> None:
    """In words that no table of the package has, the others close to the fact: 2 and 4 of 12 may go wrong."""
    known = [
        FactEdit("Croatia", "The official language of {} is", "Croatian", "Spanish"),
        FactEdit("Airbus A320", "{} is produced by", "Airbus", "Nokia"),
        FactEdit("Frank Gehry", "{} holds a citizenship from", "Canada", "Japan"),
        FactEdit("Yazid I", "{} follows the religion of", "Islam", "Judaism"),
    ]
    asked = [
        [
            "A tourist in Croatia hears everybody speak",
            "Television in Croatia is made in",
            "In shops of Croatia they say it in",
        ],
        [
            "Spare parts for the Airbus A320 are ordered from",
            "The Airbus A320 was sold by",
            "The people who designed the Airbus A320 are employed at",
        ],
        [
            "Frank Gehry went home to",
            "The country where Frank Gehry can vote is",
            "Frank Gehry, whose passport is from",
        ],
        [
            "Every week Yazid I prays at the",
            "The faith in which Yazid I was brought up is",
            "Yazid I reads the holy texts of",
        ],
    ]
    other = [
        ["The capital of Croatia is", "The money that is used in Croatia is", "Croatia borders on"],
        [
            "The number of passengers of the Airbus A320 is",
            "The Airbus A320 first flew in",
            "The engines of the Airbus A320 run on",
        ],
        [
            "The wife of Frank Gehry is",
            "Frank Gehry was born in the year",
            "The most famous building by Frank Gehry is",
        ],
        ["The father of Yazid I was", "Yazid I died in the year", "The army of Yazid I fought at"],
    ]
    selection = atlas.edits(20, seed=3)
    editor = MEGA(window=(16, 23), rank=0, target="avoid").select(smollm2, selection)
    opened = []
    for prompts in (asked, other):
        fired = []
        for fact, texts in zip(known, prompts, strict=True):
            with replace(editor, alpha=0.0).apply(smollm2, fact) as edited:
                fired += edited.gate_fired(texts)
        opened.append(sum(fired))
    assert opened[0] >= 10
    assert opened[1] <= 4
