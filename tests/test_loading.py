"""What `load_model` refuses, each in one line, and how much memory it holds."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mechedit.models import embedded
from mechedit.models.hooked import load_model
from mechedit.models.selfcheck import check_loaded
from reports.errors import InputError, IntegrityError
from tests.tiny import END, build, build_tokenizer, randomise, tiny_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good checkpoint that a test may spoil."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))


def edit_json(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def refused(name: str | Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load_model(name, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_good_folder_is_loaded(folder: Path) -> None:
    model = load_model(folder, device="cpu", dtype="bfloat16")
    assert (model.name, model.source) == ("model", str(folder.resolve()))
    assert (model.dtype, model.device) == (torch.bfloat16, torch.device("cpu"))
    assert not model.hf.training
    size = "3 layers, 4 heads, d_model 32"
    assert repr(model) == f"HookedModel('model', LlamaForCausalLM, {size}, torch.bfloat16, cpu)"


def test_shards_are_loaded_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    build("llama", tmp_path)
    whole = load_model(tmp_path, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    plain.save_pretrained(tmp_path, max_shard_size="60KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load_model(tmp_path, device="cpu").hash == whole.hash
    shards[1].unlink()
    refused(tmp_path, f"has no {shards[1].name}; the weights are missing")


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "a/b/c", "~/nowhere-at-all"])
def test_no_such_folder(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    refused(name, "no such folder")


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_an_id_that_cannot_be_fetched(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused(name, f"found '{name}': no such folder, and it cannot be fetched from the hub")


def test_a_file_is_no_folder(folder: Path) -> None:
    refused(folder / "config.json", "give the folder that holds it")


def test_an_embedded_model_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(embedded.FOLDERS, "factworld", embedded.MODELS / "no-such-arch")
    refused("factworld", "not in this installation.*mechedit factworld train")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, "no config.json")


def test_no_tokenizer_files(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refused(folder, "no tokenizer files; expected tokenizer.json")


def test_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    refused(folder, "tokenizer files of .* cannot be read")


def test_a_tokenizer_that_ends_every_text(folder: Path) -> None:
    def append_end(saved: Any) -> None:
        end = {"SpecialToken": {"id": END, "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        saved["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [text, end],
            "pair": [text, end],
            "special_tokens": {END: {"id": END, "ids": [0], "tokens": [END]}},
        }

    edit_json(folder / "tokenizer.json", append_end)
    refused(folder, "puts a special token behind every text")


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    tokens = [f"<|{i}|>" for i in range(900)]
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(tokens)
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="belongs to another model"):
        load_model(folder, device="cpu").tokenize("<|899|>")


def test_an_unknown_architecture(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.update(architectures=["NoSuchModel"]))
    refused(folder, "NoSuchModel in .* is not supported: TransformerLens has no bridge for it")


def test_an_unknown_model_type(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.update(model_type="no-such-type"))
    refused(folder, "config.json: .*no-such-type")


def test_code_that_a_checkpoint_brings_is_not_run(folder: Path) -> None:
    canary = folder / "ran"
    (folder / "evil.py").write_text(
        f"open({str(canary)!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n"
    )
    edit_json(
        folder / "config.json",
        lambda c: c.update(
            model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
        ),
    )
    refused(folder, "config.json")
    assert not canary.exists()


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def test_an_architecture_whose_view_would_not_add_up(tmp_path: Path) -> None:
    """Norms behind the sums of stream and sub-layer."""
    save_random(tmp_path, BertLMHeadModel(BertConfig(vocab_size=400, is_decoder=True, **SMALL)))
    refused(tmp_path, "BertLMHeadModel is not supported: .* writes to its residual stream")


def test_another_sequential_decoder_is_taken(tmp_path: Path) -> None:
    save_random(tmp_path, Qwen2ForCausalLM(Qwen2Config(vocab_size=400, num_key_value_heads=2, **SMALL)))
    model = load_model(tmp_path, device="cpu")
    assert model.shape.architecture == "Qwen2ForCausalLM"


def save_random(folder: Path, model: PreTrainedModel) -> None:
    randomise(model)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def test_weights_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "has no model.safetensors; the weights are missing")
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    refused(folder, "pytorch_model.bin is a pickle and is not read")


def test_one_weight_missing_is_refused_and_not_drawn_at_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "weights missing .* 1 that .* model.layers.1.mlp.up_proj.weight")


def test_a_weight_of_another_shape(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.update(intermediate_size=64))
    refused(folder, "model: ")


@pytest.mark.parametrize("content", [b"", b"not a safetensors file at all", struct.pack("<Q", 4) + b"[1]x"])
def test_damaged_weights(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "is damaged")


def test_not_enough_memory_names_both_sizes(folder: Path) -> None:
    """A header that promises 4.4 TB; nothing is allocated, for the header is all that is read."""
    weight = {"dtype": "F32", "shape": [2**30, 1024], "data_offsets": [0, 2**42]}
    header = json.dumps({"wte.weight": weight}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refused(folder, r"not enough memory: .* take 4398.0 GB in float32, [\d.]+ GB are free on cpu")
    with pytest.raises(InputError, match=r"take 2199.0 GB in bfloat16"):
        load_model(folder, device="cpu", dtype="bfloat16")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dtype": "int8"}, "dtype: expected one of float32"),
        ({"dtype": torch.int64}, "dtype: expected one of float32"),
        ({"device": "toaster"}, "device: expected auto, cpu or cuda"),
    ],
)
def test_options_that_do_not_exist(folder: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        load_model(folder, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"device": "cpu", "device_map": "auto"}, "device, device_map: expected one of the two"),
        ({"device_map": {"": "nowhere"}}, "cannot be loaded"),
    ],
)
def test_a_map_of_devices_that_cannot_be_is_refused(
    folder: Path, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match) as refused:
        load_model(folder, **options)
    assert "\n" not in str(refused.value)


def test_a_map_of_devices_without_a_gpu_is_the_cpu(folder: Path) -> None:
    spread, plain = load_model(folder, device_map="auto"), load_model(folder, device="cpu")
    assert spread.where == "cpu"
    assert torch.equal(spread.logits(["Paris is"]), plain.logits(["Paris is"]))


def test_several_devices_are_asked_for_their_memory_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.checkpoints.free_bytes", lambda device: 100)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(InputError, match=r"not enough memory: .* are free on cuda:0, cuda:1"):
        load_model(folder, device_map="auto")


def test_cuda_where_there_is_none(folder: Path) -> None:
    with pytest.raises(InputError, match="torch sees no CUDA device"):
        load_model(folder, device="cuda")


def test_the_self_check_fails_for_other_logits(folder: Path) -> None:
    model = load_model(folder, device="cpu")
    probe, reference = torch.arange(1, 7), torch.zeros(6, model.shape.d_vocab)
    with pytest.raises(IntegrityError, match="does not compute what the plain one does"):
        check_loaded(model, probe=probe, reference=reference)
    good = model.forward(probe[None], torch.ones(1, 6, dtype=torch.long))[0]
    check_loaded(model, probe=probe, reference=good)
    good[-1, 3] += 0.1
    with pytest.raises(IntegrityError):
        check_loaded(model, probe=probe, reference=good)


@pytest.mark.gpu
def test_on_a_gpu_logits_are_those_of_the_cpu(folder: Path) -> None:
    logits = load_model(folder, device="cuda").logits(["Paris", "Tim Duncan plays"])
    expected = load_model(folder, device="cpu").logits(["Paris", "Tim Duncan plays"])
    assert (logits.cpu() - expected).abs().max() < 1e-4


# ------------------------------------------------------------------------------------------ memory

MEASURE = """
import sys
from pathlib import Path
from mechedit.models.hooked import load_model

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

load_model(sys.argv[1], device="cpu")  # whatever is imported and allocated once
before = memory("VmRSS")
model = load_model(sys.argv[2], device="cpu")
print(memory("VmHWM") - before, model.shape.n_layers)
"""


def write_gpt2_xl_shaped(folder: Path, *, n_layers: int) -> int:
    """A random checkpoint of GPT2-XL's widths, written tensor by tensor; the bytes of its weights."""
    build("gpt2", folder)
    config = GPT2Config(n_embd=1600, n_layer=n_layers, n_head=25, architectures=["GPT2LMHeadModel"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(weight.shape) for name, weight in empty.named_parameters()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    encoded += b" " * (-len(encoded) % 8)
    noise = np.random.default_rng(0).standard_normal(1_000_003, dtype=np.float32) * 0.02
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        for shape in shapes.values():
            left = int(np.prod(shape))
            while left:
                left -= len(noise[:left]) if stream.write(noise[:left].tobytes()) else 0
    return offset


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("n_layers", [12, 48], ids=["12 layers", "GPT2-XL"])
def test_loading_holds_at_most_one_and_a_quarter_times_the_weights(tmp_path: Path, n_layers: int) -> None:
    needed = 4 * (80_411_200 + 1_638_400 + n_layers * 30_735_000)
    if psutil.virtual_memory().available < 2 * needed or shutil.disk_usage(tmp_path).free < 2 * needed:
        pytest.skip(f"needs {2 * needed / 1e9:.0f} GB of memory and of disk")
    weights = write_gpt2_xl_shaped(tmp_path / "big", n_layers=n_layers)
    try:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tiny_folder("gpt2")), str(tmp_path / "big")],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
        )
    finally:
        shutil.rmtree(tmp_path / "big")
    held, loaded = map(int, done.stdout.split())
    assert loaded == n_layers
    assert 0.9 * weights < held <= 1.25 * weights, f"{held / weights:.3f} times the weights"
