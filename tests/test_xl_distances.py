"""Distances against scikit-learn, hand values, a rotation that is known, and a naive pass over the encoder."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from reports.errors import InputError
from tests.xl_tiny import tiny_encoder
from xlprobe.probes.distances import Distances, distances
from xlprobe.probes.similarity import METRICS, linear_cka, measure, procrustes, retrieval_hits

SOURCE = [
    "Anna Keller works as a teacher in Berlin",
    "She was born in Rome",
    "The Eiffel Tower is located in Paris",
    "Lily lived in London",
    "Tim Duncan plays the sport of basketball",
    "The Space Needle stands in Seattle",
]
TARGET = [
    "Anna Keller arbeitet als Lehrerin in Berlin",
    "Sie ist in Rom geboren",
    "Der Turm steht in Paris",
    "Lily lebte in London",
    "Tim Duncan spielt Basketball",
    "Die Nadel steht in Seattle",
]
LINKS = [[(2, 2), (3, 3), (5, 4), (5, 5)], [(0, 0), (1, 1), (2, 4)], [(0, 0), (2, 1)], [(1, 1)], [(2, 2)], []]

# of so few pairs no rotation can be found
DETERMINED = [metric for metric in METRICS if metric != "rotated_retrieval"]


def clouds(n: int = 40, d: int = 8, *, noise: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) + 3  # anisotropic: far from the origin
    return x, x + noise * torch.randn(n, d, generator=generator, dtype=torch.float64)


def parallel(**changes: Any) -> Any:
    return SimpleNamespace(**({"source": SOURCE, "target": TARGET, "links": LINKS} | changes))


# -- pure measures -------------------------------------------------------------------------------------------


def test_matched_and_random_equal_scikit_learn() -> None:
    x, y = clouds()
    found = measure(x, y)
    for name, metric, sign in (("cosine", "cosine", -1), ("euclidean", "euclidean", 1)):
        table = pairwise_distances(x.numpy(), y.numpy(), metric=metric)
        scores = 1 - table if sign < 0 else table
        outside = scores[~np.eye(len(x), dtype=bool)]
        assert found[name].matched == pytest.approx(np.diag(scores).mean(), abs=1e-12)
        assert found[name].random == pytest.approx(outside.mean(), abs=1e-12)


def test_retrieval_equals_scikit_learn() -> None:
    x, y = clouds(noise=1.2)
    weak, strong = [], []
    for a, b in ((x, y), (y, x)):
        nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(b.numpy())
        weak.append(nearest.kneighbors(a.numpy())[1][:, 0] == np.arange(len(x)))
        pool = np.concatenate([b.numpy(), a.numpy()])
        order = NearestNeighbors(n_neighbors=2, metric="cosine").fit(pool).kneighbors(a.numpy())[1]
        other = [row[row != len(x) + i][0] for i, row in enumerate(order)]  # the query itself is no answer
        strong.append(np.array(other) == np.arange(len(x)))
    assert retrieval_hits(x, y).mean() == pytest.approx(np.mean(weak))
    assert retrieval_hits(x, y, strong=True).mean() == pytest.approx(np.mean(strong))
    assert 0.1 < float(retrieval_hits(x, y, strong=True).mean()) < float(retrieval_hits(x, y).mean()) < 0.95


def test_ties_are_misses() -> None:
    """A space where everything is one point retrieves nothing, at any place in the list."""
    same = torch.ones(6, 3, dtype=torch.float64)
    assert retrieval_hits(same, same).sum() == 0


@pytest.mark.parametrize("shape", [(50, 6), (9, 20)], ids=["n > d", "n < d"])
def test_cka_equals_its_definition_by_kernels(shape: tuple[int, int]) -> None:
    x, y = clouds(*shape)
    n = len(x)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    hsic = torch.trace(k @ m) / torch.sqrt(torch.trace(k @ k) * torch.trace(m @ m))
    assert linear_cka(x, y) == pytest.approx(float(hsic), abs=1e-12)
    assert measure(x, y)["cka"].matched == pytest.approx(float(hsic), abs=1e-12)


def test_cka_is_blind_to_rotation_and_scale_and_nothing_else() -> None:
    x, y = clouds()
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double())
    assert linear_cka(x, 3 * x @ turn + 1) == pytest.approx(1)
    assert linear_cka(x, y) < 0.99
    assert math.isnan(linear_cka(x, torch.ones_like(x)))


def test_a_rotation_between_two_languages_is_recovered() -> None:
    x, _ = clouds(n=200)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)).double())
    y = (x - 3) @ turn - 7
    rotation, mean_x, mean_y = procrustes(x, y)
    assert torch.allclose(rotation, turn, atol=1e-9)
    assert torch.allclose((x - mean_x) @ rotation + mean_y, y, atol=1e-9)
    found = measure(x, y)
    assert found["weak_retrieval"].matched < 0.2  # far apart as they lie
    assert (
        found["rotated_retrieval"].matched == 1.0
    )  # the same up to a turn: found on one half, true on the other


def test_the_rotation_oracle_can_fail() -> None:
    """Where the languages have nothing in common, no turn found on one half helps on the other."""
    x, _ = clouds(n=200)
    y, _ = clouds(n=200, seed=5)
    found = measure(x, y)["rotated_retrieval"]
    assert found.low < 0.02
    assert found.matched < 0.1


def test_unrelated_pairs_have_no_gap_however_high_the_cosine() -> None:
    x, _ = clouds(n=300)
    y, _ = clouds(n=300, seed=7)
    found = measure(x, y)
    assert found["cosine"].matched > 0.8
    for metric in METRICS:
        assert found[metric].low <= 0.003, metric
        assert found[metric].high >= -0.003, metric


def test_the_interval_of_the_cosine_gap_covers_it() -> None:
    """Of 50 samples of 60 pairs about 95 in a hundred intervals hold the gap of the whole population."""
    x, y = clouds(n=3000, noise=1.0)
    truth = measure(x, y)["cosine"].gap
    held = 0
    for part in torch.randperm(3000, generator=torch.Generator().manual_seed(0)).split(60):
        found = measure(x[part], y[part])["cosine"]
        held += found.low <= truth <= found.high
    assert 43 <= held <= 50


# -- through an encoder --------------------------------------------------------------------------------------


def naive_states(text: str) -> tuple[Tensor, list[int | None]]:
    """[L + 1, T, d] of one sentence alone, without batch, mask or padding, and the word of each token."""
    encoder = tiny_encoder()
    encoded = encoder.tokenizer([text.split()], is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        output = encoder.model(input_ids=encoded["input_ids"], output_hidden_states=True)
    return torch.stack(output.hidden_states)[:, 0], encoded.word_ids(0)


def test_sentence_and_token_levels_equal_a_naive_pass() -> None:
    words = parallel(source=[s.split() for s in SOURCE], target=[s.split() for s in TARGET])
    found = distances(tiny_encoder(), words, batch_size=4, progress=False)
    pooled: list[list[Tensor]] = [[], []]
    tokens: list[list[Tensor]] = [[], []]
    # of LINKS: many-to-one (5, 4), (5, 5) and the same string (in, in) drop out
    kept = [[(2, 2), (3, 3)], [(0, 0), (1, 1), (2, 4)], [(0, 0), (2, 1)], [(1, 1)], [(2, 2)], []]
    for side, texts in enumerate((SOURCE, TARGET)):
        for text, links in zip(texts, kept, strict=True):
            states, ids = naive_states(text)
            content = [i for i, word in enumerate(ids) if word is not None]
            pooled[side].append(states[:, content].mean(1))
            for link in links:
                own = [i for i, word in enumerate(ids) if word == link[side]]
                tokens[side].append(states[:, own].mean(1))
    for level, sides in (("sentence", pooled), ("token", tokens)):
        x, y = (torch.stack(side, 1) for side in sides)
        for layer in range(4):
            expected = measure(x[layer], y[layer])
            for metric in DETERMINED:
                got = found.value(metric, layer=layer, level=level)
                assert got == pytest.approx(expected[metric].matched, abs=1e-5), (level, layer, metric)
    assert set(found.layers.query("level == 'token'")["n"]) == {9}


def test_special_tokens_are_left_out() -> None:
    """With them in the mean the numbers differ: the naive pass can tell."""
    found = distances(tiny_encoder(), parallel(links=None), progress=False)
    means = []
    for texts in (SOURCE, TARGET):
        means.append(torch.stack([naive_states(text)[0].mean(1) for text in texts], 1))
    wrong = measure(means[0][3], means[1][3])["euclidean"].matched
    assert found.value("euclidean", layer=3) != pytest.approx(wrong, rel=1e-4)


def test_more_pairs_than_asked_are_sampled_and_counted() -> None:
    found = distances(tiny_encoder(), parallel(links=None), max_pairs=5, progress=False)
    assert set(found.layers["n"]) == {5}
    assert (found.n_left_out, found.n_cut) == (1, 0)


def test_round_trip_and_plot(tmp_path: Path) -> None:
    found = distances(tiny_encoder(), parallel(links=None), progress=False)
    assert Distances.load(found.save(tmp_path / "d")).equals(found)
    assert len(found.plot().panels) == len(METRICS)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"target": TARGET[:5]}, "found 5 and 6"),
        ({"source": SOURCE[:3], "target": TARGET[:3], "links": None}, "at least 4 pairs"),
        ({"links": LINKS[:2]}, "links for each of 6"),
        ({"links": [[], [], [], [], [], [(0, 0)]]}, "at least 4 one-to-one links"),
    ],
)
def test_bad_parallel_text_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        distances(tiny_encoder(), parallel(**changes), progress=False)


def test_vectors_that_are_not_finite_are_refused() -> None:
    x, y = clouds()
    x[0, 0] = math.nan
    with pytest.raises(InputError, match="finite"):
        measure(x, y)
    with pytest.raises(InputError, match="shape"):
        measure(clouds(5)[0], clouds(6)[0])


# -- layers and pooling ----------------------------------------------------------------------------------------


def gap(x: Tensor, y: Tensor) -> float:
    """Matched minus random cosine, by hand."""
    table = 1 - pairwise_distances(x.numpy(), y.numpy(), metric="cosine")
    return float(np.diag(table).mean() - table[~np.eye(len(x), dtype=bool)].mean())


@pytest.mark.parametrize("arch", ["xlm-roberta", "bert"])
def test_the_first_token_is_that_of_plain_transformers(arch: Any) -> None:
    encoder = tiny_encoder(arch)
    measured = distances(
        encoder, parallel(links=None), layers=[2], pooling="first", metrics=["cosine"], progress=False
    )
    sides = []
    for texts in (SOURCE, TARGET):
        rows = [encoder.tokenizer(text, return_tensors="pt") for text in texts]
        with torch.no_grad():
            states = [encoder.model(**row, output_hidden_states=True).hidden_states[2] for row in rows]
        sides.append(torch.stack([state[0, 0] for state in states]))
    assert measured.layers["layer"].tolist() == [2]
    assert measured.value("cosine", layer=2, column="gap") == pytest.approx(gap(*sides), abs=1e-5)
    mean = distances(encoder, parallel(links=None), layers=[2], metrics=["cosine"], progress=False)
    assert mean.value("cosine", layer=2, column="gap") != pytest.approx(gap(*sides), abs=1e-5)


def test_some_layers_are_those_of_all(tmp_path: Path) -> None:
    every = distances(tiny_encoder(), parallel(), metrics=DETERMINED, progress=False)
    some = distances(tiny_encoder(), parallel(), metrics=DETERMINED, layers=(2, 0), progress=False)
    rows = every.layers[every.layers["layer"].isin([0, 2])].reset_index(drop=True)
    assert some.layers.equals(rows)
    assert Distances.load(some.save(tmp_path / "d")).pooling == "mean"
    for layers in ((9,), (-1,), ()):
        with pytest.raises(InputError, match="layers: expected some of 0 to 3"):
            distances(tiny_encoder(), parallel(), layers=layers, progress=False)
    with pytest.raises(InputError, match="pooling: expected mean or first"):
        distances(tiny_encoder(), parallel(), pooling="last", progress=False)  # type: ignore[arg-type]
