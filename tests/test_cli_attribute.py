"""`mechedit attribute`: its options reach the attribution, differences and files of prompts; what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import mechedit as me
from mechedit.cli import main
from mechedit.cli.pairs import read_pairs
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

PROMPT, TARGET, OLD = "The capital of France is", "Paris", "Madrid"
ONE = ("attribute", "--prompt", PROMPT, "--target", TARGET)


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, argv), "--json", "--quiet"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def scores(rows: list[dict[str, Any]]) -> list[float]:
    return [row["score"] for row in rows]


def test_tokens_reach_the_attribution(capsys: pytest.CaptureFixture[str]) -> None:
    target = "French English"
    first, both = (
        run(capsys, "attribute", "--prompt", PROMPT, "--target", target, "--top-k", "5", "--tokens", tokens)
        for tokens in ("first", "sum")
    )
    assert (first["target_scored"], both["target_scored"]) == ("first", "sum")
    assert both["logp"] < first["logp"]
    assert both["target_token"].startswith(first["target_token"])
    assert len(both["target_token"]) > len(first["target_token"])


def test_contrast_sets_the_target_against_an_old_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, factworld_gpt2: HookedModel
) -> None:
    result = run(capsys, *ONE, "--contrast", OLD, "--top-k", "6", "--out", tmp_path / "contrast")
    expected = me.contrast(factworld_gpt2, PROMPT, TARGET, OLD, top_k=6)
    assert scores(result["mlp_neurons"]) == pytest.approx(expected.mlp_neurons["score"].tolist(), abs=1e-6)
    assert (result["a"]["target_token"], result["b"]["target_token"]) == (" Paris", expected.b.target_token)
    total = result["embedding_logp"] + sum(scores(result["layers"])) + result["completeness_gap"]
    assert total == pytest.approx(result["logp"], abs=1e-6)
    assert me.AttributionContrast.load(tmp_path / "contrast").logp == pytest.approx(result["logp"])
    assert main([*ONE, "--contrast", OLD, "--top-k", "3"]) == 0
    out = capsys.readouterr().out
    assert "' Paris'" in out
    assert "mlp_neurons" in out


def test_a_saved_edit_is_set_against_the_model_without_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, factworld_gpt2: HookedModel
) -> None:
    model, fact = factworld_gpt2, me.factworld.edits(1)[0]
    with me.editors.ROME().apply(model, fact) as edited:
        edited.change.save(tmp_path / "rome")
    mega = me.editors.MEGA(window=(3, 5), alpha=1.0, gate="always")
    me.editors.EditBook.of(model, [mega.fit(model, fact)]).save(tmp_path / "book")
    asked = ("attribute", "--prompt", fact.rewrite_prompt, "--target", fact.target_new, "--top-k", "4")
    for name, editor in (("rome", me.editors.ROME()), ("book", mega)):
        result = run(capsys, *asked, "--edited", tmp_path / name)
        expected = me.edit_contrast(model, editor, fact, top_k=4)
        assert result["logp"] == pytest.approx(expected.logp, abs=1e-4)
        assert scores(result["layers"]) == pytest.approx(expected.layers["score"].tolist(), abs=1e-4)
        assert (result["a"]["label"], result["b"]["label"]) == (name, "unedited")
        assert set(result["unknown"].values()) == {0}


def test_an_editor_edits_the_fact_and_is_set_against_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "attribute", "--editor", "ft", "--fact", "world", "--top-k", "4")
    fact = me.factworld.edits(20, seed=0)[0]
    assert result["a"]["target"] == fact.target_new
    assert result["a"]["label"] == "ft"
    assert result["logp"] > 1


def pairs_file(folder: Path, suffix: str) -> Path:
    pairs = [(PROMPT, TARGET), ("The capital of Spain is", "Madrid")]
    file = folder / f"pairs{suffix}"
    if suffix == ".json":
        file.write_text(json.dumps([{"prompt": p, "target": t} for p, t in pairs]), encoding="utf-8")
    else:
        mark = {".csv": ",", ".tsv": "\t"}[suffix]
        lines = [mark.join(("target", "prompt")), *(mark.join((t, f'"{p}"')) for p, t in pairs)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("suffix", [".json", ".csv", ".tsv"])
def test_a_file_of_prompts_is_read(tmp_path: Path, suffix: str) -> None:
    file = pairs_file(tmp_path, suffix)
    assert read_pairs(str(file)) == ([PROMPT, "The capital of Spain is"], ["Paris", "Madrid"])


def test_a_file_of_prompts_is_attributed_into_a_run_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, factworld_gpt2: HookedModel
) -> None:
    file, out = pairs_file(tmp_path, ".csv"), tmp_path / "run"
    argv = ("attribute", "--prompts", file, "--top-k", "5", "--out", out)
    result = run(capsys, *argv)
    assert result["n"] == len(result["results"]) == 2
    single = me.attribute(factworld_gpt2, PROMPT, TARGET, top_k=5)
    assert scores(result["results"][0]["layers"]) == pytest.approx(single.layers["score"].tolist(), abs=1e-5)
    manifest = (out / "manifest.json").read_bytes()
    assert run(capsys, *argv) == result
    assert (out / "manifest.json").read_bytes() == manifest
    assert main([*map(str, argv), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert PROMPT in printed.out
    assert printed.err == ""
    assert main([*map(str, argv), "--quiet", "--sign", "suppress"]) == 2
    assert "another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", "{", ("x.json", "json")),
        ("x.json", "[]", ("x.json", "at least one")),
        ("x.json", '"prompt"', ("x.json", "array", "str")),
        ("x.json", '[{"prompt": "a"}]', ("record 0", "prompt and target")),
        ("x.json", '[{"prompt": "a", "target": "b", "more": 1}]', ("record 0", "more")),
        (
            "x.json",
            '[{"prompt": "a", "target": "b"}, {"prompt": "a", "target": 7}]',
            ("record 1", "target", "7"),
        ),
        ("x.json", '[{"prompt": " ", "target": "b"}]', ("record 0", "prompt")),
        ("x.csv", "", ("x.csv", "header")),
        ("x.csv", "prompt,object\na,b\n", ("x.csv", "header", "object")),
        ("x.csv", "prompt,target\n", ("x.csv", "at least one")),
        ("x.csv", "prompt,target\na,b,c\n", ("row 2", "3")),
        ("x.csv", 'prompt,target\n"a,b\n', ("x.csv",)),
        ("x.tsv", "prompt,target\na,b\n", ("x.tsv", "header")),
        ("x.txt", "a", ("x.txt", ".json, .csv or .tsv")),
        ("x.csv", b"\xff\xfe\x00", ("x.csv",)),
    ],
)
def test_a_file_that_is_none_is_refused(
    tmp_path: Path, name: str, content: str | bytes, words: tuple[str, ...]
) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        read_pairs(str(tmp_path / name))
    assert all(word in str(caught.value) for word in ("prompts", *words)), caught.value
    with pytest.raises(InputError, match="found none at"):
        read_pairs(str(tmp_path / "absent.csv"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--prompt", PROMPT), ("--target",)),
        (("--target", TARGET), ("--prompt",)),
        ((), ("--prompt",)),
        ((*ONE[1:], "--tokens", "last"), ("tokens", "last")),
        ((*ONE[1:], "--contrast", TARGET), ("old", "start alike")),
        ((*ONE[1:], "--contrast", OLD, "--sign", "suppress"), ("sign", "--contrast")),
        ((*ONE[1:], "--contrast", OLD, "--tokens", "sum"), ("tokens", "--contrast")),
        ((*ONE[1:], "--contrast", OLD, "--editor", "ft"), ("--contrast", "--editor")),
        ((*ONE[1:], "--prompts", "x.csv"), ("prompt", "--prompts")),
        (("--prompts", "no/such.csv"), ("prompts", "no/such.csv")),
        (("--prompts", "no/such.csv", "--contrast", OLD), ("--prompts", "--contrast")),
        ((*ONE[1:], "--edited", "no/such/folder"), ("folder", "no/such/folder")),
        ((*ONE[1:], "--fact", "world"), ("fact", "--prompt")),
        ((*ONE[1:], "--max-fpr", "0.1"), ("max-fpr",)),
        (("--editor", "ft"), ("--fact",)),
        (("--editor", "roma", "--fact", "world"), ("editor", "roma")),
        (("--editor", "ft", "--fact", "world", "--method", "exhaustive"), ("method", "--editor")),
        (("--editor", "ft", "--fact", "{}"), ("fact",)),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: tuple[str, ...], words: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    capsys.readouterr()
    try:
        status = main(["attribute", *argv, "--out", str(out)])
    except SystemExit as stop:
        status = int(stop.code or 0)
    error = capsys.readouterr().err
    assert status == 2, error
    lines = [line for line in error.splitlines() if "error:" in line]
    assert len(lines) == 1, error
    assert all(word in lines[0] for word in words), lines[0]
    assert not out.exists()


def test_an_unknown_score_is_null_in_json() -> None:
    from experiments.cli.output import finite
    from mechedit.attribution import attribute, contrast_json
    from tests.tiny import tiny_model

    model = tiny_model("gpt2")
    a, b = (attribute(model, "Rome is", target, top_k=3) for target in (" Dutch", " French"))
    result = contrast_json(a - b)
    assert result["unknown"]["mlp_neurons"] > 0
    assert any(math.isnan(row["score"]) for row in result["mlp_neurons"])
    text = json.dumps(finite(result), allow_nan=False)
    assert any(row["score"] is None for row in json.loads(text)["mlp_neurons"])
