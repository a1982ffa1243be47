"""Everything on a device that is not the CPU, whose tensors do not mix with the CPU's: it runs, and agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import mechedit as me
import xlprobe
from mechedit.attribution.ranking.neurons import Ranked
from mechedit.editors import NAMES
from mechedit.models.hooked import HookedModel
from mechedit.models.weights import FinalNorm
from tests.device_work import DECODER, ENCODER, SPREAD
from tests.other_device import OtherTensor, other_device
from xlprobe.encoders.encoder import Encoder

#: What is not run on it, and why.
NOT_RUN = {
    "sparse gradients of embeddings": "a wrapped tensor has strides: a sparse gradient becomes dense on the device",
    "precision bf16 and fp16": "autocast has a table of operations for each kind of device; this one's is empty",
    "fused attention": "a fused kernel belongs to a device; here attention is computed by products",
    "several processes": "there is one process",
    "gradients in layers of a second device": "torch has one backward queue for a device made in Python: editors of "
    "weights run where the edited layer and all above lie on the first",
    "pretrain": "the loop is align's with masked words alone, which runs",
    "memory (out of memory, peak, batches fitted to it)": "its values lie in the CPU's memory",
    "load_model(gguf), real models": "the same code behind the loading; too slow through a wrapper",
    "sentence_encoder": "it loads sentence-transformers on the CPU by design, and its vectors are moved",
    "no_edit": "it does nothing",
    "random numbers of the device": "all are drawn on the CPU and moved, but dropout's, which are the CPU's here too",
}


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The device; attention on the CPU too is computed by products, so that both round alike."""
    with other_device() as there, sdpa_kernel(SDPBackend.MATH):
        yield there


@pytest.fixture(scope="module")
def decoders() -> tuple[HookedModel, HookedModel]:
    with other_device():
        moved = me.load_model("factworld", device="other:0")
    assert all(isinstance(weight, OtherTensor) for weight in moved.hf.parameters())
    return me.load_model("factworld", device="cpu"), moved


@pytest.fixture(scope="module")
def encoders() -> tuple[Encoder, Encoder]:
    with other_device():
        moved = xlprobe.load_encoder("langworld", device="other:0")
    assert all(isinstance(weight, OtherTensor) for weight in moved.model.parameters())
    return xlprobe.load_encoder("langworld", device="cpu"), moved


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHEDIT_CACHE", str(tmp_path / "cache"))


# -- the device itself -------------------------------------------------------------------------------------------

MIXED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add": lambda there, here: there + here,
    "add to": lambda there, here: here.add_(there),
    "a number of the device": lambda there, here: here * there.sum(),
    "product": lambda there, here: there @ here,
    "cat": lambda there, here: torch.cat([there, here]),
    "stack": lambda there, here: torch.stack([there, here]),
    "where": lambda there, here: torch.where(here > 0, there, there),
    "mask": lambda there, here: there.masked_fill(here > 0, 0.0),
    "gather": lambda there, here: there.gather(0, here.long()),
    "index_select": lambda there, here: there.index_select(0, here[0].long()),
    "index of the device": lambda there, here: here[there[0].long()],
    "values of an index": lambda there, here: there.index_put_((here[0].long(),), here),
    "embedding": lambda there, here: torch.nn.functional.embedding(here.long(), there),
    "equal": lambda there, here: torch.equal(there, here),
}


@pytest.mark.parametrize("name", MIXED)
def test_tensors_of_both_devices_do_not_mix(name: str, device: torch.device) -> None:
    with pytest.raises(RuntimeError, match="expected all tensors on other:0"):
        MIXED[name](torch.zeros(2, 2, device=device), torch.zeros(2, 2))


def test_what_cuda_allows_is_allowed(device: torch.device) -> None:
    here = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    there = here.to(device)
    assert (there * torch.tensor(2.0)).tolist() == (here * 2).tolist()
    assert there[torch.tensor([1])].tolist() == [[3.0, 4.0]]
    assert there[torch.tensor([False, True])].tolist() == [[3.0, 4.0]]
    assert here[torch.tensor(1, device=device)].tolist() == [3.0, 4.0]
    assert there.sum().item() == float(there.sum()) == 10
    assert type(there.cpu()) is type(torch.zeros(2, 2).copy_(there)) is Tensor
    with pytest.raises((TypeError, RuntimeError), match="numpy"):
        there.numpy()


def test_two_devices_do_not_mix_either(device: torch.device) -> None:
    first, second = torch.ones(2, 2, device=device), torch.ones(2, 2, device="other:1")
    assert str((second @ second).device) == "other:1"
    assert (second.to(device) + first).tolist() == [[2.0, 2.0], [2.0, 2.0]]
    for mix in (lambda: first + second, lambda: second * first.sum(), lambda: first[second[0].long()]):
        with pytest.raises(RuntimeError, match="expected all tensors on other:"):
            mix()


def test_gradients_and_modules_are_those_of_the_cpu(device: torch.device) -> None:
    here = torch.nn.Linear(3, 2)
    there = torch.nn.Linear(3, 2)
    there.load_state_dict(here.state_dict())
    weight = there.weight
    there.to(device)
    assert there.weight is weight
    x = torch.randn(4, 3)
    here(x).square().sum().backward()
    there(x.to(device)).square().sum().backward()
    assert here.weight.grad is not None
    torch.testing.assert_close(cast(Tensor, there.weight.grad).cpu(), here.weight.grad)


def test_a_misplaced_tensor_in_the_package_is_found(
    decoders: tuple[HookedModel, HookedModel], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value neurons left on the CPU: what kept `attribute` from running on a GPU."""
    monkeypatch.setattr(Ranked, "to", lambda ranked, device: ranked)
    me.attribute(decoders[0], "The mother tongue of", "English", top_k=4)
    with pytest.raises(RuntimeError, match="expected all tensors on other:0"):
        me.attribute(decoders[1], "The mother tongue of", "English", top_k=4)


# -- the packages on it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODER)
def test_mechedit_agrees_with_the_cpu(
    name: str, decoders: tuple[HookedModel, HookedModel], device: torch.device, tmp_path: Path
) -> None:
    here, there = (DECODER[name](model, tmp_path / str(i)) for i, model in enumerate(decoders))
    assert_same(there, here)


@pytest.mark.parametrize("name", ENCODER)
def test_xlprobe_agrees_with_the_cpu(
    name: str, encoders: tuple[Encoder, Encoder], device: torch.device, tmp_path: Path
) -> None:
    here, there = (ENCODER[name](encoder, tmp_path / str(i)) for i, encoder in enumerate(encoders))
    assert_same(there, here)


def spread_over(name: str) -> dict[str, str]:
    """The lower half of an embedded model's layers on the second device, all else on the first."""
    blocks, beside = {
        "factworld": ("transformer.h", ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head")),
        "factworld-llama": (
            "model.layers",
            ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"),
        ),
    }[name]
    layers = me.load_model(name, device="cpu").shape.n_layers
    return dict.fromkeys(beside, "other:0") | {
        f"{blocks}.{layer}": "other:1" if layer < layers // 2 else "other:0" for layer in range(layers)
    }


@pytest.fixture(scope="module")
def spread() -> dict[str, tuple[HookedModel, HookedModel]]:
    """Each embedded model on the CPU, and by `device_map` on two devices."""
    models = {}
    with other_device(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # the device exists in this thread
        for name in SPREAD:
            moved = me.load_model(name, device_map=spread_over(name))
            assert {str(weight.device) for weight in moved.hf.parameters()} == {"other:0", "other:1"}
            models[name] = me.load_model(name, device="cpu"), moved
    return models


@pytest.mark.parametrize(
    ("model", "name"),
    [
        pytest.param(model, name, marks=() if name in always else pytest.mark.slow)
        for model, always in SPREAD.items()
        for name in DECODER
    ],
)
def test_a_model_on_two_devices_agrees_with_the_cpu(
    model: str,
    name: str,
    spread: dict[str, tuple[HookedModel, HookedModel]],
    device: torch.device,
    tmp_path: Path,
) -> None:
    here, there = (DECODER[name](model, tmp_path / str(i)) for i, model in enumerate(spread[model]))
    assert_same(there, here)


def test_a_norm_left_on_the_second_device_is_found(
    spread: dict[str, tuple[HookedModel, HookedModel]], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FinalNorm, "to", lambda norm, device: norm)
    with pytest.raises(RuntimeError, match="expected all tensors on other:"):
        me.attribute(spread["factworld-llama"][1], "The mother tongue of", "English", top_k=4)


def test_every_editor_runs_or_is_said_not_to() -> None:
    assert set(NAMES) <= {*DECODER, *NOT_RUN}
    assert all(len(why) > 10 for why in NOT_RUN.values())


def assert_same(there: Any, here: Any) -> None:
    assert type(there) is type(here)
    if isinstance(here, dict):
        assert here
        assert there.keys() == here.keys()
        for key in here:
            assert_same(there[key], here[key])
    elif isinstance(here, pd.DataFrame):
        pd.testing.assert_frame_equal(there, here, rtol=1e-3, atol=1e-4)
    elif isinstance(here, Tensor):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-4)
    elif isinstance(here, float):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-4, nan_ok=True)
    else:
        assert there == here
