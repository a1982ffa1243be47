"""The gates of many edits, asked at once, against each gate asked alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechedit.editors.steering.asked_gate import Gate
from mechedit.editors.steering.gate_bank import GateBank, PromptBatch
from mechedit.editors.steering.gates import AlwaysOn, Distance, HiddenGate, Reading, nearest, roc, whitening
from reports.errors import InputError

CPU = torch.device("cpu")
DISTANCES: tuple[Distance, ...] = ("euclidean", "cosine", "mahalanobis")


def random_gates(n: int, *, distance: Distance = "euclidean", d: int = 16) -> list[HiddenGate]:
    draw = torch.Generator().manual_seed(3)
    white = whitening(torch.randn(50, d, generator=draw)) if distance == "mahalanobis" else None
    scale = 1.1 if distance == "cosine" else 4.5
    return [
        HiddenGate(2, torch.randn(1 + i % 4, d, generator=draw), scale, distance, whitening=white)
        for i in range(n)
    ]


def batch(rows: int) -> PromptBatch:
    return PromptBatch([torch.tensor([1])] * rows, None)


def asked(bank: GateBank, states: torch.Tensor) -> torch.Tensor:
    """What the bank's one group says of these states."""
    (group,) = bank.groups
    prompts = batch(len(states))
    return group.ratios(prompts, {group.readings[0]: states}, group.screen(prompts))


def naive(gates: list[HiddenGate], states: torch.Tensor) -> torch.Tensor:
    ratios = torch.stack(
        [nearest(gate.coordinates(states), gate.coordinates(gate.centres)) / gate.threshold for gate in gates]
    )
    return ratios.where(ratios <= 1, torch.inf)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_bank_says_what_each_gate_says(distance: Distance) -> None:
    gates = random_gates(40, distance=distance)
    states = torch.randn(9, 16, generator=torch.Generator().manual_seed(7))
    bank = GateBank(gates, CPU)
    ratios, expected = asked(bank, states), naive(gates, states)
    assert 0 < (expected <= 1).sum() < expected.numel()
    torch.testing.assert_close(ratios, expected, atol=1e-5, rtol=1e-5)
    wrong = naive([replace(gate, threshold=gate.threshold * 1.01) for gate in gates], states)
    assert not torch.allclose(ratios, wrong)


def test_an_edits_ratio_has_the_same_bits_whoever_else_is_there() -> None:
    gates = random_gates(100)
    states = torch.randn(5, 16, generator=torch.Generator().manual_seed(7))
    whole = asked(GateBank(gates, CPU), states)
    without = [gate for i, gate in enumerate(gates) if i != 41]
    rest = asked(GateBank(without, CPU), states)
    assert torch.equal(torch.cat([whole[:41], whole[42:]]), rest)


def test_a_state_far_from_the_origin_is_still_told_apart() -> None:
    """The product alone would lose it: |s|² is 1e8, the threshold 1e-2."""
    centre = torch.full((1, 16), 2500.0)
    gate = HiddenGate(0, centre, 1e-2)
    states = torch.cat([centre, centre + 0.1])
    assert asked(GateBank([gate], CPU), states).isfinite().tolist() == [[True, False]]


def test_edits_that_ask_nothing_are_open_for_every_prompt() -> None:
    gates: list[Gate] = [AlwaysOn(), *random_gates(1), AlwaysOn()]
    always, hidden = GateBank(gates, CPU).groups
    prompts = batch(2)
    assert (always.readings, hidden.readings) == ((), (Reading(2, "last"),))
    assert always.ratios(prompts, {}, always.screen(prompts)).tolist() == [[0, 0], [torch.inf] * 2, [0, 0]]
    assert hidden.screen(prompts).tolist() == [[False] * 2, [True] * 2, [False] * 2]


def test_a_text_is_refused_where_it_is_not_known() -> None:
    for prompts in (PromptBatch([torch.tensor([3])], None), PromptBatch([torch.tensor([-1, 3])], object())):
        with pytest.raises(InputError, match="input_ids"):
            prompts.texts  # noqa: B018


def test_whitened_distance_is_mahalanobis() -> None:
    draw = torch.Generator().manual_seed(0)
    sample = torch.randn(30, 8, generator=draw, dtype=torch.float64)
    white = whitening(sample, reg=0.1)
    a, b = torch.randn(2, 8, generator=draw, dtype=torch.float64)
    covariance = sample.T.cov(correction=0)
    covariance += 0.1 * covariance.trace() / 8 * torch.eye(8, dtype=torch.float64)
    expected = ((a - b) @ torch.linalg.inv(covariance) @ (a - b)).sqrt()
    assert float((white(a[None]) - white(b[None])).norm()) == pytest.approx(float(expected), rel=1e-5)


def test_whitening_off_the_span_of_few_states_is_the_floor_alone() -> None:
    sample = torch.zeros(3, 4)
    sample[:, 0] = torch.tensor([-1.0, 0.0, 1.0])
    white = whitening(sample, reg=0.5)
    floor = 0.5 * (2 / 3) / 4
    assert float(white(torch.tensor([[0.0, 0.0, 3.0, 0.0]])).norm()) == pytest.approx(
        3 / floor**0.5, rel=1e-5
    )


def test_a_mahalanobis_gate_without_whitening_is_refused() -> None:
    with pytest.raises(InputError, match="whitening"):
        HiddenGate(0, torch.zeros(1, 2), 1.0, "mahalanobis").coordinates(torch.zeros(1, 2))
    with pytest.raises(InputError, match="two states"):
        whitening(torch.zeros(1, 2))
    with pytest.raises(InputError, match="differ"):
        whitening(torch.zeros(3, 2))


def test_roc_counts_by_hand_and_its_area_is_the_share_of_pairs() -> None:
    own, foreign = [1.0, 3.0], [2.0, 4.0]
    curve = roc(own, foreign)
    assert curve.to_dict("list") == {
        "threshold": [0.0, 1.0, 2.0, 3.0, 4.0],
        "true_rate": [0.0, 0.5, 0.5, 1.0, 1.0],
        "false_rate": [0.0, 0.0, 0.5, 0.5, 1.0],
    }
    area = float(torch.trapezoid(torch.tensor(curve["true_rate"]), torch.tensor(curve["false_rate"])))
    assert area == sum(a < b for a in own for b in foreign) / 4
