"""Guidelines: each line from tables with a known answer, its figure and condition; the pages made of run folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.study_pages import advice_page, results_page
from tests.xl_study_example import study as made_up_study
from xlprobe.transfer.advice import Advice
from xlprobe.transfer.contest import contest
from xlprobe.transfer.guidelines import COLUMNS, guidelines, mean_change
from xlprobe.transfer.prediction import predict
from xlprobe.transfer.trained import robustness

PAIRS = ("de-en", "en-kk", "ja-kk", "ko-kk")


def cells(changes: dict[str, list[float]], half: float = 0.01) -> pd.DataFrame:
    """The changes of each objective on the four pairs."""
    rows = [
        {"pair": pair, "objective": name, "task": "pos", "delta_score": value, "n": 204}
        for name, values in changes.items()
        for pair, value in zip(PAIRS, values, strict=True)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(low=frame["delta_score"] - half, high=frame["delta_score"] + half)


def lines(frame: pd.DataFrame, **given: Any) -> dict[str, dict[str, Any]]:
    """The guidelines by their question."""
    calm = {"pos": Advice("pos", "hictl", 0.5, (1, 2), (), "neutral", "cosine +0.010 [−0.010, +0.030]")}
    options: dict[str, Any] = {"advice": calm, "contest": pd.DataFrame(), "predictors": pd.DataFrame()}
    options |= {"robustness": [], "condition": "e5-small; 1 seed"} | given
    made = guidelines(frame, **options)
    assert list(made) == list(COLUMNS)
    assert (made["figure"].str.len() > 0).all()
    assert (made["condition"] == options["condition"]).all()
    return {str(row["question"]): row for row in made.to_dict("records")}


def test_a_loss_is_shown_where_it_gains_more_than_wrong_pairs_do() -> None:
    gains = {"hictl": [0.03, 0.04, 0.05, 0.04], "sentence": [0.01] * 4, "shuffled": [0.0] * 4}
    line = lines(cells(gains))["loss"]
    assert (line["shown"], line["guideline"]) == (True, "For tags, align by hictl.")
    assert "mean change +4.0 points" in line["figure"]
    assert "wrong pairs +0.0 points" in line["figure"]
    same = lines(cells(gains | {"shuffled": [0.04] * 4}))["loss"]
    assert (same["shown"], "no loss is shown to help" in same["guideline"]) == (False, True)
    noisy = lines(cells(gains, half=0.2))["loss"]
    assert not noisy["shown"]
    assert " pairs" in noisy["figure"].rsplit("; ", 1)[1]
    assert "it would take about" in noisy["figure"]


def test_the_interval_of_a_mean_is_the_wider_of_cells_and_pairs() -> None:
    alike, apart = cells({"a": [0.02] * 4}), cells({"a": [-0.06, 0.10, -0.06, 0.10]})
    assert mean_change(alike)[2] - 0.02 == pytest.approx(0.01 / 2)  # four independent cells
    assert mean_change(apart)[2] - 0.02 == pytest.approx(
        1.959964 * np.std([-0.06, 0.1, -0.06, 0.1], ddof=1) / 2
    )


def test_pairs_that_lose_for_sure_are_left() -> None:
    line = lines(cells({"hictl": [0.05, 0.05, -0.03, -0.011]}))["leave"]
    assert (
        line["guideline"] == "For tags, leave hictl on ja-kk: it takes from the score."
    )  # ko-kk is one of four
    assert "ja-kk −3.0 points [−4.0, −2.0]" in line["figure"]
    none = lines(cells({"hictl": [0.05, 0.05, 0.01, 0.0]}))["leave"]
    assert not none["shown"]
    assert "lowest ko-kk +0.0 points" in none["figure"]


def test_layers_against_the_task_are_frozen() -> None:
    advice = {"pos": Advice("pos", "hictl", 0.5, (1,), (2, 3), "agrees", "cosine +0.200 [+0.100, +0.300]")}
    line = lines(cells({"hictl": [0.0] * 4}), advice=advice)["freeze"]
    assert (line["shown"], "freeze layers 2, 3" in line["guideline"]) == (
        False,
        True,
    )  # nothing was trained so
    assert line["figure"] == advice["pos"].reason
    assert not lines(cells({"hictl": [0.0] * 4}))["freeze"]["shown"]


def test_what_to_train_is_the_claims_answer() -> None:
    frame = pd.DataFrame({"delta_score": [-0.02, -0.03] * 6, "delta_score_head": [0.0] * 12})
    line = lines(cells({"hictl": [0.0] * 4}), robustness=robustness(frame))["train"]
    assert (line["shown"], line["guideline"]) == (True, "Train the head alone: alignment takes less from it.")
    unsure = robustness(frame.assign(delta_score_head=frame["delta_score"][::-1].to_numpy()))
    assert not lines(cells({"hictl": [0.0] * 4}), robustness=unsure)["train"]["shown"]


def test_what_to_look_at_is_the_winner_of_the_contest() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    measured = pd.DataFrame({"pair": PAIRS * 15, "gradient_cosine": x, "delta_gap": rng.normal(size=60)})
    for strength, shown in ((3.0, True), (0.0, False)):
        frame = measured.assign(delta_score=strength * x + rng.normal(size=60))
        line = lines(cells({"hictl": [0.0] * 4}), contest=contest(frame), predictors=predict(frame))[
            "look at"
        ]
        assert line["shown"] == shown
        if shown:
            assert line["guideline"] == "To guess what alignment will do, look at gradient_cosine."


def test_a_study_gives_its_guidelines_where_no_task_is_named() -> None:
    study = made_up_study()
    frame = study.advice()
    assert frame["question"].tolist() == ["loss", "freeze", "leave"] * 2 + ["look at"]
    assert frame["task"].tolist() == ["pos"] * 3 + ["topic"] * 3 + [""]
    assert frame["figure"].iloc[1] == study.advice("pos").reason
    assert "4 pairs" in frame["figure"].iloc[0]
    assert "mlm, sentence, token, tlm tried; 2 seeds" in frame["condition"].iloc[0]


def test_the_pages_of_run_folders_hold_the_runs_own_figures(tmp_path: Path) -> None:
    study = made_up_study()
    study.save(tmp_path / "run" / "results" / "study")
    page = results_page([tmp_path / "run"])
    for row in study.cells.to_dict("records")[:4]:
        assert f"{100 * row['delta_score']:+.1f}".replace("-", "−") in page
    for claim in study.claims:
        assert f"| {claim['claim']} | {claim['answer']} |" in page
    assert "0.01" in page
    assert "Gradients were measured in" not in page
    lines_of = advice_page([tmp_path / "run"])
    for line in study.advice().to_dict("records"):
        assert str(line["guideline"]) in lines_of
        assert str(line["figure"]).replace("|", "\\|") in lines_of


def test_a_page_says_that_one_seed_has_no_spread_and_how_many_cells_lack_gradients(tmp_path: Path) -> None:
    study = made_up_study()
    cells = study.cells.copy()
    cells.loc[cells.index[:3], "gradient_cosine"] = float("nan")
    replace(study, cells=cells, seeds=1).save(tmp_path / "run" / "results" / "study")
    tried = int((cells["objective"] != "shuffled").sum())
    page = results_page([tmp_path / "run"])
    assert f"Gradients were measured in {tried - 3} of {tried} cells" in page
    assert "One seed" in page
