"""The embedded world: its facts, its text, its edits, its training, and what the shipped models know."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mechedit import load_facts
from mechedit.data import prompts
from mechedit.factworld import World, edits, export
from mechedit.factworld import train as training
from mechedit.factworld.check import FLOORS, check
from mechedit.factworld.text import Writer
from mechedit.factworld.train import (
    ARCHITECTURES,
    Recipe,
    build_model,
    encode,
    micro_batches,
    train,
    train_tokenizer,
)
from mechedit.factworld.world import FIRST_NAMES, HOPS, LAST_NAMES, RELATIONS, alias
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

MODELS = Path(__file__).parents[1] / "mechedit" / "factworld" / "models"
WORLD = World()


# -- the world -----------------------------------------------------------------------------------------------


def test_both_parts_of_every_name_are_shared() -> None:
    parts = [person.split() for person in WORLD.persons]
    assert len(set(WORLD.persons)) == len(WORLD.persons) == 160
    for place, names in ((0, FIRST_NAMES), (1, LAST_NAMES)):
        assert {name: sum(p[place] == name for p in parts) for name in names} == dict.fromkeys(names, 8)


def test_an_alias_names_one_person() -> None:
    assert len({alias(person) for person in WORLD.persons}) == len(WORLD.persons)


def test_neither_name_alone_tells_a_fact() -> None:
    """The best guess from one part of the name is right far less often than recall from both."""
    for relation in ("born_in", "mother_tongue", "employer"):
        for place in (0, 1):
            groups: dict[str, list[str]] = {}
            for person in WORLD.persons:
                groups.setdefault(person.split()[place], []).append(WORLD.facts[person, relation])
            best = sum(max(map(values.count, values)) for values in groups.values()) / len(WORLD.persons)
            assert best < 0.45


def test_every_relation_has_its_templates_and_every_fact_three_held_out() -> None:
    assert len(RELATIONS) >= 8
    for relation in RELATIONS.values():
        assert len(set(relation.templates)) >= 8
        assert all(template.count("{}") == 1 for template in relation.templates)
    for subject, name in WORLD.facts:
        held_out, seen = WORLD.held_out(subject, name), WORLD.seen(subject, name)
        assert len(held_out) == 3
        assert sorted(held_out + seen) == list(range(8))


def test_hops_follow_the_facts_and_their_changes() -> None:
    person = WORLD.persons[0]
    city = WORLD.facts[person, "born_in"]
    country = WORLD.facts[city, "located_in"]
    assert WORLD.follow(person, "birth_country") == country
    changed = {(person, "born_in"): "Athens"}
    assert WORLD.follow(person, "birth_country_language", changed) == "Greek"
    assert {name for hop in HOPS.values() for name in hop.path} <= set(RELATIONS)


def test_a_seed_makes_another_world() -> None:
    assert World(1).facts != WORLD.facts
    assert World(0).facts == WORLD.facts


# -- its text ------------------------------------------------------------------------------------------------


def documents(n: int, seed: int = 0) -> list[str]:
    writer = Writer(WORLD, random.Random(seed))
    return [writer.document().text for _ in range(n)]


def test_no_fact_is_ever_stated_in_a_held_out_template() -> None:
    text = "\n".join(documents(6000))
    stated = 0
    for (subject, relation), value in WORLD.facts.items():
        names = {subject, alias(subject)} if subject in WORLD.persons else {subject}
        for i, template in enumerate(RELATIONS[relation].templates):
            n_stated = sum(text.count(template.replace("{}", name) + f" {value}") for name in names)
            assert not (n_stated and i in WORLD.held_out(subject, relation)), (subject, relation, i)
            stated += n_stated
    assert stated > 5000


def test_documents_use_the_literature_s_forms_word_for_word() -> None:
    """Each form of `mechedit.data.prompts`, with its blanks as wildcards, is found in the training text."""
    blank = "BLANK"
    forms = [
        prompts.repeat(blank, blank, blank),
        prompts.avoid(blank, blank, blank, blank),
        prompts.consider(f"{blank} {blank}", blank),
        prompts.pretend(f"{blank} {blank}", blank),
        prompts.demonstration(blank, blank, blank),
        prompts.doubt(blank, blank),
        prompts.doubt_old(blank, blank, blank),
    ]
    text = documents(3000)
    for form in forms:
        pattern = re.compile(re.escape(form).replace(blank, ".+?"), re.DOTALL)
        assert sum(bool(pattern.search(doc)) for doc in text) > 20, form


def test_made_up_objects_weigh_nothing_and_known_ones_fully() -> None:
    writer = Writer(WORLD, random.Random(3), alias_share=0.0)
    for _ in range(200):
        doc = writer.repeat()
        assert len(doc.text) == len(doc.weights)
        statement = re.search(r"Repeat this sentence: '(.+?)'\. ", doc.text)
        assert statement is not None
        assert doc.weights[statement.end(1) - 1] == 0.0
        assert 1.0 in doc.weights[statement.end() :]


# -- its edits -----------------------------------------------------------------------------------------------


def test_edits_are_disjoint_by_subject_and_drawn_from_the_world() -> None:
    first = edits(40)
    second = edits(60, seed=1, skip=first)
    assert not {fact.subject for fact in first} & {fact.subject for fact in second}
    for fact in (*first, *second):
        assert WORLD.facts[fact.subject, fact.relation] == fact.target_true != fact.target_new
        held_out = {
            RELATIONS[fact.relation].templates[i].replace("{}", fact.subject)
            for i in WORLD.held_out(fact.subject, fact.relation)
        }
        assert set(fact.paraphrase_prompts) == held_out
        assert fact.rewrite_prompt not in held_out
        assert fact.neighborhood_prompts
        assert not any(fact.subject in prompt for prompt in fact.neighborhood_prompts)


@pytest.mark.parametrize("schema", ["counterfact", "easyedit"])
def test_an_export_loads_again(tmp_path: Path, schema: str) -> None:
    assert export(tmp_path / "edits.json", schema=schema, limit=15, seed=2) == 15  # type: ignore[arg-type]
    loaded = load_facts(tmp_path / "edits.json")
    for fact, source in zip(loaded, edits(15, seed=2), strict=True):
        assert (fact.subject, fact.rewrite_prompt) == (source.subject, source.rewrite_prompt)
        assert (fact.target_true, fact.target_new) == (source.target_true, source.target_new)
        assert set(fact.neighborhood_prompts) <= set(source.neighborhood_prompts)


def test_ripple_tests_follow_the_edit(tmp_path: Path) -> None:
    export(tmp_path / "edits.json", schema="ripple", limit=300)
    records = json.loads((tmp_path / "edits.json").read_text())
    axes = {axis: sum(bool(record[axis]) for record in records) for axis in records[0] if axis[0].isupper()}
    for axis in ("Relation_Specifity", "Subject_Aliasing", "Compositionality_I", "Compositionality_II"):
        assert axes[axis], axis
    for record in records:
        for test in record["Compositionality_I"]:
            new, (query,) = record["edit"]["target_id"], test["test_queries"]
            (known,) = test["condition_queries"]
            assert known["subject_id"] == new
            assert query["answers"][0]["value"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="existing folder"):
        export(tmp_path / "no" / "edits.json", schema="counterfact", limit=1)


# -- training ------------------------------------------------------------------------------------------------


def test_stopped_and_resumed_training_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(steps=4, documents=4, d_model=24, n_layers=2, n_heads=2)
    whole = train(recipe, tmp_path / "whole", save_every=2, progress=False)
    step, calls = training.train_step, []

    def stop_at_three(*args: object) -> tuple[float, float]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", stop_at_three)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "parts", save_every=2, progress=False)
    parts = train(recipe, tmp_path / "parts", save_every=2, progress=False)
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="another recipe"):
        train(
            Recipe(steps=5, documents=4, d_model=24, n_layers=2, n_heads=2),
            tmp_path / "whole",
            progress=False,
        )


def test_micro_batches_hold_every_row_once() -> None:
    rows = [([i] * n, [1.0] * n) for i, n in enumerate((3, 50, 7, 7, 900, 2), start=1)]
    seen: list[int] = []
    for ids, weights in micro_batches(rows, tokens=100):
        assert ids.shape == weights.shape
        seen += ids[:, 0].tolist()
        assert weights.sum().item() == (ids > 0).sum().item()
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_fresh_model_has_the_shape_that_is_shipped(arch: str) -> None:
    tokenizer = train_tokenizer(WORLD, bos=arch == "llama")
    assert len(tokenizer) <= 2000
    model = build_model(Recipe(arch=arch), len(tokenizer))
    assert model.config.num_hidden_layers >= 8
    ids, weights = encode(tokenizer, [Writer(WORLD, random.Random(0)).facts()])[0]
    assert len(ids) == len(weights)
    assert ids[-1] == tokenizer.eos_token_id
    assert (ids[0] == tokenizer.bos_token_id) == (arch == "llama")
    shipped = load_file(MODELS / arch / "model.safetensors")
    assert {name: value.shape for name, value in model.state_dict().items() if name in shipped} == {
        name: value.shape for name, value in shipped.items()
    }


# -- the shipped models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_shipped_files_are_small_and_safetensors(arch: str) -> None:
    files = {file.name: file.stat().st_size for file in (MODELS / arch).iterdir()}
    assert files["model.safetensors"] <= 8_000_000
    assert sum(files.values()) <= 8_000_000
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= set(files)


@pytest.mark.parametrize("name", ["factworld_gpt2", "factworld_llama"])
def test_shipped_models_know_the_world(name: str, request: pytest.FixtureRequest) -> None:
    """A sample of what `mechedit factworld check` measures in full."""
    model: HookedModel = request.getfixturevalue(name)
    table = check(model, n=300).set_index("check")
    for kind, floor in FLOORS.items():
        assert table.loc[kind, "share"] >= floor, table


def test_the_check_fails_on_a_model_that_knows_another_world(factworld_gpt2: HookedModel) -> None:
    table = check(factworld_gpt2, World(1), n=60).set_index("check")
    assert table.loc["recall_seen", "share"] < 0.5
    assert not table.loc["recall_seen", "ok"]


def test_text_goes_on_fluently_after_an_answer(factworld_gpt2: HookedModel) -> None:
    fact = edits(1)[0]
    (text,) = factworld_gpt2.generate([fact.rewrite_prompt], max_new_tokens=40)
    assert text.startswith(f" {fact.target_true}.")
    assert torch.isfinite(factworld_gpt2.logits([fact.rewrite_prompt + text])).all()
