"""Facts that a model knows, as a file; facts of one's own; which facts a comparison measures."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

import mechedit as me
from mechedit.cli import main
from mechedit.data import atlas
from mechedit.data.facts import FactEdit, load_facts, save_facts
from mechedit.editors import MEGA
from mechedit.editors.steering.relation_prompts import other_questions, own_relations, relation_table
from mechedit.editors.steering.selection import _placed
from mechedit.evaluation.evaluate import known_facts
from mechedit.factworld.export import ripple_tests
from mechedit.models.embedded import FOLDERS
from mechedit.models.hooked import HookedModel
from mechedit.recipes.configurations import SELECTION, ComparisonConfig, DemoConfig, EvaluationConfig
from mechedit.recipes.editor_choice import chosen_editor
from mechedit.recipes.known_facts import find_known
from mechedit.recipes.splits import compared_facts, demo_facts, evaluated_facts, others_behind
from reports.errors import InputError
from tests.tiny import tiny_model


def test_only_what_the_model_answers_is_known(factworld_gpt2: HookedModel) -> None:
    facts = me.factworld.edits(6)
    false = [replace(fact, target_true=fact.target_new, target_new=fact.target_true) for fact in facts]
    mixed = [*false[:3], *facts[3:]]
    found = find_known(factworld_gpt2, mixed, progress=False)
    assert found.facts == facts[3:]
    assert found.n_asked == 6
    assert known_facts(factworld_gpt2, mixed) == [False] * 3 + [True] * 3
    assert find_known(factworld_gpt2, mixed, limit=1, progress=False).n_asked == 4
    with pytest.raises(InputError, match="answers none"):
        find_known(factworld_gpt2, false, progress=False)


def test_the_command_writes_a_file_that_every_other_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = [replace(f, ripple=ripple_tests(f)) for f in me.factworld.edits(3)]
    given = save_facts(facts, tmp_path / "given.json")
    out = tmp_path / "known.json"
    assert main(["known", "--data", str(given), "--out", str(out), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["known"] == 3
    assert list(load_facts(out)) == facts


def test_the_command_refuses_what_it_could_not_write_before_it_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = save_facts(me.factworld.edits(3), tmp_path / "given.json")
    before = given.read_bytes()
    for out, said in (
        (given, "is the file that is read (--data); choose another name"),
        (tmp_path / "." / "given.json", "is the file that is read"),
        (tmp_path, "is a folder; name a file in an existing folder"),
        (tmp_path / "none" / "x.json", "has no folder"),
    ):
        # a model that is nowhere: it is not looked for
        assert main(["known", "--model", "./none", "--data", str(given), "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("mechedit: error: out: ")
        assert said in line
    assert given.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "at least one record"),
        ("{", "not readable as json"),
        ('[{"prompt": "x"}]', "record 0: expected"),
        (None, "found none"),
    ],
)
def test_the_command_refuses_data_in_one_line(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "given.json").write_text(text)
    out = tmp_path / "known.json"
    assert main(["known", "--data", str(tmp_path / "given.json"), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not out.exists()


def test_a_model_that_knows_none_writes_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    false = [replace(f, target_true=f.target_new, target_new=f.target_true) for f in me.factworld.edits(2)]
    given, out = save_facts(false, tmp_path / "given.json"), tmp_path / "known.json"
    assert main(["known", "--data", str(given), "--out", str(out), "--quiet"]) == 2
    assert "facts of its own (--data)" in capsys.readouterr().err
    assert not out.exists()


def test_facts_keep_all_that_belongs_to_them(tmp_path: Path) -> None:
    facts = atlas.edits(12)
    assert any(fact.ripple for fact in facts)
    assert any(fact.neighborhood_answers for fact in facts)
    assert list(load_facts(save_facts(facts, tmp_path / "facts.json"))) == facts


def test_a_fact_in_ones_own_words(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    row = {"subject": "Ann", "prompt": "Ann speaks", "target_true": "Dutch", "target_new": "Greek"}
    file.write_text(json.dumps([row]))
    assert load_facts(file)[0].prompt == "{} speaks"
    file.write_text(json.dumps([{**row, "promt": "x"}]))
    with pytest.raises(InputError, match="promt"):
        load_facts(file)
    file.write_text(json.dumps([{**row, "ripple": [{"axis": "RS", "queries": [{"prompt": "x"}]}]}]))
    with pytest.raises(InputError, match="answers"):
        load_facts(file)
    with pytest.raises(InputError, match="out"):
        save_facts([], tmp_path / "none" / "x.json")


def test_few_facts_of_ones_own_are_edited_by_what_is_chosen_on_the_atlas(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As the guide says: a model folder, a file of three facts, an editor that chooses on others."""
    folder = tmp_path / "my-model"
    folder.symlink_to(FOLDERS["factworld"])
    facts = me.factworld.edits(7)
    # none, one and four behind the three that are measured; one is none to choose by, and is measured by an extension
    for n, behind, extended in ((3, 0, 3), (4, 0, 4), (7, 4, 3)):
        data = str(save_facts(facts[:n], tmp_path / f"{n}.json"))
        config = EvaluationConfig(data=data, model=str(folder), editor="sake", limit=3)
        measured, first = evaluated_facts(config)
        assert list(measured) == list(first) == facts[:3]
        assert others_behind(first, data, n=SELECTION) == facts[n - behind : n]
        assert len(evaluated_facts(replace(config, limit=7, begun_with=3))[0]) == extended
    config = replace(config, data=str(tmp_path / "3.json"))
    editor = chosen_editor(config, me.load_model(folder), facts[:3], data=config.data)
    assert not editor.needs_selection
    assert "sake is chosen on 20 facts of the atlas that the model knows" in caplog.text


def test_of_a_file_no_fact_is_measured_under_two_seeds(tmp_path: Path) -> None:
    data = str(save_facts(me.factworld.edits(20), tmp_path / "facts.json"))
    config = ComparisonConfig(model="smollm2", data=data, limit=5, selection=4, seeds=(0, 1, 2))
    splits = [compared_facts(config, seed) for seed in config.seeds]
    measured = [fact.subject for facts, _ in splits for fact in facts]
    assert len(set(measured)) == 15
    for facts, others in splits:
        assert not {fact.subject for fact in facts} & {fact.subject for fact in others}
        assert len(others) >= 2
    with pytest.raises(InputError, match="data"):
        compared_facts(replace(config, limit=10), 2)


def test_the_demo_says_what_a_model_knows_too_little_of() -> None:
    with pytest.raises(InputError, match=r"answers none|choose by"):
        demo_facts(tiny_model("llama"), DemoConfig(model="tiny", limit=1, selection=1), progress=False)


def test_where_no_statement_succeeds_the_window_stands_by_depth(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    facts = [FactEdit(f"Subject {i}", "The language of {} is", "Dutch", "Greek", case_id=i) for i in range(3)]
    with caplog.at_level(logging.WARNING):
        chosen, outcomes = _placed(MEGA(), model, facts, None)
    assert chosen.window == (1, 2)
    assert outcomes == {"window_by": "depth"}
    assert "by depth alone" in caplog.text


def test_other_questions_ask_for_none_of_the_facts_relations() -> None:
    fact = FactEdit("Kenya", "{} belongs to the continent of", "Africa", "Asia")
    assert "continent" in own_relations(fact)
    assert "P30" in own_relations(fact)
    table = relation_table(fact)
    mine = {template.replace("{}", "Kenya") for name in own_relations(fact) for template in table[name]}
    assert not mine & {*other_questions(fact)}
