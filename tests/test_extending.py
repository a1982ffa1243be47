"""A finished run is extended by a larger limit: its cases stay, what was chosen is chosen by the same facts again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.config import load
from experiments.runs import continued
from mechedit.data.facts import load_facts
from mechedit.factworld import edits, export
from mechedit.models.hooked import HookedModel
from mechedit.recipes.anatomy import run_anatomy
from mechedit.recipes.configurations import AnatomyConfig, EvaluationConfig, FaithfulnessConfig
from mechedit.recipes.evaluate import run_evaluation
from mechedit.recipes.faithfulness import run_faithfulness
from mechedit.recipes.splits import anatomy_facts, evaluated_facts, selection_for
from reports.errors import InputError

Run = Callable[[Any, Path], Any]


def anatomy(model: HookedModel) -> tuple[Run, AnatomyConfig]:
    # IKE, made to fail, lets the facts of the run stand in for each other; MEGA chooses
    config = AnatomyConfig(editors=("ike", "mega"), limit=2, selection=2, top_k=2, device="cpu")
    return lambda config, out: run_anatomy(model, config, out, progress=False), config


def faithfulness(model: HookedModel) -> tuple[Run, FaithfulnessConfig]:
    config = FaithfulnessConfig(models=("factworld",), limit=2, ks=(1,), draws=1, mean_over=2, device="cpu")
    return lambda config, out: run_faithfulness([model], config, out, progress=False), config


def evaluation(model: HookedModel, folder: Path) -> tuple[Run, EvaluationConfig]:
    export(folder / "facts.json", schema="counterfact", limit=12, seed=3)
    config = EvaluationConfig(str(folder / "facts.json"), limit=1, families=("argmax",), device="cpu")
    return lambda config, out: run_evaluation(config, out, progress=False)[0], config


@pytest.mark.usefixtures("few_to_choose_by")
@pytest.mark.parametrize("name", ["anatomy", "faithfulness", "evaluate"])
def test_a_finished_run_is_extended(
    name: str, factworld_gpt2: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechedit.recipes.evaluate.load", lambda config: factworld_gpt2)
    monkeypatch.setattr("reports.page.build", lambda run: None)  # four pages, which are not looked at here
    makers: dict[str, Callable[[], tuple[Run, Any]]] = {
        "anatomy": lambda: anatomy(factworld_gpt2),
        "faithfulness": lambda: faithfulness(factworld_gpt2),
        "evaluate": lambda: evaluation(factworld_gpt2, tmp_path),
    }
    run, config = makers[name]()
    out, limit = tmp_path / "run", config.limit
    run(config, out)
    written = {file.name: file.stat().st_mtime_ns for file in (out / "cases").iterdir()}
    result = run(replace(config, limit=limit + 1), out)
    files = {file.name: file.stat().st_mtime_ns for file in (out / "cases").iterdir()}
    assert files.items() > written.items()
    assert (out / "manifest.json").is_file()
    again = load(out / "config.toml", type(config), experiment=name)
    assert (again.limit, again.begun_with) == (limit + 1, limit)
    whole = run(again, tmp_path / "again")
    for name, value in vars(result).items():
        if isinstance(
            value, pd.DataFrame
        ):  # the unedited model read one batch, not two: the last digits move
            pd.testing.assert_frame_equal(getattr(whole, name), value, rtol=1e-3)
    assert run(replace(config, limit=limit + 1), out).equals(result)  # goes on
    assert {file.name: file.stat().st_mtime_ns for file in (out / "cases").iterdir()} == files
    for change, message in (
        ({"seed": 5}, "'seed' is 0 there and 5 now"),
        ({"dtype": "float64"}, "'dtype' is 'float32' there and 'float64' now"),
        ({"limit": limit}, f"'limit' is {limit + 1} there and {limit} now"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            run(replace(config, **{"limit": limit + 2} | change), out)
        assert "\n" not in str(refused.value)


def test_what_nothing_is_chosen_for_records_no_beginning(
    factworld_gpt2: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechedit.recipes.evaluate.load", lambda config: factworld_gpt2)
    run, mega = evaluation(factworld_gpt2, tmp_path)
    config = replace(mega, editor="no_edit")
    run(config, tmp_path / "run")
    run(replace(config, limit=2), tmp_path / "run")
    run(replace(config, limit=2), tmp_path / "whole")
    assert (tmp_path / "run" / "config.toml").read_text() == (tmp_path / "whole" / "config.toml").read_text()


def test_further_facts_are_about_no_subject_that_is_chosen_by(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(tmp_path / "facts.json", schema="counterfact", limit=12, seed=3)
    config = EvaluationConfig(str(tmp_path / "facts.json"), model="a-real-one", limit=2)
    everything = load_facts(config.data)
    chosen_by = selection_for(everything[:2], config.data, embedded=config.model, n=20, seed=0)
    assert len(chosen_by) == 10
    facts, first = evaluated_facts(replace(config, limit=4, begun_with=2))
    assert (facts, first) == (everything[:2], everything[:2])  # all others are chosen by
    assert "of the 2 facts more that are asked for, there are 0" in caplog.text
    few = AnatomyConfig(model="a-real-one", data=config.data, limit=2, selection=3)
    for limit in (2, 3, 6):
        facts_now, selection = anatomy_facts(replace(few, limit=limit, begun_with=2))
        assert selection == anatomy_facts(few)[1]
        subjects = {fact.subject for fact in selection}
        assert (
            facts_now
            == everything[:2] + [f for f in everything[2:] if f.subject not in subjects][: limit - 2]
        )


def test_the_embedded_world_gives_the_same_facts_first_whatever_their_number() -> None:
    few = AnatomyConfig(limit=5, selection=20)
    longest, selection = anatomy_facts(replace(few, limit=300, begun_with=5))
    for limit in (5, 6, 90):
        facts, chosen_by = anatomy_facts(replace(few, limit=limit, begun_with=5))
        assert (facts, chosen_by) == (longest[:limit], selection)
    assert longest[:5] == edits(5)
    assert not {fact.subject for fact in longest} & {fact.subject for fact in selection}
    assert len({(fact.subject, fact.prompt) for fact in longest}) == 300


def test_the_beginning_is_read_off_the_folder(tmp_path: Path) -> None:
    config = AnatomyConfig(limit=4)
    assert continued(config, tmp_path) == config
    (tmp_path / "config.toml").write_text("limit = 3\n")
    assert continued(config, tmp_path).begun_with == 3
    assert continued(replace(config, limit=3), tmp_path).begun_with is None
    (tmp_path / "config.toml").write_text("limit = 3\nbegun_with = 2\n")
    assert continued(replace(config, limit=3), tmp_path).begun_with == 2
    assert continued(replace(config, limit=1), tmp_path).begun_with is None
    assert continued({"limit": 9}, tmp_path) == {"limit": 9}
    assert continued(replace(config, begun_with=1), tmp_path).begun_with == 1
