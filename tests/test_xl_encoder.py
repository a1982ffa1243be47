"""Encoders: hooks against `output_hidden_states`, the table of parameters, words, round trips, refusals."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reports.errors import InputError, IntegrityError
from tests.xl_tiny import ARCHS, Arch, tiny_encoder, tiny_folder
from xlprobe.encoders.batches import Tokenized, word_means
from xlprobe.encoders.encoder import load_encoder
from xlprobe.encoders.parameters import GROUPS, parameter_table

SENTENCES = [["Anna", "Keller", "speaks"], ["She", "was", "born", "in", "Rome", "."], ["Paris"]]


@pytest.mark.parametrize("arch", ARCHS)
def test_states_are_the_models_own_hidden_states(arch: Arch) -> None:
    encoder = tiny_encoder(arch)
    batch = encoder.encode(SENTENCES)
    said = encoder.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
    ).hidden_states
    states = encoder.states(batch)
    assert states.shape == (encoder.n_layers + 1, *batch.input_ids.shape, encoder.d_model)
    assert all(torch.equal(mine, other) for mine, other in zip(states, said, strict=True))
    assert torch.equal(states[-1], encoder.forward(batch))


@pytest.mark.parametrize("arch", ARCHS)
def test_gradients_through_hooks_are_those_of_hidden_states(arch: Arch) -> None:
    encoder = tiny_encoder(arch)
    batch = encoder.encode(SENTENCES)
    wanted = [p for n, p in encoder.model.named_parameters() if re.search(r"layers?\.0\.|(word|tok)_emb", n)]
    mine = torch.autograd.grad((encoder.states(batch)[2] ** 2).sum(), wanted)
    output = encoder.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
    )
    other = torch.autograd.grad((output.hidden_states[2] ** 2).sum(), wanted)
    assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    assert any(bool(a.any()) for a in mine)


@pytest.mark.parametrize("arch", ARCHS)
def test_one_layers_state_is_that_of_all_and_no_block_above_it_runs(arch: Arch) -> None:
    encoder = tiny_encoder(arch)
    batch, ran = encoder.encode(SENTENCES), list[int]()
    handles = [
        block.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
        for i, block in enumerate(encoder.blocks)
    ]
    try:
        state = encoder.state(batch, 2)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 1]
    assert torch.equal(state, encoder.states(batch)[2])
    with pytest.raises(IntegrityError, match="layers 0 to 9"):
        encoder.state(batch, 9)


@pytest.mark.parametrize("arch", ARCHS)
def test_what_was_tokenized_before_gives_the_tokenizers_own_batch(arch: Arch) -> None:
    encoder = tiny_encoder(arch).copy()
    encoder._tokenized = Tokenized(encoder.tokenizer)
    for sentences in (SENTENCES, SENTENCES[::-1], [*SENTENCES[:2], ["Berlin"], SENTENCES[0]]):
        own = encoder.tokenizer(
            sentences,
            is_split_into_words=True,
            truncation=True,
            max_length=6,
            padding=True,
            return_tensors="pt",
        )
        batch = encoder.encode(sentences, max_length=6)
        assert torch.equal(batch.input_ids, own["input_ids"])
        assert torch.equal(batch.attention_mask, own["attention_mask"])
        numbers = [[-1 if w is None else w for w in own.word_ids(i)] for i in range(len(sentences))]
        assert batch.word_ids.tolist() == numbers
    # a text is not the words of one, and another length is another encoding
    assert not torch.equal(encoder.encode(["Paris"]).word_ids, encoder.encode([SENTENCES[0]]).word_ids)
    assert encoder.encode(SENTENCES, max_length=4).input_ids.shape[1] == 4


def test_a_word_that_is_not_there_spoils_no_gradient() -> None:
    states = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    means = word_means(states, torch.tensor([[-1, 0, 0, 1], [-1, 0, -1, -1]]))
    assert bool(means[1, 1].isnan().all())
    (gradient,) = torch.autograd.grad(means[:, 0].sum(), states)
    assert gradient[:, :, 0].tolist() == [[0.0, 0.5, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize("arch", ARCHS)
def test_every_parameter_has_one_role(arch: Arch) -> None:
    encoder = tiny_encoder(arch)
    table = encoder.parameter_table()
    assert table["name"].tolist() == [name for name, _ in encoder.model.named_parameters()]
    assert table["numel"].sum() == sum(p.numel() for p in encoder.model.parameters())
    joint, apart = {"query_key_value"}, {"query", "key", "value"}
    assert set(table["group"]) == set(GROUPS) - (apart if arch == "modernbert" else joint)
    assert set(table["layer"]) == set(range(encoder.n_layers + 1))
    d = encoder.d_model
    per_layer = table[table["layer"] == 1].groupby("group")["numel"].sum()
    if arch == "modernbert":  # without biases, and without a norm before the first block's attention
        assert per_layer["query_key_value"] == 3 * d * d
        assert per_layer["norms"] == d
    else:
        assert per_layer["query"] == d * d + d
        assert per_layer["norms"] == 4 * d
    last = table[table["layer"] == encoder.n_layers].groupby("group")["numel"].sum()
    behind = {"xlm-roberta-xl": 2 * d, "modernbert": 2 * d}.get(arch, 0)
    assert last["norms"] - per_layer["norms"] == behind


def test_a_parameter_without_a_role_is_an_error() -> None:
    with pytest.raises(InputError, match=r"parameter 'weight' has no role"):
        parameter_table(nn.Linear(2, 2))


@pytest.mark.parametrize("arch", ARCHS)
def test_words_keep_their_number(arch: Arch) -> None:
    batch = tiny_encoder(arch).encode(SENTENCES)
    for row, words in enumerate(SENTENCES):
        numbers = batch.word_ids[row]
        assert numbers[batch.content[row]].unique().tolist() == list(range(len(words)))
        assert int(batch.firsts[row].sum()) == len(words)
        assert bool((numbers[batch.attention_mask[row] == 0] == -1).all())


def test_a_part_of_a_batch_needs_no_more_padding_and_gives_the_same_states() -> None:
    encoder = tiny_encoder()
    batch = encoder.encode([SENTENCES[0], SENTENCES[1] * 2, SENTENCES[2]])
    part = batch[[2, 0]]
    assert part.input_ids.shape[1] < batch.input_ids.shape[1]
    alone, together = encoder.states(part)[:, 0], encoder.states(batch)[:, 2]
    there = part.attention_mask[0].bool()
    assert torch.allclose(alone[:, there], together[:, : there.shape[0]][:, there], atol=1e-5)
    rows = torch.cat([rows for rows, _ in batch.chunks(2)])
    assert sorted(rows.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("arch", ARCHS)
def test_saved_and_loaded_is_the_same_encoder(arch: Arch, tmp_path: Path) -> None:
    encoder = tiny_encoder(arch)
    again = load_encoder(encoder.save(tmp_path / "x"), device="cpu")
    assert again.hash == encoder.hash
    assert again.lm_head is not None
    mine, other = (dict(e.lm_head.named_parameters()) for e in (encoder, again) if e.lm_head is not None)
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    with pytest.raises(InputError, match="a new or an empty folder"):
        encoder.save(tmp_path / "x")


def test_a_copy_is_trained_without_the_original() -> None:
    encoder = tiny_encoder()
    before, copy = encoder.hash, tiny_encoder().copy()
    with torch.no_grad():
        next(copy.model.parameters()).add_(1.0)
    assert encoder.hash == before != copy.hash
    head: Any = copy.lm_head
    assert head.decoder.weight is copy.model.get_input_embeddings().weight


def test_a_folder_without_lm_head_loads_without_one(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    again = load_encoder(tmp_path, device="cpu")
    assert again.lm_head is None
    assert again.hash == encoder.hash


def test_hooks_that_do_not_see_the_model_are_found() -> None:
    encoder = tiny_encoder().copy()
    encoder.blocks = encoder.blocks[:-1]
    with pytest.raises(IntegrityError):
        encoder.self_check()


# ------------------------------------------------------------------------------------------ refusals


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder("xlm-roberta"), tmp_path / "encoder"))


def refused(name: str | Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load_encoder(name, device="cpu")
    assert "\n" not in str(caught.value)


def edit_json(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_no_such_folder() -> None:
    refused("./no/such/folder", "encoder: expected langworld.*no such folder")


def test_no_tokenizer_files(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refused(folder, "no tokenizer files")


def test_an_unknown_architecture(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.update(model_type="gpt2"))
    refused(folder, "unknown architecture 'gpt2'")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, r"no config\.json")


def test_weights_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["roberta.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, r"weights missing .* 1 that .*layer\.1\.output\.dense\.weight")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    refused(folder, r"pytorch_model\.bin is a pickle and is not read")


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    tokenizer = load_encoder(folder, device="cpu").tokenizer
    tokenizer.add_tokens(["small"])
    tokenizer.save_pretrained(folder)
    refused(folder, "it is another model's")


@pytest.mark.parametrize(
    ("sentences", "match"), [([], "at least one"), ("text", "a list of texts"), (["a", ["b"]], "found both")]
)
def test_sentences_that_are_none(sentences: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        tiny_encoder().encode(sentences)
