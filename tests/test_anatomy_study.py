"""The study of editors: arrays against loops, claims against made-up contrasts, cases against `attribute`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.config import load as load_config
from experiments.runs import RunFolder
from mechedit import attribute
from mechedit.anatomy import AnatomyStudy, anatomy
from mechedit.anatomy.claims import agreement_table, claim_table
from mechedit.anatomy.failures import AS_SET, weakened
from mechedit.anatomy.features import Runs, columns, gather
from mechedit.anatomy.one_fact import Setting, measure_fact, settings_for
from mechedit.anatomy.success_contrast import N_RESAMPLES, SuccessContrast, interval, success_contrast
from mechedit.anatomy.tables import LEAST, overlap_table, success_contrasts
from mechedit.attribution.passes import Pass
from mechedit.attribution.ranking.neurons import exhaustive
from mechedit.attribution.scored_pass import ScoredPass
from mechedit.cli import main
from mechedit.data.facts import FactEdit
from mechedit.editors import FT, IKE, MEGA, NoEdit
from mechedit.factworld import edits
from mechedit.models.hooked import HookedModel
from mechedit.recipes.configurations import AnatomyConfig
from reports.answers import HOLDS, NOT, NOT_SHOWN
from reports.errors import InputError, IntegrityError
from reports.page import build
from tests.tiny import tiny_model

# --- arrays -----------------------------------------------------------------------------------------


def drawn_by_hand(features: np.ndarray, success: np.ndarray, fact: np.ndarray, n_facts: int) -> np.ndarray:
    """The bootstrap over facts, fact by fact and run by run, with the same draws."""
    rng, drawn = np.random.default_rng(3), []
    for counts in rng.multinomial(n_facts, np.full(n_facts, 1 / n_facts), size=N_RESAMPLES):
        rows = [r for f, times in enumerate(counts) for _ in range(times) for r in np.flatnonzero(fact == f)]
        good = [features[r] for r in rows if success[r]]
        bad = [features[r] for r in rows if not success[r]]
        drawn.append(
            np.mean(good, 0) - np.mean(bad, 0) if good and bad else np.full(features.shape[1], np.nan)
        )
    return np.array(drawn)


def test_a_contrast_equals_the_loops() -> None:
    rng = np.random.default_rng(0)
    features, fact = rng.normal(size=(40, 3)), np.repeat(np.arange(10), 4)
    success = rng.random(40) < 0.6
    contrast = success_contrast(features, success, fact, n_facts=10, seed=3)
    np.testing.assert_allclose(contrast.difference, features[success].mean(0) - features[~success].mean(0))
    np.testing.assert_allclose(contrast.drawn, drawn_by_hand(features, success, fact, 10))
    # runs drawn one by one, as if they were independent, are another thing
    assert not np.allclose(contrast.drawn, drawn_by_hand(features, success, np.arange(40), 40))
    assert (contrast.n_success, contrast.facts_success) == (success.sum(), len(set(fact[success])))


def test_too_few_of_one_outcome_gives_no_interval() -> None:
    features, fact = np.ones((6, 1)), np.arange(6)
    contrast = success_contrast(features, np.array([True] * 5 + [False]), fact, n_facts=6)
    assert np.isnan(interval(contrast.drawn)[0]).all()  # a third of the draws miss the only failure
    none = success_contrast(features, np.array([True] * 6), fact, n_facts=6)
    assert np.isnan(none.difference).all()
    assert not none.enough(1)


def test_pooling_sets_no_editor_against_another() -> None:
    """One editor only succeeds, one only fails, and two have both: the pool is the mean of the latter."""
    rng, facts = np.random.default_rng(2), 12
    rows, features, success = [], [], []
    for editor, outcome in (
        ("a", [1] * 12),
        ("b", [0] * 12),
        ("c", [1] * 12 + [0] * 12),
        ("d", [0] * 12 + [1] * 12),
    ):
        for i, good in enumerate(outcome):
            rows.append((editor, "all of it", "x", i % facts, bool(good), False, 0.0, 0.0))
            features.append(rng.normal(size=(2, 4 * 2 + 1)) + 10 * (editor in "ab"))
            success.append(bool(good))
    names = ["editor", "setting", "case_id", "fact", "success", "strict", "gained", "lost"]
    runs = Runs(pd.DataFrame(rows, columns=names), np.array(features), np.zeros((len(rows), 2, 2, 1)), facts)
    by_editor = success_contrasts(runs)
    mean = (by_editor["c", "all"].difference + by_editor["d", "all"].difference) / 2
    np.testing.assert_allclose(by_editor["pooled", "all"].difference, mean)
    assert by_editor["pooled", "all"].n_success == 24
    together = success_contrast(
        np.array(features).reshape(len(rows), -1),
        np.array(success),
        runs.index["fact"].to_numpy(),
        n_facts=12,
    )
    assert not np.allclose(together.difference, mean, atol=0.1)


def contrast_of(d: np.ndarray, *, facts: int = 20, noise: float = 0.01) -> SuccessContrast:
    """A contrast whose difference is `d` [2, 4 L + 1] with a little noise."""
    rng = np.random.default_rng(1)
    flat = d.reshape(-1)
    features = np.concatenate([np.tile(flat, (facts, 1)), np.zeros((facts, len(flat)))])
    features += noise * rng.normal(size=features.shape)
    success = np.array([True] * facts + [False] * facts)
    return success_contrast(features, success, np.tile(np.arange(facts), 2), n_facts=facts)


L = 6


def profile(**values: dict[int, float]) -> np.ndarray:
    """[2, 4 L + 1] with e.g. new_attn={4: 1.0}."""
    d = np.zeros((2, 4 * L + 1))
    place = {key: i for i, key in enumerate(columns(L))}
    for name, layers in values.items():
        thing, _, module = name.partition("_")
        for layer, value in layers.items():
            d[("new", "old").index(thing), place[module, layer]] = value
    return d


def answers(*contrasts: SuccessContrast) -> dict[str, str]:
    by_editor = {(f"e{i}", "all"): contrast for i, contrast in enumerate(contrasts)}
    table = claim_table(by_editor, agreement_table(by_editor, n_layers=L), n_layers=L)
    return {f"{row.key}/{row.editor}": str(row.answer) for row in table.itertuples()}


LATE = profile(new_attn={4: 1.0, 5: 2.0}, new_mlp={5: 0.5}, old_attn={4: -1.0}, old_mlp={5: -2.0})


@pytest.mark.parametrize(
    ("d", "promotes", "suppress"),
    [
        (LATE, HOLDS, HOLDS),
        (-LATE, NOT, NOT),
        (profile(new_attn={0: 1.0, 1: 1.0}), NOT, NOT_SHOWN),  # early layers promote
        (profile(new_attn={0: 2.0, 1: 2.0, 4: 1.0}), NOT, NOT_SHOWN),  # late ones too, but less
        (profile(new_steer={4: 1.0}, old_steer={4: -1.0}, old_mlp={4: -1.0}), HOLDS, HOLDS),
        (profile(new_mlp={5: 3.0}, old_mlp={5: -3.0}), NOT_SHOWN, NOT_SHOWN),  # the MLP alone
        (profile(old_attn={5: -3.0}), NOT_SHOWN, NOT_SHOWN),  # attention alone
        (profile(old_attn={5: -3.0}, old_mlp={2: 0.5}), NOT_SHOWN, NOT),  # attention against the MLP
    ],
)
def test_a_claim_is_answered_by_what_is_there(d: np.ndarray, promotes: str, suppress: str) -> None:
    given = answers(contrast_of(d))
    assert (given["promotes/e0"], given["suppress/e0"]) == (promotes, suppress)


def test_noise_is_no_finding() -> None:
    given = answers(
        contrast_of(profile(new_attn={4: 0.01}, old_attn={3: -0.01}, old_mlp={3: -0.01}), noise=2.0)
    )
    assert set(given.values()) == {NOT_SHOWN, "not enough failures"}


def test_a_mean_that_an_editor_contradicts_shows_nothing() -> None:
    """One editor suppresses by attention, the other by the MLP: both do in the mean, and together in none."""
    one = profile(old_attn={5: -9.0}, old_mlp={5: 2.0})
    other = profile(old_attn={5: 1.0}, old_mlp={5: -9.0})
    features, success = [], []
    names = ["editor", "setting", "case_id", "fact", "success", "strict", "gained", "lost"]
    rows = []
    for editor, d in (("a", one), ("b", other)):
        for fact in range(2 * LEAST):
            for good in (True, False):
                rows.append((editor, "as set", "x", fact, good, good, 0.0, 0.0))
                features.append(d * good + 0.01 * np.random.default_rng(len(rows)).normal(size=d.shape))
                success.append(good)
    runs = Runs(
        pd.DataFrame(rows, columns=names), np.array(features), np.zeros((len(rows), 2, 2, 1)), 2 * LEAST
    )
    contrasts = success_contrasts(runs)
    table = claim_table(contrasts, agreement_table(contrasts, n_layers=L), n_layers=L)
    suppress = table[table["key"] == "suppress"].set_index("editor")
    assert suppress["answer"].to_dict() == {"a": NOT, "b": NOT, "pooled": NOT_SHOWN}
    assert suppress.loc["pooled", "high"] < 0
    assert suppress.loc["pooled", "evidence"].endswith("alone it does not hold for a, b")


def test_nothing_is_said_with_too_few_facts() -> None:
    few = contrast_of(LATE, facts=LEAST - 1)
    assert set(answers(few).values()) == {"not enough failures"}
    features, success = np.zeros((20, 2 * (4 * L + 1))), np.array([False] * 18 + [True] * 2)
    none = success_contrast(features, success, np.arange(20), n_facts=20)
    assert answers(none)["promotes/e0"] == "not enough successes"


def test_editors_agree_where_their_profiles_do() -> None:
    elsewhere = profile(new_attn={1: 1.0, 0: 2.0}, new_mlp={0: 0.5}, old_attn={1: -1.0}, old_mlp={0: -2.0})
    assert answers(contrast_of(LATE), contrast_of(2 * LATE))["agree/pooled"] == HOLDS
    assert answers(contrast_of(LATE), contrast_of(elsewhere))["agree/pooled"] == NOT
    assert answers(contrast_of(LATE), contrast_of(LATE), contrast_of(-LATE))["agree/pooled"] == NOT
    table = agreement_table({("a", "all"): contrast_of(LATE), ("b", "all"): contrast_of(-LATE)}, n_layers=L)
    assert table.loc[0, "correlation"] == pytest.approx(-1, abs=0.01)


def test_overlap_by_hand() -> None:
    def run(editor: str, mlp: list[int], success: bool = True, setting: str = AS_SET) -> dict[str, Any]:
        neurons = {"mlp": [[0, i, 0.0, 1.0] for i in mlp], "attn": []}
        return {
            "editor": editor,
            "setting": setting,
            "success": success,
            "neurons": {"new": neurons, "old": {}},
        }

    before = {"top": {"new": {"mlp": [[0, 1, 0.5], [0, 2, 0.5]], "attn": []}}}
    cases: dict[str, dict[str, Any]] = {
        "1": {"skipped": "", "before": before, "runs": [run("a", [1, 2]), run("b", [2, 3])]},
        "2": {"skipped": "", "before": before, "runs": [run("a", [5, 6]), run("b", [5, 6])]},
        "3": {"skipped": "", "before": before, "runs": [run("a", [1, 2]), run("b", [1, 2], success=False)]},
        "4": {"skipped": "", "before": before, "runs": [run("a", [1, 2]), run("b", [1, 2], setting="weak")]},
        "5": {"skipped": "unknown", "before": {}, "runs": []},
    }
    table = overlap_table(cases).query("kind == 'mlp'").set_index(["a", "b"])
    assert table.loc[("a", "b"), "overlap"] == 0.75
    assert table.loc[("a", "b"), "null"] == 0.0
    assert table.loc[("a", "b"), "n"] == 2
    assert table.loc[("unedited", "a"), "overlap"] == 0.75
    assert table.loc[("unedited", "b"), "n"] == 2


# --- scores -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "llama-gqa"])
def test_top_neurons_are_those_of_full_enumeration(arch: Any) -> None:
    model = tiny_model(arch)
    scored = ScoredPass(model, "Anna Keller works as a", ["teacher", "basketball"])
    attr = attribute(model, "Anna Keller works as a", "teacher", top_k=5, method="exhaustive")
    top = scored.top(0, 5)
    assert [unit for unit, _ in top["mlp"]] == list(
        attr.mlp_neurons[["layer", "neuron"]].itertuples(index=False, name=None)
    )
    scored_pass = Pass(scored._view, scored._projection, scored._summed, scored._account(0), scored.tokens[0])
    full = exhaustive([scored_pass], k=5, sign="promote")
    assert [unit for unit, _ in top["attn"]] == list(
        zip(full.attn.layer.tolist(), full.attn.index.tolist(), strict=True)
    )
    for kind in ("mlp", "attn"):
        again = scored.of(0, kind, [unit for unit, _ in top[kind]])
        assert again == pytest.approx([score for _, score in top[kind]], abs=1e-5)
        of_other_target = scored.of(1, kind, [unit for unit, _ in top[kind]])
        assert of_other_target != pytest.approx(again, abs=1e-5)
    assert scored.of(0, "mlp", []) == []


def test_a_summed_attention_neuron_is_its_vector_over_all_positions() -> None:
    model = tiny_model("gpt2")
    prompt = "Anna Keller works as a"
    scored = ScoredPass(model, prompt, ["teacher"])
    (layer, unit), score = scored.top(0, 1)["attn"][0]
    head, dim = divmod(unit, model.shape.d_head)
    view = model.residual_view(model.tokenize(prompt))
    weight = (view.pattern[layer, head] * view.v[layer, :, head, dim]).sum()
    vector = weight * model.W_O(layer)[head, dim]
    base = view.resid_pre[layer].double()
    both = scored._projection.log_probs(torch.stack([base + vector.double(), base]))[:, scored.tokens[0]]
    assert score == pytest.approx(float(both[0] - both[1]), abs=1e-5)


# --- cases ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facts() -> list[FactEdit]:
    return edits(6, seed=4)


def test_a_case_holds_what_attribute_says_of_both_models(
    factworld_gpt2: HookedModel, facts: list[FactEdit]
) -> None:
    model, fact, editor = factworld_gpt2, facts[0], FT()
    case = measure_fact(model, fact, [Setting(editor, "ft")], top_k=6)
    (run,) = case["runs"]
    before = {
        t: attribute(model, fact.rewrite_prompt, t, top_k="all") for t in (fact.target_new, fact.target_true)
    }
    with editor.apply(model, [fact]) as edited:
        after = {
            t: attribute(edited, fact.rewrite_prompt, t, top_k="all")
            for t in (fact.target_new, fact.target_true)
        }
        says = int(edited.logits([fact.rewrite_prompt])[0].argmax())
    assert run["success"] == (says == after[fact.target_new].target_id)
    for name, target in (("new", fact.target_new), ("old", fact.target_true)):
        for state, attr in ((case["before"], before[target]), (run["after"], after[target])):
            assert state["layers"][name]["score"] == pytest.approx(attr.layers["score"].tolist(), abs=1e-6)
            assert state["heads"][name] == pytest.approx(attr.heads["score"].tolist(), abs=1e-6)
            assert state["logp"][name] == pytest.approx(attr.logp, abs=1e-6)
        old, new = (
            attributed[target].mlp_neurons.set_index(["layer", "neuron"])["score"]
            for attributed in (before, after)
        )
        best = (new if name == "new" else old).head(6)
        rows = run["neurons"][name]["mlp"]
        assert [(layer, unit) for layer, unit, _, _ in rows] == list(best.index)
        for layer, unit, was, now in rows:
            assert (was, now) == pytest.approx((old[layer, unit], new[layer, unit]), abs=1e-5)


def test_what_changed_adds_up(factworld_gpt2: HookedModel, facts: list[FactEdit]) -> None:
    model, mega = factworld_gpt2, MEGA(window=(5, 7), alpha=2.0, gate="always")
    settings = [Setting(FT(), "ft"), Setting(mega, "mega")]
    cases = {str(f.case_id): measure_fact(model, f, settings, top_k=2) for f in facts[:2]}
    runs = gather(cases, n_layers=8, n_heads=6)
    for i, (name, change) in enumerate((("new", "gained"), ("old", "lost"))):
        embedding = []
        for case in cases.values():
            for run in case["runs"]:
                shares = []
                for state in (case["before"], run["after"]):
                    total = sum(state["layers"][name]["score"]) + state["rest"][name]
                    shares.append(state["logp"][name] - total)
                embedding.append(shares[1] - shares[0])
        sums = runs.layers[:, i].sum(1) + np.array(embedding)
        np.testing.assert_allclose(sums, runs.index[change], atol=1e-6)
    steer = [j for j, (module, _) in enumerate(columns(8)) if module == "steer"]
    assert np.abs(runs.layers[runs.rows("mega")][..., steer]).max() > 0.1
    assert np.abs(runs.layers[runs.rows("ft")][..., steer]).max() == 0


def test_facts_that_cannot_be_told_apart_or_are_not_known_are_left_out(factworld_gpt2: HookedModel) -> None:
    fact = edits(1, seed=4)[0]
    same = FactEdit(fact.subject, fact.prompt, fact.target_true, f"{fact.target_true} again")
    unknown = FactEdit(fact.subject, fact.prompt, "basketball", "Paris")
    assert "same token" in measure_fact(factworld_gpt2, same, [], top_k=1)["skipped"]
    assert "does not know" in measure_fact(factworld_gpt2, unknown, [], top_k=1)["skipped"]
    with pytest.raises(InputError, match="expected some that can be edited"):
        anatomy(factworld_gpt2, [unknown], editors=[NoEdit()], progress=False)


def test_every_editor_runs_as_set_and_fails_in_turn(factworld_gpt2: HookedModel) -> None:
    ft = FT()
    ways = weakened(ft, factworld_gpt2)
    ready = FT().ready(factworld_gpt2)
    assert set(ways) == {"one step", "fewer steps", "wrong layer"}
    few, wrong = ways["fewer steps"], ways["wrong layer"]
    assert isinstance(few, FT)
    assert isinstance(wrong, FT)
    assert (few.steps, few.layer) == (max(1, ready.steps // 3), ready.layer)
    assert (wrong.steps, wrong.layer) == (ready.steps, 0)
    labels = [[s.label for s in settings_for([ft, NoEdit()], [ways, {}], i)] for i in range(4)]
    assert [by_turn[1] for by_turn in labels] == ["one step", "fewer steps", "wrong layer", "one step"]
    assert {by_turn[0] for by_turn in labels} == {by_turn[2] for by_turn in labels} == {AS_SET}


def test_demonstrations_about_another_subject_fail(
    factworld_gpt2: HookedModel, facts: list[FactEdit]
) -> None:
    ways = weakened(IKE(), factworld_gpt2, facts)
    assert set(ways) == {"fewer demonstrations", "another subject"}
    assert set(weakened(IKE(), factworld_gpt2, facts[:1])) == {"fewer demonstrations"}
    wrong = ways["another subject"]
    for fact in facts[:2]:
        with wrong.apply(factworld_gpt2, [fact]) as edited:
            prefix = str(edited.tokenizer.decode(edited.tokenize(fact.rewrite_prompt)))
        last = prefix.split("New Fact: ")[-1].split("Prompt:")[0]
        assert fact.target_new in last
        assert fact.subject not in last
        assert any(stranger.subject in last for stranger in facts)


# --- whole ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halted(FT):
    """FT that is stopped by Ctrl-C at one fact, once."""

    at: Any = 0
    name: str = "ft"
    stopped: list[Any] = field(default_factory=list, repr=False, compare=False)

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: FactEdit | Sequence[FactEdit]) -> Iterator[Any]:
        assert not isinstance(facts, FactEdit)
        if facts[0].case_id == self.at and not self.stopped:
            self.stopped.append(self.at)
            raise KeyboardInterrupt
        with super().apply(model, facts) as edited:
            yield edited


def open_run(folder: Path) -> RunFolder:
    return RunFolder.open(folder, {"study": "x"}, provenance={"model": {}})


def test_a_study_resumes_and_comes_back_from_disk(
    factworld_gpt2: HookedModel, facts: list[FactEdit], tmp_path: Path
) -> None:
    model, facts = factworld_gpt2, facts[:3]
    editor, choosing = Halted(at=facts[2].case_id), edits(4, seed=9, skip=facts)
    options: dict[str, Any] = {"selection": choosing, "top_k": 3, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        anatomy(model, facts, editors=[editor], run=open_run(tmp_path / "cut"), **options)
    assert len(open_run(tmp_path / "cut").done()) == 4 + 2  # four to choose by, two of three facts
    cut = anatomy(model, facts, editors=[editor], run=open_run(tmp_path / "cut"), **options)
    whole = anatomy(model, facts, editors=[editor], run=open_run(tmp_path / "whole"), **options)
    assert cut.equals(whole)
    assert AnatomyStudy.load(cut.save(tmp_path / "saved")).equals(cut)
    assert cut.n == 3
    assert set(cut.claims["key"]) == {"promotes", "suppress", "agree"}
    assert set(cut.claims["answer"]) == {"not enough failures"}  # three facts are too few to say anything
    assert cut.window is not None
    assert len(cut.windows) == 8 * 9 // 2
    with pytest.raises(InputError, match=r"settings of ft in .*'steps' is 25 there and 1 now"):
        anatomy(model, facts, editors=[FT(steps=1)], run=open_run(tmp_path / "cut"), **options)


def test_a_study_is_drawn_from_its_numbers(factworld_gpt2: HookedModel, facts: list[FactEdit]) -> None:
    study = anatomy(factworld_gpt2, facts[:3], editors=[FT()], top_k=3, progress=False)
    assert study.window is None
    assert study.windows.empty
    assert study.plot(editor="ft").axes.get_ylabel() == "success − failure (nats)"
    with pytest.raises(InputError, match="editor: expected one of ft, pooled, found 'rome'"):
        study.plot(editor="rome")
    pd.testing.assert_frame_equal(study.to_frame(), study.delta)


def test_bad_input(factworld_gpt2: HookedModel, facts: list[FactEdit]) -> None:
    model = factworld_gpt2
    for bad, says in (
        ({"facts": [], "editors": [FT()]}, "expected at least one of each, found 0 and 1"),
        ({"facts": facts, "editors": [FT(), FT()]}, "editors: 'ft' occurs twice"),
        ({"facts": [facts[0], facts[0]], "editors": [FT()]}, "facts: record 1: case_id"),
        ({"facts": facts, "editors": [FT()], "selection": facts[:1]}, "selection: expected other subjects"),
    ):
        with pytest.raises(InputError, match=says):
            anatomy(model, progress=False, **bad)


# --- the command and its page -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("anatomy") / "run"
    assert main(["anatomy", *SMALL, "--out", str(folder), "--quiet"]) == 0
    return folder


SMALL = ["--editors", "ft,no_edit", "--limit", "2", "--selection", "2"]


def test_the_command_prints_the_answers_and_goes_on(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    next((finished / "cases").glob("fact-*.json")).unlink()
    assert main(["anatomy", *SMALL, "--out", str(finished), "--quiet", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["n"] == 2
    assert {row["editor"] for row in printed["claims"]} == {"ft", "no_edit", "pooled"}
    assert {row["answer"] for row in printed["claims"]} <= {"not enough failures", "not enough successes"}
    assert files == {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    assert AnatomyStudy.load(finished / "results" / "anatomy").n == 2


def test_the_page_needs_no_network_and_names_its_claims(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    for words in (
        "Mid-to-late attention promotes",
        "suppress the old object together",
        "not enough failures",
    ):
        assert words in page
    assert "Acc, Gen, Spec" not in page  # nothing of an evaluation, for none was made


def test_a_recipe_is_read_and_the_command_line_comes_on_top(tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text('editors = ["no_edit"]\nlimit = 9\nselection = 2\n', encoding="utf-8")
    argv = ["anatomy", "--recipe", str(recipe), "--limit", "2", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(argv) == 0
    config = (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    assert 'editors = [\n    "no_edit",\n]' in config
    assert "limit = 2" in config
    again = [
        "anatomy",
        "--recipe",
        str(tmp_path / "run" / "config.toml"),
        "--out",
        str(tmp_path / "run"),
        "--quiet",
    ]
    assert main(again) == 0


def test_the_recipe_that_ships_is_the_whole_study(root: Path) -> None:
    config = load_config(
        root / "experiments" / "recipes" / "anatomy.toml", AnatomyConfig, experiment="anatomy"
    )
    assert (config.limit, len(config.editors)) == (200, 6)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--editors", "ft,roma"], "roma"),
        (["--recipe", "no/such.toml"], "no/such.toml"),
        (["--limit", "0"], "limit"),
        (["--data", "no/such.json"], "no/such.json"),
    ],
)
def test_a_refusal_leaves_nothing(
    argv: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["anatomy", *argv, "--out", str(tmp_path / "run")])
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_page_escapes_every_name(finished: Path, tmp_path: Path) -> None:
    study = AnatomyStudy.load(finished / "results" / "anatomy")
    hostile = "<b>ft</b>\u202e"
    frames = {
        name: getattr(study, name).replace("ft", hostile)
        for name in ("delta", "heads", "outcomes", "claims", "neurons")
    }
    overlap = study.overlap.replace("ft", hostile)
    (tmp_path / "run").mkdir()
    summary = '{"title": "x", "n": 4, "editors": []}'
    (tmp_path / "run" / "summary.json").write_text(summary, encoding="utf-8")
    replace(study, overlap=overlap, **frames).save(tmp_path / "run" / "results" / "anatomy")
    page = build(tmp_path / "run").read_text(encoding="utf-8")
    assert "<b>ft" not in page
    assert "\u202e" not in page
    assert "&lt;b&gt;ft" in page
    (tmp_path / "run" / "results" / "anatomy" / "claims.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"claims\.parquet"):
        build(tmp_path / "run")


def test_the_plan_lists_the_cases_of_the_run(finished: Path) -> None:
    from experiments.runs import RunFolder
    from mechedit.recipes.configurations import AnatomyConfig
    from mechedit.recipes.plans import plan_anatomy

    plan = plan_anatomy(AnatomyConfig(editors=("ft", "no_edit"), limit=2, selection=2))
    assert set(plan.cases) == RunFolder(finished, {}).done()
