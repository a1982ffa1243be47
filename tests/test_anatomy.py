"""The contrast of statements: against `attribute`, by hand, and on the embedded models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mechedit import attribute
from mechedit.anatomy import best_window, layer_scores, statement_contrast, window_scores
from mechedit.factworld import edits
from mechedit.models.hooked import HookedModel
from reports.errors import InputError
from tests.tiny import tiny_model


@pytest.mark.parametrize("arch", ["gpt2", "llama-gqa"])
def test_layer_scores_are_those_of_attribute(arch: str) -> None:
    model = tiny_model(arch)
    prompt, targets = "Anna Keller works as a", ["teacher", "basketball"]
    for target, scores in zip(targets, layer_scores(model, prompt, targets), strict=True):
        attr = attribute(model, prompt, target, top_k=1)
        assert scores.token == attr.target_id
        pd.testing.assert_frame_equal(scores.layers, attr.layers)
        pd.testing.assert_frame_equal(scores.heads, attr.heads)


def test_every_window_is_scored_and_the_best_wins() -> None:
    differences = np.array([0.5, -1.0, 2.0, 3.0, 0.0])
    scores = window_scores(differences)
    assert len(scores) == 15
    naive = {(a, b): sum(differences[a : b + 1] - differences.mean()) for a in range(5) for b in range(a, 5)}
    for row in scores.itertuples():
        assert row.score == pytest.approx(naive[row.first, row.last])
    assert best_window(differences) == (2, 3) == max(naive, key=lambda run: naive[run])


def test_the_embedded_contrast_is_late_attention(factworld_gpt2: HookedModel) -> None:
    study = statement_contrast(factworld_gpt2, edits(8, seed=4))
    assert study.n_success + study.n_failure == 16
    attn = study.layers[study.layers["module"] == "attn"].set_index("layer")
    first, last = study.window
    inside = attn.loc[first:last, "difference"]
    assert inside.sum() > attn["difference"].drop(inside.index).abs().sum()
    np.testing.assert_allclose(study.layers["difference"], study.layers["success"] - study.layers["failure"])
    assert (
        (study.layers["low"] <= study.layers["difference"])
        & (study.layers["difference"] <= study.layers["high"])
    ).all()


def test_without_two_outcomes_there_is_nothing_to_contrast() -> None:
    with pytest.raises(InputError, match=r"window=\(first, last\)"):
        statement_contrast(tiny_model("gpt2"), [*edits(3, seed=1)])
    with pytest.raises(InputError, match="two subjects"):
        statement_contrast(tiny_model("gpt2"), edits(1))
