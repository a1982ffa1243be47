"""The space before an answer: by both texts, or as it is said; and every number is that of the text as written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import get_args

import pytest
import torch

from mechedit.attribution import attribute
from mechedit.data import prompts
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.data.joining import Space, gap, joined
from mechedit.data.records import edit_fields
from mechedit.editors.ike import IKE
from mechedit.editors.steering.fit_prompts import TARGETS, doubts, implication_pairs, sources, targets
from mechedit.editors.weights.subject import edit_batch
from mechedit.evaluation.questions import FactQuestions
from mechedit.models.scoring import score_pairs
from reports.errors import InputError
from tests.tiny import tiny_model

TOUCHING = [
    ("中国的首都是", "北京"),
    ("日本の首都は", "東京"),
    ("เมืองหลวงของไทยคือ", "กรุงเทพ"),
    ("中国的首都是", "Paris"),
    ("Qwen是由", "Alibaba"),
    ("中国人口为", "14"),
    ("首都：", "北京"),
    ("「", "東京"),
    ("中国的首都是", "（北京）"),
    ("The capital is 東京。首都は", "Tokyo"),
    ("I don", "'t"),
    ("The city", "'s"),
    ("coal", "-based"),
    ("The year is 20", "24"),
    ("print(x", ")"),
    ("The answer is yes", "."),
    ("50", "%"),
    ("The capital is (", "Paris"),
    ('He said "', "Hello"),
    ("He said “", "Hello"),
    ("The word «", "mot"),
    ("It is called '", "Hamlet"),
    ("capitale de l'", "Espagne"),
    ("Tim O'", "Brien"),
    ("Franco-", "Prussian"),
    ("It costs $", "5"),
    ("2+2=", "4"),
]
APART = [
    ("Paris is in", "France"),
    ("It is", "北京"),
    ("The Japanese word 東京", "means"),
    ("대한민국의 수도는", "서울"),
    ("Москва находится в", "России"),
    ("العاصمة هي", "القاهرة"),
    ("नई दिल्ली", "भारत"),
    ("He won 3", "medals"),
    ("It costs", "$5"),
    ("It is", "-5"),
    ("The play is", '"Hamlet"'),
    ("The play is", "'Hamlet'"),
    ("The play is", "(great)"),
    ("in the", "'90s"),
    ("The platform is", ".NET"),
    ('He said "Hello"', "loudly"),
    ("the players'", "union"),
    ("his dog's name is", "Rex"),
    ("Answer:", "Paris"),
    ("x =", "4"),
    ("x -", "y"),
]


@pytest.mark.parametrize(("prompt", "answer"), TOUCHING)
def test_answers_that_touch(prompt: str, answer: str) -> None:
    assert joined(prompt, answer) == joined(prompt, answer, "never") == prompt + answer
    assert joined(prompt, answer, "always") == f"{prompt} {answer}"


@pytest.mark.parametrize(("prompt", "answer"), APART)
def test_answers_that_stand_apart(prompt: str, answer: str) -> None:
    assert joined(prompt, answer) == joined(prompt, answer, "always") == f"{prompt} {answer}"
    assert joined(prompt, answer, "never") == prompt + answer


@pytest.mark.parametrize("space", get_args(Space))
def test_white_space_is_never_doubled(space: Space) -> None:
    assert gap("Paris is in ", "France", space) == gap("Paris is in", " France", space) == ""
    with pytest.raises(InputError, match="space: expected one of auto, always, never, found 'no'"):
        gap("Paris is in", "France", "no")


@pytest.mark.parametrize(("prompt", "answer"), [*TOUCHING[:3], *TOUCHING[10:17], *APART[:5]])
def test_scores_are_those_of_plain_transformers_on_the_text_as_written(prompt: str, answer: str) -> None:
    model = tiny_model("llama")
    text = joined(prompt, answer)
    ids = model.tokenizer(text).input_ids
    n = len(model.tokenizer(prompt).input_ids)
    logp = model.hf(torch.tensor([ids])).logits[0].log_softmax(-1)
    plain = [float(logp[i - 1, ids[i]]) for i in range(n, len(ids))]
    (scored,) = score_pairs(model, [model.continuation(prompt, answer)])
    assert scored.logps.tolist() == pytest.approx(plain, abs=1e-4)
    space: Space = "always" if text == prompt + answer else "never"
    (other,) = score_pairs(model, [model.continuation(prompt, answer, space=space)])
    assert other.ids != scored.ids  # with the space where there is none, another text is scored


def test_every_text_of_a_fact_is_joined_in_the_same_way() -> None:
    fact = FactEdit("中国", "{}的首都是", "北京", "罗马", paraphrase_prompts=("中国的首府是",))
    spaced = dataclasses.replace(fact, space="always")
    forced = sources(fact, [fact.rewrite_prompt], "forced")
    goals = [text for form in TARGETS for text in targets(fact, [fact.rewrite_prompt], form)]
    texts = [fact.stated("北京"), *forced, *goals, *doubts(fact, [fact.rewrite_prompt])]
    texts += [*implication_pairs(fact, ["c"])[0], *implication_pairs(fact, ["c"])[1]]
    texts += [question.prompt for question in FactQuestions(fact).read_by(["doubt"])]
    texts += [prompts.demonstration(fact.rewrite_prompt, "罗马", fact.paraphrase_prompts[0], "罗马")]
    for text in texts:
        assert "首都是 " not in text
        assert "首府是 " not in text
    assert spaced.stated("北京") == "中国的首都是 北京"
    assert "中国的首都是 罗马" in doubts(spaced, [spaced.rewrite_prompt])[0]
    model = tiny_model("llama")
    assert "中国的首都是罗马" in IKE(demonstrations=0).prefix(model, fact)
    for either in (fact, spaced):
        batch = edit_batch(model, [either], [""])
        whole = model.tokenize(either.stated("罗马"))
        assert torch.equal(batch.texts[0], whole[:-1])


def test_the_choice_is_in_the_result() -> None:
    model = tiny_model("llama")
    touching = attribute(model, "The capital of France is", "Paris", top_k=3, space="never")
    apart = attribute(model, "The capital of France is", "Paris", top_k=3)
    assert not touching.target_token.startswith(" ")
    assert apart.target_token.startswith(" ")
    assert (touching.provenance["data"]["space"], apart.provenance["data"]["space"]) == ("never", "auto")
    with pytest.raises(InputError, match=r"found data\.space"):
        touching - apart


def test_digests_and_saved_edits_of_spaced_facts_are_what_they_were() -> None:
    fact = FactEdit("Ann", "{} speaks", "Dutch", "Greek", neighborhood_prompts=("Bob speaks",))
    fields = dataclasses.asdict(fact)
    del fields["space"]
    assert facts_hash([fact]) == hashlib.sha256(json.dumps([fields], sort_keys=True).encode()).hexdigest()
    assert "space" not in edit_fields(fact)
    assert FactEdit(**edit_fields(dataclasses.replace(fact, space="never"))).space == "never"
    # An answer that now touches is another text than it was: so is the digest.
    suffix = FactEdit("Ann", "{} don", "'t", "e")
    assert facts_hash([suffix]) != facts_hash([dataclasses.replace(suffix, space="always")])
    old = dataclasses.asdict(suffix)
    del old["space"]
    assert facts_hash([suffix]) != hashlib.sha256(json.dumps([old], sort_keys=True).encode()).hexdigest()


def test_the_switch_is_checked() -> None:
    with pytest.raises(InputError, match="space: expected one of auto, always, never, found 'off'"):
        FactEdit("Ann", "{} speaks", "Dutch", "Greek", space="off")  # type: ignore[arg-type]
