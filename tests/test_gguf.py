"""GGUF files: the same model as the one they were written from, and what cannot be read is refused in one line."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoConfig, AutoModelForCausalLM

from experiments.gguf_header import read_header
from experiments.weight_files import local_bytes
from mechedit.diagnose import diagnose
from mechedit.models import embedded
from mechedit.models.hooked import HookedModel, load_model
from mechedit.models.saving import save_pretrained
from mechedit.models.weights import checkpoint_weights
from reports.errors import InputError
from tests.gguf_files import Change, hf_model, write
from tests.tiny import END, build_tokenizer

TEXT = "The mother tongue of Danielle Darrieux is"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sound LLaMA file that a test may spoil."""
    write(tmp_path / "tiny.gguf", hf_model("llama"))
    return tmp_path / "tiny.gguf"


def refused(file: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load_model(file, device="cpu")
    assert str(caught.value).startswith("model: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.Q8_0, Type.Q4_1])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2"])
def test_the_model_is_the_one_that_was_written(arch: str, kind: Type, tmp_path: Path) -> None:
    plain = hf_model(arch)
    expected = write(tmp_path / "tiny.gguf", plain, kind=kind)
    model = load_model(tmp_path / "tiny.gguf", device="cpu")

    plain.load_state_dict(expected, strict=False)  # tied embeddings come once
    plain.tie_weights()
    ids = model.tokenize(TEXT)
    assert ids.tolist() == build_tokenizer()(TEXT).input_ids
    with torch.no_grad():
        torch.testing.assert_close(
            model.run(*model.pad([ids]))[0], plain(ids[None]).logits, rtol=1e-4, atol=1e-4
        )
    assert model.n_ctx == plain.config.max_position_embeddings
    stored = {"F32": "", "F16": "16-bit (F16)", "Q8_0": "8-bit (Q8_0)", "Q4_1": "4-bit (Q4_1)"}[kind.name]
    assert model.quantization == stored
    assert model.identity.get("quantization", "") == stored


def test_the_oracle_sees_another_head_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without llama.cpp's order of query and key rows the logits above would be other ones."""
    plain = hf_model("llama")
    monkeypatch.setattr("tests.gguf_files._interleaved", lambda weight, heads: weight)
    write(tmp_path / "tiny.gguf", plain)
    model = load_model(tmp_path / "tiny.gguf", device="cpu")
    ids = model.tokenize(TEXT)
    assert (model.run(*model.pad([ids]))[0] - plain(ids[None]).logits).abs().max() > 0.01


def test_a_file_is_parsed_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By transformers three times, for configuration, tokenizer and weights."""
    parse, parsed = gguf.GGUFReader.__init__, []

    def counting(reader: Any, *arguments: Any) -> None:
        parsed.append(arguments)
        parse(reader, *arguments)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", counting)
    kept = gguf.GGUFReader, gguf.get_tensor_name_map
    load_model(file, device="cpu")
    assert len(parsed) == 1
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == kept
    AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    assert len(parsed) == 3  # the oracle counts


def test_saved_as_safetensors_it_is_the_same_model(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf", hf_model("llama"), kind=Type.Q8_0)
    model = load_model(tmp_path / "tiny.gguf", device="cpu")
    folder = save_pretrained(model, tmp_path / "saved")
    again = load_model(folder, device="cpu")
    assert again.hash == model.hash
    assert again.quantization == "8-bit (Q8_0)"
    assert again.identity["tokenizer"] == model.identity["tokenizer"]
    assert "quantization_config" not in (folder / "config.json").read_text()
    AutoModelForCausalLM.from_pretrained(folder)  # plain transformers takes it


def test_source_size_and_a_second_load(file: Path) -> None:
    model = load_model(file, device="cpu", dtype="bfloat16")
    assert (model.name, model.source) == ("tiny.gguf", str(file))
    n_weights = sum(weight.numel() for weight in model.hf.parameters())
    assert local_bytes(str(file), embedded={}, dtype="bfloat16") == 2 * n_weights
    measured = diagnose(load_model(file, device="cpu"))
    assert measured.ok
    assert measured.measured("logits of transformers, eager") < 1e-5
    assert measured.measured("folded TransformerLens") < 1e-4


@pytest.mark.parametrize("bos", [True, False])
def test_a_bos_stands_where_the_file_says_so(bos: bool, tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf", hf_model("llama"), bos=bos)
    model = load_model(tmp_path / "tiny.gguf", device="cpu")
    start = [model.tokenizer.convert_tokens_to_ids(END)] if bos else []
    assert model.tokenize("The city").tolist() == [*start, *build_tokenizer()("The city").input_ids]


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 3, 20, 100, 3000, -1])
def test_a_file_that_was_cut_off(keep: int, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    refused(file, "no sound GGUF file|cannot be read")


def test_a_cut_off_file_names_both_lengths(file: Path) -> None:
    length = file.stat().st_size
    file.write_bytes(file.read_bytes()[: length - 1000])
    refused(file, rf"the file has {length - 1000}; it was cut off")


def test_another_kind_of_file(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    refused(file, "does not begin with GGUF")


def test_a_file_of_another_name_is_known_by_its_beginning(file: Path) -> None:
    assert load_model(file.rename(file.with_suffix(".bin")), device="cpu").name == "tiny.bin"


def test_an_unknown_version(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[4:8] = struct.pack("<I", 9)
    file.write_bytes(data)
    refused(file, "expected version 2 or 3, found 9")


@pytest.mark.parametrize("arch", ["no-such", "bert", "clip"])
def test_an_unknown_architecture(arch: str, tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf", hf_model("llama"), arch=arch)
    refused(tmp_path / "tiny.gguf", f"architecture '{arch}' cannot be read")


def test_an_architecture_that_cannot_be_bridged(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf", hf_model("llama"), arch="t5")
    refused(tmp_path / "tiny.gguf", "architecture")


@pytest.mark.parametrize("type_id", [9, 24, 99, 2**32 - 1])
def test_an_unknown_type_of_tensor(type_id: int, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write(file, hf_model("llama"))
    data = file.read_bytes()
    name = b"output_norm.weight"
    at = data.index(name) + len(name) + 4 + 8
    file.write_bytes(data[:at] + struct.pack("<I", type_id) + data[at + 4 :])
    refused(file, f"tensors of type {type_id}")


def test_a_missing_tensor(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf", hf_model("llama"), left_out="blk.1.ffn_up.weight")
    refused(tmp_path / "tiny.gguf", "weights missing.*mlp.up_proj")


def rope_factors(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32))


def scaled(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)


def bias(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("blk.0.attn_q.bias", np.ones(32, dtype=np.float32))


def capped(writer: gguf.GGUFWriter) -> None:
    writer.add_final_logit_softcapping(30.0)


def part(writer: gguf.GGUFWriter) -> None:
    writer.add_uint16("split.count", 2)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (rope_factors, "of which transformers takes .*rope_freqs.weight among them"),
        (scaled, "scales its positions .yarn, factor 4."),
        (bias, "of which transformers takes"),
        (capped, "final_logit_softcapping is 30"),
        (part, "one of 2 parts"),
    ],
)
def test_what_transformers_would_leave_out_is_refused(change: Change, match: str, tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf", hf_model("llama"), change=change)
    refused(tmp_path / "tiny.gguf", match)


def test_half_a_rotation_is_refused(file: Path) -> None:
    data = file.read_bytes()
    key = b"llama.rope.dimension_count"
    at = data.index(key) + len(key) + 4
    file.write_bytes(data[:at] + struct.pack("<I", 4) + data[at + 4 :])
    refused(file, "rotates 4 dimensions of a head, transformers would rotate 8")


def test_a_field_that_nobody_reads_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "tiny.gguf", hf_model("llama"), change=lambda w: w.add_float32("llama.new_thing", 2.0))
    with caplog.at_level(logging.WARNING):
        load_model(tmp_path / "tiny.gguf", device="cpu")
    assert "not read: new_thing" in caplog.text


def test_not_enough_memory_names_both_sizes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.checkpoints.free_bytes", lambda device: 1000)
    refused(file, "not enough memory: the weights of .*tiny.gguf take .* 1.0 kB are free|not enough memory")


def test_without_the_package_the_extra_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(file, r"pip install 'mechedit\[gguf\]'")


# -- the installed model ---------------------------------------------------------------------------------------------


def test_a_model_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = embedded.InstalledModel("no-such-package", "1.0", "x.gguf", "real")
    monkeypatch.setitem(embedded.INSTALLED, "smollm2", missing)
    with pytest.raises(InputError, match=r"pip install 'mechedit\[real\]'"):
        load_model("smollm2")
    assert "smollm2" not in embedded.here()


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = embedded.InstalledModel("torch", "0.0", "x.gguf", "real")
    monkeypatch.setitem(embedded.INSTALLED, "smollm2", other)
    with pytest.raises(InputError, match=r"expected torch 0\.0 with x\.gguf, found version"):
        load_model("smollm2")


@pytest.mark.real
def test_smollm2_is_what_transformers_reads(smollm2: HookedModel, plain_smollm2: Any) -> None:
    """The oracle: transformers alone, on the same file or folder."""
    plain, _ = plain_smollm2
    state = plain.state_dict()
    for name, weight in checkpoint_weights(smollm2.hf):
        assert torch.equal(weight, state[name]), name
    for text in ("The Eiffel Tower is located in the city of", "In 1889, 24 men"):
        ids = smollm2.tokenize(text)
        with torch.no_grad():
            logits = plain(ids[None]).logits
        torch.testing.assert_close(smollm2.run(*smollm2.pad([ids]))[0], logits, rtol=1e-4, atol=1e-4)
    if "smollm2" in embedded.here():
        assert smollm2.quantization == "4-bit (Q4_1)"
        assert read_header(embedded.here()["smollm2"]).n_elements == sum(
            p.numel() for p in plain.parameters()
        )
