"""The options of an editor on the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import pytest

from mechedit.cli import main
from mechedit.editors.steering import mega, sites, steering_edit
from mechedit.factworld import export
from mechedit.recipes.configurations import SETTINGS, EvaluationConfig, GateKind, Position, Site


def test_the_choices_are_the_editors_own() -> None:
    assert get_args(GateKind) == get_args(mega.GateKind)
    assert get_args(Position) == get_args(steering_edit.Position)
    assert (*get_args(Site), "z") == tuple(sites.SITES)  # z is what --heads steers
    assert {*SETTINGS} <= {field.name for field in dataclasses.fields(EvaluationConfig)}


@pytest.mark.usefixtures("few_to_choose_by")
def test_evaluate_takes_mega_as_it_is_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    export(tmp_path / "facts.json", schema="counterfact", limit=2, seed=9)
    argv = [
        "evaluate",
        "--data",
        str(tmp_path / "facts.json"),
        "--out",
        str(tmp_path / "run"),
        "--quiet",
        "--json",
    ]
    settings = [
        "--gate",
        "cosine",
        "--max-fpr",
        "0.1",
        "--heads",
        "4",
        "--position",
        "every",
        "--window",
        "4-6",
    ]
    assert main([*argv, *settings]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["Acc"]["value"] == 1.0
    said = (tmp_path / "run" / "config.toml").read_text()
    assert all(
        part in said for part in ('gate = "cosine"', "max_fpr = 0.1", 'position = "every"', "heads = 4")
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["--editor", "rome", "--max-fpr", "0.1"], "max_fpr: rome has no such setting; leave --max-fpr out"),
        (["--gate", "sentence"], "gate_model: expected a sentence-transformers folder or id"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, settings: list[str], said: str
) -> None:
    export(tmp_path / "facts.json", schema="counterfact", limit=2, seed=9)
    out = tmp_path / "run"
    assert main(["evaluate", "--data", str(tmp_path / "facts.json"), "--out", str(out), *settings]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()
