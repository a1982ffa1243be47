"""`load_model` takes a Hugging Face model and its tokenizer in memory: the same numbers as loaded from its folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

import mechedit as me
from reports.errors import InputError
from tests.tiny import ARCHS, Arch, build_tokenizer, tiny_folder

PROMPT, TARGET = "The Eiffel Tower is located in the city of", " Paris"


def in_memory(arch: Arch, **options: Any) -> tuple[Any, Any]:
    folder = tiny_folder(arch)
    return AutoModelForCausalLM.from_pretrained(folder, **options), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("arch", ARCHS)
def test_it_computes_what_the_model_itself_and_the_loaded_folder_compute(arch: Arch) -> None:
    hf, tokenizer = in_memory(arch)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = hf(ids).logits[0, -1]
    weight = next(hf.parameters())
    model, loaded = me.load_model(hf, tokenizer), me.load_model(tiny_folder(arch))
    torch.testing.assert_close(model.logits([PROMPT])[0], expected, rtol=1e-4, atol=1e-4)
    assert model.hash == loaded.hash
    mine, other = (me.attribute(each, PROMPT, TARGET, top_k=20) for each in (model, loaded))
    assert mine.heads.equals(other.heads)
    assert mine.mlp_neurons.equals(other.mlp_neurons)
    assert model.hf is hf
    assert any(parameter.data_ptr() == weight.data_ptr() for parameter in hf.parameters())  # no copy
    assert not any(parameter.requires_grad for parameter in hf.parameters())
    assert (model.name, model.called) == (Path(tiny_folder(arch)).name, "")
    assert model.provenance(data={}, seeds={})["model"]["source"] == f"memory:{tiny_folder(arch)}"


def test_weights_that_were_changed_in_memory_are_those_that_are_read() -> None:
    """What a load of the folder would not see."""
    hf, tokenizer = in_memory("llama")
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight.mul_(2)
    model = me.load_model(hf, tokenizer)
    assert model.hash != me.load_model(tiny_folder("llama")).hash
    torch.testing.assert_close(model.W_out(1), 2 * me.load_model(tiny_folder("llama")).W_out(1))
    fact = me.FactEdit("Anna Keller", "{} works as a", "teacher", "driver")
    before = model.hash
    with me.editors.FT(layer=1, lr=1e-2, steps=2).apply(model, fact) as edited:
        assert edited.hash != before
    assert model.hash == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_its_own_precision_is_kept(dtype: torch.dtype) -> None:
    hf, tokenizer = in_memory("gpt2", dtype=dtype)
    assert me.load_model(hf, tokenizer).dtype == dtype


def test_a_merged_adapter_is_taken_and_an_open_one_refused() -> None:
    hf, tokenizer = in_memory("llama")
    adapted = get_peft_model(hf, LoraConfig(target_modules=["q_proj"]))
    for open_one in (adapted, adapted.base_model.model):
        with pytest.raises(InputError, match="merge_and_unload"):
            me.load_model(open_one, tokenizer)  # type: ignore[arg-type]
    merged: Any = adapted.merge_and_unload()
    assert me.load_model(merged, tokenizer).shape.n_layers == 3


def test_what_is_no_model_in_memory_is_refused_in_a_line() -> None:
    hf, tokenizer = in_memory("gpt2")
    encoder = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    mixed = copy.deepcopy(hf)
    mixed.lm_head = mixed.lm_head.to(torch.float64)
    mixed.lm_head.weight = torch.nn.Parameter(mixed.lm_head.weight.double())
    larger = build_tokenizer()
    larger.add_tokens([f"word{i}" for i in range(500)])
    bridged = me.load_model(*in_memory("gpt2"))
    cases: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("tokenizer: expected that of GPT2LMHeadModel, found None", hf, None, {}),
        ("tokenizer: .* brings its own", tiny_folder("gpt2"), tokenizer, {}),
        ("device, dtype, device_map: a model in memory keeps its own", hf, tokenizer, {"dtype": "float64"}),
        ("model: expected a name, a folder or a PreTrainedModel .* found int", 3, tokenizer, {}),
        ("model: it is bridged already", bridged.hf, tokenizer, {}),
        (
            "model: expected weights of one dtype on one device, found float32 on cpu, float64 on cpu",
            mixed,
            tokenizer,
            {},
        ),
        ("tokenizer: expected ids below the model's", hf, larger, {}),
        ("model: BertModel", encoder, tokenizer, {}),
    ]
    for says, model, reader, options in cases:
        with pytest.raises(InputError, match=says) as error:
            me.load_model(model, reader, **options)
        assert "\n" not in str(error.value)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert me.load_model(hf, tokenizer).shape.n_layers == 3  # what was refused left it as it was
