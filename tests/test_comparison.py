"""The comparison: every editor on the same facts, pooled over seeds, resumed, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments.runs import RunFolder
from mechedit.cli import main
from mechedit.editors import MEGA
from mechedit.editors.steering.asked_gate import learn_relations
from mechedit.editors.steering.variants import ABLATIONS, CONTROLS, variant
from mechedit.models.hooked import HookedModel
from mechedit.recipes.compare import EditorComparison, run_comparison
from mechedit.recipes.configurations import ComparisonConfig
from mechedit.recipes.plans import plan_comparison
from reports.errors import InputError
from reports.gates import roc_curve

SMALL = ComparisonConfig(
    editors=("mega", "gate_only", "no_edit"),
    ablations=("one_layer",),
    limit=3,
    selection=4,
    seeds=(0, 1),
    ablation_facts=2,
    ripple_facts=2,
)


@pytest.fixture(scope="module")
def run(
    factworld_gpt2: HookedModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EditorComparison, Path]:
    folder = tmp_path_factory.mktemp("comparison") / "run"
    return run_comparison(factworld_gpt2, SMALL, folder, progress=False), folder


def test_scores_are_pooled_over_the_seeds(run: tuple[EditorComparison, Path]) -> None:
    result, _ = run
    assert (result.n_known, result.n_total) == (6, 6)
    table = result.table.set_index(["part", "editor", "metric"])
    by_seed = result.seeds.set_index(["editor", "metric", "seed"])["value"]
    for metric in ("Acc", "Spec", "DI"):
        mean = (by_seed["mega", metric, 0] + by_seed["mega", metric, 1]) / 2  # three records each
        assert table.loc[("editor", "mega", metric), "value"] == pytest.approx(mean)
        assert table.loc[("editor", "mega", metric), "n"] == 6
    five = [table.loc[("editor", "no_edit", m), "value"] for m in ("Acc", "Gen", "Spec", "DI", "DII")]
    assert table.loc[("editor", "no_edit", "mean"), "value"] == pytest.approx(sum(five) / 5)


def test_mega_stands_above_its_controls(run: tuple[EditorComparison, Path]) -> None:
    means = run[0].wide()["mean"]
    assert means["mega"] > 0.9
    assert means["mega"] > max(means["gate_only"], means["no_edit"]) + 0.3
    assert list(run[0].wide("ablation").index) == ["mega", "one_layer"]


def test_what_follows_from_an_edit_is_there(run: tuple[EditorComparison, Path]) -> None:
    assert set(run[0].ripple["editor"]) == {"mega", "gate_only", "no_edit"}


def test_the_same_run_again_is_read_and_its_page_stands(
    run: tuple[EditorComparison, Path], factworld_gpt2: HookedModel
) -> None:
    result, folder = run
    page = (folder / "report.html").read_bytes()
    assert run_comparison(factworld_gpt2, SMALL, folder, progress=False).equals(result)
    assert (folder / "report.html").read_bytes() == page
    assert b"How well the gate knows its prompts" in page
    with pytest.raises(InputError, match="choose another folder"):
        run_comparison(factworld_gpt2, ComparisonConfig(limit=4, seeds=(0,)), folder, progress=False)


def test_the_command_reads_the_recipe_and_says_what_is_wrong(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(root / "experiments" / "recipes" / "mega.toml")
    assert main(["compare", "--recipe", recipe, "--editors", "mega,rom", "--out", str(tmp_path / "run")]) == 2
    assert "editors: expected some of" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    bad = tmp_path / "bad.toml"
    bad.write_text("limits = 3\n")
    assert main(["compare", "--recipe", str(bad), "--out", str(tmp_path / "run")]) == 2
    assert "limits" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"editors": ("rome",)}, {"seeds": ()}, {"seeds": (0, 0)}, {"limit": 0}])
def test_an_impossible_configuration_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ComparisonConfig(**change)  # type: ignore[arg-type]


def test_each_variant_changes_one_thing() -> None:
    space = learn_relations(torch.randn(6, 3), ["a", "b"] * 3, layer=2)
    mega = MEGA(window=(5, 7), alpha=1.0, gate_layer=5, threshold=2.0, relations=space)
    for name in (*CONTROLS, *ABLATIONS):
        found = variant(mega, name, n_layers=8)
        assert found.name == name
        assert found != mega
        if isinstance(found.window, tuple) and name in ("random_window", "early_window", "late_window"):
            assert found.window[1] - found.window[0] == 2
    assert variant(mega, "random_window", n_layers=8).window[1] < 5  # type: ignore[operator]
    with pytest.raises(InputError, match="variant"):
        variant(mega, "nose", n_layers=8)


def test_a_roc_figure_wants_its_columns() -> None:
    with pytest.raises(InputError, match="true_rate"):
        roc_curve(pd.DataFrame({"gate": ["a"]}))
    with pytest.raises(InputError, match="at least one row"):
        roc_curve(pd.DataFrame({"gate": [], "true_rate": [], "false_rate": []}))


def test_choices_are_kept(run: tuple[EditorComparison, Path]) -> None:
    chosen = run[0].choices.set_index(["seed", "key"])["value"]
    assert json.loads(chosen[0, "window"].replace("(", "[").replace(")", "]")) == [5, 7]


def test_the_plan_lists_the_cases_of_the_run(run: tuple[EditorComparison, Path]) -> None:
    plan = plan_comparison(SMALL)
    assert set(plan.cases) == RunFolder(run[1], {}).done()
    assert len(plan.cases) == len(set(plan.cases)) == 3 * 6 + 2 + 3 * 2
