"""The comparison: every editor on the same facts, pooled over seeds, resumed, and its page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments.config import load
from experiments.runs import RunFolder
from mechedit.cli import main
from mechedit.editors import MEGA
from mechedit.editors.steering.asked_gate import learn_relations
from mechedit.editors.steering.variants import ABLATIONS, CONTROLS, variant
from mechedit.evaluation.evaluate import Evaluation
from mechedit.factworld import export
from mechedit.models.hooked import HookedModel
from mechedit.recipes.compare import EditorComparison, _verdicts, run_comparison
from mechedit.recipes.configurations import ComparisonConfig
from mechedit.recipes.plans import plan_comparison
from mechedit.recipes.splits import compared_facts
from reports.errors import InputError
from reports.gates import roc_curve
from reports.intervals import bootstrap_mean
from reports.sections import number
from tests.test_reports_batch import words
from tests.test_reports_page import Outline

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


def test_verdicts_tell_editors_from_controls_and_the_mean_shift_from_both(
    run: tuple[EditorComparison, Path],
) -> None:
    means = {
        "mega": (0.90, 0.88, 0.92),
        "mean_shift": (0.91, 0.89, 0.93),
        "mega_ungated": (0.89, 0.87, 0.91),
        "random_window": (0.30, 0.28, 0.32),
        "no_edit": (0.20, 0.18, 0.22),
        "rome": (0.50, 0.47, 0.53),
        "ft": (0.95, 0.94, 0.96),
    }
    rows = [("editor", name, "mean", *values, 60) for name, values in means.items()]
    table = pd.DataFrame(rows, columns=["part", "editor", "metric", "value", "low", "high", "n"])

    def answers(left_out: str) -> list[tuple[str, str]]:
        result = replace(run[0], table=table[table["editor"] != left_out])
        return [
            (verdict["answer"], verdict["evidence"].split(", ")[2].split(" 0")[0])
            for verdict in _verdicts(result)
        ]

    assert answers("") == [
        ("does not hold", "FT"),
        ("not shown", "MEGA"),
        ("holds", "Random layers"),
        ("not shown", "Mean shift"),
    ]
    assert answers("ft")[0] == ("holds", "ROME")
    assert answers("mega_ungated")[1] == ("holds", "Random layers")


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


# --- the facts one by one ---------------------------------------------------------------------------


def test_the_evaluation_of_every_editor_is_kept(run: tuple[EditorComparison, Path]) -> None:
    result, folder = run
    for name in SMALL.editors:
        kept = Evaluation.load(folder / "results" / name)
        assert (kept.editor, kept.n_total) == (name, 6)
        table = result.table[(result.table["editor"] == name) & (result.table["part"] == "editor")]
        values = table.set_index("metric")["value"]
        for metric, value in kept.summary().set_index("metric")["value"].items():
            if metric in values.index:
                assert value == pytest.approx(values[metric], nan_ok=True)


def test_the_page_has_a_line_a_fact_with_what_each_editor_made_of_it(
    run: tuple[EditorComparison, Path],
) -> None:
    folder = run[1]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert Outline(text).faults == []
    seen = words(text)
    facts = [fact for seed in SMALL.seeds for fact in compared_facts(SMALL, seed)[0]]
    kept = {name: Evaluation.load(folder / "results" / name) for name in SMALL.editors}
    for fact in facts:
        said = []
        for name, evaluation in kept.items():
            prompts, records = evaluation.prompts, evaluation.records
            own = records[records["case_id"] == fact.case_id].set_index("metric")
            counts = [
                f"{metric} {round(own.loc[metric, 'value'] * own.loc[metric, 'n_prompts'])}"
                f"/{own.loc[metric, 'n_prompts']}"
                for metric in ("Gen", "Spec")
            ]
            chosen = prompts[(prompts["case_id"] == fact.case_id) & (prompts["role"] == "rewrite")]
            tick = " ✓" if own.loc["Acc", "value"] == 1 else ""
            said.append(f"{chosen['answer'].item()}{tick} {' '.join(counts)}")
            assert (tick == "") == (name != "mega")  # the oracle tells them apart
        start = f"{fact.rewrite_prompt} {fact.target_true} {fact.target_new} {fact.target_true}"
        assert f"{start} 1 of 3 MEGA {' '.join(said)}" in seen
    assert len(re.findall(r'<details id="fact-\d+"', text)) == 6 * 3


def test_differences_are_paired_by_fact(run: tuple[EditorComparison, Path]) -> None:
    """Against the evaluations' own records."""
    seen = words((run[1] / "report.html").read_text(encoding="utf-8"))
    assert "MEGA less each other editor, paired by fact" in seen
    values = {
        name: Evaluation.load(run[1] / "results" / name).records.pivot(
            index="case_id", columns="metric", values="value"
        )
        for name in ("mega", "no_edit")
    }
    gains = (values["mega"] - values["no_edit"])[["Acc", "Gen", "Spec"]]
    cells = [
        f"{number(100 * gains[name].mean(), 1)} "
        + " – ".join(number(100 * edge, 1) for edge in bootstrap_mean(gains[name].to_numpy()))
        for name in gains
    ]
    assert f"No edit 6 6 0 0 0 {' '.join(cells)}" in seen


# --- more of the same -------------------------------------------------------------------------------


def test_a_finished_comparison_is_extended(
    factworld_gpt2: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cases that exist stay, what is chosen is chosen on the same facts; done again from its folder it is the same."""
    monkeypatch.setattr("reports.page.build", lambda run: None)  # three pages, which are not looked at here
    config = replace(SMALL, editors=("mega", "no_edit"), ablations=(), ripple_facts=0, limit=1, seeds=(0,))
    first = run_comparison(factworld_gpt2, config, tmp_path / "run", progress=False)
    written = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run" / "cases").iterdir()}
    more = run_comparison(factworld_gpt2, replace(config, limit=2), tmp_path / "run", progress=False)
    assert (first.n_total, more.n_total) == (1, 2)
    assert more.choices.equals(first.choices)
    files = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run" / "cases").iterdir()}
    assert files.items() > written.items()
    again = load(tmp_path / "run" / "config.toml", ComparisonConfig, experiment="compare")
    assert (again.limit, again.begun_with) == (2, 1)
    facts, selection = compared_facts(again, 0)
    assert facts[:1] == compared_facts(config, 0)[0]
    assert selection == compared_facts(config, 0)[1]
    assert not {fact.subject for fact in facts} & {fact.subject for fact in selection}
    second = run_comparison(factworld_gpt2, again, tmp_path / "again", progress=False)
    assert second.equals(more)
    assert {file.name for file in (tmp_path / "again" / "cases").iterdir()} == files.keys()
    for change, message in (
        ({"selection": 5}, "'selection' is 4 there and 5 now"),
        ({"editors": ("mega",)}, "'editors' is"),
        ({"limit": 1}, "'limit' is 2 there and 1 now"),
        ({"set": {"mega": {"rank": 2}}}, "'set.mega.rank' is absent there and 2 now"),
    ):
        wanted = replace(config, **{"limit": 3} | change)
        with pytest.raises(InputError, match=message):
            run_comparison(factworld_gpt2, wanted, tmp_path / "run", progress=False)


def test_further_facts_of_a_file_are_measured_once_and_never_chosen_by(tmp_path: Path) -> None:
    export(tmp_path / "facts.json", schema="counterfact", limit=30, seed=1)
    begun = replace(SMALL, data=str(tmp_path / "facts.json"))
    sizes = []
    for limit in (3, 4, 7):
        config = replace(begun, limit=limit, begun_with=3)
        splits = [compared_facts(config, seed) for seed in config.seeds]
        for seed, (facts, selection) in zip(config.seeds, splits, strict=True):
            assert selection == compared_facts(begun, seed)[1]
            assert facts[:3] == compared_facts(begun, seed)[0]
            assert not {fact.subject for fact in facts} & {fact.subject for fact in selection}
        prompts = [str(fact.case_id).split(".", 1)[1] for facts, _ in splits for fact in facts]
        assert len(prompts) == len(set(prompts))
        sizes.append([len(facts) for facts, _ in splits])
    assert sizes == [[3, 3], [4, 4], [7, 7]]


def test_fields_of_editors_are_set_by_editor(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        'experiment = "compare"\neditors = ["mega", "rome", "no_edit"]\nlimit = 1\nselection = 4\n'
        "seeds = [0]\nripple_facts = 0\n[set.rome]\nsteps = 2\nclamp = 3.0\n"
    )
    place = ["compare", "--recipe", str(recipe), "--quiet", "--ablations", "", "--out", str(tmp_path / "run")]
    assert main([*place, "--set", "rome.clamp=4", "--set", "mega.window=4-6"]) == 0
    used = json.loads((tmp_path / "run" / "provenance.json").read_text())["settings"]
    (rome,), (mega,) = used["rome"].values(), used["mega"].values()
    assert (rome["steps"], rome["clamp"], mega["window"]) == (2, 4.0, [4, 6])
    printed = capsys.readouterr().out
    assert "DI, DII: it still does where its answer is doubted" in printed
    assert "editors\n" in printed
    notes = json.loads((tmp_path / "run" / "summary.json").read_text())["notes"]
    assert not [text for text in (printed, *notes) if "ablation" in text or "without a gate" in text]
    other = [*place[:-1], str(tmp_path / "other"), "--set"]
    with pytest.raises(SystemExit, match="2"):
        main([*other, "clamp=4"])
    assert "expected EDITOR.KEY=VALUE, as rome.layer=7" in capsys.readouterr().err
    for given, message in (
        ("rome.clam=4", "rome has no field 'clam' to set, did you mean 'clamp'"),
        ("ft.steps=4", "expected fields of mega, rome, no_edit"),
        ("mega_ungated.alpha=1", "set mega's fields"),
        ("rome.layer=99", "layer"),
    ):
        assert main([*other, given]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--editors", "rome", "editors: expected mega among them"),
        ("--editors", "", "editors: expected mega among them"),
        ("--editors", "mega,rom", "found 'rom'"),
        ("--ablations", "one_layer,nosuch", "ablations: expected some of late_window"),
        ("--seeds", "", "argument --seeds: expected numbers, as 1,2,3, found ''"),
        ("--seeds", "0,x", "argument --seeds: expected numbers, as 1,2,3, found '0,x'"),
        ("--seeds", "0,0", "no seed twice"),
        ("--limit", "x", "argument --limit: expected a number, found 'x'"),
        ("--limit", "0", "argument --limit: expected at least 1, found 0"),
    ],
)
def test_a_list_that_names_nothing_is_refused_in_one_line(
    option: str, value: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["compare", option, value, "--out", str(tmp_path / "run")])
    except SystemExit as ended:
        status = int(str(ended.code))
    (line,) = capsys.readouterr().err.splitlines()
    assert (status, said in line) == (2, True)
    assert not (tmp_path / "run").exists()


def test_the_plan_lists_the_cases_of_the_run(run: tuple[EditorComparison, Path]) -> None:
    plan = plan_comparison(SMALL)
    assert set(plan.cases) == RunFolder(run[1], {}).done()
    assert len(plan.cases) == len(set(plan.cases)) == 3 * 6 + 2 + 3 * 2
