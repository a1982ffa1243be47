"""The diagnosis of a decoder: sound ones pass, and each check fails on a model that is spoilt where it looks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mechedit.diagnose import diagnose
from mechedit.model import HookedModel, load_model
from reports.diagnosis import Diagnosis
from tests.tiny import ARCHS, Arch, tiny_folder

IDENTITIES = 5


def failed(found: Diagnosis) -> set[str]:
    return set(found.checks[~found.checks["ok"]]["check"])


def spoilt(tmp_path: Path, arch: Arch = "llama-gqa", **options: Any) -> HookedModel:
    """A sound model of its own, to be spoilt."""
    return load_model(shutil.copytree(tiny_folder(arch), tmp_path / "model"), device="cpu", **options)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_sound_model_passes(arch: Arch) -> None:
    found = diagnose(load_model(tiny_folder(arch), device="cpu"))
    print(found.checks.to_string())
    assert failed(found) == set()
    assert not found.notes
