"""The demo at a small setting: what `make demo` runs, whole, and that it resumes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from mechedit.editors import MEGA
from mechedit.models.hooked import HookedModel
from mechedit.recipes.configurations import DemoConfig
from mechedit.recipes.demo import controls, run_demo

SMALL = DemoConfig(limit=4, selection=6, seed=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, factworld_gpt2: HookedModel) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    run_demo(factworld_gpt2, SMALL, folder, progress=False)
    return folder


def test_mega_edits_and_its_controls_do_not(finished: Path) -> None:
    rows = {row["name"]: row for row in json.loads((finished / "summary.json").read_text())["editors"]}
    mean = {name: row["mean"]["value"] for name, row in rows.items()}
    assert mean["mega"] >= 0.8
    for control in ("no_edit", "gate_only", "random_window", "early_window"):
        assert mean["mega"] >= mean[control] + 0.3, control
    assert rows["no_edit"]["acc"]["value"] == rows["gate_only"]["acc"]["value"] == 0


def test_the_report_needs_no_network_and_shows_every_section(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    page = re.sub(
        r"<script>.*?</script>", "", page, flags=re.DOTALL
    )  # a library's comments name where it comes from
    assert "http://" not in page
    assert "https://" not in page
    assert "not part of this run" not in page
    assert len(page.encode()) < 3_000_000


def test_the_page_shows_where_the_heads_of_its_circuit_look(finished: Path) -> None:
    circuit = json.loads((finished / "circuit.json").read_text(encoding="utf-8"))
    scores = {node["id"]: node["score"] for node in circuit["nodes"]}
    heat = pd.read_parquet(finished / "token_heat.parquet")
    sums = heat.groupby(["layer", "head"])["score"].sum()
    assert 0 < len(sums) <= 8
    for (layer, head), score in sums.items():
        assert score == pytest.approx(scores[f"head:{layer}.{head}"], abs=1e-4)
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "Where its heads look" in page
    assert page.count("var CircuitsVis=") == 1


def test_the_same_command_again_changes_no_byte(finished: Path, factworld_gpt2: HookedModel) -> None:
    before = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    next((finished / "cases").glob("mega-*.json")).unlink()
    next((finished / "cases").glob("attribution-*.json")).unlink()
    run_demo(factworld_gpt2, SMALL, finished, progress=False)
    assert before == {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}


def test_random_layers_lie_outside_the_window_where_they_can() -> None:
    for window in ((4, 6), (0, 1), (5, 7)):
        mega = MEGA(window=window, gate="always")
        for seed in range(20):
            by_name = {editor.name: editor for editor in controls(mega, n_layers=8, seed=seed)}
            drawn = by_name["random_window"]
            assert isinstance(drawn, MEGA)
            assert not isinstance(drawn.window, str)
            first, last = drawn.window
            assert last - first == window[1] - window[0]
            assert not set(range(first, last + 1)) & set(range(window[0], window[1] + 1))


def test_the_plan_lists_the_cases_of_the_run(finished: Path) -> None:
    from experiments.runs import RunFolder
    from mechedit.recipes.plans import plan_demo

    assert set(plan_demo(SMALL).cases) == RunFolder(finished, {}).done()
