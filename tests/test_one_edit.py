"""Editing one fact: every field can be set, the change is kept alone, and an edit that is none says so."""

from __future__ import annotations

import dataclasses
import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import mechedit as me
from experiments import config
from mechedit.cli import main
from mechedit.cli.options import literal
from mechedit.data.facts import FactEdit, save_facts
from mechedit.editors import NAMES, by_name
from mechedit.editors.fields import field_table, settable, with_fields
from mechedit.factworld import export
from mechedit.models.hooked import HookedModel
from mechedit.recipes.configurations import EvaluationConfig
from mechedit.recipes.editor_choice import named_editor
from mechedit.recipes.one_edit import changed_layers, one_wording

STEERED = ("edit", "--editor", "mega", "--window", "5-7", "--gate", "always", "--fact", "world")


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, argv), "--json", "--quiet"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def refused(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    capsys.readouterr()
    try:
        status = main([*map(str, argv), "--quiet"])
    except SystemExit as stop:  # argparse's own way
        status = int(str(stop.code))
    error = capsys.readouterr().err
    assert status == 2
    lines = [line for line in error.splitlines() if "error:" in line]
    assert len(lines) == 1, error
    return lines[0]


# --- fields -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_field_takes_the_value_that_it_has(name: str, factworld_gpt2: HookedModel) -> None:
    editor: Any = by_name(name)
    rows = field_table(editor, factworld_gpt2)
    values = {row["field"]: row["value"] for row in rows if row["value"] is not None}
    read_back: Any = with_fields(editor, values)
    ready: Any = editor.ready(factworld_gpt2) if hasattr(editor, "ready") else editor
    assert {field: getattr(read_back, field) for field in values} == {
        field: getattr(ready, field) for field in values
    }
    left_out = {"name", "covariance", "covariances", "whitening", "relations", "choice"}
    fields = {field.name for field in dataclasses.fields(editor)}
    assert {row["field"] for row in rows} == fields - left_out
    assert all(row["takes"] for row in rows)


def test_a_field_reaches_the_edit_as_in_python(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fact = me.factworld.edits(20, seed=0)[0]
    model = me.load_model("factworld")
    argv = ("edit", "--editor", "ft", "--fact", "world", "--set", "layer=2", "--set", "steps=3")
    result = run(capsys, *argv, "--save-change", tmp_path / "ft")
    assert result["layers"] == [2]
    expected = me.editors.FT(layer=2, steps=3).change(model, fact)
    kept = me.editors.WeightChange.load(tmp_path / "ft")
    other = me.editors.FT(layer=2, steps=4).change(model, fact)
    for name, parts in expected.parts.items():
        (ours,), (mine,), (theirs,) = parts, kept.parts[name], other.parts[name]
        a, b, c = (
            part.value if hasattr(part, "value") else part.left @ part.right for part in (ours, mine, theirs)
        )
        assert torch.allclose(a, b, atol=1e-6)
        assert not torch.allclose(a, c, atol=1e-6)  # the comparison can fail
    assert kept.settings["steps"] == 3


@pytest.mark.parametrize(
    ("editor", "given", "said"),
    [
        (
            "rome",
            ["lager=1"],
            "has no field 'lager' to set, did you mean 'layer'; fields of rome: layer (int)",
        ),
        ("rome", ["layer=deep"], "layer: expected int, found str 'deep'; fields of rome: layer (int)"),
        ("rome", ["layer=true"], "layer: expected int, found bool True"),
        ("rome", ["layer=99"], "layer: expected 0 to 7"),
        ("rome", ["layer=-1"], "layer: expected at least 0, found -1"),
        ("rome", ["lr=inf"], "lr: expected a finite number, found inf"),
        ("rome", ["layer=1", "layer=2"], "layer is given twice"),
        ("rome", ["layer"], "expected KEY=VALUE, as layer=7, found 'layer'"),
        ("rome", ["name=mine"], "has no field 'name'"),
        ("memit", ["layers=3"], "layers: expected an array, found int 3"),
        ("mega", ["gate=ajar"], "gate: expected one of 'asked', 'hidden'"),
        ("mega", ["gate_layer=99"], "gate_layer: expected layers 0 to 7, found 99"),
        ("mega", ["heads={99: (1,)}"], "heads: expected layers 0 to 7, found 99"),
        ("mega", ["heads={1: (99,)}"], "heads: expected heads 0 to "),
        ("mega", ["paraphrases=nowhere.json"], "nowhere.json: expected a JSON file of paraphrases"),
        ("no_edit", ["layer=1"], "has no field 'layer' to set; fields of no_edit: none"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], editor: str, given: list[str], said: str
) -> None:
    argv = [part for pair in given for part in ("--set", pair)]
    assert said in refused(capsys, "edit", "--editor", editor, "--fact", "world", *argv)


def test_a_setting_stands_in_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    argv = (*STEERED, "--set", "window=4-6")
    assert "set: window is given twice, as an option and by set" in refused(capsys, *argv)
    grid = ("tune", "--editor", "rome", "--grid", "layer=1;2", "--set", "layer=3")
    assert "set: layer is in the grid too" in refused(capsys, *grid)
    assert "threshold: rome has no such setting" in refused(
        capsys, "edit", "--editor", "rome", "--fact", "world", "--threshold", "1"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("1e-3", 1e-3),
        ("(4, 7)", (4, 7)),
        ("[4, 7]", [4, 7]),
        ("4-7", (4, 7)),
        ("None", None),
        ("False", False),
        ("false", False),
        ("{7: (1, 2)}", {7: (1, 2)}),
        ("always", "always"),
        ("'4-7'", "4-7"),
    ],
)
def test_values_are_read_as_python_and_as_toml(text: str, value: Any) -> None:
    assert literal(text) == value
    assert type(literal(text)) is type(value)


def test_the_fields_are_listed_for_this_model(capsys: pytest.CaptureFixture[str]) -> None:
    layers = {}
    for model in ("factworld", "factworld-llama"):
        rows = run(capsys, "edit", "--editor", "rome", "--model", model, "--fields")["fields"]
        layers[model] = {row["field"]: row["value"] for row in rows}["layer"]
        assert layers[model] == me.editors.ROME().ready(me.load_model(model)).layer
    rows = run(capsys, "edit", "--editor", "rome", "--set", "layer=3", "--fields")["fields"]
    assert rows[0]["value"] == 3
    assert main(["edit", "--editor", "mega", "--fields", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "  threshold = none  [float or none]  The distance within which the gate opens" in out
    assert len(out.splitlines()) == 1 + len(settable(me.editors.MEGA()))


# --- recipes ----------------------------------------------------------------------------------------


def test_a_recipe_sets_fields_in_a_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, factworld_gpt2: HookedModel
) -> None:
    export(tmp_path / "facts.json", schema="counterfact", limit=2, seed=9)
    argv = [
        "evaluate",
        "--data",
        str(tmp_path / "facts.json"),
        "--editor",
        "memit",
        "--out",
        str(tmp_path / "run"),
    ]
    result = run(capsys, *argv, "--set", "layers=1-2", "--set", "steps=2")
    assert result["changed"] == "layers 1 to 2"
    assert Path(result["report"]).is_file()
    table = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert table.pop("experiment") == "evaluate"
    assert table["set"] == {"layers": [1, 2], "steps": 2}
    again = config.build(table, EvaluationConfig, where="recipe")
    editor: Any = named_editor(again, factworld_gpt2)
    assert (editor.layers, editor.steps) == ((1, 2), 2)
    run(capsys, *argv, "--set", "layers=1-2", "--set", "steps=2")  # the same again goes on
    assert "steps" in refused(capsys, *argv, "--set", "layers=1-2", "--set", "steps=3")
    assert "set" not in config.dump(EvaluationConfig(data="x"))  # earlier runs' settings are the same


def test_tune_holds_fields_fixed(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "tune", "--editor", "ft", "--grid", "layer=1;2", "--set", "steps=2", "--n", "2")
    assert {row["layer"] for row in result["rows"]} == {1, 2}
    assert {row["steps"] for row in result["rows"]} == {2}
    said = refused(capsys, "tune", "--editor", "ft", "--grid", "layer=deep", "--n", "2")
    assert "layer: expected int, found str 'deep'" in said


# --- facts to choose on -----------------------------------------------------------------------------


def test_the_facts_to_choose_on_are_the_users(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, fact = me.load_model("factworld"), me.factworld.edits(20, seed=0)[0]
    others = me.factworld.edits(3, seed=5, skip=[fact])
    save_facts([fact, *others], tmp_path / "others.json")
    argv = ("edit", "--editor", "sake", "--fact", "world", "--save-change", tmp_path / "book")
    run(capsys, *argv, "--data", tmp_path / "others.json")
    (edit,) = me.editors.EditBook.load(tmp_path / "book").edits.values()
    expected = me.editors.SAKE().select(model, others)
    assert edit.gate.threshold == pytest.approx(expected.threshold, rel=1e-4)  # type: ignore[union-attr]
    world = me.editors.SAKE().select(model, me.factworld.edits(20, seed=1, skip=[fact]))
    assert expected.threshold != pytest.approx(world.threshold, rel=1e-3)  # other facts choose otherwise


def test_facts_to_choose_on_that_are_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save_facts([me.factworld.edits(20, seed=0)[0]], tmp_path / "own.json")
    data = ("--fact", "world", "--data", tmp_path / "own.json")
    assert "expected at least 2 facts about other subjects" in refused(
        capsys, "edit", "--editor", "mega", *data
    )
    assert "rome chooses nothing on other facts" in refused(capsys, "edit", "--editor", "rome", *data)
    assert "fact: expected --fact" in refused(capsys, "edit", "--editor", "rome")


def test_a_file_of_one_fact_chooses_elsewhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save_facts([me.factworld.edits(20, seed=0)[0]], tmp_path / "own.json")
    result = run(capsys, "edit", "--editor", "mega", "--fact", tmp_path / "own.json")
    assert result["prompts"][0]["ok"]
    assert result["warnings"] == []


def test_a_threshold_is_kept_by_the_selection(factworld_gpt2: HookedModel) -> None:
    editor = me.editors.MEGA(window=(5, 7), target="avoid", rank=None, threshold=-3.0)
    assert editor.needs_selection  # the gate "asked" has relations to learn
    chosen = editor.select(factworld_gpt2, me.factworld.edits(4, seed=3))
    assert chosen.threshold == -3.0
    assert chosen.relations is not None
    assert not chosen.needs_selection
    assert "gate_false" not in chosen.choice  # the rates are the learned threshold's


# --- an edit that is none ---------------------------------------------------------------------------


def test_an_edit_that_does_nothing_says_so(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    works = run(capsys, *STEERED, "--alpha", "1")
    assert works["warnings"] == []
    assert main([*STEERED, "--alpha", "1", "--quiet"]) == 0
    assert "alpha 1: 100% of its own prompts (gate open) give 'Delta Foods'" in capsys.readouterr().out
    assert works["layers"] == [5, 6, 7]
    nothing = run(capsys, *STEERED, "--alpha", "0")
    assert nothing["layers"] == []
    assert "the edit does nothing: the model answers its own prompt as before" in nothing["warnings"][0]
    assert "the edit does nothing" in caplog.text
    assert main([*STEERED, "--alpha", "0", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "WARNING: the edit does nothing" in out
    assert "changed: no layer" in out


def test_an_edit_that_does_not_take_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("edit", "--editor", "ft", "--fact", "world", "--set", "lr=1e-5", "--set", "steps=1")
    (line,) = run(capsys, *argv)["warnings"]
    assert line.startswith("the edit does not take: the model still does not say 'Delta Foods'")
    assert "--fields" in line


def test_what_the_model_says_already_is_no_edit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fact = me.factworld.edits(20, seed=0)[0]
    turned = dataclasses.replace(fact, target_new=fact.target_true, target_true=fact.target_new)
    save_facts([turned], tmp_path / "turned.json")
    argv = ("edit", "--editor", "no_edit", "--fact", tmp_path / "turned.json")
    (line,) = run(capsys, *argv)["warnings"]
    assert f"the unedited model says {fact.target_true!r} already" in line


def test_an_edit_of_one_wording_says_how_to_give_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fact = me.factworld.edits(20, seed=0)[0]
    odd = FactEdit(fact.subject, "Zzyx qqq {} vvv", fact.target_true, fact.target_new)
    save_facts([odd], tmp_path / "odd.json")
    argv = ("edit", *STEERED[1:-1], tmp_path / "odd.json", "--alpha", "1")
    line = run(capsys, *argv)["warnings"][-1]
    assert line.startswith("the edit is fitted on one prompt only")
    assert "--set paraphrases=FILE.json" in line
    (tmp_path / "more.json").write_text(json.dumps({odd.prompt: ["{} is employed by", "{} works for"]}))
    warnings = run(capsys, *argv, "--set", f"paraphrases={tmp_path / 'more.json'}")["warnings"]
    assert not any("one prompt only" in line for line in warnings)
    caplog.clear()
    known = dataclasses.replace(fact, prompt=fact.prompt)
    assert one_wording(me.editors.SAKE(), [known]) == []
    assert one_wording(me.editors.ROME(), [odd]) == []
    (line,) = one_wording(me.editors.MEGA(), [known, odd])
    assert line.startswith("1 of 2 edits are fitted on one prompt only")
    (line,) = one_wording(me.editors.MEGA(prompts=1), [known])
    assert line.endswith("(prompts = 1)")


# --- the change alone -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "layers"),
    [
        (("edit", "--editor", "rome", "--fact", "world"), [0]),
        ((*STEERED, "--alpha", "1"), [5, 6, 7]),
        (("edit", "--editor", "sake", "--fact", "world"), [7]),
    ],
)
def test_a_change_is_kept_and_attributed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: tuple[str, ...], layers: list[int]
) -> None:
    fact = me.factworld.edits(20, seed=0)[0]
    result = run(capsys, *argv, "--save-change", tmp_path / "change", "--out", tmp_path / "why")
    assert result["layers"] == layers
    assert result["written"] == {"save_change": str(tmp_path / "change"), "out": str(tmp_path / "why")}
    asked = ("attribute", "--prompt", fact.rewrite_prompt, "--target", fact.target_new, "--top-k", "4")
    edited = (*asked, "--edited", tmp_path / "change")
    assert run(capsys, *edited)["logp"] > 1  # nats more than the unedited model
    assert main([*map(str, edited), "--quiet"]) == 0
    assert f"changed: layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}" in capsys.readouterr().out
    said = refused(capsys, *edited, "--model", "factworld-llama")
    assert "hash" in said
    assert "save-change: expected a new or an empty folder" in refused(
        capsys, *argv, "--save-change", tmp_path / "change"
    )


def test_what_has_no_change_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for editor in ("ike", "no_edit"):
        argv = ("edit", "--editor", editor, "--fact", "world", "--save-change", tmp_path / "x")
        assert "so there is no change to keep" in refused(capsys, *argv)
    said = refused(capsys, *STEERED, "--alpha", "1", "--save", tmp_path / "x")
    assert (
        "mega changes no weight, so there is no checkpoint to write; keep the edit by --save-change" in said
    )
    assert not (tmp_path / "x").exists()


def test_a_command_says_what_it_wrote(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["edit", "--editor", "rome", "--fact", "world", "--quiet"]
    assert main([*argv, "--save", str(tmp_path / "model"), "--save-change", str(tmp_path / "change")]) == 0
    out = capsys.readouterr().out
    assert f"written: {tmp_path / 'model'} (the edited checkpoint)" in out
    assert f"written: {tmp_path / 'change'} (the change alone)" in out
    assert "changed: layer 0 (WeightChange(rome" in out
    assert f"next: mechedit attribute --model factworld --edited {tmp_path / 'change'} --prompt" in out
    (advice,) = [line for line in out.splitlines() if line.startswith("next: mechedit contrast")]
    assert main(shlex.split(advice)[2:]) == 0  # it is a command that works
    out = capsys.readouterr().out
    assert "1 of " in out.splitlines()[0]
    assert "score: after − before" in out


@pytest.mark.parametrize("name", NAMES)
def test_the_layers_in_words_are_those_of_the_settings(name: str, factworld_gpt2: HookedModel) -> None:
    editor: Any = me.editors.MEGA(window=(4, 7)) if name == "mega" else by_name(name)
    words = changed_layers(me.editors.settings.resolved(editor, factworld_gpt2))
    expected = {"ike": "no layer", "no_edit": "no layer", "sake": "the last layer", "mega": "layers 4 to 7"}
    ready: Any = editor.ready(factworld_gpt2) if hasattr(editor, "ready") else editor
    if name in expected:
        assert words == expected[name]
    elif name == "lora":
        assert words.endswith("of every layer")
    else:
        numbers = ready.layers if hasattr(ready, "layers") else (ready.layer,)
        assert [word for word in words.split() if word.isdigit()] == [str(n) for n in dict.fromkeys(numbers)]
