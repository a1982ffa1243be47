"""A dry run says what a run then does: cases by their ids, sequences counted in the model itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.runs import RunFolder
from mechedit import faithfulness
from mechedit.attribution.terms import KINDS
from mechedit.cli import main
from mechedit.editors import NAMES, by_name
from mechedit.editors.steering import variants
from mechedit.factworld import export
from mechedit.models.embedded import FOLDERS
from mechedit.models.hooked import HookedModel
from mechedit.recipes import configurations, plans
from mechedit.recipes.configurations import EvaluationConfig
from mechedit.recipes.evaluate import run_evaluation


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    export(tmp_path / "facts.json", schema="counterfact", limit=4, seed=9)
    file = tmp_path / "evaluate.toml"
    file.write_text(
        f'experiment = "evaluate"\ndata = "{tmp_path / "facts.json"}"\neditor = "no_edit"\ndevice = "cpu"\n'
        'families = ["argmax", "probability", "doubt"]\n'
    )
    return file


def said(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["run", *map(str, argv), "--json", "--quiet"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_names_of_editors_are_those_of_their_cases() -> None:
    assert {name: by_name(name).name for name in NAMES} == {name: name for name in NAMES}


def test_the_names_of_configurations_are_those_of_the_registries() -> None:
    assert configurations.NAMES == NAMES
    assert tuple(variants.CONTROLS) == configurations.CONTROLS
    assert tuple(variants.ABLATIONS) == configurations.ABLATIONS
    assert (*configurations.RANKINGS, "random") == faithfulness.METHODS
    assert KINDS == ("mlp", "attn")  # the two that `plan_faithfulness` counts


def test_a_dry_run_writes_nothing_and_says_what_the_run_does(
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    factworld_gpt2: HookedModel,
) -> None:
    before = sorted(tmp_path.rglob("*"))
    (plan,) = said(capsys, recipe, "limit=3", "--dry-run")["cells"]
    assert sorted(tmp_path.rglob("*")) == before
    assert plan["config"]["limit"] == 3
    assert plan["config"]["mode"] == "single"
    weights = FOLDERS["factworld"] / "model.safetensors"
    assert 0.9 < plan["weights_bytes"] / weights.stat().st_size < 4.1  # the file's dtype may be narrower

    rows = 0
    run = HookedModel.run

    def counted(model: HookedModel, ids: Any, mask: Any, **options: Any) -> Any:
        nonlocal rows
        rows += 0 if options.get("past_key_values") is not None else len(ids)
        return run(model, ids, mask, **options)

    # loading runs it as well
    monkeypatch.setattr("mechedit.recipes.evaluate.load", lambda config: factworld_gpt2)
    monkeypatch.setattr(HookedModel, "run", counted)
    out = tmp_path / "run"
    said(capsys, recipe, "limit=3", "--out", out)
    done = RunFolder(out, {}).done()
    assert len(done) == plan["cases"] == 3
    config = EvaluationConfig(str(tmp_path / "facts.json"), editor="no_edit", limit=3)
    assert done == set(plans.plan_evaluation(config).cases)
    assert rows == plan["sequences"]


def test_a_run_is_done_again_from_its_folder(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    said(capsys, recipe, "limit=2", "--out", out)
    found = said(capsys, "--again", out)
    assert (found["n"], found["identical"], found["reproduced"]) == (2, 2, True)
    assert said(capsys, out / "config.toml", "--out", out)["cells"][0]["n_known"] == 2
    case = next((out / "cases").glob("*.json"))
    case.write_text(case.read_text().replace('"rewrite"', '"other"'))
    assert main(["run", "--again", str(out), "--quiet"]) == 1
    text = capsys.readouterr().out
    assert f"differing: {case.stem}: prompts[0].role was 'other', is 'rewrite'" in text
    assert "not reproduced" in text


def test_a_recipe_of_another_experiment_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--recipe", str(recipe), "--out", str(tmp_path / "x")]) == 2
    assert "expected 'compare', found 'evaluate'" in capsys.readouterr().err
    assert main(["run", str(recipe), "--again", str(tmp_path)]) == 2
    assert "expected one recipe, or a run folder" in capsys.readouterr().err
    assert main(["run", "--seed", "1", str(recipe), "--out", str(tmp_path / "x"), "limits=2"]) == 2
    assert "did you mean 'limit'?" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_every_recipe_that_ships_is_read(root: Path) -> None:
    from experiments.recipe import read
    from mechedit.recipes.registry import experiments
    from xlprobe.recipes.registry import experiments as of_languages

    known = experiments() | of_languages()
    names = {
        file.name: read(file, known)[0].experiment.name
        for file in (root / "experiments" / "recipes").iterdir()
    }
    assert names["mega.toml"] == "compare"
    assert names["anatomy.toml"] == "anatomy"
    assert names["transfer.toml"] == names["advice.toml"] == "study"


def test_what_is_evaluated_alone_is_not_written(recipe: Path, tmp_path: Path) -> None:
    config = EvaluationConfig(str(tmp_path / "facts.json"), editor="no_edit", limit=1, device="cpu")
    result, ripples = run_evaluation(config, None, progress=False)
    assert (result.n_total, ripples) == (1, None)
