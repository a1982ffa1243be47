"""Odd checkpoints: each can be attributed, edited and evaluated, or is refused in one line; none is a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mechedit as me
from mechedit.data.facts import FactEdit
from mechedit.editors import FT, MEGA, MEMIT, ROME, LoRA
from mechedit.editors.weights.covariance import Covariance
from mechedit.models.hooked import HookedModel, load_model
from reports.errors import MechEditError
from tests.architectures import FAMILIES, REFUSED, Sizes, folder_of, save

FACT = FactEdit(
    "Anna Keller",
    "{} works as a",
    "teacher",
    "king",
    case_id=0,
    paraphrase_prompts=("The job of Anna Keller is",),
    neighborhood_prompts=("Tim Duncan works as a",),
)

_LLAMA, _GPT2 = FAMILIES["llama"][1], FAMILIES["gpt2"][1]
#: model_type and sizes of checkpoints that are odd but whole.
ODD: dict[str, tuple[str, Sizes]] = {
    "one layer": ("llama", {**_LLAMA, "num_hidden_layers": 1}),
    "one head": ("llama", {**_LLAMA, "num_attention_heads": 1, "num_key_value_heads": 1}),
    "one key-value head": ("llama", {**_LLAMA, "num_key_value_heads": 1}),
    "odd width of head": ("llama", {**_LLAMA, "head_dim": 10}),
    "narrow MLP": ("llama", {**_LLAMA, "intermediate_size": 3}),
    "biases everywhere": ("llama", {**_LLAMA, "attention_bias": True, "mlp_bias": True}),
    "tied": ("llama", {**_LLAMA, "tie_word_embeddings": True}),
    "dropout": ("gpt2", {**_GPT2, "attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}),
    "scaled by layer": ("gpt2", {**_GPT2, "scale_attn_by_inverse_layer_idx": True}),
    "relu": ("gpt2", {**_GPT2, "activation_function": "relu"}),
    "window of one": ("mistral", {**_LLAMA, "sliding_window": 1}),
    "window never reached": ("mistral", {**_LLAMA, "sliding_window": 4096}),
    "window of some layers": ("qwen2", {**_LLAMA, "use_sliding_window": True, "sliding_window": 4,
                                        "max_window_layers": 1}),
    "yarn": ("llama", {**_LLAMA, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                                     "original_max_position_embeddings": 16}}),
    "longrope": ("phi3", {**FAMILIES["phi 3"][1], "original_max_position_embeddings": 32, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0],
        "original_max_position_embeddings": 32}}),
    "soft cap of attention": ("gemma2", {**FAMILIES["gemma"][1], "final_logit_softcapping": None,
                                         "query_pre_attn_scalar": 5}),
    "clipped": ("olmo", {**_LLAMA, "clip_qkv": 0.5}),
    "multipliers of one": ("granite", _LLAMA),
    "q and k norms": ("cohere", {**_LLAMA, "use_qk_norm": True}),
    "parallel stablelm": ("stablelm", {**_LLAMA, "use_parallel_residual": True}),
    "falcon of two norms": ("falcon", {**FAMILIES["falcon"][1], "new_decoder_architecture": True, "num_kv_heads": 2}),
    "opt": ("opt", {"hidden_size": 16, "ffn_dim": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "word_embed_proj_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0}),
    "opt with norms behind": ("opt", {"hidden_size": 16, "ffn_dim": 20, "num_hidden_layers": 2,
                                      "num_attention_heads": 4, "word_embed_proj_dim": 16,
                                      "max_position_embeddings": 64, "pad_token_id": 0,
                                      "do_layer_norm_before": False}),
    "opt with narrow embeddings": ("opt", {"hidden_size": 16, "ffn_dim": 20, "num_hidden_layers": 2,
                                           "num_attention_heads": 4, "word_embed_proj_dim": 8,
                                           "max_position_embeddings": 64, "pad_token_id": 0}),
    "windows of buffers": ("gpt_neo", {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "window_size": 4,
                                       "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64}),
}  # fmt: skip


def _config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def _filled(value: float, name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        _weights(
            folder, lambda w: w.update({k: torch.full_like(v, value) for k, v in w.items() if name in k})
        )

    return spoil


def _configured(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: _config(folder, **changes)


def _with_room(folder: Path) -> None:
    """Seven tokens that the tokenizer does not know."""
    _weights(folder, lambda w: w.update({k: torch.cat([v, v[:7]]) for k, v in w.items() if v.shape[0] > 300}))
    _config(folder, vocab_size=json.loads((folder / "config.json").read_text())["vocab_size"] + 7)


#: What is done to a good LLaMA.
SPOILT: dict[str, Callable[[Path], object]] = {
    "no architectures": _configured(architectures=None),
    "base class": _configured(architectures=["LlamaModel"]),
    "no such activation": _configured(hidden_act="no-such"),
    "another activation": _configured(hidden_act="gelu"),
    "heads that do not divide": _configured(num_attention_heads=3),
    "more layers than weights": _configured(num_hidden_layers=3),
    "fewer layers than weights": _configured(num_hidden_layers=1),
    "no layers": _configured(num_hidden_layers=0),
    "layers are a word": _configured(num_hidden_layers="two"),
    "a list for a config": lambda folder: (folder / "config.json").write_text("[]"),
    "rope of no kind": _configured(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}),
    "weights of nan": _filled(float("nan"), "down_proj"),
    "weights of infinity": _filled(float("inf"), "o_proj"),
    "weights of nothing": _filled(0.0, "proj"),
    "norms of nothing": _filled(0.0, "norm"),
    "embeddings of nothing": _filled(0.0, "embed"),
    "half precision": lambda folder: _weights(
        folder, lambda w: w.update({k: v.half() for k, v in w.items()})
    ),
    "one weight too many": lambda folder: _weights(folder, lambda w: w.update(extra=torch.zeros(3))),
    "a vocabulary with room": _with_room,
}


def _steps(model: HookedModel) -> dict[str, Callable[[], Any]]:
    """What a user does with a model, each for itself."""
    C = Covariance(torch.eye(model.shape.d_mlp).double(), n_tokens=1, layer=0, source="by hand")
    options: dict[str, Any] = {"steps": 2, "contexts": ()}
    editors: list[Any] = [
        ROME(layer=0, covariance=C, **options),
        MEMIT(layers=(0, 0), covariances={0: C}, **options),
        FT(layer=0, steps=2, lr=1e-2),
        LoRA(steps=2, lr=1e-2),
        MEGA(window=(0, 0), alpha=1.0, gate="always", paraphrases={FACT.prompt: ["{} is a"]}),
    ]
    steps: dict[str, Callable[[], Any]] = {
        "attribute": lambda: me.attribute(model, FACT.rewrite_prompt, FACT.target_true, top_k=5),
        "suppress": lambda: me.attribute(
            model, FACT.rewrite_prompt, FACT.target_true, top_k=5, sign="suppress"
        ),
        "generate": lambda: model.generate([FACT.rewrite_prompt], max_new_tokens=3),
    }
    for editor in editors:
        steps[editor.name] = partial(me.evaluate, model, editor, [FACT], progress=False)
    return steps


def _use(folder: Path) -> dict[str, str]:
    """The refusals of loading and of each step, by name; any other error is raised."""
    try:
        model = load_model(folder, device="cpu")
    except MechEditError as error:
        return {"load": str(error)}
    refusals = {}
    for name, step in _steps(model).items():
        try:
            step()
        except MechEditError as error:
            refusals[name] = str(error)
    return refusals


def _one_line(refusals: dict[str, str]) -> bool:
    return all(text and "\n" not in text for text in refusals.values())


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHEDIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize("name", list(ODD))
def test_an_odd_checkpoint_works_or_is_refused(name: str, tmp_path: Path) -> None:
    refusals = _use(save(*ODD[name], tmp_path / "odd"))
    assert _one_line(refusals)
    refused = {"clipped", "opt with norms behind", "opt with narrow embeddings"}
    refused |= {"parallel stablelm", "falcon of two norms"}  # TransformerLens does not bridge them rightly
    assert set(refusals) == ({"load"} if name in refused else set()), refusals


@pytest.mark.parametrize("name", list(SPOILT))
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_spoilt_checkpoint_works_or_is_refused(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("llama"), tmp_path / "spoilt"))
    SPOILT[name](folder)
    assert _one_line(_use(folder))


@pytest.mark.parametrize("name", [*FAMILIES, *REFUSED])
def test_every_family_is_used_or_refused(name: str) -> None:
    refusals = _use(folder_of(name))
    assert _one_line(refusals)
    assert set(refusals) == ({"load"} if name in REFUSED else set())
