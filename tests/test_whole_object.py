"""Objects of several tokens: the edit goes on to the whole object, says where it does not, and is kept in a file."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mechedit as me
from mechedit.data.facts import FactEdit
from mechedit.editors import MEGA, EditBook, SteeringEdit
from mechedit.editors.steering.gates import AlwaysOn
from mechedit.editors.steering.steer import steer
from mechedit.editors.steering.whole_object import _shares
from mechedit.models.hooked import HookedModel
from mechedit.models.scoring import score_pairs

EDITOR = MEGA(window=(4, 7), rank=0, gate="always")
REAL = MEGA(window=(12, 23), rank=0, target="new_fact", gate="always")
TALLINN = FactEdit("Thailand", "The capital of {} is the city of", "Bangkok", "Tallinn", relation="capital")
KOREA = FactEdit("Seoul", "The city of {} is located in the country of", "South Korea", "South Africa")


@pytest.fixture(scope="module")
def employer() -> FactEdit:
    return next(fact for fact in me.factworld.edits(200) if fact.target_new == "Delta Foods")


def written(model: HookedModel, edit: SteeringEdit, prompts: list[str], n: int = 4) -> list[str]:
    with steer(model, [replace(edit, gate=AlwaysOn())]) as steered:
        return [text.strip() for text in steered.generate(prompts, max_new_tokens=n)]


def test_what_the_model_goes_on_with_by_itself_needs_no_map(
    factworld_gpt2: HookedModel, employer: FactEdit
) -> None:
    edit = EDITOR.fit(factworld_gpt2, employer)
    assert not edit.following
    assert edit.choice["object_right"] == 1.0
    assert all(
        text.startswith("Delta Foods") for text in written(factworld_gpt2, edit, [employer.rewrite_prompt])
    )


def test_what_the_edit_says_of_its_object_is_what_it_writes(
    factworld_gpt2: HookedModel, employer: FactEdit, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody in the embedded world works for Delta Press: the model goes on to Delta Foods, and the edit says so."""
    fact = replace(employer, target_new="Delta Press")
    with caplog.at_level(logging.WARNING):
        edit = EDITOR.fit(factworld_gpt2, fact)
    texts = written(factworld_gpt2, edit, EDITOR.plain_prompts(fact))
    share = sum(text.startswith("Delta Press") for text in texts) / len(texts)
    assert edit.choice["object_right"] == share < 1.0 == edit.choice["own_right"]
    assert [len(one.tokens) for one in edit.following] == [1]
    assert share == 0
    assert (
        "behind none of the edit's own prompts the model goes on to the whole of 'Delta Press'" in caplog.text
    )


def test_objects_that_begin_alike_are_steered_where_they_part(
    factworld_gpt2: HookedModel, employer: FactEdit
) -> None:
    """At the prompt's end the model says "Silver" with and without the edit: no map belongs there."""
    fact = replace(employer, target_true="Silver Press", target_new="Silver Foods")
    edit = EDITOR.fit(factworld_gpt2, fact)
    first = factworld_gpt2.continuation(fact.rewrite_prompt, fact.target_new)[1][0]
    assert not edit.maps
    assert [one.tokens for one in edit.following] == [(int(first),)]
    assert (
        edit.choice["targets_right"][0] < edit.choice["targets_right"][1]
    )  # "Silver" alone would be all of them
    at_the_end = replace(EDITOR, position="prompt").fit(factworld_gpt2, fact)
    assert at_the_end.choice["own_right"] == 1.0  # of a token that tells nothing


@pytest.mark.parametrize("objects", [("Delta Press", ""), ("Silver Foods", "Silver Press")])
def test_the_shares_of_an_edit_are_those_of_the_steered_model(
    factworld_gpt2: HookedModel, employer: FactEdit, objects: tuple[str, str]
) -> None:
    """Whole passes of the steered model over prompt and object; an edit that goes no way has other shares."""
    new, old = objects
    fact = replace(employer, target_new=new, target_true=old or employer.target_true)
    edit = EDITOR.fit(factworld_gpt2, fact)
    fits = EDITOR.fits(factworld_gpt2, [fact], EDITOR.place(range(4, 8)))
    ids = torch.tensor(fits.prompts[0].whole)
    with steer(factworld_gpt2, [replace(edit, gate=AlwaysOn())]) as steered:
        prompts = factworld_gpt2.encode(EDITOR.plain_prompts(fact))
        hits = torch.stack(
            [scored.hits for scored in score_pairs(steered, [(p, ids) for p in prompts])]
        ).double()
    assert _shares(fits, 0, edit) == [*hits.mean(0).tolist(), float(hits.prod(1).mean())]
    if not old:  # where both objects begin alike the model says that by itself
        assert _shares(fits, 0, replace(edit, alpha=0.0, following=())) != _shares(fits, 0, edit)


def test_a_book_keeps_what_follows(factworld_gpt2: HookedModel, employer: FactEdit, tmp_path: Path) -> None:
    edit = EDITOR.fit(factworld_gpt2, replace(employer, target_new="Delta Press"))
    book = EditBook.of(factworld_gpt2, [edit])
    again = EditBook.load(book.save(tmp_path / "book"))
    (loaded,) = again.edits.values()
    assert [(one.tokens, one.alpha) for one in loaded.following] == [
        (one.tokens, one.alpha) for one in edit.following
    ]
    prompts = [f"{employer.rewrite_prompt} Delta", employer.rewrite_prompt]
    with book.apply(factworld_gpt2) as one:
        expected = one.generate(prompts[1:], max_new_tokens=6)
    with again.apply(factworld_gpt2) as other:
        assert other.generate(prompts[1:], max_new_tokens=6) == expected
    assert again.to_frame()["rank"].tolist() == book.to_frame()["rank"].tolist()


@pytest.mark.real
@pytest.mark.parametrize("fact", [TALLINN, KOREA], ids=["tallinn", "south"])
def test_a_real_model_writes_the_whole_object(smollm2: HookedModel, fact: FactEdit) -> None:
    edit = REAL.fit(smollm2, fact)
    assert written(smollm2, edit, [fact.rewrite_prompt], 6)[0].startswith(fact.target_new)
    without = replace(edit, following=())
    at_the_end = without if edit.maps else replace(REAL, position="prompt").fit(smollm2, fact)
    assert not written(smollm2, at_the_end, [fact.rewrite_prompt], 6)[0].startswith(fact.target_new)
