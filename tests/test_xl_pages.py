"""Pages of single results: what they show is what was saved, every command with --out has one, NaNs say why."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from reports import compare, formats, markdown, overview, probe_page
from reports.errors import InputError, IntegrityError
from reports.missing import COLUMN, UNKNOWN, explained
from reports.results import Result
from tests.test_reports_page import Outline, addresses
from tests.xl_study_example import study as made_up_study
from tests.xl_tiny import tiny_encoder
from xlprobe.cli import main
from xlprobe.langworld.train import train_langworld
from xlprobe.langworld.world import bitext, task
from xlprobe.probes.distances import Distances, distances
from xlprobe.probes.gradients import Gradients, gradients
from xlprobe.training.finetune import TransferScores, finetune_seeds
from xlprobe.training.loop import Training
from xlprobe.transfer.laboratory import Sizes
from xlprobe.transfer.prediction import predict
from xlprobe.transfer.world_lab import WorldLab

HOSTILE = "<script>alert(1)</script>\u202e"
KEYS = ("layer",)  # NA there is a row's place, no missing value


@pytest.fixture(scope="module")
def measured() -> Distances:
    return distances(tiny_encoder(), bitext("half", 24, "held_out"), progress=False)


@pytest.fixture(scope="module")
def probed() -> Gradients:
    lab = WorldLab(tiny_encoder(), Sizes(bitext=16, train=16, head_steps=1, probe_batches=3, batch=4))
    alignment = lab.alignment_loss(lab.encoder, "source-half", "sentence")
    return gradients(lab.encoder, task=lab.task_loss(lab.encoder, "pos"), alignment=alignment, progress=False)


@pytest.fixture(scope="module")
def scored() -> TransferScores:
    plan = Training(steps=2, batch=4, lr=1e-3)
    asked = task("topic", n_train=12, n_test=6)
    return finetune_seeds(tiny_encoder(), asked, seeds=(0,), training=plan, progress=False)


@pytest.fixture(scope="module")
def results(measured: Distances, probed: Gradients, scored: TransferScores) -> dict[str, Result]:
    return {"distances": measured, "gradients": probed, "scores": scored}


def cells(page: str, caption: str = "") -> dict[str, list[str]]:
    """The rows of the first table behind `caption`: heading -> texts."""
    table = page[page.index(caption) :].split("<tbody>")[1].split("</tbody>")[0]
    rows = {}
    for row in re.findall(r"<tr>(.*?)</tr>", table, re.S):
        first, *rest = (
            re.sub(r"<[^>]*>", " ", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
        )
        rows[first] = [" ".join(text.split()) for text in rest]
    return rows


def number(text: str) -> float:
    return float(text.split()[0].replace("−", "-"))


# -- pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["distances", "gradients", "scores"])
def test_a_page_is_whole_safe_and_the_same_each_time(
    kind: str, results: dict[str, Result], tmp_path: Path
) -> None:
    folder = results[kind].save(tmp_path / kind)
    page = probe_page.render(folder)
    assert page == probe_page.render(folder)
    assert Outline(page).faults == addresses(page) == []
    assert "<script" not in page
    assert page.count("<svg") >= 1
    text, pictures = markdown.convert(page, folder="x")
    assert len(pictures) == page.count("<svg")
    assert text.startswith(f"# {probe_page.TITLES[kind]}")


def test_distances_show_what_was_saved(measured: Distances, tmp_path: Path) -> None:
    page = probe_page.render(measured.save(tmp_path / "d"))
    gaps, both = cells(page, "Matched − random"), cells(page, "Matched / random")
    for layer in range(measured.layers["layer"].max() + 1):
        value = measured.value("cosine", layer=layer, column="gap")
        assert number(gaps[str(layer)][0]) == pytest.approx(value, abs=5e-4)
        matched, random = both[str(layer)][0].split(" / ")
        assert number(matched) - number(random) == pytest.approx(value, abs=1.1e-3)


def test_gradients_show_what_was_saved_and_why_not(probed: Gradients, tmp_path: Path) -> None:
    page = probe_page.render(probed.save(tmp_path / "g"))
    rows = cells(page, "Over")
    assert number(rows["reached by both"][0]) == pytest.approx(probed.encoder["cosine"], abs=5e-4)
    words = " ".join(Outline(page).words)
    assert "Source–target, Shuffled" in words or "Source–target: no loss in the target language" in words
    assert "the gradient of the alignment" in words  # the layers above two thirds


def test_scores_show_what_was_saved(scored: TransferScores, tmp_path: Path) -> None:
    rows = cells(probe_page.render(scored.save(tmp_path / "s")))
    for row in scored.summary().itertuples():
        assert number(rows[str(row.language)][0]) == pytest.approx(100 * float(str(row.accuracy)), abs=0.06)


def test_hostile_names_stay_text(scored: TransferScores, measured: Distances, tmp_path: Path) -> None:
    bad = replace(scored, encoder=HOSTILE, scores=scored.scores.assign(language=HOSTILE))
    for result in (bad, replace(measured, encoder=HOSTILE)):
        folder = result.save(tmp_path / result.kind)
        page = probe_page.render(folder)
        assert "<script" not in page
        assert "\u202e" not in page
        assert Outline(page).faults == []


def test_results_of_an_earlier_version_have_pages(probed: Gradients, tmp_path: Path) -> None:
    old = replace(probed, cells=probed.cells.drop(columns=COLUMN))
    assert "Do task and alignment pull the same way?" in probe_page.render(old.save(tmp_path / "g"))


def test_a_damaged_result_is_named(measured: Distances, tmp_path: Path) -> None:
    folder = measured.save(tmp_path / "d")
    pd.DataFrame({"layer": [0], "level": ["sentence"], "n": [4]}).to_parquet(folder / "layers.parquet")
    with pytest.raises(IntegrityError, match="not what the report expects"):
        probe_page.render(folder)
    (folder / "layers.parquet").unlink()
    assert overview.state(folder) == ("damaged", "layers.parquet is missing")
    with pytest.raises(IntegrityError, match="expected this table"):
        probe_page.render(folder)
    with pytest.raises(InputError, match="found none"):
        probe_page.render(tmp_path)


def test_a_page_does_not_hinder_the_next_save(measured: Distances, tmp_path: Path) -> None:
    folder = measured.save(tmp_path / "d")
    formats.save(probe_page.render(folder), folder / "report.html")
    assert not (measured.save(folder) / "report.html").exists()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        measured.save(folder)


def test_two_results_are_compared(measured: Distances, tmp_path: Path) -> None:
    more = measured.layers.assign(gap=measured.layers["gap"] + 0.5)
    folders = [measured.save(tmp_path / "a"), replace(measured, layers=more).save(tmp_path / "b")]
    page = compare.render(*folders)
    assert "+0.500" in page
    assert Outline(page).faults == []


# -- every command -------------------------------------------------------------------------------------------------


COMMANDS = {
    "align": "align --pairs 40 --held-out 8 --steps 2",
    "finetune": "finetune --task topic --seeds 1 --steps 2",
    "gradients": "gradients --batches 3 --batch 4 --head-steps 2 --layer 2 --pooling first",
    "distances": "distances --layers 0,2 --pooling first --source {a} --target {b}",
    "langworld": "langworld train --steps 1",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_with_out_has_a_page_and_quiet_is_quiet(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xlprobe.langworld.train.train_langworld", partial(train_langworld, sentences=400))
    for name in "ab":
        text = "\n".join(f"{word} river {i}" for i, word in enumerate(("this", "my", "two", "the", "all")))
        (tmp_path / name).write_text(text + "\n")
    argv = COMMANDS[command].format(a=tmp_path / "a", b=tmp_path / "b").split()
    out = tmp_path / "out"
    assert main([*argv, "--quiet", "--json", "--out", str(out)]) == 0
    said = capfd.readouterr()
    assert not re.search(r"it/s|s/it|%\|", said.err)  # no bar; a warning may stand there
    assert json.loads(said.out)["report"] == str(out / "report.html")
    page = (out / "report.html").read_bytes()
    assert main(["report", str(out), "--quiet"]) == 0
    assert (out / "report.html").read_bytes() == page
    assert overview.state(out) == ("complete", "")
    assert overview.read(out).rows


def test_an_index_lists_results_beside_trainings(
    results: dict[str, Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, result in results.items():
        result.save(tmp_path / name)
    argv = ["align", "--pairs", "40", "--held-out", "8", "--steps", "2", "--quiet"]
    assert main([*argv, "--out", str(tmp_path / "aligned")]) == 0
    assert main(["report", str(tmp_path), "--quiet", "--json"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {run["state"] for run in made["runs"]} == {"complete"}
    assert len(made["runs"]) == 4


# -- why a value is missing ----------------------------------------------------------------------------------------


def unexplained(frame: pd.DataFrame) -> list[str]:
    """Columns with a NaN of which `missing` says nothing, or not why."""
    columns = [name for name in frame.columns if name not in (*KEYS, COLUMN)]
    return [
        name
        for name in columns
        for absent, why in zip(frame[name].isna(), frame[COLUMN], strict=True)
        if absent
        and not any(part.startswith(f"{name}: ") and not part.endswith(UNKNOWN) for part in why.split("; "))
    ]


def test_every_nan_has_its_reason(measured: Distances, probed: Gradients, scored: TransferScores) -> None:
    few = predict(pd.DataFrame({"pair": ["a"], "delta_score": [0.1], "delta_gap": [0.2]}))
    frames = [measured.layers, probed.cells, scored.summary(), made_up_study().cells, few]
    assert [unexplained(frame) for frame in frames] == [[]] * len(frames)
    assert any(frame.drop(columns=[COLUMN, *KEYS], errors="ignore").isna().any(axis=None) for frame in frames)


def test_a_nan_without_a_reason_is_found() -> None:
    frame = explained(pd.DataFrame({"a": [math.nan, 1.0], "b": [math.nan, math.nan]}), {"a": "said"})
    assert unexplained(frame) == ["b", "b"]
    assert unexplained(explained(frame, {"b": ""})) == ["b", "b"]
    assert explained(frame, {"b": "too"})[COLUMN].tolist() == ["a: said; b: too", "b: too"]
