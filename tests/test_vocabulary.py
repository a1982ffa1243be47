"""What a neuron promotes and demotes: against a loop over the plain model's weights, and as a derivative."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from mechedit.attribution import attribute, vocabulary
from reports.errors import InputError
from tests.tiny import ARCHS, Arch, tiny_folder, tiny_model

FFN = pd.DataFrame({"layer": [2, 0, 2], "neuron": [5, 7, 5]})
ATTENTION = pd.DataFrame({"layer": [1, 2], "head": [3, 0], "dim": [2, 7], "pos": [0, 4]})


def naive_logits(arch: Arch, *unit: int) -> torch.Tensor:
    """[d_vocab] of one neuron's vector, from the plain model's modules: γ inside, centred for a LayerNorm, σ = 1."""
    hf: Any = AutoModelForCausalLM.from_pretrained(tiny_folder(arch)).double().requires_grad_(False)
    gpt2 = hf.config.model_type == "gpt2"
    block = (hf.transformer.h if gpt2 else hf.model.layers)[unit[0]]
    if len(unit) == 2:
        out, row = (block.mlp.c_proj if gpt2 else block.mlp.down_proj), unit[1]
    else:
        width = hf.config.hidden_size // hf.config.num_attention_heads
        out, row = (block.attn.c_proj if gpt2 else block.self_attn.o_proj), unit[1] * width + unit[2]
    vector = out.weight[row] if gpt2 else out.weight[:, row]
    norm = hf.transformer.ln_f if gpt2 else hf.model.norm
    vector = vector - vector.mean() if gpt2 else vector
    return torch.stack([(vector * norm.weight) @ column for column in hf.lm_head.weight])


def assert_tops(frame: pd.DataFrame, logits: torch.Tensor, *, top: int) -> None:
    for side, largest in (("promotes", True), ("demotes", False)):
        strongest = frame[frame["side"] == side].sort_values("rank")
        expected = logits.topk(top, largest=largest)
        assert strongest["token_id"].tolist() == expected.indices.tolist()
        assert strongest["logit"].tolist() == pytest.approx(expected.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_tokens_are_those_of_the_naive_projection(arch: Arch) -> None:
    for neurons, columns in ((FFN, ["layer", "neuron"]), (ATTENTION, ["layer", "head", "dim"])):
        tokens = vocabulary(tiny_model(arch), neurons, top=4)
        units = neurons[columns].drop_duplicates()
        assert len(tokens) == 2 * 4 * len(units)  # a neuron that is named twice is read once
        for unit, frame in tokens.groupby(columns, sort=False):
            logits = naive_logits(arch, *unit)
            assert_tops(frame, logits, top=4)
            with pytest.raises(AssertionError):
                assert_tops(frame, -logits, top=4)


def test_an_attribution_reads_the_same_tokens_by_the_sign_of_the_activation() -> None:
    model = tiny_model("llama")
    attr = attribute(model, "The mother tongue of Anna is", " French", top_k=20)
    post = model.residual_view(torch.tensor(attr.ids)).mlp_post[:, -1]
    first = [
        frame[frame["rank"] == 0].set_index(["layer", "neuron", "side"])["token_id"]
        for frame in (attr.promotes, vocabulary(model, attr.mlp_neurons, top=1))
    ]
    signs = set()
    for layer, neuron in attr.mlp_neurons[["layer", "neuron"]].itertuples(index=False, name=None):
        positive = bool(post[layer, neuron] > 0)
        strongest = first[1][layer, neuron, "promotes" if positive else "demotes"]
        assert first[0][layer, neuron, "promotes"] == strongest
        signs.add(positive)
    assert signs == {True, False}


def test_what_is_no_neuron_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match=r"neuron: expected 0 to 127, found \[128\]"):
        vocabulary(model, pd.DataFrame({"layer": [0], "neuron": [128]}))
    with pytest.raises(InputError, match="found 1 rows with layer, score"):
        vocabulary(model, pd.DataFrame({"layer": [0], "score": [1.0]}))
    with pytest.raises(InputError, match="and 0"):
        vocabulary(model, FFN, top=0)
