"""The study end to end on a tiny encoder, really aligned and trained; its tables against a second calculation."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import config
from reports.errors import InputError
from tests.xl_tiny import tiny_encoder
from xlprobe.recipes.page import write_page
from xlprobe.recipes.study import StudyRecipe, plan_study
from xlprobe.training.objectives import Pair, contrastive, objective_loss, probe_layer
from xlprobe.transfer.advice import SHARE, advise
from xlprobe.transfer.effects import paired_differences
from xlprobe.transfer.laboratory import JointPlan, Score, Sizes
from xlprobe.transfer.prediction import predict
from xlprobe.transfer.reach import common_rows
from xlprobe.transfer.result import Study
from xlprobe.transfer.study import StudyConfig, transfer_study
from xlprobe.transfer.trained import robustness
from xlprobe.transfer.trial import WAYS, advice_trial
from xlprobe.transfer.world_lab import WorldLab

SMALL = Sizes(
    bitext=64, train=64, test=24, held_out=24, align_steps=4, finetune_steps=4, head_steps=4, probe_batches=2
)
PLAN = StudyConfig(pairs=("source-words", "source-half"), objectives=("mlm",), tasks=("pos",), seeds=2)


@pytest.fixture(scope="module")
def laboratory() -> WorldLab:
    return WorldLab(tiny_encoder(), SMALL)


@pytest.fixture(scope="module")
def folder(laboratory: WorldLab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "run"
    transfer_study(laboratory, PLAN, out, progress=False)
    return out


def study_of(folder: Path) -> Study:
    return Study.load(folder / "results" / "study")


# -- the study -------------------------------------------------------------------------------------------------


def test_every_cell_is_there_with_its_numbers(folder: Path) -> None:
    cells = study_of(folder).cells
    assert len(cells) == 2 * 2  # pair × (an objective and the control), one task
    tried = cells[cells["objective"] != "shuffled"]
    numbers = ["delta_score", "low", "high", "delta_retrieval", "delta_gap", "gradient_cosine", "norm_ratio"]
    assert tried[numbers].notna().all(axis=None)
    assert (tried["low"] <= tried["delta_score"]).all()
    assert (tried["delta_score"] <= tried["high"]).all()
    assert tried["gradient_cosine"].between(-1, 1).all()
    assert set(cells["seeds"]) == {2}


def test_deltas_equal_those_of_the_case_files(folder: Path) -> None:
    cells = study_of(folder).cells.set_index(["pair", "objective", "task"])
    deltas = []
    for seed in (0, 1):
        none, case = (
            json.loads((folder / "cases" / f"{name}.json").read_text())
            for name in (f"none-{seed}", f"align-source-words-mlm-{seed}")
        )
        with_, without = (c["scores"]["source-words/pos"] for c in (case, none))
        deltas.append(
            sum(with_["hits"]) / sum(with_["counts"]) - sum(without["hits"]) / sum(without["counts"])
        )
    assert cells.loc[("source-words", "mlm", "pos"), "delta_score"] == pytest.approx(np.mean(deltas))


def test_a_stopped_study_goes_on_to_the_same_bytes(folder: Path, laboratory: WorldLab) -> None:
    cases = sorted((folder / "cases").glob("*.json"))
    before = {file.name: file.read_bytes() for file in cases}
    for name in ("none-1", "align-source-half-mlm-0", "gradients-source-words-mlm-pos"):
        (folder / "cases" / f"{name}.json").unlink()
    transfer_study(laboratory, PLAN, folder, progress=False)
    assert before == {file.name: file.read_bytes() for file in cases}


def test_the_encoder_of_the_laboratory_is_left_alone(folder: Path, laboratory: WorldLab) -> None:
    assert laboratory.encoder.hash == json.loads((folder / "provenance.json").read_text())["model"]["hash"]


def test_another_study_in_the_folder_and_unknown_names_are_refused(
    folder: Path, laboratory: WorldLab, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="'seeds' is 2 there"):
        transfer_study(laboratory, replace(PLAN, seeds=3), folder)
    with pytest.raises(InputError, match="pairs: expected some of source-words"):
        transfer_study(laboratory, StudyConfig(pairs=("en-de",)), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_recipes_are_studies(root: Path) -> None:
    found = config.load(
        root / "experiments" / "recipes" / "transfer.toml", StudyRecipe, experiment=StudyRecipe.experiment
    )
    assert found.seeds >= 3
    assert found.objectives == ("mlm", "sentence", "token", "tlm")


def test_claims_and_advice_come_from_the_study(folder: Path) -> None:
    study = study_of(folder)
    assert [set(verdict) for verdict in study.claims] == [{"claim", "answer", "evidence"}] * 3
    advice = study.advice("pos", pair="source-words")
    rows = study.gradients.query("scope == 'encoder' and task == 'pos' and pair == 'source-words'")
    best = rows.loc[rows["cosine"].idxmax()]
    if advice.objective != "none":
        assert advice.objective == best["objective"]
        assert advice.weight == pytest.approx(SHARE / best["ratio"])
    with pytest.raises(InputError, match="no gradients"):
        study.advice("ner")


# -- its parts ---------------------------------------------------------------------------------------------------


def test_paired_differences_average_to_the_difference_of_accuracies() -> None:
    a, b = Score((3.0, 1.0, 0.0), (4.0, 1.0, 2.0)), Score((1.0, 1.0, 1.0), (4.0, 1.0, 2.0))
    assert np.mean(paired_differences(a, b)) == pytest.approx(a.accuracy - b.accuracy)


def test_contrastive_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    z = [v / v.norm() for v in torch.cat([x, y])]
    total = 0.0
    for i in range(10):
        partner = (i + 5) % 10
        others = [math.exp(float(z[i] @ z[j]) / 0.1) for j in range(10) if j != i]
        total -= math.log(math.exp(float(z[i] @ z[partner]) / 0.1) / sum(others))
    assert float(contrastive(x, y)) == pytest.approx(total / 10, rel=1e-5)


def test_no_sentence_is_in_two_sets(laboratory: WorldLab) -> None:
    sets = [set(laboratory._parallel(name, "source-words").source) for name in ("held_out", "bitext")]
    sets += [set(laboratory._labelled(name, "source", "pos").words) for name in ("train", "test")]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 64 + 64 + 24 + 24


def test_shuffled_pairs_share_the_text_and_not_the_meaning(laboratory: WorldLab) -> None:
    right = laboratory._bitext("source-words", shuffled=False)
    wrong = laboratory._bitext("source-words", shuffled=True)
    assert right.source == wrong.source
    assert sorted(right.target) == sorted(wrong.target)
    assert all(a != b for a, b in zip(right.target, wrong.target, strict=True))


def test_conflict_aware_training_and_frozen_layers_differ_from_the_plain_sum(laboratory: WorldLab) -> None:
    encoder = laboratory.encoder
    plans = {
        "sum": JointPlan("sentence", "source-words", weight=1.0),
        "upgrad": JointPlan("sentence", "source-words", aggregator="upgrad"),
        "frozen": JointPlan("sentence", "source-words", weight=1.0, frozen=(0, 1)),
    }
    models = {name: laboratory.finetuned(encoder, "pos", seed=0, joint=plan) for name, plan in plans.items()}
    hashes = {model.encoder.hash for model in models.values()}
    assert len(hashes) == 3
    table = encoder.parameter_table()
    before, after = (dict(e.model.named_parameters()) for e in (encoder, models["frozen"].encoder))
    for name, layer in zip(table["name"], table["layer"], strict=True):
        assert torch.equal(before[name], after[name]) == (layer in (0, 1)), name


def test_token_objective_without_links_is_refused(laboratory: WorldLab) -> None:
    bitext = laboratory._bitext("source-words", shuffled=False)
    pairs: list[Pair] = [(a, b, []) for a, b in zip(bitext.source[:3], bitext.target[:3], strict=True)]
    with pytest.raises(InputError, match="linked words"):
        objective_loss(laboratory.encoder, "token", pairs)
    with pytest.raises(InputError, match="expected one of mlm, sentence, token, tlm"):
        objective_loss(laboratory.encoder, "words", pairs)


# -- advice --------------------------------------------------------------------------------------------------------


def gradients(**cosines: tuple[float, float, float]) -> pd.DataFrame:
    rows = [
        {"objective": name, "scope": scope, "layer": layer, "cosine": c, "low": low, "high": high}
        for name, (c, low, high) in cosines.items()
        for scope, layer in (("encoder", -1), ("layer", 1), ("layer", 2))
    ]
    return pd.DataFrame(rows).assign(pair="a", task="pos", ratio=4.0)


def test_advice_follows_the_gradients() -> None:
    found = advise(gradients(token=(0.2, 0.1, 0.3), mlm=(0.1, 0.0, 0.2)), task="pos")
    assert (found.objective, found.verdict, found.weight, found.freeze) == ("token", "agrees", SHARE / 4, ())
    neutral = advise(gradients(token=(0.0, -0.1, 0.1), mlm=(-0.2, -0.3, -0.1)), task="pos")
    assert (neutral.objective, neutral.verdict) == ("token", "neutral")
    against = advise(gradients(token=(-0.2, -0.3, -0.1)), task="pos")
    assert (against.objective, against.weight, against.layers) == ("none", 0.0, ())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"task_halves": 0.2, "align_halves": 0.9, "task_batches": 70.0, "align_batches": 3.0},
            "noise: .* 70 batches",
        ),
        (
            {"task_halves": 0.9, "align_halves": -0.1, "task_batches": 7.0, "align_batches": math.inf},
            "no number of",
        ),
    ],
)
def test_advice_from_noise_is_not_shown(changes: dict[str, float], match: str) -> None:
    found = advise(gradients(token=(0.2, 0.1, 0.3)).assign(**changes), task="pos")
    assert found.verdict == "not shown"
    assert re.search(match, found.reason)
    assert found.freeze == ()


def test_advice_whose_interval_holds_both_answers_is_not_shown() -> None:
    wide = gradients(token=(0.15, -0.15, 0.45))
    found = advise(wide.assign(n_task=24, n_align=20), task="pos")
    assert (found.objective, found.verdict) == ("token", "not shown")
    assert "about 96 batches" in found.reason  # (0.3 / 0.15)² · 24
    assert "4 times as many batches" in advise(wide, task="pos").reason


def test_objectives_of_unlike_reach_are_compared_where_both_reach() -> None:
    """mlm is the closer one below, and is pulled down by a block that token never touches."""
    rows = [
        ("token", "encoder", -1, 0.2, 1.0),
        ("mlm", "encoder", -1, 0.1, 1.0),
        ("token", "layer", 1, 0.2, 1.0),
        ("token", "layer", 2, math.nan, 0.0),
        ("mlm", "layer", 1, 0.3, 1.0),
        ("mlm", "layer", 2, -0.1, 1.0),
        ("token", "through", 1, 0.2, 1.0),
        ("token", "through", 2, 0.15, 0.5),
        ("mlm", "through", 1, 0.3, 1.0),
        ("mlm", "through", 2, 0.1, 1.0),
    ]
    frame = pd.DataFrame(rows, columns=["objective", "scope", "layer", "cosine", "align_reach"])
    frame = frame.assign(low=frame["cosine"] - 0.05, high=frame["cosine"] + 0.05, ratio=2.0, task_reach=1.0)
    frame = frame.assign(pair="a", task="pos")
    assert common_rows(frame)[1] == 1
    found = advise(frame, task="pos")
    assert (found.objective, found.verdict) == ("mlm", "agrees")
    assert "over layers 1 to 1, which all objectives reach (+0.300): cosine +0.100" in found.reason
    old = frame[frame["scope"] != "through"].drop(
        columns=["align_reach", "task_reach"]
    )  # of an earlier version
    assert advise(old, task="pos").objective == "token"


def test_predictors_take_what_all_objectives_reach(laboratory: WorldLab, tmp_path: Path) -> None:
    plan = StudyConfig(("source-half",), ("mlm", "sentence"), ("pos", "topic"), seeds=1, shuffled=False)
    study = transfer_study(laboratory, plan, tmp_path / "run", progress=False)
    cells = study.cells
    depth = probe_layer(laboratory.encoder.n_layers)
    assert 0 < depth < laboratory.encoder.n_layers
    rows = study.gradients.query("scope == 'through' and layer == @depth").set_index(
        ["pair", "objective", "task"]
    )
    whole = study.gradients.query("scope == 'whole' and group == 'all'").set_index(
        ["pair", "objective", "task"]
    )
    for cell in cells.itertuples():
        key = (cell.pair, cell.objective, cell.task)
        assert cell.common_cosine == rows.loc[key, "cosine"]
        assert cell.whole_cosine == whole.loc[key, "cosine"]
    unlike = cells[cells["objective"] == "sentence"]
    assert (unlike["gradient_cosine"] != unlike["whole_cosine"]).all()
    assert (unlike["gradient_cosine"] == unlike["common_cosine"]).all()
    advice = study.advice("pos")
    best = cells[cells["task"] == "pos"].sort_values("common_cosine").iloc[-1]
    assert advice.objective in (best["objective"], "none")
    used = predict(cells.assign(gradient_cosine=cells["common_cosine"], norm_ratio=cells["common_ratio"]))
    pd.testing.assert_frame_equal(study.predictors, used)


def test_cases_of_an_earlier_method_are_not_mixed_in(
    folder: Path, laboratory: WorldLab, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "old")
    case = tmp_path / "old" / "cases" / "none-0.json"
    stored = json.loads(case.read_text())
    del stored["settings"]
    case.write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"'none-0' in .* choose another folder"):
        transfer_study(laboratory, PLAN, tmp_path / "old", progress=False)


def test_a_conflicting_layer_is_frozen_and_pairs_are_averaged() -> None:
    frame = gradients(token=(0.2, 0.1, 0.3))
    frame.loc[frame["layer"] == 2, ["cosine", "low", "high"]] = (-0.2, -0.3, -0.1)
    assert advise(frame, task="pos").freeze == (2,)
    both = pd.concat([frame, frame.assign(pair="b", ratio=1.0)])
    assert advise(both, task="pos").weight == pytest.approx(SHARE / 2)  # the geometric mean of 4 and 1


def test_the_advice_is_tested_on_pairs_whose_gradients_it_has_not_seen(
    folder: Path, laboratory: WorldLab, tmp_path: Path
) -> None:
    found = advice_trial(laboratory, study_of(folder), tmp_path / "advice", seeds=1, progress=False)
    assert set(found["way"]) == set(WAYS)
    assert len(found) == 2 * len(WAYS)  # pairs × ways, one task
    assert found[["delta_score", "low", "high"]].notna().all(axis=None)
    case = json.loads((tmp_path / "advice" / "cases" / "source-words-pos-0.json").read_text())
    others = study_of(folder).gradients.query("pair == 'source-half'")
    assert case["advice"]["objective"] == advise(others, task="pos").objective
    again = advice_trial(laboratory, study_of(folder), tmp_path / "advice", seeds=1, progress=False)
    pd.testing.assert_frame_equal(found, again)


def test_the_plan_lists_the_cases_of_the_study(folder: Path) -> None:
    from dataclasses import asdict

    from experiments.runs import RunFolder
    from xlprobe.recipes.study import plan_study

    plan = plan_study(StudyRecipe(**asdict(PLAN), sizes=SMALL))
    assert set(plan.cases) == RunFolder(folder, {}).done()


# -- the trained part ----------------------------------------------------------------------------------------------


def test_a_study_of_both_parts_holds_the_study_of_each(
    folder: Path, laboratory: WorldLab, tmp_path: Path
) -> None:
    both = transfer_study(laboratory, replace(PLAN, train=("all", "head")), tmp_path / "both", progress=False)
    whole = study_of(folder)
    shared = [name for name in whole.cells if name in both.cells]
    assert list(whole.cells) == shared
    pd.testing.assert_frame_equal(both.cells[shared], whole.cells)
    pd.testing.assert_frame_equal(both.gradients, whole.gradients)  # of the encoder, whatever is trained
    head = transfer_study(laboratory, replace(PLAN, train=("head",)), tmp_path / "head", progress=False)
    for name in ("delta_score", "low", "high", "score", "baseline"):
        assert both.cells[f"{name}_head"].tolist() == head.cells[name].tolist()
    assert head.cells["score"].tolist() != whole.cells["score"].tolist()
    assert head.cells["gradient_cosine"].dropna().tolist() == whole.cells["gradient_cosine"].dropna().tolist()
    assert set(both.scores["train"]) == {"all", "head"}
    assert len(both.scores) == 2 * len(whole.scores)
    assert (len(both.claims), len(whole.claims)) == (4, 3)
    page = write_page(both, tmp_path / "both").read_text()
    assert "Head alone (points)" in page
    assert "Training the head alone is more robust" in page
    assert study_of(tmp_path / "both").claims == both.claims


def test_the_head_alone_leaves_the_aligned_encoder(laboratory: WorldLab) -> None:
    model = laboratory.finetuned(laboratory.encoder, "pos", seed=0, train="head")
    assert model.encoder.hash == laboratory.encoder.hash
    assert laboratory.finetuned(laboratory.encoder, "pos", seed=0).encoder.hash != laboratory.encoder.hash


def harmed(whole: list[float], head: list[float], *, first: str = "all") -> dict[str, str]:
    names = {"all": "delta_score", "head": "delta_score_head"}
    if first == "head":
        names = {"all": "delta_score_all", "head": "delta_score"}
    return robustness(pd.DataFrame({names["all"]: whole, names["head"]: head}))[0]


def test_the_head_is_more_robust_only_where_the_interval_says_so() -> None:
    rng = np.random.default_rng(1)
    down, level = (rng.normal(mean, 0.01, 24).tolist() for mean in (-0.03, 0.0))
    for first in ("all", "head"):
        assert harmed(down, level, first=first)["answer"] == "holds"
        assert harmed(level, down, first=first)["answer"] == "does not hold"
    assert harmed(level, level)["answer"] == "not shown"
    assert harmed(down[:9], level[:9])["answer"] == "not shown"  # too few cells
    assert harmed([0.05] * 12, [0.01] * 12)["answer"] == "not shown"  # gains are no harm
    evidence = harmed([-0.02, 0.04] * 6, [0.01, -0.01] * 6)["evidence"]
    saved = np.mean([0.02, 0.0] * 6) - np.mean([0.0, 0.01] * 6)
    assert "takes 1.0 points from the whole model and 0.5 from the head alone" in evidence
    assert f"less by {100 * saved:+.1f} [" in evidence


@pytest.mark.parametrize("train", [(), ("body",), ("all", "all")])
def test_other_parts_are_refused(train: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="train: expected all, head or both, each once"):
        StudyConfig(train=train)


def test_a_recipe_may_name_the_parts(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('experiment = "study"\ntrain = ["all", "head"]\n')
    recipe = config.load(tmp_path / "r.toml", StudyRecipe, experiment="study")
    assert recipe.plan.train == ("all", "head")
    alone = plan_study(StudyRecipe()).sequences
    assert plan_study(recipe).sequences > alone
