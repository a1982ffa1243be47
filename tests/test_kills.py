"""Killed at any moment, the same command again gives the bytes of a run that was never killed; in both packages.

Every child is a real process. `pytest -m faults` kills twenty times in each package; the ordinary suite three times.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mechedit.factworld import export
from mechedit.models.hooked import HookedModel
from mechedit.recipes.configurations import EvaluationConfig
from mechedit.recipes.evaluate import run_evaluation
from tests.killing import ended, forked, killed, whole
from tests.test_runs import facts, start, tree
from tests.xl_tiny import tiny_encoder
from xlprobe.recipes.page import write_page
from xlprobe.transfer.laboratory import Sizes
from xlprobe.transfer.study import StudyConfig, transfer_study
from xlprobe.transfer.world_lab import WorldLab

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork: POSIX only")

Work = Callable[[Path], None]
SIZES = Sizes(
    bitext=16,
    train=16,
    test=8,
    held_out=8,
    align_steps=1,
    finetune_steps=1,
    head_steps=1,
    probe_batches=2,
    batch=8,
)
PLAN = StudyConfig(("source-half",), ("sentence",), ("topic",), seeds=2, shuffled=False)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory, factworld_gpt2: HookedModel) -> Work:
    """`mechedit evaluate` on six facts that it does not edit; the model is loaded anew in each process."""
    data = tmp_path_factory.mktemp("facts") / "facts.json"
    export(data, schema="counterfact", limit=6, seed=9)
    config = EvaluationConfig(str(data), editor="no_edit", families=("argmax",), device="cpu")

    def work(folder: Path) -> None:
        run_evaluation(config, folder, progress=False)

    return work


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A transfer study of seven cases on a tiny encoder."""
    laboratory = WorldLab(tiny_encoder(), SIZES)

    def work(folder: Path) -> None:
        found = transfer_study(laboratory, PLAN, folder, progress=False)
        write_page(found, folder, model="tiny", title="tiny")

    work(
        tmp_path_factory.mktemp("warm") / "run"
    )  # what is imported late is imported once, not by every child
    return work


def survives(work: Work, folder: Path, *, kills: int, seed: int) -> int:
    """Kill the run `kills` times, each time from the start, and go on to the end: the same bytes each time.

    The moments are uniform over the time that an uninterrupted run takes. Returns how often it was found at work.
    """
    facts()  # asks git once, here, for all children: a commit during the test is no fault of the run
    began = time.monotonic()
    assert ended(forked(functools.partial(work, folder / "whole"))) == 0
    took = time.monotonic() - began
    wanted, found = whole(folder / "whole"), 0
    assert "manifest.json" in wanted
    moments = random.Random(seed)
    for i in range(kills):
        torn = folder / f"killed-{i}"
        found += killed(functools.partial(work, torn), moments.uniform(0, took))
        assert ended(forked(functools.partial(work, torn))) == 0
        assert whole(torn) == wanted, f"kill {i}: other bytes than those of an uninterrupted run"
        shutil.rmtree(torn)
    return found


def test_a_killed_evaluation_ends_in_the_same_bytes(evaluation: Work, tmp_path: Path) -> None:
    assert survives(evaluation, tmp_path, kills=2, seed=3) > 0


def test_a_killed_study_ends_in_the_same_bytes(study: Work, tmp_path: Path) -> None:
    assert survives(study, tmp_path, kills=2, seed=3) > 0


@pytest.mark.faults
def test_an_evaluation_survives_twenty_kills(
    evaluation: Work, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = survives(evaluation, tmp_path, kills=20, seed=1)
    record_property("killed at work", f"{found} of 20 kills, 0 failures")
    assert found > 10


@pytest.mark.faults
def test_a_study_survives_twenty_kills(
    study: Work, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = survives(study, tmp_path, kills=20, seed=1)
    record_property("killed at work", f"{found} of 20 kills, 0 failures")
    assert found > 10


def test_a_run_that_begins_again_would_be_found_out(tmp_path: Path) -> None:
    """The comparison of bytes can fail: a run whose cases hold the time is another after a kill."""

    def work(folder: Path) -> None:
        run = start(folder)
        for case in range(6):
            if run.find_case(case) is None:
                run.write_case(case, {"at": time.monotonic()})
            time.sleep(0.05)
        run.finish({})

    with pytest.raises(AssertionError, match="other bytes"):
        survives(work, tmp_path, kills=1, seed=0)


def test_a_torn_case_of_a_real_run_is_measured_again(evaluation: Work, tmp_path: Path) -> None:
    evaluation(tmp_path / "run")
    before = tree(tmp_path / "run")
    torn = next((tmp_path / "run" / "cases").glob("*.json"))
    torn.write_bytes(torn.read_bytes()[:50])
    evaluation(tmp_path / "run")
    assert tree(tmp_path / "run") == before
