"""Encoders of every known architecture, against plain transformers: heads, padding ids, round trips, refusals."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, DebertaV2Config, DebertaV2ForMaskedLM

from reports.errors import InputError
from tests.tiny import randomise
from tests.xl_tiny import ARCHS, Arch, build_tokenizer, random_hf, tiny_encoder, tiny_folder
from xlprobe.data.corpora import Bitext
from xlprobe.diagnose import diagnose
from xlprobe.encoders.architectures import ARCHITECTURES
from xlprobe.encoders.encoder import load_encoder
from xlprobe.probes.gradient_stream import Loss
from xlprobe.probes.gradients import gradients
from xlprobe.training.alignment import align
from xlprobe.training.loop import Training

SENTENCES = [["Anna", "Keller", "speaks"], ["She", "was", "born", "in", "Rome", "."], ["Paris"]]
OTHER: tuple[Arch, ...] = ("distilbert", "xlm-roberta-xl", "modernbert", "deberta-v2")
PAIRS = Bitext(
    (("Anna", "speaks"), ("in", "Rome"), ("Paris",)), (("Die", "Anna"), ("in", "Berlin"), ("Марта",))
)


def test_every_known_type_but_camembert_is_tried() -> None:
    assert set(ARCHS) | {"camembert"} == set(ARCHITECTURES)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_head_gives_the_masked_language_models_own_logits(arch: Arch, tmp_path: Path) -> None:
    encoder = tiny_encoder(arch)
    plain = AutoModelForMaskedLM.from_pretrained(tiny_folder(arch), trust_remote_code=False).eval()
    batch = encoder.encode(SENTENCES)
    with torch.no_grad():
        logits = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        assert encoder.lm_head is not None
        assert torch.allclose(encoder.lm_head(encoder.forward(batch)), logits, atol=1e-5)
        again = AutoModelForMaskedLM.from_pretrained(
            encoder.save(tmp_path / "saved"), trust_remote_code=False
        )
        again = again.eval()
        there = again(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        assert torch.equal(there, logits)


@pytest.mark.parametrize("arch", ARCHS)
def test_an_encoder_without_a_head_loads_and_is_aligned(arch: Arch, tmp_path: Path) -> None:
    encoder = tiny_encoder(arch)
    encoder.model.save_pretrained(tmp_path / "bare")
    encoder.tokenizer.save_pretrained(tmp_path / "bare")
    bare = load_encoder(tmp_path / "bare", device="cpu")
    assert bare.lm_head is None
    assert bare.hash == encoder.hash
    aligned = align(bare, PAIRS, training=Training(steps=2, batch=3, lr=1e-3), progress=False)
    folder = aligned.save(tmp_path / "aligned")
    plain, batch = AutoModel.from_pretrained(folder, trust_remote_code=False).eval(), bare.encode(SENTENCES)
    with torch.no_grad():
        there = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        assert torch.equal(there, aligned.forward(batch))
        assert not torch.equal(there, bare.forward(batch))


@pytest.mark.parametrize("arch", OTHER)
def test_padding_mates_and_plain_transformers(arch: Arch) -> None:
    checks = diagnose(tiny_encoder(arch), [" ".join(words) for words in SENTENCES])
    assert checks.ok, checks


@pytest.mark.parametrize("arch", OTHER)
def test_gradients_reach_every_group(arch: Arch) -> None:
    encoder = tiny_encoder(arch)
    batches = [encoder.encode([words]) for words in SENTENCES]
    loss = Loss("norm", batches, lambda batch: encoder.forward(batch).square().mean())
    cells = gradients(encoder, task=loss, alignment=loss, steps=(), progress=False).cells
    assert (cells[cells["scope"] == "cell"]["task_norm"] > 0).all()
    assert cells[cells["scope"] == "cell"]["numel"].sum() == sum(
        p.numel() for p in encoder.model.parameters()
    )


@pytest.mark.parametrize("arch", ["roberta", "modernbert"])
def test_the_first_word_of_a_list_is_tokenized_as_any_other(arch: Arch) -> None:
    batch = tiny_encoder(arch).encode([["Rome", "Rome"]])
    ids, words = batch.input_ids[0], batch.word_ids[0]
    assert ids[words == 0].tolist() == ids[words == 1].tolist()


# ------------------------------------------------------------------------------------------ padding


def saved(arch: Arch, folder: Path, *, pad: str | None = None, **settings: Any) -> Path:
    """A tiny checkpoint whose config and tokenizer say what the test wants."""
    tokenizer = build_tokenizer(arch)
    if pad is not None:
        tokenizer.pad_token = pad
    torch.manual_seed(0)
    random_hf(arch, vocabulary=len(tokenizer), n_layers=2, d_model=16, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "arch", ["xlm-roberta", "roberta", "bert", "xlm-roberta-xl", "distilbert", "deberta-v2"]
)
@pytest.mark.parametrize("pad", [0, 3, 40])
def test_any_padding_id_and_the_longest_sentence(arch: Arch, pad: int, tmp_path: Path) -> None:
    name = str(build_tokenizer(arch).convert_ids_to_tokens(pad))
    encoder = load_encoder(saved(arch, tmp_path / "x", pad=name, pad_token_id=pad), device="cpu")
    assert encoder.tokenizer.pad_token_id == pad
    batch = encoder.encode([["Rome"] * 80, ["Paris"]])
    assert encoder.states(batch).isfinite().all()
    behind = {"xlm-roberta", "roberta", "xlm-roberta-xl"}
    assert encoder.max_length == 66 - (pad + 1 if arch in behind else 0) == batch.input_ids.shape[1]


def test_a_padding_row_that_is_a_real_token_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="xlprobe"):
        load_encoder(saved("bert", tmp_path / "fine"), device="cpu")
        assert not caplog.records
        load_encoder(saved("bert", tmp_path / "sep", pad="[SEP]", pad_token_id=3), device="cpu")
        load_encoder(saved("bert", tmp_path / "word", pad_token_id=40), device="cpu")
    said = [record.getMessage() for record in caplog.records]
    assert "'[SEP]' (id 3) is the row padding_idx of the embeddings and the sep token" in said[0]
    assert "(id 40) is the row padding_idx of the embeddings and a token of its texts" in said[1]
    encoder = load_encoder(tmp_path / "word", device="cpu")
    batch = encoder.encode(["Anna was born in Rome ."])
    encoder.forward(batch).sum().backward()
    table: Any = encoder.model.get_input_embeddings()
    assert not table.weight.grad[40].any()  # what was said is so


# ------------------------------------------------------------------------------------------ DeBERTa's two heads


def test_debertas_newer_head_is_found_in_the_weights(tmp_path: Path) -> None:
    tokenizer = build_tokenizer("deberta-v2")
    config: Any = DebertaV2Config
    config = config(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=66, relative_attention=True, position_buckets=8, norm_rel_ebd="layer_norm",
        share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0, legacy=False,
    )  # fmt: skip
    plain = DebertaV2ForMaskedLM(config).eval()
    with torch.no_grad():
        randomise(plain)
    plain.save_pretrained(tmp_path / "x")
    tokenizer.save_pretrained(tmp_path / "x")
    file = tmp_path / "x" / "config.json"
    settings = json.loads(file.read_text())
    del settings["legacy"]  # as the published configurations, which are older than the switch
    file.write_text(json.dumps(settings))
    encoder = load_encoder(tmp_path / "x", device="cpu")
    batch = encoder.encode(SENTENCES)
    assert encoder.lm_head is not None
    with torch.no_grad():
        logits = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        assert torch.allclose(encoder.lm_head(encoder.forward(batch)), logits, atol=1e-5)
    again = load_encoder(encoder.copy().save(tmp_path / "again"), device="cpu")
    assert again.hash == encoder.hash
    assert again.lm_head is not None
    with torch.no_grad():
        assert torch.allclose(again.lm_head(again.forward(batch)), logits, atol=1e-5)


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "albert"}, "unknown architecture 'albert'"),
        ({"model_type": "t5"}, "unknown architecture 't5'"),
        ({"is_decoder": True}, "is_decoder = true; expected an encoder"),
        ({"model_type": None}, "encoder: "),
    ],
)
def test_others_are_refused_in_one_line(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder("xlm-roberta"), tmp_path / "encoder"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(InputError, match=match) as caught:
        load_encoder(folder, device="cpu")
    assert str(caught.value).count("encoder: ") == 1
    assert "\n" not in str(caught.value)


def test_a_deberta_with_a_convolution_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="convolution beside the first block"):
        load_encoder(saved("deberta-v2", tmp_path / "x", conv_kernel_size=3), device="cpu")


def test_an_implementation_of_attention_that_deberta_lacks_is_refused() -> None:
    assert load_encoder(tiny_folder("deberta-v2"), device="cpu").model.config._attn_implementation == "eager"
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load_encoder(tiny_folder("deberta-v2"), device="cpu", attention="flash_attention_2")
    assert "\n" not in str(caught.value)
