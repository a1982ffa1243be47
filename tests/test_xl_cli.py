"""`xlprobe align | finetune | langworld`: what they print, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xlprobe.cli import main
from xlprobe.data.formats import load_iob2
from xlprobe.encoders.encoder import load_encoder
from xlprobe.training.task_model import TaskModel

ROW = "{}\t{}\t_\t{}\t_\t_\t0\troot\t_\t_"


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> dict[str, Any]:
    assert main([*map(str, argv), "--json", "--quiet"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def refused(capsys: pytest.CaptureFixture[str], match: str, *argv: str | Path) -> None:
    assert main([*map(str, argv), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.count("\n") == 1


def test_align_writes_an_encoder_that_retrieves_better(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ("align", "--steps", "60", "--pairs", "600", "--held-out", "100", "--out", tmp_path / "x")
    found = run(capsys, *argv)["retrieval"]
    assert found["after"] > found["before"] + 0.1
    assert load_encoder(found["model"], device="cpu").hash != load_encoder("langworld", device="cpu").hash
    refused(capsys, "holds a finished encoder", *argv)


def test_align_reads_files_and_refuses_unequal_sides(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("this river\nmy robot\nthe team\n")
    (tmp_path / "b").write_text("de brel\ndrei zuda\nzus gada\n")
    argv = ("align", "--source", tmp_path / "a", "--target", tmp_path / "b", "--steps", "2", "--objective")
    options = ("mlm=1,sentence=0.5", "--held-out", "1", "--out", tmp_path / "x")
    assert run(capsys, *argv, *options)["objective"] == {"mlm": 1.0, "sentence": 0.5}
    (tmp_path / "b").write_text("de brel\n")
    refused(capsys, "found 3 lines", *argv, "sentence", "--out", tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_finetune_scores_every_language(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = run(capsys, "finetune", "--seeds", "1", "--steps", "30", "--out", tmp_path / "scores")
    assert [row["language"] for row in found["languages"]] == ["source", "words", "order", "suffix", "half"]
    assert (tmp_path / "scores" / "scores.parquet").is_file()


def test_finetune_reads_conllu_and_names_a_bad_row(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = "\n".join((ROW.format(1, "river", "NOUN"), ROW.format(2, "grows", "VERB"), ""))
    (tmp_path / "x.conllu").write_text(rows)
    argv = ("finetune", "--train", tmp_path / "x.conllu", "--seeds", "1", "--steps", "2", "--batch", "1")
    found = run(capsys, *argv, "--test", f"en={tmp_path / 'x.conllu'}")
    assert [row["language"] for row in found["languages"]] == ["en"]
    (tmp_path / "bad.conllu").write_text(rows.replace("\t_\t_\n", "\t_\n", 1))
    refused(capsys, "line 1: expected 10 columns, found 9", *argv, "--test", f"en={tmp_path / 'bad.conllu'}")


def test_langworld_shows_and_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(run(capsys, "langworld", "show", "--n", "2")["order"]) == 2
    assert run(capsys, "langworld", "check", "--n", "60")["source"]["ok"] is True


@pytest.mark.parametrize("command", ["align", "finetune", "langworld"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [command, "train", "--help"] if command == "langworld" else [command, "--help"]
    with pytest.raises(SystemExit):
        main(argv)
    assert "example: xlprobe" in capsys.readouterr().out


def test_finetune_on_entities_with_a_dev_set_beside_an_alignment_and_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "x.iob2"
    file.write_text("this O\nriver B-LOC\n\nmy O\nrobot B-PER\n\n" * 4)
    (tmp_path / "pairs.txt").write_text("this river ||| de brel\nmy robot ||| drei zuda\n")
    argv = (
        "finetune",
        "--task",
        "ner",
        "--train",
        file,
        "--test",
        f"x={file}",
        "--seeds",
        "1",
        "--device",
        "cpu",
    )
    small = ("--steps", "30", "--batch", "4", "--micro", "2", "--lr", "3e-3")
    more = ("--dev", file, "--metric", "span_f1", "--check-every", "10", "--save-model", tmp_path / "kept")
    found = run(capsys, *argv, *small, *more, "--align-source", tmp_path / "pairs.txt", "--weight", "0.5")
    assert found["languages"][0]["accuracy"] == 1.0
    model = TaskModel.load(tmp_path / "kept" / "seed-0", device="cpu")
    assert model.predict([["this", "river"]]) == [["O", "B-LOC"]]
    assert model.score(load_iob2(file))["macro_f1"] == 1.0
    refused(capsys, "weight: --weight says nothing without --align-source", *argv, "--weight", "0.5")
    refused(capsys, "column: --task ner takes none", *argv, "--column", "xpos")
    refused(capsys, "epochs: expected epochs or steps, found both", *argv, "--steps", "2", "--epochs", "1")
    refused(capsys, "train: expected a file of the task ner", "finetune", "--task", "ner")


def test_align_in_parts_on_another_layer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ("align", "--steps", "3", "--batch", "8", "--micro", "4", "--layer", "2", "--pooling", "first")
    found = run(capsys, *argv, "--pairs", "16", "--held-out", "8", "--device", "cpu", "--out", tmp_path / "x")
    assert found["retrieval"]["n"] == 8
    refused(capsys, "layer: expected 0 to 4, found 9", "align", "--layer", "9", "--out", tmp_path / "y")
