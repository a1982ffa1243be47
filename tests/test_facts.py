"""Facts and their loader: both CounterFact schemas in, one-line errors for everything else."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechedit.data.facts import FactEdit, load_facts
from reports.errors import InputError

ORIGINAL: dict[str, Any] = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Danielle Darrieux, a native", "Danielle Darrieux spoke"],
    "neighborhood_prompts": ["Michel Rocard is a native speaker of"],
    "attribute_prompts": ["J.R.R. Tolkien is a native speaker of"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}
FLAT: dict[str, Any] = {
    "case_id": 0,
    "prompt": "The mother tongue of Danielle Darrieux is",
    "target_new": "English",
    "subject": "Danielle Darrieux",
    "ground_truth": "French",
    "rephrase_prompt": "Where Danielle Darrieux is from, people speak the language of",
    "locality_prompt": "Michel Rocard is a native speaker of",
    "locality_ground_truth": "French",
}


def write(folder: Path, rows: Any, name: str = "facts.json") -> Path:
    file = folder / name
    file.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return file


def changed(row: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """A deep copy with the dotted `field` set, or removed where the value is `...`."""
    copy = json.loads(json.dumps(row))
    *path, last = field.split(".")
    inner = copy
    for key in path:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return copy


def test_the_original_schema(tmp_path: Path) -> None:
    fact = load_facts(write(tmp_path, [ORIGINAL]))[0]
    assert fact == FactEdit(
        "Danielle Darrieux",
        "The mother tongue of {} is",
        "French",
        "English",
        case_id=7,
        relation="P103",
        paraphrase_prompts=("Danielle Darrieux, a native", "Danielle Darrieux spoke"),
        neighborhood_prompts=("Michel Rocard is a native speaker of",),
        generation_prompts=("Danielle Darrieux's mother tongue is",),
        attribute_prompts=("J.R.R. Tolkien is a native speaker of",),
        source_schema="counterfact",
    )
    assert fact.rewrite_prompt == "The mother tongue of Danielle Darrieux is"


def test_the_flat_schema_becomes_a_template_and_says_what_its_rephrasing_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        fact = load_facts(write(tmp_path, [FLAT]))[0]
    assert fact.prompt == "The mother tongue of {} is"
    assert fact.rewrite_prompt == FLAT["prompt"]
    assert fact.paraphrase_prompts == (FLAT["rephrase_prompt"],)
    assert fact.neighborhood_prompts == (FLAT["locality_prompt"],)
    assert fact.source_schema == "easyedit"
    assert "not ROME's paraphrase scores" in caplog.text


def test_the_original_schema_is_not_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_facts(write(tmp_path, [ORIGINAL]))
    assert not caplog.records


@pytest.mark.parametrize(
    ("prompt", "subject", "template"),
    [
        (
            "Anna, daughter of Ann, is",
            "Ann",
            "Anna, daughter of {}, is",
        ),  # the whole word, not its first letters
        ("Ann and Ann are", "Ann", "{} and Ann are"),
        ("Annas are", "Ann", "{}as are"),
        ("In C++ (1985) one writes", "C++ (1985)", "In {} one writes"),
        ("Ärzte sind", "Ärzte", "{} sind"),
    ],
)
def test_the_subject_gives_way_once(tmp_path: Path, prompt: str, subject: str, template: str) -> None:
    row = FLAT | {"prompt": prompt, "subject": subject}
    fact = load_facts(write(tmp_path, [row]))[0]
    assert fact.prompt == template
    assert fact.rewrite_prompt == prompt


def test_several_rephrasings_and_localities(tmp_path: Path) -> None:
    row = FLAT | {"rephrase_prompt": ["a", "b"], "locality_prompt": ["c"]}
    fact = load_facts(write(tmp_path, [row]))[0]
    assert (fact.paraphrase_prompts, fact.neighborhood_prompts) == (("a", "b"), ("c",))


@pytest.mark.parametrize("row", [ORIGINAL, FLAT], ids=["counterfact", "easyedit"])
def test_every_file_format_gives_the_same_facts(tmp_path: Path, row: dict[str, Any]) -> None:
    rows = [row | {"case_id": case} for case in range(3)]
    expected = load_facts(write(tmp_path, rows))
    lines = write(tmp_path, "\n".join(map(json.dumps, rows)) + "\n\n", "facts.jsonl")
    assert load_facts(lines) == expected
    pd.DataFrame(rows).to_parquet(tmp_path / "facts.parquet")
    assert load_facts(tmp_path / "facts.parquet") == expected
    assert load_facts(str(lines), limit=2) == expected[:2]
    assert load_facts(lines, schema="counterfact" if row is ORIGINAL else "easyedit") == expected
    (tmp_path / "bom.json").write_text(json.dumps(rows), encoding="utf-8-sig")
    assert load_facts(tmp_path / "bom.json") == expected


@pytest.mark.parametrize("row", [ORIGINAL, FLAT], ids=["counterfact", "easyedit"])
def test_a_folder_goes_through_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any]
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [row | {"case_id": case} for case in range(3)]
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder, "\n".join(map(json.dumps, rows)), "train.jsonl")
    expected = load_facts(folder / "train.jsonl", limit=2)
    assert load_facts(folder, limit=2) == expected
    write(folder, "\n".join(map(json.dumps, rows)), "test.jsonl")
    with pytest.raises(InputError, match="expected one split, found train, test"):
        load_facts(folder)


def test_a_name_that_is_no_path_and_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"nobody/nothing: no such file, and no data set of that name"):
        load_facts("nobody/nothing")


@pytest.mark.parametrize(
    "name", ["absent.json", "absent.parquet", "a/b/c/d", "./x", "/no/such/place", "", "x" * 300, "a\0b"]
)
def test_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"expected a data file|no such file"):
        load_facts(name)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("facts.json", "", "at least one record, found none"),
        ("facts.json", "[\n{]", "not readable as json"),
        ("facts.json", "[]", "at least one record, found none"),
        ("facts.jsonl", "\n\n", "at least one record, found none"),
        ("facts.json", "{}", "expected a JSON array of records, found dict"),
        ("facts.json", '{"a": 1}\n{"a": 2}', "record 0: expected CounterFact's keys"),
        ("facts.json", '{"a": 1}\n{"a": ', "line 2"),
        ("facts.jsonl", '{"a": 1}\n{"a": ', "line 2"),
        ("facts.json", "[" * 100_000, "not readable as json"),
        ("facts.json", "[1]", "record 0: expected an object, found int 1"),
        ("facts.json", "[{}]", "record 0: expected CounterFact's keys"),
        ("facts.json", '[{"a": 1}]', "found a"),
        ("facts.csv", "case_id,prompt", "expected a .json, .jsonl, .parquet file, found .csv"),
        ("facts", "x", "found no suffix"),
        ("facts.txt", "[]", "at least one record, found none"),
        ("facts.parquet", "no parquet", "not readable as parquet"),
    ],
)
def test_a_bad_file(tmp_path: Path, name: str, content: str, says: str) -> None:
    file = write(tmp_path, content, name)
    with pytest.raises(InputError) as caught:
        load_facts(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert says in message
    assert "\n" not in message


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_bytes(b"\xff\xfe\x00[]")
    with pytest.raises(InputError, match="not readable as json"):
        load_facts(tmp_path / "facts.json")


@pytest.mark.parametrize(
    ("row", "field", "value", "says"),
    [
        (ORIGINAL, "case_id", 1.5, "case_id: expected an integer or a text, found float 1.5"),
        (ORIGINAL, "case_id", True, "case_id: expected an integer or a text, found bool True"),
        (ORIGINAL, "requested_rewrite", ..., "requested_rewrite: expected a value, found none"),
        (ORIGINAL, "requested_rewrite", "x", "requested_rewrite: expected an object, found str 'x'"),
        (ORIGINAL, "requested_rewrite.subject", ..., "requested_rewrite.subject: expected a value"),
        (
            ORIGINAL,
            "requested_rewrite.subject",
            " ",
            "requested_rewrite.subject: expected a text, found an empty",
        ),
        (ORIGINAL, "requested_rewrite.target_new", "E", "requested_rewrite.target_new: expected an object"),
        (
            ORIGINAL,
            "requested_rewrite.target_new.str",
            "",
            "requested_rewrite.target_new.str: expected a text",
        ),
        (
            ORIGINAL,
            "requested_rewrite.target_true.str",
            None,
            "requested_rewrite.target_true.str: expected a value",
        ),
        (ORIGINAL, "requested_rewrite.prompt", "no place", "prompt: expected one {}"),
        (ORIGINAL, "requested_rewrite.prompt", "{} and {}", "prompt: expected one {}"),
        (ORIGINAL, "requested_rewrite.relation_id", 3, "relation: expected a text, found int 3"),
        (ORIGINAL, "paraphrase_prompts", ..., "paraphrase_prompts: expected a value, found none"),
        (
            ORIGINAL,
            "paraphrase_prompts",
            "one",
            "paraphrase_prompts: expected a list of texts, found str 'one'",
        ),
        (ORIGINAL, "neighborhood_prompts", ["a", 3], "neighborhood_prompts[1]: expected a text, found int 3"),
        (ORIGINAL, "neighborhood_prompts", [""], "neighborhood_prompts[0]: expected a text, found an empty"),
        (ORIGINAL, "generation_prompts", 5, "generation_prompts: expected a list of texts"),
        (ORIGINAL, "attribute_prompts", [None], "attribute_prompts[0]: expected a text"),
        (FLAT, "subject", "Nobody", "prompt: expected it to hold the subject str 'Nobody'"),
        (FLAT, "prompt", "Danielle Darrieux {} is", "prompt: expected one {}"),
        (FLAT, "target_new", "", "target_new: expected a text, found an empty one"),
        (FLAT, "target_new", {"str": "English"}, "target_new: expected a text, found dict"),
        (FLAT, "target_new", "\ud800", "target_new: expected valid Unicode"),
        (FLAT, "rephrase_prompt", ["a", ""], "rephrase_prompt[1]: expected a text, found an empty"),
        (FLAT, "locality_ground_truth", 3, "locality_ground_truth: expected a list of texts, found int 3"),
        (
            FLAT,
            "locality_ground_truth",
            ["a", "b"],
            "locality_ground_truth: expected one answer or one for each of",
        ),
        (FLAT, "ground_truth", [], "ground_truth: expected at least one, found none"),
        (FLAT, "locality", [], "locality: expected an object, found list"),
        (FLAT, "locality", {"near": [3]}, "locality.near[0]: expected an object, found int 3"),
        (FLAT, "space", "no", "space: expected one of auto, always, never, found 'no'"),
        (
            FLAT,
            "rephrase_prompt",
            "{} speaks",
            "paraphrase_prompts[0]: expected the subject in the place of {}",
        ),
        (
            ORIGINAL,
            "neighborhood_prompts",
            ["{} is"],
            "neighborhood_prompts[0]: expected the subject in the place",
        ),
    ],
)
def test_a_malformed_record_names_file_index_and_field(
    tmp_path: Path, row: dict[str, Any], field: str, value: Any, says: str
) -> None:
    file = write(tmp_path, [row, changed(row, field, value)])
    with pytest.raises(InputError) as caught:
        load_facts(file)
    assert str(caught.value).startswith(f"{file}: record 1: field {says}")
    assert "\n" not in str(caught.value)


def test_only_the_rows_that_are_asked_for_are_checked(tmp_path: Path) -> None:
    assert len(load_facts(write(tmp_path, [ORIGINAL, {}]), limit=1)) == 1


def test_a_row_of_another_schema_is_malformed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="record 1: field requested_rewrite"):
        load_facts(write(tmp_path, [ORIGINAL, FLAT]))
    with pytest.raises(InputError, match="record 0: field subject"):
        load_facts(write(tmp_path, [ORIGINAL]), schema="easyedit")


def test_bad_arguments(tmp_path: Path) -> None:
    file = write(tmp_path, [ORIGINAL])
    for limit in (0, -1, True, 1.5):
        with pytest.raises(InputError, match="limit: expected at least 1"):
            load_facts(file, limit=limit)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match="schema: expected one of counterfact, easyedit, ripple, zsre, fact, found 'x'"
    ):
        load_facts(file, schema="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"subject": ""}, "subject: expected a text"),
        ({"prompt": "The mother tongue of Ann is"}, r"prompt: expected one \{\}"),
        ({"target_new": " "}, "target_new: expected a text"),
        ({"target_true": 3}, "target_true: expected a text, found int 3"),
        ({"paraphrase_prompts": "one"}, "paraphrase_prompts: expected a list"),
        ({"case_id": None}, "case_id: expected an integer or a text"),
    ],
)
def test_a_fact_built_by_hand_is_checked_too(changes: dict[str, Any], says: str) -> None:
    good: dict[str, Any] = {
        "subject": "Ann",
        "prompt": "{} speaks",
        "target_true": "Dutch",
        "target_new": "Greek",
    }
    assert FactEdit(**good).rewrite_prompt == "Ann speaks"
    with pytest.raises(InputError, match=says):
        FactEdit(**(good | changes))


def test_lists_become_tuples_and_a_fact_is_hashable() -> None:
    fact = FactEdit("Ann", "{} speaks", "Dutch", "Greek", paraphrase_prompts=["a", "b"])  # type: ignore[arg-type]
    assert fact.paraphrase_prompts == ("a", "b")
    assert len({fact, fact}) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    *ORIGINAL,
    *(f"requested_rewrite.{key}" for key in ORIGINAL["requested_rewrite"]),
    "requested_rewrite.target_new.str",
]
FUZZ = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loads_or_refuses(file: Path) -> None:
    """Anything but a list of facts or a one-line `InputError` fails the test."""
    try:
        facts = load_facts(file)
    except InputError as refusal:
        message = str(refusal)
    else:
        message = "" if facts and all(fact.subject in fact.rewrite_prompt for fact in facts) else "\n"
    assert "\n" not in message


@FUZZ
@given(JSON)
def test_any_json_loads_or_is_refused(tmp_path: Path, value: Any) -> None:
    loads_or_refuses(write(tmp_path, value))
    loads_or_refuses(write(tmp_path, [value]))


@FUZZ
@given(st.sampled_from(FIELDS), JSON)
def test_any_value_in_any_field_loads_or_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    loads_or_refuses(write(tmp_path, [changed(ORIGINAL, field, value)]))
    if field in FLAT:
        loads_or_refuses(write(tmp_path, [changed(FLAT, field, value)]))


@FUZZ
@given(st.sampled_from([*FLAT]), JSON)
def test_any_value_in_any_flat_field_loads_or_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    loads_or_refuses(write(tmp_path, [changed(FLAT, field, value)]))


@FUZZ
@given(st.binary(max_size=60), st.sampled_from(["json", "jsonl", "parquet"]))
def test_any_bytes_load_or_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"facts.{suffix}"
    file.write_bytes(content)
    loads_or_refuses(file)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "records"), [("counterfact-edit", 10_000), ("counterfact-val", 1_919)])
def test_the_real_files_load_whole(shared_dir: Path, name: str, records: int) -> None:
    file = shared_dir / "data" / "counterfact" / f"{name}.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    facts = load_facts(file)
    assert len(facts) == len(rows) == records
    for row, fact in zip(rows, facts, strict=True):
        assert fact.rewrite_prompt == row["prompt"]
        assert (fact.target_new, fact.target_true, fact.case_id) == (
            row["target_new"],
            row["ground_truth"],
            row["case_id"],
        )
    assert load_facts(file, limit=5) == facts[:5]


@pytest.mark.shared
def test_files_of_other_schemas_are_refused(shared_dir: Path) -> None:
    for name in ("facts/known_1000.json", "popular/popular_stats.json"):
        with pytest.raises(InputError, match=r"expected CounterFact's keys|expected a JSON array"):
            load_facts(shared_dir / "data" / name)


@pytest.mark.shared
def test_the_real_zsre_file_has_records_that_say_nothing(
    shared_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = shared_dir / "data" / "facts" / "zsre_mend_train-1k.json"
    with pytest.raises(InputError, match="record 534: field alt: expected a text, found an empty one"):
        load_facts(file)
    with caplog.at_level(logging.WARNING):
        facts = load_facts(file, skip_malformed=True)
    rows = json.loads(file.read_text(encoding="utf-8"))
    same = [row for row in rows if row["alt"] in row["answers"]]  # in 17 of them it is the first answer
    assert (len(facts), len(same), len(facts.left_out)) == (977, 21, 23)
    assert [record.getMessage().partition("record ")[2][:3] for record in caplog.records[:2]] == [
        "534",
        "723",
    ]
    assert "left out 21 of 1000 records" in caplog.records[2].getMessage()
    for fact in facts:
        row = rows[int(fact.case_id)]
        assert (fact.rewrite_prompt, fact.target_new) == (row["src"], row["alt"])
        assert fact.neighborhood_answers == (row["loc_ans"],)
