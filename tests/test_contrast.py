"""Differences of attributions: against the naive loop done twice, conserved, antisymmetric, refused where unlike."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import mechedit as me
from mechedit.anatomy import edit_contrast
from mechedit.attribution import Attribution, AttributionContrast, attribute, attribution_json, contrast
from mechedit.attribution.units import CONTRASTED, UNITS
from mechedit.data.facts import FactEdit
from mechedit.editors.weights.weight_edit import EditedModel, Replaced, WeightChange, weight_edit, weight_name
from mechedit.models.hooked import HookedModel, load_model
from reports.errors import InputError
from tests.nlka_oracle import Key, Plain, Unit, naive_scores, plain_run
from tests.tiny import ARCHS, Arch, tiny_folder, tiny_model

PROMPT, NEW, OLD = "The mother tongue of Anna is", " Dutch", " French"
FACT = FactEdit(subject="Anna", prompt="The mother tongue of {} is", target_true="French", target_new="Dutch")
ORACLE_UNITS: tuple[Unit, ...] = ("layers", "heads", "head_positions", "mlp_neurons", "attn_neurons")


class Shaken:
    """An editor that adds noise to one layer's W_out and another's W_O."""

    name = "shaken"
    needs_selection = False

    @contextlib.contextmanager
    def apply(self, model: HookedModel, facts: Any) -> Iterator[EditedModel]:
        generator = torch.Generator().manual_seed(5)
        parts = {}
        for view in (model.W_out(1), model.W_O(0)):
            name, weight = weight_name(model, view)
            noise = torch.randn(weight.shape, generator=generator) * 0.5 * weight.std()
            parts[name] = (Replaced(weight + noise),)
        with weight_edit(model, WeightChange("shaken", (), model.hash, parts)) as edited:
            yield edited


@cache
def edited_folder(arch: Arch) -> Path:
    folder = tiny_folder(arch).with_name(f"{arch}-shaken")
    with Shaken().apply(tiny_model(arch), [FACT]) as edited:
        return edited.save_pretrained(folder)


@cache
def plain(folder: Path) -> Plain:
    return plain_run(folder, tiny_model("gpt2").tokenize(PROMPT).tolist())


@cache
def targets(arch: Arch) -> tuple[int, int]:
    model = tiny_model(arch)
    new, old = (int(model.continuation(PROMPT, target)[1][0]) for target in (NEW, OLD))
    return new, old


def rows(frame: pd.DataFrame, unit: str, column: str = "score") -> dict[Key, float]:
    return dict(zip(frame[list(UNITS[unit])].itertuples(index=False, name=None), frame[column], strict=True))


def assert_difference(
    difference: AttributionContrast, a: dict[Unit, dict[Key, float]], b: dict[Unit, dict[Key, float]]
) -> None:
    """Every row is the naive a − b of its unit, and so are both sides."""
    for unit in ORACLE_UNITS:
        frame = getattr(difference, unit)
        assert len(frame)
        for key, row in zip(rows(frame, unit), frame[["a", "b", "score"]].to_numpy(), strict=True):
            expected = (a[unit][key], b[unit][key], a[unit][key] - b[unit][key])
            assert row == pytest.approx(expected, abs=1e-4), f"{unit} {key}"


def assert_conserved(difference: AttributionContrast, delta: float, *, gap: float = 1e-4) -> None:
    """The layers' differences sum to the change of log p that two plain forward passes show."""
    assert difference.logp == pytest.approx(delta, abs=1e-4)
    assert difference.embedding_logp + difference.layers["score"].sum() == pytest.approx(delta, abs=gap)


def own_logp(model: HookedModel, token: int) -> float:
    return float(model.logits([PROMPT])[0].double().log_softmax(-1)[token])


# ------------------------------------------------------------------------------------ new against old


@pytest.mark.parametrize(
    ("arch", "biases"), [("gpt2", "keep"), ("gpt2-untied", "drop"), ("llama", "keep"), ("llama-gqa", "keep")]
)
def test_new_against_old_is_the_naive_loop_done_twice(arch: Arch, biases: Any) -> None:
    difference = contrast(tiny_model(arch), PROMPT, NEW, OLD, top_k="all", biases=biases)
    both = [naive_scores(plain(tiny_folder(arch)), token, biases=biases) for token in targets(arch)]
    assert_difference(difference, *both)
    for unit in ("layers", "heads", "mlp_neurons", "attn_neurons"):
        assert len(getattr(difference, unit)) == len(both[0][unit])
    with pytest.raises(AssertionError):
        assert_difference(difference, both[0], both[0])
    with pytest.raises(AssertionError):
        assert_difference(difference, *both[::-1])


@pytest.mark.parametrize("arch", ARCHS)
def test_new_against_old_sums_to_the_models_own_log_odds(arch: Arch) -> None:
    model, (new, old) = tiny_model(arch), targets(arch)
    difference = contrast(model, PROMPT, NEW, OLD, top_k=3)
    delta = own_logp(model, new) - own_logp(model, old)
    assert_conserved(difference, delta)
    broken = dataclasses.replace(difference, layers=difference.layers.iloc[1:])
    with pytest.raises(AssertionError):
        assert_conserved(broken, delta)


def test_new_against_old_is_linear_and_knows_no_bias() -> None:
    kept, dropped = (
        contrast(tiny_model("gpt2"), PROMPT, NEW, OLD, top_k="all", biases=biases)
        for biases in ("keep", "drop")
    )
    for unit in CONTRASTED:
        a, b = getattr(kept, unit), getattr(dropped, unit)
        assert a[[*UNITS[unit], "score"]].equals(b[[*UNITS[unit], "score"]])
    assert (kept.mlp_neurons["a"] - dropped.mlp_neurons["a"]).abs().max() > 1e-4


def test_the_best_of_the_contrast_are_the_best_of_all() -> None:
    everything = contrast(tiny_model("llama-gqa"), PROMPT, NEW, OLD, top_k="all")
    few = contrast(tiny_model("llama-gqa"), PROMPT, NEW, OLD, top_k=9)
    for unit in ("mlp_neurons", "attn_neurons"):
        pd.testing.assert_frame_equal(
            getattr(few, unit), getattr(everything, unit).head(9), rtol=0, atol=1e-6
        )
        sizes = getattr(everything, unit)["score"].abs().to_numpy()
        assert (sizes[:-1] >= sizes[1:]).all()
    assert few.top(4).equals(few.mlp_neurons.head(4))


@pytest.mark.parametrize("arch", ["gpt2", "llama-gqa"])
def test_two_results_subtracted_are_the_contrast(arch: Arch) -> None:
    model = tiny_model(arch)
    a, b = (attribute(model, PROMPT, target, top_k="all") for target in (NEW, OLD))
    difference, direct = a - b, contrast(model, PROMPT, NEW, OLD, top_k="all")
    for unit in CONTRASTED:
        mine, linear = (rows(getattr(result, unit), unit) for result in (difference, direct))
        assert all(mine[key] == pytest.approx(score, abs=1e-5) for key, score in linear.items())
    assert (difference.a.label, difference.b.label) == (a.target_token, b.target_token)
    assert set(difference.unknown.values()) == {0}


# ---------------------------------------------------------------------------- edited against unedited


@pytest.mark.parametrize(("arch", "top_k"), [("gpt2", "all"), ("gpt2", 7), ("llama-gqa", 7)])
def test_edited_against_unedited_is_the_naive_loop_on_both_checkpoints(arch: Arch, top_k: Any) -> None:
    model = tiny_model(arch)
    before = model.hash
    difference = edit_contrast(model, Shaken(), FACT, top_k=top_k)
    assert model.hash == before
    token = targets(arch)[0]
    both = [
        naive_scores(plain(folder), token, biases="keep")
        for folder in (edited_folder(arch), tiny_folder(arch))
    ]
    assert_difference(difference, *both)
    assert set(difference.unknown.values()) == {0}
    assert (difference.a.label, difference.b.label) == ("shaken", "unedited")
    edited = load_model(str(edited_folder(arch)), device="cpu")
    delta = own_logp(edited, token) - own_logp(model, token)
    assert abs(delta) > 1e-2  # else the sums prove nothing
    assert_conserved(difference, delta)
    with pytest.raises(AssertionError):
        assert_difference(difference, both[1], both[1])
    with pytest.raises(AssertionError):
        assert_conserved(difference, own_logp(model, token) - own_logp(model, token))


def test_a_neuron_of_one_top_k_is_scored_in_the_other_and_never_0() -> None:
    model = tiny_model("gpt2")
    before = attribute(model, PROMPT, NEW, top_k=7)
    with Shaken().apply(model, [FACT]) as edited:
        after = attribute(edited, PROMPT, NEW, top_k=7)
        completed = attribute(edited, PROMPT, NEW, top_k=7, also=before)
    plain_difference = after - before
    sets = [set(rows(result.mlp_neurons, "mlp_neurons")) for result in (after, before)]
    assert plain_difference.unknown["mlp_neurons"] == len(sets[0] ^ sets[1]) > 0
    assert len(plain_difference.mlp_neurons) == len(sets[0] | sets[1])
    one_sided = plain_difference.mlp_neurons[plain_difference.mlp_neurons["score"].isna()]
    assert (one_sided["a"].isna() ^ one_sided["b"].isna()).all()
    assert "not known on one side" in plain_difference._repr_html_()
    full = completed - attribute(model, PROMPT, NEW, top_k=7, also=completed)
    assert set(full.unknown.values()) == {0}
    assert set(rows(full.mlp_neurons, "mlp_neurons")) == sets[0] | sets[1]
    direct = edit_contrast(model, Shaken(), FACT, top_k=7)
    for unit in CONTRASTED:
        pd.testing.assert_frame_equal(getattr(full, unit), getattr(direct, unit), rtol=0, atol=1e-6)
    assert completed.top(7).equals(after.mlp_neurons)


@pytest.mark.parametrize("tokens", ["first", "sum"])
def test_units_of_another_result_are_scored_as_by_enumeration(tokens: Any) -> None:
    model = tiny_model("llama-gqa")
    target = " Danielle Darrieux"
    low = attribute(model, PROMPT, target, top_k=6, sign="suppress", tokens=tokens)
    high = attribute(model, PROMPT, target, top_k=4, tokens=tokens, also=low)
    everything = attribute(model, PROMPT, target, top_k="all", tokens=tokens)
    assert len(high.mlp_neurons) == len(high.attn_neurons) == 10
    for unit in CONTRASTED:
        full, scores = (rows(getattr(result, unit), unit) for result in (everything, high))
        assert all(full[key] == pytest.approx(score, abs=1e-5) for key, score in scores.items())
    wrong = high.mlp_neurons.assign(score=high.mlp_neurons["score"].to_numpy()[::-1])
    full = rows(everything.mlp_neurons, "mlp_neurons")
    assert any(abs(full[key] - score) > 1e-3 for key, score in rows(wrong, "mlp_neurons").items())


def test_a_steering_term_has_added_nothing_where_it_is_not() -> None:
    model = tiny_model("gpt2")
    before = attribute(model, PROMPT, NEW, top_k="all")
    term = torch.linspace(-1, 1, model.shape.d_model)
    with model.hooks([("blocks.1.hook_attn_out", lambda tensor, hook: tensor + term)]):
        after = attribute(model, PROMPT, NEW, top_k="all")
        delta = own_logp(model, targets("gpt2")[0])
    delta -= own_logp(model, targets("gpt2")[0])
    difference = after - before
    row = difference.layers[difference.layers["module"] == "steer"]
    assert row[["layer", "b"]].to_numpy().tolist() == [[1, 0.0]]
    assert row["score"].item() == after.layers.loc[after.layers["module"] == "steer", "score"].item()
    assert difference.layers["module"].tolist() == ["attn", "mlp", "attn", "steer", "mlp", "attn", "mlp"]
    assert_conserved(difference, delta)
    without = dataclasses.replace(
        difference, layers=difference.layers[difference.layers["module"] != "steer"]
    )
    with pytest.raises(AssertionError):
        assert_conserved(without, delta)


def test_editors_of_the_registry_are_contrasted(factworld_gpt2: HookedModel) -> None:
    fact = me.factworld.edits(1)[0]
    for editor in (me.editors.ROME(), me.editors.MEGA(window=(3, 5), alpha=1.0, gate="always")):
        difference = edit_contrast(factworld_gpt2, editor, fact, top_k=5)
        assert difference.logp > 0
        assert abs(difference.completeness_gap) < 1e-3
        assert set(difference.unknown.values()) == {0}
    assert "steer" in set(difference.layers["module"])
    with pytest.raises(InputError, match="same prompt"):
        edit_contrast(factworld_gpt2, me.editors.IKE(), fact, top_k=5)


# --------------------------------------------------------------------------------- success against failure


@cache
def attributions() -> tuple[Attribution, ...]:
    prompts = (
        "The mother tongue of Anna is",
        "Anna Keller works as a",
        "Rome",
        "The city of",
        "Tim is",
        "She was",
    )
    return tuple(attribute(tiny_model("gpt2"), prompt, NEW, top_k="all") for prompt in prompts)


def assert_means(actual: me.OutcomeContrast, results: Sequence[Any], success: Sequence[bool]) -> None:
    """Every row is the plain mean of the successes less that of the failures."""
    for unit in ("layers", "heads", "mlp_neurons"):
        frame = getattr(actual, unit)
        assert len(frame)
        scores = [rows(getattr(result, unit), unit) for result in results]
        for key, difference in rows(frame, unit, "difference").items():
            means = [
                np.mean([score[key] for score, good in zip(scores, success, strict=True) if good is outcome])
                for outcome in (True, False)
            ]
            assert difference == pytest.approx(means[0] - means[1], abs=1e-9)


def test_success_against_failure_is_the_difference_of_the_means() -> None:
    results, success = attributions(), [True, False, True, False, True, False]
    difference = me.outcome_contrast(results, success)
    assert_means(difference, results, success)
    assert (difference.n_success, difference.n_failure, difference.left_out["mlp_neurons"]) == (3, 3, 0)
    inside = (difference.layers["low"] <= difference.layers["difference"]) & (
        difference.layers["difference"] <= difference.layers["high"]
    )
    assert inside.all()
    turned = me.outcome_contrast(results, [not good for good in success])
    assert turned.heads["difference"].to_numpy() == pytest.approx(-difference.heads["difference"].to_numpy())
    with pytest.raises(AssertionError):
        assert_means(turned, results, success)
    with pytest.raises(AssertionError):
        assert_means(difference, results, [True, True, False, False, True, False])


def test_what_an_edit_changed_is_contrasted_by_its_outcome(tmp_path: Path) -> None:
    results = attributions()
    changes = [a - b for a, b in zip(results[:2], results[:2], strict=True)]
    assert (me.outcome_contrast(changes, [True, False]).layers["difference"] == 0).all()
    difference = me.outcome_contrast(results, [True, False, True, False, True, False], facts=list("aabbcc"))
    assert (difference.facts_success, difference.facts_failure) == (3, 3)
    again = me.OutcomeContrast.load(difference.save(tmp_path / "found"))
    assert again.equals(difference)
    assert len(difference.plot().axes.get_lines()) >= 2
    assert "outcome" in difference._repr_html_().lower()


def test_a_neuron_that_some_result_does_not_know_is_left_out_and_counted() -> None:
    few = attribute(tiny_model("gpt2"), "Rome", NEW, top_k=5)
    difference = me.outcome_contrast([*attributions()[:3], few], [True, False, True, False])
    assert set(rows(difference.mlp_neurons, "mlp_neurons", "difference")) == set(
        rows(few.mlp_neurons, "mlp_neurons")
    )
    assert difference.left_out["mlp_neurons"] == len(attributions()[0].mlp_neurons) - 5
    assert difference.left_out["layers"] == difference.left_out["heads"] == 0


def test_outcomes_that_cannot_be_contrasted_are_refused() -> None:
    results = list(attributions()[:2])
    for success, message in (
        ([True, True], "all succeed"),
        ([False, False], "none succeeds"),
        ([True], "as many"),
    ):
        with pytest.raises(InputError, match=message):
            me.outcome_contrast(results, success)
    with pytest.raises(InputError, match="as many of each"):
        me.outcome_contrast(results, [True, False], facts=[1])
    with pytest.raises(InputError, match="and not both"):
        me.outcome_contrast([results[0], results[0] - results[0]], [True, False])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected attributions"):
        me.outcome_contrast([], [])
    dropped = attribute(tiny_model("gpt2"), "Rome", NEW, top_k=5, biases="drop")
    with pytest.raises(InputError, match="one biases in all, found 'keep' and, at 1, 'drop'"):
        me.outcome_contrast([results[0], dropped], [True, False])
    other = attribute(tiny_model("llama"), "Rome", NEW, top_k=5)
    with pytest.raises(InputError, match="one model name in all"):
        me.outcome_contrast([results[0], other], [True, False])


# ------------------------------------------------------------------------------------------ the algebra


@cache
def shaken_pair() -> tuple[Attribution, Attribution]:
    model = tiny_model("llama")
    with Shaken().apply(model, [FACT]) as edited:
        after = attribute(edited, PROMPT, NEW, top_k=8)
    return after, attribute(model, PROMPT, NEW, top_k=8)


def test_a_difference_turned_round_is_its_negative() -> None:
    after, before = shaken_pair()
    assert (after - before).equals(-(before - after))
    twice = -(before - after)
    assert (-twice).equals(before - after)
    assert not (after - before).equals(before - after)
    there, back = (contrast(tiny_model("gpt2"), PROMPT, *pair, top_k=8) for pair in ((NEW, OLD), (OLD, NEW)))
    assert there.equals(-back)
    assert not there.equals(back)


def test_a_result_less_itself_is_zero() -> None:
    after, before = shaken_pair()
    for unit in CONTRASTED:
        assert (getattr(after - after, unit)["score"] == 0).all()
    assert (after - after).logp == (after - after).completeness_gap == 0
    assert (after - before).layers["score"].abs().max() > 1e-3


def test_a_difference_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    after, before = shaken_pair()
    difference = after - before
    assert any(difference.unknown.values())  # NaN survives
    again = AttributionContrast.load(difference.save(tmp_path / "difference"))
    assert again.equals(difference)
    assert again.a == difference.a
    loaded = Attribution.load(before.save(tmp_path / "before"))
    assert (after - loaded).equals(difference)


def test_a_difference_shows_itself() -> None:
    after, before = shaken_pair()
    difference = after - before
    frame = difference.to_frame()
    assert frame["unit"].value_counts().to_dict() == {u: len(getattr(difference, u)) for u in CONTRASTED}
    assert frame.columns.tolist()[-3:] == ["a", "b", "score"]
    assert len(difference.plot().axes.get_lines()) >= 2
    hostile = contrast(tiny_model("gpt2"), "<script>alert(1)</script> is", " <b>", " Dutch", top_k=2)
    page = hostile._repr_html_()
    assert "&lt;" in page
    assert "<script>" not in page
    assert repr(difference).startswith("AttributionContrast(")
    with pytest.raises(InputError, match="unit: expected one of layers, heads"):
        difference.top(3, "query_neurons")
    with pytest.raises(InputError, match="k: expected"):
        difference.top(0)


# ---------------------------------------------------------------------------------------- what is refused


def changed(attr: Attribution, *keys: str, value: object) -> Attribution:
    """A copy whose provenance differs in one place."""
    provenance = {**attr.provenance}
    if len(keys) == 2:
        provenance[keys[0]] = {**provenance[keys[0]], keys[1]: value}
    else:
        provenance[keys[0]] = value
    return dataclasses.replace(attr, provenance=provenance)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("model", "name"), "another"),
        (("model", "source"), "elsewhere"),
        (("data", "prompt"), "another prompt"),
        (("seeds", "all"), 3),
        (("dtype",), "float64"),
        (("device",), "cuda:1"),
        (("attn_implementation",), "sdpa"),
        (("versions", "torch"), "0.0"),
        (("platform",), "another"),
    ],
)
def test_results_of_unlike_provenance_are_refused(keys: tuple[str, ...], value: object) -> None:
    after, before = shaken_pair()
    with pytest.raises(InputError, match=f"a - b: expected .* found {'.'.join(keys)}"):
        after - changed(before, *keys, value=value)
    # the edit alone may differ
    assert (after - changed(before, "model", "hash", value="0" * 64)).logp == (after - before).logp


def with_intervals(attr: Attribution) -> Attribution:
    """As earlier versions saved a result whose neurons' scores are the middles of intervals."""
    frames = {}
    for unit in ("mlp_neurons", "attn_neurons"):
        frame = getattr(attr, unit)
        frames[unit] = frame.assign(low=frame["score"] - 1e-3, high=frame["score"] + 1e-3)
    certificate = {**attr.certificate, "exact": False, "tolerance": 2e-3, "width_max": 2e-3}
    return dataclasses.replace(attr, certificate=certificate, **frames)


def test_a_saved_result_with_intervals_opens_and_is_shown(tmp_path: Path) -> None:
    _, before = shaken_pair()
    rough = Attribution.load(with_intervals(before).save(tmp_path / "rough"))
    assert rough.equals(with_intervals(before))
    assert rough.to_frame().equals(before.to_frame())
    assert rough.circuit() == before.circuit()
    assert attribution_json(rough)["mlp_neurons"][0].keys() == {"layer", "neuron", "score", "low", "high"}
    assert "high" in rough._repr_html_()


def test_results_under_unlike_options_are_refused() -> None:
    model = tiny_model("llama")
    _, before = shaken_pair()
    for option in ({"biases": "drop"}, {"sign": "suppress"}, {"tokens": "sum"}):
        with pytest.raises(InputError, match=r"found (biases|sign|target_scored)"):
            attribute(model, PROMPT, NEW, top_k=3, **option) - before  # type: ignore[arg-type]
    rough = with_intervals(before)
    for pair in ((rough, before), (before, rough)):
        with pytest.raises(InputError, match="expected exact scores, found intervals"):
            pair[0] - pair[1]
    with pytest.raises(InputError, match="also: expected exact scores"):
        attribute(model, PROMPT, NEW, top_k=3, also=rough)
    with pytest.raises(TypeError):
        before - 1


def test_two_differences_at_once_are_refused() -> None:
    model, (after, _) = tiny_model("llama"), shaken_pair()
    old = attribute(model, PROMPT, OLD, top_k=3)
    with pytest.raises(InputError, match="expected one difference, found another target"):
        after - old
    term = torch.linspace(-1, 1, model.shape.d_model)
    with model.hooks([("blocks.1.hook_attn_out", lambda tensor, hook: tensor + term)]):
        steered = attribute(model, PROMPT, NEW, top_k=3)
    with pytest.raises(InputError, match="expected one difference"):
        steered - old


def test_units_of_another_prompt_are_refused() -> None:
    model = tiny_model("llama")
    other = attribute(model, "The mother tongue of Tim is", NEW, top_k=3)
    with pytest.raises(InputError, match="also: expected a result for the same prompt"):
        attribute(model, PROMPT, NEW, top_k=3, also=other)


def test_a_contrast_without_a_difference_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match="start alike"):
        contrast(model, PROMPT, OLD, OLD)
    with pytest.raises(InputError, match="top_k"):
        contrast(model, PROMPT, NEW, OLD, top_k=0)
    with pytest.raises(InputError, match="target"):
        contrast(model, PROMPT, NEW, "")
