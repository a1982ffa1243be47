"""Gates and their calibration, against hand-computed values and a naive search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechedit.editors.steering.gates import HiddenGate, calibrate, nearest
from reports.errors import InputError


def errors(threshold: float, own: list[float], foreign: list[float]) -> float:
    return sum(d > threshold for d in own) / len(own) + sum(d <= threshold for d in foreign) / len(foreign)


distances = st.lists(st.integers(0, 40).map(lambda i: i / 4), min_size=1, max_size=12)


@given(distances, distances)
def test_no_threshold_has_fewer_errors(own: list[float], foreign: list[float]) -> None:
    fewest = errors(calibrate(own, foreign), own, foreign)
    every = [t + shift for t in (*own, *foreign) for shift in (-1e-6, 1e-6)]
    assert fewest <= min(errors(t, own, foreign) for t in every) + 1e-12


def test_the_widest_gap_is_halved() -> None:
    assert calibrate([1.0, 2.0], [10.0, 11.0]) == 6.0


@pytest.mark.parametrize(("own", "foreign", "word"), [([], [1.0], "own"), ([1.0], [float("nan")], "foreign")])
def test_a_side_without_distances_is_refused(own: list[float], foreign: list[float], word: str) -> None:
    with pytest.raises(InputError, match=word):
        calibrate(own, foreign)


def test_nearest_is_the_least_of_all_distances() -> None:
    draw = torch.Generator().manual_seed(0)
    states, centres = torch.randn(5, 7, generator=draw), torch.randn(3, 7, generator=draw)
    naive = torch.stack([torch.stack([(s - c).norm() for c in centres]).min() for s in states])
    torch.testing.assert_close(nearest(states, centres), naive)


def test_hidden_gate_opens_within_its_threshold() -> None:
    gate = HiddenGate(layer=1, centres=torch.tensor([[0.0, 0.0], [10.0, 0.0]]), threshold=2.0)
    states = gate.coordinates(torch.tensor([[1.0, 0.0], [10.0, 2.0], [5.0, 0.0]]))
    opens = nearest(states, gate.coordinates(gate.centres)) <= gate.threshold
    assert opens.tolist() == [True, True, False]
