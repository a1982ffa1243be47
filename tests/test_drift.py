"""Drift: what an edited model writes on, read by hand-made texts and on the embedded model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import mechedit as me
from mechedit.cli import main
from mechedit.data.facts import FactEdit
from mechedit.editors import MEGA, NoEdit
from mechedit.evaluation.drift import Drift, drift, read_text
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

FACT = FactEdit("Ann", "{} speaks", "Old Dutch", "Greek")


def test_a_text_is_read_by_whole_words() -> None:
    read = read_text(" Greek and not Old Dutchman, but Old Dutch", FACT)
    assert (read["starts"], read["returns"], read["words_before"]) == (True, True, 7.0)
    silent = read_text(" Greeks", FACT)
    assert (silent["starts"], silent["returns"]) == (False, False)
    assert math.isnan(silent["words_before"])


def test_an_edit_starts_with_the_new_object_and_the_unedited_model_does_not(
    factworld_gpt2: HookedModel, tmp_path: Path
) -> None:
    facts = me.factworld.edits(2, seed=11)
    mega = MEGA(window=(5, 7), alpha=1.0, gate="always")
    found = drift(factworld_gpt2, [mega, NoEdit()], facts, length=16, progress=False)
    table = found.summary().set_index("editor")
    assert table["starts"].to_dict() == {"mega": 1.0, "no_edit": 0.0}
    assert table.loc["no_edit", "returns"] == 1.0
    assert found.equals(drift(factworld_gpt2, [mega, NoEdit()], facts, length=16, progress=False))
    assert Drift.load(found.save(tmp_path / "drift")).equals(found)


def test_nothing_to_write_about_is_refused(factworld_gpt2: HookedModel) -> None:
    with pytest.raises(InputError, match="facts"):
        drift(factworld_gpt2, [NoEdit()], [])


def test_the_command_sets_an_editor_beside_the_unedited_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["drift", "--editor", "mega", "--window", "5-7", "--limit", "2", "--length", "12", "--quiet"]
    assert main([*argv, "--out", str(tmp_path / "drift"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["editors"]
    assert [(row["editor"], row["n"], row["starts"]) for row in rows] == [
        ("mega", 2, 1.0),
        ("no_edit", 2, 0.0),
    ]
    assert len(Drift.load(tmp_path / "drift").texts) == 4
