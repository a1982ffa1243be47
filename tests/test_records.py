"""Records as people have them: optional fields, lists, any line ending; and facts that no score could speak of."""

from __future__ import annotations

import codecs
import dataclasses
import json
import logging
import unicodedata
from pathlib import Path
from typing import Any

import pytest

import mechedit as me
from mechedit.cli import main
from mechedit.cli.pairs import read_pairs
from mechedit.data.facts import FactEdit, load_facts
from mechedit.data.records import Unmeasurable
from mechedit.editors.steering.paraphrases import load_paraphrases
from mechedit.editors.weights.corpus import open_corpus
from mechedit.evaluation.evaluate import evaluate
from reports.errors import InputError
from tests.test_facts import FLAT, ORIGINAL, write

BARE: dict[str, Any] = {key: FLAT[key] for key in ("prompt", "subject", "target_new", "ground_truth")}
KNOWEDIT: dict[str, Any] = {
    **BARE,
    "ground_truth": ["French", "français"],
    "rephrase": ["Danielle Darrieux spoke"],
    "portability": {"Reasoning": [{"prompt": "a", "ground_truth": [["b"]]}]},
    "locality": {
        "Relation_Specificity": [
            {
                "prompt": "The place of birth of Danielle Darrieux is",
                "ground_truth": [["Bordeaux", "Burdeos"]],
            },
            {"prompt": "The name of the spouse of Danielle Darrieux is", "ground_truth": [[]]},
        ],
        "Forgetfulness": None,
    },
}
ZSRE: dict[str, Any] = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"],
}


def test_what_is_optional_may_be_missing(tmp_path: Path) -> None:
    facts = load_facts(write(tmp_path, [BARE, BARE]))
    assert [fact.case_id for fact in facts] == [0, 1]
    assert (facts[0].paraphrase_prompts, facts[0].neighborhood_prompts, facts[0].neighborhood_answers) == (
        (),
        (),
        (),
    )
    (fact,) = load_facts(write(tmp_path, [{k: v for k, v in ORIGINAL.items() if k != "case_id"}]))
    assert fact.case_id == 0
    (question,) = load_facts(write(tmp_path, [ZSRE]))
    assert (question.target_true, question.paraphrase_prompts, question.neighborhood_answers) == (
        "Illinois Institute of Technology",
        (),
        (),
    )


def test_rows_of_knowedit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (fact,) = load_facts(write(tmp_path, [KNOWEDIT]))
    assert (fact.target_true, fact.paraphrase_prompts) == ("French", ("Danielle Darrieux spoke",))
    assert fact.neighborhood_prompts == ("The place of birth of Danielle Darrieux is",)
    assert fact.neighborhood_answers == ("Bordeaux",)
    assert "left out 1 neighbourhood prompts that have no answer" in caplog.text
    named = {**KNOWEDIT, "target_new": "français"}
    with pytest.raises(InputError, match="target_new: expected another object than target_true"):
        load_facts(write(tmp_path, [named]))


def test_locality_as_easyedit_gives_it(tmp_path: Path) -> None:
    lists = {
        "neighborhood": {
            "prompt": ["Michel Rocard speaks", "Ann speaks"],
            "ground_truth": ["French", "Dutch"],
        }
    }
    (fact,) = load_facts(write(tmp_path, [{**BARE, "locality": lists}]))
    assert fact.neighborhood_prompts == ("Michel Rocard speaks", "Ann speaks")
    assert fact.neighborhood_answers == ("French", "Dutch")
    texts = {"neighborhood": {"prompt": "Michel Rocard speaks", "ground_truth": "French"}}
    (fact,) = load_facts(write(tmp_path, [{**BARE, "locality": texts}]))
    assert (fact.neighborhood_prompts, fact.neighborhood_answers) == (("Michel Rocard speaks",), ())
    short = {"neighborhood": {"prompt": ["a", "b"], "ground_truth": ["French"]}}
    with pytest.raises(InputError, match=r"record 0: field locality\.neighborhood\.ground_truth: expected 2"):
        load_facts(write(tmp_path, [{**BARE, "locality": short}]))
    pair = {**BARE, "locality_prompt": ["a", "b"], "locality_ground_truth": ["French", "Dutch"]}
    (fact,) = load_facts(write(tmp_path, [pair]))
    assert fact.neighborhood_answers == ("French", "Dutch")


@pytest.mark.parametrize("name", ["facts.json", "facts.jsonl", "facts.ndjson", "facts.txt", "facts"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", codecs.BOM_UTF8], ids=["", "bom"])
@pytest.mark.parametrize("shape", ["array", "pretty", "lines"])
def test_json_by_what_it_holds(tmp_path: Path, name: str, ending: str, bom: bytes, shape: str) -> None:
    rows = [FLAT | {"case_id": case, "target_new": f"ключ {case}"} for case in range(3)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    text = lines if shape == "lines" else json.dumps(rows, indent=2 if shape == "pretty" else None)
    (tmp_path / name).write_bytes(bom + text.replace("\n", ending).encode())
    facts = load_facts(tmp_path / name)
    assert [fact.target_new for fact in facts] == [row["target_new"] for row in rows]


def test_one_record_is_a_file_of_one(tmp_path: Path) -> None:
    assert len(load_facts(write(tmp_path, json.dumps(FLAT) + "\n"))) == 1


def test_a_subject_in_another_form_of_unicode(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Benoît") for form in ("NFC", "NFD"))
    for subject, prompt in ((composed, decomposed), (decomposed, composed)):
        row = {**BARE, "subject": subject, "prompt": f"{prompt} speaks"}
        (fact,) = load_facts(write(tmp_path, [row]))
        assert (fact.prompt, fact.rewrite_prompt) == ("{} speaks", f"{composed} speaks")
    with pytest.raises(InputError, match="record 0: field prompt: expected it to hold the subject"):
        load_facts(write(tmp_path, [{**BARE, "subject": "Benoit", "prompt": f"{composed} speaks"}]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target_new": "French"}, "target_new"),
        ({"target_new": " French  "}, "target_new"),
        ({"target_true": "caf\u00e9", "target_new": "cafe\u0301"}, "target_new"),
        ({"target_new_aliases": ("Anglais", "French")}, r"target_new_aliases\[1\]"),
        (
            {"neighborhood_prompts": ("a",), "neighborhood_answers": ("English",)},
            r"neighborhood_answers\[0\]",
        ),
    ],
)
def test_a_fact_that_says_nothing_is_refused(changes: dict[str, Any], says: str) -> None:
    fact = FactEdit("Ann", "{} speaks", "French", "English")
    with pytest.raises(Unmeasurable, match=f"{says}: expected another object"):
        dataclasses.replace(fact, **changes)


@pytest.mark.parametrize(
    "field", ["paraphrase_prompts", "neighborhood_prompts", "generation_prompts", "attribute_prompts"]
)
def test_braces_that_nobody_filled_are_refused(field: str) -> None:
    with pytest.raises(
        InputError, match=rf"{field}\[1\]: expected the subject in the place of {{}}, found str"
    ):
        FactEdit("Ann", "{} speaks", "French", "English", **{field: ("fine", "{} talks")})  # type: ignore[arg-type]


def test_a_neighbour_whose_answer_is_the_new_object_leaves_its_record_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"subject": "Ann", "prompt": "Ann speaks", "ground_truth": "Dutch", "target_new": "Greek"}
    near = row | {"locality_prompt": "Bob speaks", "locality_ground_truth": "Greek"}
    with caplog.at_level(logging.WARNING):
        assert len(load_facts(write(tmp_path, [near, row]))) == 1
    assert "left out 1 of 2 records" in caplog.text
    assert "neighborhood_answers[0]" in caplog.text


def test_what_is_left_out_of_a_file_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fact = me.factworld.edits(1)[0]
    row = {"subject": fact.subject, "prompt": fact.rewrite_prompt, "ground_truth": fact.target_true}
    good, same = row | {"target_new": fact.target_new}, row | {"target_new": fact.target_true}
    file = write(tmp_path, [same, good, same])
    with caplog.at_level(logging.WARNING):
        facts = load_facts(file)
    assert [kept.case_id for kept in facts] == [1]
    assert len(facts.left_out) == 2
    assert "left out 2 of 3 records" in caplog.text
    result = evaluate(me.load_model("factworld"), me.editors.NoEdit(), facts, progress=False)
    assert result.n_total == 1
    assert any(note.startswith("left out 2 of 3 records; the first: ") for note in result.notes)
    with pytest.raises(
        InputError, match=r"can be measured, found none; the first: .* record 0: field target_new"
    ):
        load_facts(write(tmp_path, [same]))


def test_how_answers_are_spaced_may_be_said(tmp_path: Path) -> None:
    file = write(tmp_path, [BARE, {**BARE, "space": "never"}])
    assert [fact.space for fact in load_facts(file)] == ["auto", "never"]
    assert [fact.space for fact in load_facts(file, space="always")] == ["always", "never"]
    with pytest.raises(InputError, match="space: expected one of"):
        load_facts(file, space="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_other_texts_with_a_mark_of_byte_order(tmp_path: Path, ending: str) -> None:
    def saved(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + text.replace("\n", ending).encode())
        return tmp_path / name

    table = load_paraphrases(saved("mine.json", '{"P103":\n ["{} speaks", "{} talks"]}'))
    assert table == {"P103": ("{} speaks", "{} talks")}
    corpus = open_corpus(saved("corpus.txt", "One line.\nAnother.\n\nThe end.\n"))
    assert list(corpus.documents()) == ["One line.\nAnother.", "The end."]
    expected = (["Ann\u2028speaks", "a\nb"], ["Greek", "c"])
    assert read_pairs(str(saved("p.csv", 'prompt,target\nAnn\u2028speaks,Greek\n"a\nb",c\n'))) == expected
    assert read_pairs(str(saved("p.tsv", "prompt\ttarget\nAnn speaks\tGreek\n"))) == (
        ["Ann speaks"],
        ["Greek"],
    )
    lines = '{"prompt": "Ann speaks", "target": "Greek"}\n{"prompt": "a", "target": "b"}\n'
    for name in ("p.json", "p.jsonl"):
        assert read_pairs(str(saved(name, lines))) == (["Ann speaks", "a"], ["Greek", "b"])


def test_the_command_line_says_how_answers_are_spaced(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["attribute", "--prompt", "The mother tongue of", "--target", "English", "--top-k", "2", "--json"]
    tokens = []
    for space in ("auto", "always", "never"):
        status = main([*argv, "--space", space])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        tokens.append(json.loads(printed.out)["target_token"])
    assert tokens[0] == tokens[1] != tokens[2]
    file = write(tmp_path, [{**BARE, "prompt": "Danielle Darrieux speaks"}])
    assert main(["evaluate", "--editor", "no_edit", "--data", str(file), "--space", "never", "--json"]) in (
        0,
        2,
    )
    assert "space" not in capsys.readouterr().err
