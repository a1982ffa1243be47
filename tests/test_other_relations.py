"""The same subject under other relations: asked in words that nothing is fitted on, and counted as it is answered."""

from __future__ import annotations

import pytest

import mechedit as me
from mechedit.data import atlas
from mechedit.data.facts import FactEdit
from mechedit.editors import MEGA, NoEdit
from mechedit.editors.steering.paraphrases import paraphrases
from mechedit.editors.steering.relation_prompts import own_relations, relation_table
from mechedit.evaluation.evaluate import evaluate
from mechedit.evaluation.other_relations import N_OTHER, other_relations
from mechedit.models.hooked import HookedModel


def test_no_prompt_is_one_that_the_gate_or_the_fit_knows() -> None:
    for fact in atlas.edits(20):
        known = {
            t.replace("{}", fact.subject) for templates in relation_table(fact).values() for t in templates
        }
        prompts = other_relations(fact)
        assert len(prompts) == N_OTHER
        assert not {*prompts} & (known | {*paraphrases(fact)} | {*fact.paraphrase_prompts})


def test_no_prompt_asks_for_the_fact_itself() -> None:
    """Mother tongue and birth place are CounterFact's; the atlas has relations that are the like of the second."""
    fact = FactEdit("Ann Lee", "{} was born in", "Paris", "Rome")
    templates = {t: name for name in atlas.relations() for t in atlas.held_out(name)}
    asked = {templates[prompt.replace("Ann Lee", "{}")] for prompt in other_relations(fact)}
    assert not asked & {*own_relations(fact)}
    assert "birth_country" in own_relations(fact)
    assert (
        other_relations(FactEdit("Ann Lee", "{}, in", "Paris", "Rome")) == []
    )  # any of them might be its own


@pytest.mark.parametrize(
    "editor", [NoEdit(), MEGA(window=(5, 7), rank=0, gate="always")], ids=["none", "ungated"]
)
def test_other_is_the_share_of_next_tokens_that_stay(
    factworld_gpt2: HookedModel, editor: NoEdit | MEGA
) -> None:
    model, fact = factworld_gpt2, me.factworld.edits(1)[0]
    result = evaluate(model, editor, [fact], families=["subject"], progress=False)
    prompts = other_relations(fact)
    before = model.logits(prompts).argmax(-1)
    with editor.apply(model, fact) as edited:
        kept = float((edited.logits(prompts).argmax(-1) == before).double().mean())
    table = result.summary().set_index("metric")["value"]
    assert float(table["Other"]) == kept
    assert kept == 1.0 if isinstance(editor, NoEdit) else kept < 1.0
