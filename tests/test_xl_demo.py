"""The demo on the embedded encoder: what must be seen, that a report comes of it, and its command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from reports.errors import IntegrityError
from tests.xl_tiny import tiny_encoder
from xlprobe.cli import main
from xlprobe.encoders.encoder import Encoder
from xlprobe.recipes.demo import DEMO_SIZES, run_demo
from xlprobe.recipes.page import study_json
from xlprobe.training.alignment import retrieval
from xlprobe.transfer.study import StudyConfig
from xlprobe.transfer.world_lab import WorldLab

SMALL = replace(
    DEMO_SIZES,
    bitext=48,
    train=48,
    test=16,
    held_out=16,
    align_steps=2,
    finetune_steps=2,
    head_steps=2,
    probe_batches=3,
)
PLAN = StudyConfig(pairs=("source-words",), objectives=("sentence",), tasks=("topic",), seeds=1)


@pytest.mark.parametrize(
    ("objective", "shuffled"), [("sentence", False), ("token", False), ("sentence", True)]
)
def test_alignment_raises_held_out_retrieval_and_shuffled_pairs_do_not(
    objective: str, shuffled: bool, langworld: Encoder
) -> None:
    laboratory = WorldLab(langworld, DEMO_SIZES)
    held_out = laboratory.held_out("source-words")
    before = retrieval(laboratory.encoder, held_out)
    aligned = laboratory.aligned("source-words", objective, seed=0, shuffled=shuffled)
    after = retrieval(aligned, held_out)
    assert (after - before >= 0.2) != shuffled


def test_two_workers_give_the_numbers_of_one(tmp_path: Path) -> None:
    """The demo forks as many workers as there are cores; one worker is asked for by the study itself."""
    from xlprobe.transfer.study import transfer_study

    laboratory = WorldLab(tiny_encoder(), SMALL)
    one = transfer_study(laboratory, PLAN, tmp_path / "one", progress=False)
    two = transfer_study(laboratory, PLAN, tmp_path / "two", workers=2, progress=False)
    assert one.equals(two)


def test_the_demo_writes_a_report_and_one_object(tmp_path: Path) -> None:
    study = run_demo(tiny_encoder(), tmp_path / "demo", plan=PLAN, sizes=SMALL, progress=False)
    assert (tmp_path / "demo" / "report.html").is_file()
    assert (tmp_path / "demo" / "manifest.json").is_file()
    found = study_json(study)
    assert json.loads(json.dumps(found, default=float))["pairs"].keys() == {"source-words"}
    assert main(["report", str(tmp_path / "demo"), "--out", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "demo" / "report.html").read_bytes()


def test_wrong_usage_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("xlprobe: error: runs:")
    assert said.count("\n") == 1
    assert main(["distances", "--source", "no.txt", "--target", "no.txt"]) == 2
    with pytest.raises(SystemExit) as stopped:
        main(["gradients", "--task", "ner"])
    assert stopped.value.code == 2


def test_distances_of_two_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, lines in (
        ("a", ["this river", "my robot", "we see it", "two birds"]),
        ("b", ["x y", "z", "y z", "x"]),
    ):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = ["--source", str(tmp_path / "a"), "--target", str(tmp_path / "b"), "--quiet", "--json"]
    assert main(["distances", *options]) == 0
    rows = json.loads(capsys.readouterr().out)["layers"]
    assert {row["metric"] for row in rows} >= {"cosine", "weak_retrieval", "cka"}
    (tmp_path / "b").write_text("x\n\ny\nz\n", encoding="utf-8")
    assert main(["distances", *options]) == 2
    assert "line 2" in capsys.readouterr().err


def test_diagnose_says_ok_by_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]


def test_a_damaged_run_is_status_1(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}", encoding="utf-8")
    from reports import xl_page

    with pytest.raises(IntegrityError, match="title"):
        xl_page.build(tmp_path)
    assert main(["report", str(tmp_path)]) == 1
