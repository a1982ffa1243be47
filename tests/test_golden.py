"""The published output of the reference implementation of NLKA on gpt2-large, where that model is at hand.

Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141): the numbers that their notebook prints for one prompt, with the biases
dropped. `MECHEDIT_GPT2_LARGE` names the folder of the checkpoint (config.json, model.safetensors, tokenizer.json).
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from mechedit.attribution import Attribution, attribute
from mechedit.attribution.units import UNITS
from mechedit.models.hooked import load_model
from tests.tiny import tiny_model

PROMPT, TARGET = "Tim Duncan plays the sport of", " basketball"
SUMS = {"attn": 5.586, "mlp": 4.406}
UNIT_SCORES: dict[str, dict[tuple[Any, ...], float]] = {
    "layers": {(21, "attn"): 0.698, (19, "attn"): 0.471, (27, "mlp"): 0.706, (28, "mlp"): 0.603},
    "heads": {(21, 19): 0.6981, (28, 18): 0.4259, (23, 13): 0.3098},
    "mlp_neurons": {(28, 29): 0.4481, (21, 983): 0.2473, (24, 4743): 0.2323, (27, 1254): 0.1643},
    "attn_neurons": {(21, 19, 7, 1): 0.0712},
    "query_neurons": {(27, 1254): 0.0682, (0, 1984): 0.0244},
}


def faults(
    attr: Attribution, sums: dict[str, float], scores: dict[str, dict[tuple[Any, ...], float]]
) -> list[str]:
    """Where `attr` has another number than the printed one: more than one unit of the printed last place off."""
    messages = []
    for module, printed in sums.items():
        total = float(attr.layers.loc[attr.layers["module"] == module, "score"].sum())
        if not abs(total - printed) <= 0.001:
            messages.append(f"sum of {module}: {total:.4f}, printed {printed}")
    for unit, expected in scores.items():
        frame = getattr(attr, unit)
        keys = frame[list(UNITS[unit])].itertuples(index=False, name=None)
        computed = dict(zip(keys, frame["score"], strict=True))
        place = 0.001 if unit == "layers" else 0.0001
        for key, printed in expected.items():
            if not abs(computed.get(key, float("nan")) - printed) <= place:
                messages.append(f"{unit} {key}: {computed.get(key)}, printed {printed}")
    return messages


@pytest.mark.skipif(
    "MECHEDIT_GPT2_LARGE" not in os.environ,
    reason="golden numbers: name a folder with gpt2-large in MECHEDIT_GPT2_LARGE (3 GB of memory, a minute)",
)
def test_the_published_numbers_of_gpt2_large_come_out() -> None:
    model = load_model(os.environ["MECHEDIT_GPT2_LARGE"], device="cpu")
    assert (model.shape.n_layers, model.shape.d_model) == (36, 1280), "MECHEDIT_GPT2_LARGE is no gpt2-large"
    attr = attribute(model, PROMPT, TARGET, biases="drop", top_k=1000)
    assert faults(attr, SUMS, UNIT_SCORES) == []


def test_a_number_in_its_last_place_is_found_wrong() -> None:
    """The same check on a model that is always there, with its own scores as the printed ones."""
    attr = attribute(tiny_model("gpt2"), PROMPT, TARGET, biases="drop", top_k="all")
    sums = {module: float(computed.sum()) for module, computed in attr.layers.groupby("module")["score"]}
    scores = {
        unit: dict(
            zip(frame[list(UNITS[unit])].itertuples(index=False, name=None), frame["score"], strict=True)
        )
        for unit in UNIT_SCORES
        if len(frame := getattr(attr, unit))
    }
    assert set(scores) == set(UNIT_SCORES)
    assert faults(attr, sums, scores) == []
    for unit, computed in scores.items():
        key = next(iter(computed))
        wrong = {unit: {**computed, key: computed[key] + (0.002 if unit == "layers" else 0.0002)}}
        assert len(faults(attr, sums, wrong)) == 1
    assert len(faults(attr, {**sums, "attn": sums["attn"] + 0.002}, {})) == 1
    assert len(faults(attr, {}, {"mlp_neurons": {(99, 0): 0.1}})) == 1  # a neuron that is not in the ranking
