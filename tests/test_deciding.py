"""The tokens that decide: what tells two objects apart is decoded, not what they share and no bare space.

The oracle is greedy decoding with plain transformers, a token at a time, compared as ids or as text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mechedit.anatomy.explain import explain
from mechedit.anatomy.one_fact import Setting, measure_fact
from mechedit.attribution import Attribution, attribute, attribute_many, contrast
from mechedit.data.facts import FactEdit
from mechedit.editors import FT, NoEdit
from mechedit.evaluation.evaluate import evaluate, known_facts
from mechedit.evaluation.measure import METRICS, measure
from mechedit.evaluation.metrics import starts_answer
from mechedit.evaluation.questions import FactQuestions
from mechedit.faithfulness.rankings import rank
from mechedit.models.deciding import begins, decide, says_object, through_text, written_text
from mechedit.models.hooked import HookedModel, load_model
from mechedit.models.scoring import score_pairs
from reports.errors import InputError
from tests import tiny
from tests.tiny import tiny_model

YEARS = FactEdit("Thomas Joannes Stieltjes", "{} was born in", "1963", "1945", case_id=1)
CITIES = FactEdit("The Space Needle", "{} stands in", "San Diego", "San Antonio", case_id=2)


def digits(bos: bool = False) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with each digit a token, and the space before a number another: as LLaMA's and SmolLM2's."""
    tokenizer = tiny.build_tokenizer(bos=bos)
    core = tokenizer.backend_tokenizer
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    core.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=tiny.END, eos_token=tiny.END)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tiny.build("llama", tmp_path_factory.mktemp("digits") / "llama")
    digits().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> HookedModel:
    return load_model(str(folder), device="cpu")


@cache
def fitted() -> FT:
    return FT(layer=1, steps=200, lr=5e-2)


@pytest.fixture(scope="module")
def taught(folder: Path) -> Iterator[HookedModel]:
    """A model that says the new object of both facts."""
    own = load_model(str(folder), device="cpu")
    with fitted().apply(own, [YEARS, CITIES]) as edited:
        yield edited


def greedy(model: HookedModel, prompt: str, n: int) -> list[int]:
    """Plain transformers, one token after another."""
    ids = list(model.tokenizer(prompt).input_ids)
    for _ in range(n):
        ids.append(int(model.hf(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-n:]


def plain_logp(model: HookedModel, prompt: str, tokens: list[int]) -> list[float]:
    ids = [*model.tokenizer(prompt).input_ids, *tokens]
    logp = model.hf(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(logp[len(ids) - len(tokens) + i - 1, t]) for i, t in enumerate(tokens)]


def acc(model: HookedModel, fact: FactEdit) -> float:
    """Acc of a fact on a model, whether it knows the true object or not."""
    (score,) = measure(model, FactQuestions(fact).of_roles(["rewrite"]))
    return METRICS["Acc"].score(score)


def test_the_tokenizer_writes_a_bare_space_before_a_number(model: HookedModel) -> None:
    _, ids = model.continuation(YEARS.rewrite_prompt, "1945")
    assert [model.tokenizer.decode([int(i)]) for i in ids] == [" ", "1", "9", "4", "5"]
    assert through_text(model.tokenizer, ids.tolist()) == 2
    _, other = model.continuation(YEARS.rewrite_prompt, "1963")
    decided = decide(model.tokenizer, ids.tolist(), other.tolist())
    assert (decided.n_new, decided.n_old, decided.shared) == (4, 4, 3)


@pytest.mark.parametrize("fact", [YEARS, CITIES], ids=["years", "cities"])
def test_acc_is_what_greedy_decoding_writes(taught: HookedModel, model: HookedModel, fact: FactEdit) -> None:
    ids = taught.continuation(fact.rewrite_prompt, fact.target_new)[1].tolist()
    assert greedy(taught, fact.rewrite_prompt, len(ids)) == ids
    turned = dataclasses.replace(fact, target_new=fact.target_true, target_true=fact.target_new)
    # The taught model knows `turned`, and no edit makes it say its new object, though both begin alike.
    assert known_facts(taught, [turned]) == [True]
    table = evaluate(taught, NoEdit(), [turned], progress=False).summary().set_index("metric")["value"]
    assert (table["Acc"], table["ES"], table["ES_acc"]) == (0.0, 0.0, 0.0)
    assert acc(taught, fact) == 1.0
    first = str(taught.tokenizer.decode([ids[0]]))
    assert starts_answer(first, [turned.target_new]) == float(fact is CITIES)  # the first token alone says so
    assert says_object(model, [fact.rewrite_prompt], fact.target_new, fact.target_true) == [False]
    assert says_object(taught, [fact.rewrite_prompt], fact.target_new, fact.target_true) == [True]


def test_an_edit_that_takes_is_a_success_on_years(taught: HookedModel) -> None:
    """ES_acc 1 and Acc 1: what the first token alone, a bare space, gave was 0."""
    back = dataclasses.replace(YEARS, target_new="1963", target_true="1945")
    result = evaluate(taught, fitted(), [back], progress=False)
    table = result.summary().set_index("metric")["value"]
    assert (result.n_known, table["ES_acc"], table["Acc"]) == (1, 1.0, 1.0)
    row = result.prompts.iloc[0]
    assert (row["scored_new"], row["scored_true"]) == (" 196", " 194")
    assert starts_answer(" ", ["1963"]) == 0.0


def test_one_decisive_token_is_read_as_it_always_was() -> None:
    model = tiny_model("gpt2")
    fact = FactEdit(
        "Anna Keller", "{} works as a", "teacher", "king", neighborhood_prompts=("Tim works as a",)
    )
    result = evaluate(model, NoEdit(), [dataclasses.replace(fact, target_true=" born")], progress=False)
    assert result.n_total == 1
    ids = [model.continuation(fact.rewrite_prompt, t)[1].tolist() for t in ("teacher", "born")]
    decided = decide(model.tokenizer, *ids)
    assert (decided.n_new, decided.n_old, decided.one_token) == (1, 1, True)


def test_begins_against_text(model: HookedModel) -> None:
    """The last deciding place also takes another segmentation; a text that begins both objects decides nothing."""
    tokenizer = model.tokenizer
    token = {text: tokenizer(text).input_ids[0] for text in (" born", " in", " b")}
    decided = decide(tokenizer, [token[" born"]], [token[" in"]])
    assert begins(tokenizer, [token[" born"]], decided, ("born", "in")) == 1.0
    assert begins(tokenizer, [token[" b"]], decided, ("born", "in")) == 1.0
    assert begins(tokenizer, [token[" b"]], decided, ("born", "bread")) == 0.0
    assert begins(tokenizer, [token[" in"]], decided, ("born", "in")) == 0.0
    assert begins(tokenizer, [None], decided, ("born", "in")) != begins(
        tokenizer, [None], decided, ("born", "in")
    )


def test_an_object_that_begins_the_other_one(taught: HookedModel) -> None:
    """It writes "San Antonio": that is not "San", though all tokens of "San" are written."""
    prompt = CITIES.rewrite_prompt
    ids = taught.continuation(prompt, "San Antonio")[1].tolist()
    assert greedy(taught, prompt, len(ids)) == ids
    assert says_object(taught, [prompt], "San Antonio", "San") == [True]
    assert says_object(taught, [prompt], "San", "San Antonio") == [False]
    assert says_object(taught, [prompt], "San") == [True]  # alone
    shorter = dataclasses.replace(CITIES, target_new="San", target_true="San Antonio")
    assert acc(taught, shorter) == 0.0
    longer = dataclasses.replace(CITIES, target_new="San Antonio", target_true="San")
    assert known_facts(taught, [longer, shorter]) == [False, True]
    with pytest.raises(InputError, match="start alike to the end of one"):
        contrast(taught, prompt, "San", "San Antonio")


def test_another_spelling_is_read_as_far_as_it_decides(taught: HookedModel) -> None:
    named = dataclasses.replace(CITIES, target_true="Diego", target_new="Rome")
    assert acc(taught, named) == 0.0
    assert acc(taught, dataclasses.replace(named, target_new_aliases=("San Antonio",))) == 1.0
    alike = dataclasses.replace(named, target_true="San Antonio", target_new_aliases=("San Diego",))
    assert acc(taught, alike) == 0.0


def test_other_spellings_that_cannot_begin_are_not_read(
    taught: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read or not, a spelling counts where the model's greedy text begins with what decides."""
    asked: list[str] = []

    def watched(model: HookedModel, pairs: Any, **options: Any) -> Any:
        asked.extend(str(model.tokenizer.decode(ids)).strip() for _, ids in pairs)
        return score_pairs(model, pairs, **options)

    monkeypatch.setattr("mechedit.evaluation.measure.score_pairs", watched)
    fact = dataclasses.replace(CITIES, target_true="San Diego", target_new="Rome")
    said = greedy(taught, fact.rewrite_prompt, 2)
    names = ("San Antonio", "San Francisco", "Santa Fe", "Oslo", "San", "Antonio")
    for name in names:
        asked.clear()
        ids = taught.continuation(fact.rewrite_prompt, name)[1].tolist()
        hit = acc(taught, dataclasses.replace(fact, target_new_aliases=(name,)))
        assert hit == float(name in ("San Antonio", "San")), name
        assert (name in asked) == (ids[0] == said[0] and len(ids) > 1), name


def test_a_lone_target_is_attributed_through_its_first_text(model: HookedModel, tmp_path: Path) -> None:
    prompt = YEARS.rewrite_prompt
    attr = attribute(model, prompt, "1945", top_k=5)
    ids = model.continuation(prompt, "1945")[1].tolist()
    assert (attr.target_token, attr.scored_ids, attr.target_scored) == (" 1", tuple(ids[:2]), "first")
    assert attr.logp == pytest.approx(sum(plain_logp(model, prompt, ids[:2])), abs=1e-4)
    assert attr.logp != pytest.approx(plain_logp(model, prompt, ids[:1])[0], abs=1e-2)  # the bare space alone
    assert abs(attr.completeness_gap) < 1e-3
    assert attr.prompt_length == len(model.tokenize(prompt))
    (many,) = attribute_many(model, [prompt], ["1945"], top_k=5, progress=False)
    assert many.scored_ids == attr.scored_ids
    assert many.logp == pytest.approx(attr.logp, abs=1e-4)
    summed = attribute(model, prompt, "1945", top_k=5, tokens="sum")
    assert (summed.target_token, summed.n_scored) == (" 1945", 5)
    word = attribute(model, prompt, "Rome", top_k=5)
    assert word.n_scored == 1
    place = attr.save(tmp_path / "attr")
    assert Attribution.load(place).equals(attr)
    assert set(rank(model, prompt, "1945", k=2)) == {"nlka", "dla", "attribution_patching", "activation"}


def test_pieces_of_a_character_are_no_text(model: HookedModel) -> None:
    """Each byte of a Chinese character is a token here: a target is read through its first whole character."""
    attr = attribute(model, "中国的首都是", "北京", top_k=3)
    assert (attr.target_token, attr.n_scored, len(attr.target_ids)) == ("北", 3, 6)
    assert attr.logp == pytest.approx(sum(plain_logp(model, "中国的首都是", list(attr.scored_ids))), abs=1e-4)
    fact = FactEdit("中国", "{}的首都是", "北京", "罗马")
    with fitted().apply(model, [fact]) as edited:
        assert (
            greedy(edited, fact.rewrite_prompt, 6)
            == model.continuation(fact.rewrite_prompt, "罗马")[1].tolist()
        )
        assert acc(edited, fact) == 1.0
        assert acc(edited, dataclasses.replace(fact, target_new="北京", target_true="罗马")) == 0.0


def test_a_result_of_an_earlier_version_loads(model: HookedModel, tmp_path: Path) -> None:
    attr = attribute(model, YEARS.rewrite_prompt, "Rome", top_k=3)
    place = Path(attr.save(tmp_path / "attr"))
    (record,) = place.glob("*.json")
    saved = json.loads(record.read_text(encoding="utf-8"))
    del saved["values"]["scored_ids"]
    record.write_text(json.dumps(saved), encoding="utf-8")
    old = Attribution.load(place)
    assert (old.scored_ids, old.n_scored, old.prompt_length) == ((), 1, attr.prompt_length)


@pytest.mark.parametrize(
    ("fact", "texts"), [(YEARS, ("4", "6")), (CITIES, (" An", " D"))], ids=["years", "cities"]
)
def test_objects_that_begin_alike_are_contrasted_where_they_differ(
    model: HookedModel, fact: FactEdit, texts: tuple[str, str]
) -> None:
    prompt = fact.rewrite_prompt
    both = contrast(model, prompt, fact.target_new, fact.target_true, top_k=3)
    assert both.a.target_token.startswith(texts[0])
    assert both.b.target_token.startswith(texts[1])
    logps = []
    for target in (fact.target_new, fact.target_true):
        ids = model.continuation(prompt, target)[1].tolist()
        logps.append(plain_logp(model, prompt, ids)[decide(model.tokenizer, *pair(model, fact)).shared])
    assert both.logp == pytest.approx(logps[0] - logps[1], abs=1e-4)
    assert abs(both.completeness_gap) < 1e-3


def pair(model: HookedModel, fact: FactEdit) -> list[list[int]]:
    objects = (fact.target_new, fact.target_true)
    return [model.continuation(fact.rewrite_prompt, target)[1].tolist() for target in objects]


@pytest.mark.parametrize("fact", [YEARS, CITIES], ids=["years", "cities"])
def test_the_explanation_looks_where_the_objects_differ(
    taught: HookedModel, model: HookedModel, fact: FactEdit
) -> None:
    why = explain(taught, NoEdit(), fact).texts.iloc[0]
    assert bool(why["ok"])
    turned = dataclasses.replace(fact, target_new=fact.target_true, target_true=fact.target_new)
    row = explain(taught, NoEdit(), turned).texts.iloc[0]
    assert not row["ok"]
    shared = decide(model.tokenizer, *pair(model, fact)).shared
    ids = pair(model, turned)
    logps = [plain_logp(taught, fact.rewrite_prompt, tokens)[shared] for tokens in ids]
    assert row["margin_after"] == pytest.approx(logps[0] - logps[1], abs=1e-3)
    assert row["behind"] == taught.tokenizer.decode(ids[0][:shared])


def test_anatomy_leaves_out_what_its_one_pass_does_not_tell_apart(taught: HookedModel) -> None:
    alike = dataclasses.replace(YEARS, target_new="1963", target_true="1945")
    mixed = dataclasses.replace(YEARS, target_new="Rome", target_true="1945")
    reasons = [
        measure_fact(taught, fact, [Setting(NoEdit(), "no_edit")], top_k=2)["skipped"]
        for fact in (alike, mixed)
    ]
    assert reasons == ["both objects start with the same token", "an object starts with a token without text"]


def test_text_behind_a_bare_space(taught: HookedModel) -> None:
    assert written_text(taught, [YEARS.rewrite_prompt, CITIES.rewrite_prompt]) == [
        " 1",
        str(taught.tokenizer.decode(greedy(taught, CITIES.rewrite_prompt, 1))),
    ]


@pytest.mark.real
def test_a_real_model_tells_new_york_from_new_delhi(smollm2: HookedModel) -> None:
    fact = FactEdit("The Statue of Liberty", "{} is located in", "New York", "New Delhi")
    result = evaluate(smollm2, NoEdit(), [fact], progress=False)
    assert smollm2.generate([fact.rewrite_prompt], max_new_tokens=2) == [" New York"]
    assert result.n_known == 1
    assert result.summary().set_index("metric")["value"]["Acc"] == 0.0
    year = attribute(smollm2, "World War II began in 1939 and ended in", "1945", top_k=2)
    assert year.target_token == " 1"
