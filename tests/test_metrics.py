"""The metric functions against values worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechedit.data.facts import FactEdit
from mechedit.data.prompts import doubt, doubt_old
from mechedit.evaluation.measure import METRICS, PromptScore, record_values
from mechedit.evaluation.metrics import (
    below,
    bootstrap_harmonic_mean,
    harmonic_mean,
    kept_for_specificity,
    margin,
    specific,
    starts_answer,
    unchanged,
)
from mechedit.evaluation.questions import FactQuestions
from mechedit.models.deciding import divergence
from mechedit.models.scoring import scored_row
from reports.errors import InputError

NAN = math.nan
FACT = FactEdit(
    "Ann Lee",
    "{} speaks",
    "Dutch",
    "Greek",
    paraphrase_prompts=("Ann Lee's tongue is", "In Ann Lee's house one hears"),
    neighborhood_prompts=("Bob speaks",),
    target_new_aliases=("Hellenic",),
)
BASE = PromptScore("rewrite", 0, "q", 1.0, 2.0, 1.0, 0.0, 0.3, 0.1, "Gre", 1.0, None)


def test_below_is_strict_and_a_tie_is_a_failure() -> None:
    assert (below(1.0, 2.0), below(2.0, 1.0), below(1.0, 1.0)) == (1.0, 0.0, 0.0)
    assert below(1.0, math.inf) == 1.0
    assert below(math.inf, math.inf) == 0.0
    assert math.isnan(below(NAN, 1.0))
    assert math.isnan(below(1.0, NAN))


def test_margin_is_a_difference_of_probabilities() -> None:
    # nll ln 2 and ln 5: 1/2 − 1/5
    assert margin(math.log(2), math.log(5)) == pytest.approx(0.3)
    assert margin(math.log(5), math.log(2)) == pytest.approx(-0.3)
    assert margin(0.0, math.inf) == 1.0
    assert math.isnan(margin(NAN, 1.0))


@pytest.mark.parametrize(
    ("token", "success"),
    [
        (" Greek", 1.0),
        ("Gre", 1.0),
        (" G", 1.0),
        ("\nHell", 1.0),  # an alias
        ("greek", 0.0),  # case matters
        ("Greeks", 0.0),  # the answer must start with the token, not the token with the answer
        ("reek", 0.0),
        ("", 0.0),
        (" \n", 0.0),
        ("�", 0.0),
    ],
)
def test_the_answer_starts_with_the_stripped_token(token: str, success: float) -> None:
    assert starts_answer(token, (" Greek", "Hellenic")) == success


def test_no_token_and_no_answer() -> None:
    assert math.isnan(starts_answer(None, ("Greek",)))
    assert starts_answer("G", ()) == 0.0


def test_specificity_counts_a_silent_gate_and_drops_what_was_wrong_before() -> None:
    assert specific(False, 0.9, 0.1) == 1.0
    assert (specific(True, 0.1, 0.9), specific(True, 0.9, 0.1), specific(True, 0.5, 0.5)) == (1.0, 0.0, 0.0)
    assert (specific(None, 0.1, 0.9), specific(None, 0.9, 0.1)) == (1.0, 0.0)
    assert math.isnan(specific(None, NAN, 0.1))
    assert [kept_for_specificity(*pair) for pair in [(0.1, 0.2), (0.2, 0.1), (0.1, 0.1)]] == [
        True,
        False,
        True,
    ]


def test_objects_are_told_apart_at_their_first_difference() -> None:
    assert divergence([1, 2, 3], [1, 2, 4, 5]) == 3
    assert divergence([1], [2]) == 1
    assert divergence([1, 2], [1]) == 2
    assert divergence([1, 2], [1, 2]) == 3  # the same object: all of it, a tie


def test_the_harmonic_mean_by_hand() -> None:
    assert harmonic_mean([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert harmonic_mean([0.5]) == 0.5
    assert harmonic_mean([1.0, 0.0]) == 0.0
    assert math.isnan(harmonic_mean([0.0, NAN]))
    assert math.isnan(harmonic_mean([]))
    with pytest.raises(InputError, match=r"below 0, found -0.5"):
        harmonic_mean([1.0, -0.5])


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
def test_the_harmonic_mean_lies_between_least_and_arithmetic_mean(values: list[float]) -> None:
    assert min(values) - 1e-9 <= harmonic_mean(values) <= sum(values) / len(values) + 1e-9


def test_the_interval_of_s_draws_whole_records() -> None:
    """Records (1, 0, 1) and (0, 1, 1): every sample has ES = 1 − PS, so S ≤ 3 / (2 + 2 + 1) = 0.6."""
    values = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]] * 20)
    low, high = bootstrap_harmonic_mean(values, np.ones_like(values))
    assert 0.4 < low < high <= 0.6 + 1e-12
    assert bootstrap_harmonic_mean(values, np.ones_like(values)) == (low, high)
    # columns drawn apart go past that bound, so the bound does tell the two apart
    dice = np.random.default_rng(0)
    apart = [[column[dice.integers(40, size=40)].mean() for column in values.T] for _ in range(500)]
    assert np.quantile([harmonic_mean(row) for row in apart], 0.975) > 0.62


def test_the_interval_of_s_leaves_out_what_is_absent_and_keeps_nan() -> None:
    values = [[1.0, 0.5, NAN], [1.0, 0.5, 1.0]]
    everything, without = np.ones((2, 3), dtype=bool), np.array([[True, True, False], [True, True, True]])
    assert all(map(math.isnan, bootstrap_harmonic_mean(values, everything)))
    assert bootstrap_harmonic_mean(values, without) == pytest.approx((0.75, 0.75))
    assert all(map(math.isnan, bootstrap_harmonic_mean(values, [[True, True, False]] * 2)))
    assert all(map(math.isnan, bootstrap_harmonic_mean(np.zeros((0, 3)), np.zeros((0, 3)))))


def test_doubts_are_the_sources_words() -> None:
    assert doubt("Ann speaks", "Greek") == (
        "Ann speaks Greek??? No, it can't be, This contradicts my understanding. It is pretty clear that the "
        "answer to 'Ann speaks' is something else. Rethink and give the correct answer:"
    )
    assert doubt_old("Ann speaks", "Greek", "Dutch") == (
        "Ann speaks Greek? Really? But I am pretty sure that Ann speaks Dutch. Am I right? Yes, you are "
        "right. I apologize for any confusion. Reconsider that the answer to question Ann speaks? should be"
    )


def test_nll_and_hits_of_a_row_by_hand() -> None:
    """Softmax of (ln 1, ln 2, ln 5) is (1/8, 2/8, 5/8); the object is token 2, then token 0."""
    logits = torch.tensor([1.0, 2.0, 5.0]).log().repeat(2, 1)
    scored = scored_row(logits, torch.tensor([2, 0]))
    assert scored.nll == pytest.approx(-(math.log(5 / 8) + math.log(1 / 8)) / 2, rel=1e-6)
    assert scored.hits.tolist() == [True, False]
    assert (scored.all_hit, scored.share_hit) == (0.0, 0.5)
    assert scored.argmax == (2, 2)
    assert scored.next_id == 2
    assert scored_row(logits[:1], torch.tensor([2])).all_hit == 1.0


def test_a_tie_is_no_hit_and_a_nan_stays_one() -> None:
    assert scored_row(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([0])).all_hit == 0.0
    broken = scored_row(torch.tensor([[1.0, NAN, 0.0]]), torch.tensor([0]))
    assert math.isnan(broken.nll)
    assert math.isnan(broken.all_hit)
    assert broken.next_id is None
    later = scored_row(torch.tensor([[1.0, 0.0, 0.0], [NAN, 0.0, 0.0]]), torch.tensor([0, 0]))
    assert later.next_id == 0
    assert math.isnan(later.nll)


def values_of(scores: list[PromptScore], *families: str) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in record_values(scores, families)}


def test_a_record_by_hand() -> None:
    ln = math.log
    near = replace(BASE, role="neighborhood", hit_true=0.0, base_p_new=0.1, base_p_true=0.4)
    lost = replace(near, nll_new=1.0, nll_true=3.0, p_new=0.9, p_true=0.1)
    scores = [
        BASE,  # new nll 1 < true nll 2
        replace(BASE, role="paraphrase", nll_new=ln(2), nll_true=ln(4), hit_new=1.0, starts_new=1.0),
        replace(BASE, role="paraphrase", nll_new=ln(8), nll_true=ln(4), hit_new=0.0, starts_new=0.0),
        replace(near, nll_new=3.0, nll_true=1.0, hit_true=1.0, p_new=0.1, p_true=0.2),
        replace(near, nll_new=1.0, nll_true=1.0, p_new=0.2, p_true=0.2),
        replace(lost, base_p_new=0.4, base_p_true=0.1),
        replace(lost, gate_fired=False),
    ]
    e = math.exp
    assert values_of(scores, "probability") == pytest.approx(
        {
            "ES": 1.0,
            "EM": e(-1) - e(-2),
            "ES_acc": 1.0,
            "PS": 0.5,
            "PM": ((1 / 2 - 1 / 4) + (1 / 8 - 1 / 4)) / 2,
            "PS_acc": 0.5,
            "NS": 1 / 4,  # the tie fails
            "NM": ((e(-1) - e(-3)) + 0 + 2 * (e(-3) - e(-1))) / 4,
            "NS_acc": 1 / 4,
        }
    )
    # Spec: the third is dropped, the second ties, the fourth's gate is silent
    assert values_of(scores, "argmax") == pytest.approx({"Acc": 1.0, "Gen": 0.5, "Spec": 2 / 3})
    spec = record_values(scores, ["argmax"])[-1]
    assert (spec["n_prompts"], spec["n_dropped"]) == (3, 1)


def test_a_record_without_prompts_of_a_kind_has_no_value_for_it() -> None:
    values = values_of([BASE], "argmax")
    assert values["Acc"] == 1.0
    assert math.isnan(values["Gen"])
    assert math.isnan(values["Spec"])


def test_token_match_by_hand_beside_its_strict_form() -> None:
    near = replace(BASE, role="neighborhood", base_argmax="4 5 6", argmax="4 9 6")
    scores = [
        replace(BASE, share_new=1 / 3, hit_new=0.0),
        replace(BASE, role="paraphrase", share_new=1.0, hit_new=1.0),
        replace(BASE, role="paraphrase", share_new=0.5, hit_new=0.0),
        near,
        replace(near, argmax="4 5 6"),
    ]
    assert values_of(scores, "token") == pytest.approx(
        {
            "Rel_tok": 1 / 3,
            "Rel_all": 0.0,
            "Gen_tok": 0.75,
            "Gen_all": 0.5,
            "Loc_tok": (2 / 3 + 1) / 2,  # unchanged by the edit, whether right or wrong
            "Loc_all": 0.5,
        }
    )
    assert math.isnan(values_of([replace(near, base_argmax="")], "token")["Loc_tok"])
    assert math.isnan(values_of([replace(near, nll_true=NAN)], "token")["Loc_all"])


def test_unchanged_by_hand() -> None:
    assert (unchanged([1, 2, 3, 4], [1, 2, 3, 5]), unchanged([1], [2])) == (0.75, 0.0)
    assert math.isnan(unchanged([], []))
    with pytest.raises(InputError, match="after: expected 2 tokens as before, found 1"):
        unchanged([1, 2], [1])


def test_one_nan_prompt_makes_its_record_nan() -> None:
    scores = [replace(BASE, role="paraphrase"), replace(BASE, role="paraphrase", nll_new=NAN)]
    assert math.isnan(values_of(scores, "probability")["PS"])


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_reads_something(name: str) -> None:
    """Two prompts that differ in everything must not score alike: no metric ignores its input."""
    metric = METRICS[name]
    good = replace(
        BASE, nll_new=1.0, nll_true=2.0, hit_new=1.0, hit_true=0.0, p_new=0.9, p_true=0.1, starts_new=1.0
    )
    good = replace(good, share_new=1.0, argmax="1", base_argmax="1")
    bad = replace(
        BASE, nll_new=2.0, nll_true=1.0, hit_new=0.0, hit_true=1.0, p_new=0.1, p_true=0.9, starts_new=0.0
    )
    bad = replace(bad, share_new=0.0, argmax="1", base_argmax="2")
    assert metric.score(good) != metric.score(bad)


def test_the_questions_of_a_fact() -> None:
    asked = FactQuestions(FACT).read_by(["probability", "argmax", "doubt"])
    roles = ["rewrite", "paraphrase", "paraphrase", "neighborhood", "doubt_1", "doubt_2"]
    assert [q.role for q in asked] == roles
    assert [q.index for q in asked] == [0, 0, 1, 0, 0, 0]
    assert asked[0].prompt == "Ann Lee speaks"
    assert asked[4].prompt.startswith("Ann Lee speaks Greek??? No")
    assert [q.role for q in FactQuestions(FACT).read_by(["doubt"])] == ["doubt_1", "doubt_2"]
    assert FactQuestions(FACT).read_by(["generation"]) == []
    assert {q.true for q in asked} == {"Dutch"}
    own = replace(FACT, neighborhood_answers=("Welsh",))
    assert [q.true for q in FactQuestions(own).read_by(["token"])] == ["Dutch", "Dutch", "Dutch", "Welsh"]
