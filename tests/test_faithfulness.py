"""Peers of NLKA by their formulas, the study against ablation one by one, its run folder, command and page."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.config import load as load_config
from mechedit.attribution import attribute
from mechedit.cli import main
from mechedit.factworld import edits
from mechedit.faithfulness import METHODS, FaithfulnessStudy, faithfulness, rank
from mechedit.faithfulness.intervention import Means, Neurons, logp_without
from mechedit.faithfulness.rankings import NeuronScores, peer_scores
from mechedit.models.hooked import HookedModel, load_model
from mechedit.recipes.configurations import FaithfulnessConfig
from mechedit.recipes.faithfulness import run_faithfulness
from reports import overview
from reports.errors import InputError
from tests.nlka_oracle import plain_run
from tests.tiny import ARCHS, Arch, tiny_folder

PROMPT, TARGET = "The mother tongue of Anna is", " French"


@cache
def double(arch: Arch) -> HookedModel:
    return load_model(str(tiny_folder(arch)), device="cpu", dtype="float64")


@cache
def scored(arch: Arch) -> dict[str, NeuronScores]:
    return peer_scores(double(arch), attribute(double(arch), PROMPT, TARGET, top_k=5))


def assert_scores(
    actual: dict[tuple[int, ...], float], expected: dict[tuple[int, ...], float], *, atol: float = 1e-6
) -> None:
    worst = max(expected, key=lambda place: abs(actual[place] - expected[place]))
    assert abs(actual[worst] - expected[worst]) <= atol, f"{worst}: {actual[worst]} against {expected[worst]}"


# ------------------------------------------------------------------------------------------------- the peers


@pytest.mark.parametrize("arch", ARCHS)
def test_gradient_times_activation_is_the_derivative_of_an_ablation(arch: Arch) -> None:
    """A neuron at (1 ± ε) times its activation: half the difference of log p over ε is c · ∂ log p / ∂ c."""
    # Hugging Face's LLaMA norms and attends in fp32 even with fp64 weights: there a short step is lost in rounding.
    step, atol = (1e-4, 1e-6) if arch.startswith("gpt2") else (0.05, 3e-4)
    model = double(arch)
    ids, target = model.continuation(PROMPT, TARGET)
    view = model.residual_view(ids)
    actual: dict[tuple[int, ...], float] = {}
    expected: dict[tuple[int, ...], float] = {}
    mlp = [(layer, 7 * layer + 3) for layer in range(model.shape.n_layers)]
    attn = [
        (layer, head, 5, pos) for layer in range(model.shape.n_layers) for head in (0, 3) for pos in (0, 2, 4)
    ]
    places: list[Any] = [*mlp, *attn]
    for place in places:
        sides = []
        for sign in (1, -1):
            activation = view.mlp_post[:, -1] * (1 + sign * step)
            value = view.v[:, place[-1]] if len(place) == 4 else view.v[:, 0]
            means = Means(activation, value * (1 + sign * step))
            neurons = Neurons(attn=[place]) if len(place) == 4 else Neurons(mlp=[place])
            sides.append(float(logp_without(model, ids, int(target[0]), sets=[neurons], means=means)[0]))
        expected[place] = (sides[0] - sides[1]) / (2 * step)
        peer = scored(arch)["attribution_patching"]
        actual[place] = float(peer.attn[place] if len(place) == 4 else peer.mlp[place])
    assert_scores(actual, expected, atol=atol)
    largest = max(expected, key=lambda place: abs(expected[place]))
    with pytest.raises(AssertionError, match="against"):
        assert_scores({**actual, largest: 1.05 * actual[largest]}, expected, atol=atol)


@pytest.mark.parametrize("arch", ARCHS)
def test_direct_logit_attribution_is_its_formula_on_the_plain_model(arch: Arch) -> None:
    model = double(arch)
    ids, target = model.continuation(PROMPT, TARGET)
    plain, t = plain_run(tiny_folder(arch), ids.tolist()), int(target[0])
    group = plain.A.shape[1] // plain.v.shape[2]

    def logit(vector: torch.Tensor, *, gamma: torch.Tensor = plain.gamma) -> float:
        centred = vector if plain.beta is None else vector - vector.mean()
        return float((centred / plain.sigma() * gamma) @ plain.W_U[:, t])

    actual: dict[tuple[int, ...], float] = {}
    expected: dict[tuple[int, ...], float] = {}
    unfolded: dict[tuple[int, ...], float] = {}
    for layer in range(len(plain.a)):
        for i in (0, 9, 30):
            vector = plain.m[layer, -1, i] * plain.W_out[layer, i]
            expected[layer, i] = logit(vector)
            unfolded[layer, i] = logit(vector, gamma=torch.ones_like(plain.gamma))
            actual[layer, i] = float(scored(arch)["dla"].mlp[layer, i])
        for head, j, pos in ((0, 1, 0), (3, 6, 4)):
            coefficient = plain.A[layer, head, pos] * plain.v[layer, pos, head // group, j]
            place = (layer, head, j, pos)
            expected[place] = unfolded[place] = logit(coefficient * plain.W_O[layer, head, j])
            actual[place] = float(scored(arch)["dla"].attn[place])
            assert float(scored(arch)["activation"].attn[place]) == pytest.approx(abs(float(coefficient)))
    assert_scores(actual, expected)
    with pytest.raises(AssertionError, match="against"):  # TransformerLens' own direction, without γ
        assert_scores(actual, unfolded)


def test_rankings_are_in_the_order_of_their_scores() -> None:
    ranked = rank(double("llama"), PROMPT, TARGET, k=6)
    assert set(ranked) == set(METHODS) - {"random"}
    attr = attribute(double("llama"), PROMPT, TARGET, top_k=6)
    assert [list(place) for place in ranked["nlka"].mlp] == attr.mlp_neurons[
        ["layer", "neuron"]
    ].to_numpy().tolist()
    for name, scores in scored("llama").items():
        for kind in ("mlp", "attn"):
            values: torch.Tensor = getattr(scores, kind)
            chosen = [float(values[place]) for place in getattr(ranked[name], kind)]
            assert chosen == values.flatten().sort(descending=True).values[:6].tolist()


# ------------------------------------------------------------------------------------------------- the study


@cache
def study() -> FaithfulnessStudy:
    return faithfulness([load_model("factworld")], edits(4), ks=(1, 20), draws=2, progress=False)


def test_every_mean_is_that_of_the_ablations_one_by_one(factworld_gpt2: HookedModel) -> None:
    deltas: dict[tuple[str, str], list[float]] = {}
    for fact in edits(4):
        ids, target = factworld_gpt2.continuation(fact.rewrite_prompt, fact.target_true)
        ranked = rank(factworld_gpt2, fact.rewrite_prompt, fact.target_true, k=20)
        for kind in ("mlp", "attn"):
            for name, best in ranked.items():
                sets = [Neurons(), Neurons(**{kind: getattr(best, kind)})]
                logp = logp_without(factworld_gpt2, ids, int(target[0]), sets=sets)
                deltas.setdefault((kind, name), []).append(float(logp[1] - logp[0]))
    curve = study().curve[study().curve["k"] == 20].set_index(["kind", "method"])
    paired = study().differences[study().differences["k"] == 20].set_index(["kind", "peer"])
    for (kind, name), values in deltas.items():
        assert curve.loc[(kind, name), "delta"] == pytest.approx(np.mean(values), abs=1e-4)
        assert curve.loc[(kind, name), "n"] == len(values) == 4
        if name != "nlka":
            less = np.subtract(deltas[kind, "nlka"], values)
            assert paired.loc[(kind, name), "delta"] == pytest.approx(np.mean(less), abs=1e-4)


def test_the_one_that_is_better_has_its_whole_interval_on_its_side() -> None:
    frame = study().differences
    for row in frame.to_dict("records"):
        expected = "nlka" if row["high"] < 0 else row["peer"] if row["low"] > 0 else ""
        assert row["better"] == expected
    random = frame[(frame["peer"] == "random") & (frame["k"] == 20)]
    assert (random["better"] == "nlka").all()  # the null loses


def test_a_stopped_run_goes_on_to_the_same_result(factworld_gpt2: HookedModel, tmp_path: Path) -> None:
    config = FaithfulnessConfig(models=("factworld",), limit=3, ks=(1, 4), draws=2)
    whole = run_faithfulness([factworld_gpt2], config, tmp_path / "whole", progress=False)
    cases = sorted((tmp_path / "whole" / "cases").iterdir())
    assert len(cases) == 3
    for name in ("results/faithfulness", "cases"):
        assert (tmp_path / "whole" / name).is_dir()
    cases[1].unlink()
    kept = cases[0].stat().st_mtime_ns
    listed = overview.read(tmp_path / "whole")
    assert listed.kind == "faithfulness"
    (label, listed_scores), *_ = listed.rows
    first = whole.curve.iloc[0]
    assert label == f"factworld, {first['kind']}, {first['method']}"
    assert listed_scores[f"Change at k = {first['k']}"].value == first["delta"]
    again = run_faithfulness([factworld_gpt2], config, tmp_path / "whole", progress=False)
    assert again.equals(whole)
    assert cases[0].stat().st_mtime_ns == kept
    saved = FaithfulnessStudy.load(tmp_path / "whole" / "results" / "faithfulness")
    assert saved.equals(whole)
    changed = dataclasses.replace(config, draws=3)
    with pytest.raises(InputError, match="'draws' is 2 there and 3 now"):
        run_faithfulness([factworld_gpt2], changed, tmp_path / "whole", progress=False)


def test_options_change_the_numbers(factworld_gpt2: HookedModel) -> None:
    options: dict[str, Any] = {"ks": (20,), "progress": False}
    prompts = [fact.rewrite_prompt for fact in edits(5, seed=1)]
    base, meaned, seeded = (
        faithfulness([factworld_gpt2], edits(2), **options, **change).curve
        for change in ({}, {"mean_over": prompts}, {"seed": 1})
    )
    nlka = base["method"] == "nlka"
    assert not np.allclose(base.loc[nlka, "delta"], meaned.loc[nlka, "delta"])
    assert np.allclose(base.loc[nlka, "delta"], seeded.loc[nlka, "delta"])
    assert not np.allclose(base.loc[~nlka, "delta"], seeded.loc[~nlka, "delta"])


def test_facts_that_the_model_does_not_know_are_left_out(factworld_gpt2: HookedModel) -> None:
    facts = edits(3)
    unknown = dataclasses.replace(facts[0], target_true=facts[0].target_new, target_new=facts[0].target_true)
    study_of_known = faithfulness([factworld_gpt2], [unknown, *facts[1:]], ks=(1,), draws=1, progress=False)
    assert study_of_known.n == {"factworld": 2}
    assert study_of_known.left_out == {"factworld": 1}
    with pytest.raises(InputError, match="factworld knows 0 of the 1"):
        faithfulness([factworld_gpt2], [unknown], ks=(1,), progress=False)


def test_what_cannot_be_studied_is_refused(factworld_gpt2: HookedModel) -> None:
    with pytest.raises(InputError, match="at least one of each, found 0"):
        faithfulness([], edits(1))
    with pytest.raises(InputError, match="different names"):
        faithfulness([factworld_gpt2, factworld_gpt2], edits(2))
    for ks in ((), (0,), (1, 1), (4000,)):
        with pytest.raises(InputError, match="ks: expected different numbers from 1 to 3072"):
            faithfulness([factworld_gpt2], edits(2), ks=ks)
    with pytest.raises(InputError, match="occurs twice"):
        faithfulness([factworld_gpt2], edits(1) * 2)
    with pytest.raises(InputError, match="limit, mean_over, models"):
        FaithfulnessConfig(limit=1)


# ------------------------------------------------------------------------------------------ command and page


def test_the_command_writes_a_page_that_says_who_is_better(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    argv = ["faithfulness", "--model", "factworld", "--limit", "3", "--ks", "1,20", "--draws", "2"]
    assert main([*argv, "--mean-over", "2", "--quiet", "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["n"] == {"factworld": 3}
    assert printed["ablated"] == "mean"
    assert len(printed["curve"]) == 2 * 2 * len(METHODS)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "set to their mean over other facts" in text
    assert "direct logit attribution" in text
    assert text.count("<svg") == 1
    number = next(row for row in printed["curve"] if row["method"] == "nlka" and row["k"] == 20)["delta"]
    assert f"{number:+.3f}".replace("-", "−") in text
    assert main(["report", str(out), "-o", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_the_page_says_so_where_a_peer_beats_nlka() -> None:
    from reports.faithfulness import faithfulness as section

    def verdicts(better: str) -> list[str]:
        frame = study().differences.assign(better=better)
        frame = frame[(frame["peer"] == "dla") & (frame["kind"] == "mlp")]
        return [
            row["answer"]
            for row in section({"curve": study().curve, "differences": frame})["models"][0]["verdicts"]
        ]

    assert verdicts("dla") == ["beats NLKA"]
    assert verdicts("nlka") == ["NLKA is better"]
    assert verdicts("") == ["no difference"]


def test_the_recipe_is_valid(root: Path) -> None:
    path = root / "experiments" / "recipes" / "faithfulness.toml"
    config = load_config(path, FaithfulnessConfig, experiment="faithfulness")
    assert config == FaithfulnessConfig()


def test_a_figure_needs_its_columns() -> None:
    from reports.ablation_figures import ablation_curve

    frame = pd.DataFrame({"line": ["a"], "k": [1], "delta": [0.0], "low": [0.0], "high": [0.0]})
    with pytest.raises(InputError, match="expected a column 'low'"):
        ablation_curve(frame.drop(columns="low"))
    with pytest.raises(InputError, match="one row for each line and k"):
        ablation_curve(pd.concat([frame, frame]))
    with pytest.raises(InputError, match="at most 6 lines"):
        ablation_curve(pd.concat([frame.assign(line=str(i)) for i in range(7)]))
    assert study().plot(kind="attn").axes.get_xlabel() == "neurons ablated (k)"
    with pytest.raises(InputError, match="model, kind"):
        study().plot(model="gpt5")
