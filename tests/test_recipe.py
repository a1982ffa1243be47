"""Recipes: what they may say, the grid, the command line on top, and a run held against itself done again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from experiments.again import compare_runs
from experiments.recipe import Cell, Experiment, Plan, describe, read, recorded
from experiments.runner import run_again, run_cells
from experiments.runs import RunFolder, provenance
from reports.errors import InputError
from tests.test_runs import start


@dataclass(frozen=True)
class Sum:
    model: str = "a"
    seed: int = 0
    limit: int = 3
    factors: tuple[float, ...] = (1.0,)
    data: str | None = None

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise InputError(f"limit: expected at least 1, found {self.limit}")


def case_ids(config: Sum) -> list[str]:
    return [f"{config.model}-{i}" for i in range(config.limit)]


def run_sum(config: Sum, out: Path, progress: bool, *, off: float = 0.0) -> dict[str, Any]:
    facts = provenance(
        model={"name": config.model, "hash": "h"},
        data={},
        seeds={"draws": config.seed},
        device="cpu",
        dtype="float32",
        attn_implementation="eager",
    )
    run = RunFolder.open(out, recorded("sum", config), provenance=facts)
    for i, case in enumerate(case_ids(config)):
        run.write_case(case, {"value": config.seed + i / 3 + off, "text": "x"})
    run.finish({})
    return {"n": config.limit}


def plan_sum(config: Sum) -> Plan:
    return Plan(tuple(case_ids(config)), sequences=2 * config.limit)


EXPERIMENTS = {"sum": Experiment("sum", Sum, plan_sum, run_sum)}


def cells(folder: Path, text: str, said: Sequence[str] = ()) -> list[Cell]:
    file = folder / "recipe.toml"
    file.write_text(text, encoding="utf-8")
    return read(file, EXPERIMENTS, settings=said)


def test_the_command_line_stands_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    (cell,) = cells(
        tmp_path, 'experiment = "sum"\nlimit = 5\nseed = 1', ["seed=2", "model=meta/L-2", "factors=[2]"]
    )
    assert cell.config == Sum(model="meta/L-2", seed=2, limit=5, factors=(2.0,))
    assert cell.folder == ""


def test_the_resolved_recipe_gives_itself(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, 'experiment = "sum"\nlimit = 5')
    assert cells(tmp_path, cell.to_toml()) == [cell]


@pytest.mark.parametrize(
    ("text", "said", "says"),
    [
        ("limit = 3", (), "experiment: this key is missing; one of sum"),
        ('experiment = "sun"', (), "did you mean 'sum'?"),
        ('experiment = ["sum"]', (), "experiment: expected one of sum, found ['sum']"),
        ("[experiment]", (), "experiment: expected one of sum, found {}"),
        ('experiment = "sum"\nlimt = 3', (), "unknown key 'limt'; did you mean 'limit'?"),
        ('experiment = "sum"\nlimit = "3"', (), "limit: expected int, found str '3'"),
        ('experiment = "sum"\nlimit = 0', (), "limit: expected at least 1, found 0"),
        ('experiment = "sum"', ("limit=soon",), "with limit=soon: limit: expected int, found str 'soon'"),
        ('experiment = "sum"', ("limits=3",), "did you mean 'limit'?"),
        ('experiment = "sum"', ("limit",), "overrides: expected KEY=VALUE"),
        ('experiment = "sum"\nmatrix = 3', (), "matrix: expected a table"),
        ('experiment = "sum"\n[matrix]\nseed = 3', (), "matrix.seed: expected a list"),
        ('experiment = "sum"\n[matrix]\nseed = []', (), "matrix.seed: expected a list"),
        (
            'experiment = "sum"\nseed = 1\n[matrix]\nseed = [1]',
            (),
            "'seed' stands in the recipe and in [matrix]",
        ),
        ('experiment = "sum"\n[matrix]\nseeds = [1]', (), "unknown key 'seeds'; did you mean 'seed'?"),
        ('experiment = "sum"\n[matrix]\nseed = [1, 1]', (), "two cells would share the folder 'seed-1'"),
        ('experiment = "sum"\n[matrix]\nmodel = ["a/b", "a-b"]', (), "share the folder 'model-a-b'"),
    ],
)
def test_a_bad_recipe_is_refused_by_file_and_key(
    tmp_path: Path, text: str, said: Sequence[str], says: str
) -> None:
    with pytest.raises(InputError) as caught:
        cells(tmp_path, text, said)
    assert says in str(caught.value)
    if "overrides" not in says:
        assert str(caught.value).startswith(str(tmp_path / "recipe.toml"))


GRID = 'experiment = "sum"\n[matrix]\nmodel = ["a", "b"]\nseed = [0, 1, 2]'


def test_a_matrix_makes_one_run_a_folder_and_goes_on(tmp_path: Path) -> None:
    grid = cells(tmp_path, GRID)
    assert [cell.folder for cell in grid] == [f"model-{m}_seed-{s}" for m in "ab" for s in range(3)]
    assert len({cell.config for cell in grid}) == 6
    out = tmp_path / "grid"
    for _ in range(2):
        assert len(list(run_cells(grid, out, progress=False))) == 6
    for cell, plan in zip(grid, describe(grid), strict=True):
        run = RunFolder(out / cell.folder, {})
        assert run.finished
        assert len(run.done()) == plan["cases"] == 3
        assert run.done() == set(cell.experiment.plan(cell.config).cases)
    assert [cell.folder for cell in cells(tmp_path, GRID, ["seed=7"])] == ["model-a", "model-b"]


def test_a_matrix_is_not_put_into_a_run(tmp_path: Path) -> None:
    start(tmp_path / "run")
    with pytest.raises(InputError, match="is a run itself"):
        list(run_cells(cells(tmp_path, GRID), tmp_path / "run"))


# -- again ------------------------------------------------------------------------------------------------------


def again(folder: Path, off: float) -> Any:
    other = {"sum": Experiment("sum", Sum, plan_sum, lambda c, out, p: run_sum(c, out, p, off=off))}
    return run_again(folder, None, other, progress=False)


def test_a_run_done_again_is_equal_in_every_bit(tmp_path: Path) -> None:
    run_sum(Sum(seed=3), tmp_path / "run", False)
    found = again(tmp_path / "run", 0.0)
    assert found.reproduced
    assert (found.n, found.identical, found.largest, found.changed) == (3, 3, 0.0, ())
    config = (tmp_path / "run-again" / "config.toml").read_bytes()
    assert config == (tmp_path / "run" / "config.toml").read_bytes()


def test_rounding_is_within_the_tolerance_and_an_error_is_named_by_its_case(tmp_path: Path) -> None:
    run_sum(Sum(), tmp_path / "run", False)
    rounded = again(tmp_path / "run", 1e-6)
    assert rounded.reproduced
    assert rounded.identical == 0
    assert rounded.largest == pytest.approx(1e-6, rel=1e-3)
    wrong = again(tmp_path / "run", 0.01)
    assert not wrong.reproduced
    assert wrong.differing[0].startswith("a-0: value was 0.0, is 0.01")
    assert len(wrong.differing) == 3


def test_other_texts_missing_cases_and_changed_versions_are_said(tmp_path: Path) -> None:
    for name in ("old", "new"):
        run_sum(Sum(), tmp_path / name, False)
    file = tmp_path / "new" / "cases" / "a-0.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"text": "y"}))
    (tmp_path / "new" / "cases" / "a-1.json").unlink()
    facts = tmp_path / "new" / "provenance.json"
    held = json.loads(facts.read_text())
    held["versions"]["torch"] = "1.0"
    facts.write_text(json.dumps(held))
    found = compare_runs(tmp_path / "old", tmp_path / "new")
    assert found.differing == ("a-0: text was 'x', is 'y'",)
    assert found.missing == ("a-1",)
    assert len(found.changed) == 1
    assert found.changed[0].startswith("versions.torch was '2.")
    assert not found.reproduced


def test_again_refuses_what_is_no_run_of_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a run folder"):
        again(tmp_path / "none", 0.0)
    start(tmp_path / "bare")
    with pytest.raises(InputError, match="names no experiment"):
        again(tmp_path / "bare", 0.0)
    run_sum(Sum(), tmp_path / "run", False)
    with pytest.raises(InputError, match="is the run itself"):
        run_again(tmp_path / "run", tmp_path / "run", EXPERIMENTS)
