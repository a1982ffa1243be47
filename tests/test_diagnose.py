"""The diagnosis of a decoder: sound ones pass, and each check fails on a model that is spoilt where it looks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import AutoTokenizer

import mechedit as me
from mechedit import checks
from mechedit.cli import main
from mechedit.diagnose import PROBES, diagnose
from mechedit.model import HookedModel, load_model
from reports.diagnosis import Diagnosis
from reports.errors import InputError
from tests.tiny import ARCHS, END, Arch, tiny_folder


def failed(found: Diagnosis) -> set[str]:
    return set(found.checks[~found.checks["ok"]]["check"])


def spoilt(tmp_path: Path, arch: Arch = "llama-gqa", **options: Any) -> HookedModel:
    """A sound model of its own, to be spoilt."""
    return load_model(shutil.copytree(tiny_folder(arch), tmp_path / "model"), device="cpu", **options)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_sound_model_passes(arch: Arch) -> None:
    found = diagnose(load_model(tiny_folder(arch), device="cpu"))
    assert failed(found) == set()
    assert not found.notes


def test_weights_that_were_changed_after_loading_are_found(tmp_path: Path) -> None:
    model = spoilt(tmp_path)
    with torch.no_grad():
        model.W_out(1)[0] += 3.0
    found = failed(diagnose(model))
    assert {
        "logits of transformers, eager",
        "logits of transformers, sdpa",
        "logits against float64",
    } <= found
    assert "padded on the left" not in found


def test_a_model_that_forgets_its_mask_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = spoilt(tmp_path)
    run = model.run
    monkeypatch.setattr(model, "run", lambda ids, mask, **more: run(ids, torch.ones_like(mask), **more))
    found = diagnose(model)
    assert {"padded on the left", "the mask forgotten"} <= failed(found)
    assert not found.ok


def test_a_norm_that_does_more_than_its_weight_says_is_found(tmp_path: Path) -> None:
    model = spoilt(tmp_path)
    norm = model.bridge.ln_final.original_component
    forward = norm.forward
    norm.forward = lambda x: 2 * forward(x)
    assert "final norm folded into W_U" in failed(diagnose(model))


def test_a_hook_point_that_never_fires_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "USED", (*checks.USED, "hook_nowhere"))
    found = diagnose(spoilt(tmp_path))
    assert failed(found) == {"hooks fire once"}
    assert (
        "blocks.0.hook_nowhere fired 0 times" in found.checks.set_index("check")["change"]["hooks fire once"]
    )


def test_a_tokenizer_that_adds_bos_twice_is_found(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder("llama-gqa"), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = tokenizer.bos_token or END
    template = processors.TemplateProcessing(
        single=f"{bos} {bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.save_pretrained(folder)
    model = load_model(folder, device="cpu")
    assert "BOS at most once" in failed(diagnose(model))


def test_half_precision_costs_more_than_single(tmp_path: Path) -> None:
    folder = tiny_folder("llama-gqa")
    off = {
        dtype: diagnose(load_model(folder, device="cpu", dtype=dtype)).measured("logits against float64")
        for dtype in ("float32", "bfloat16")
    }
    assert off["float32"] < 1e-5 < off["bfloat16"]


def test_what_has_no_checkpoint_here_is_said(tmp_path: Path) -> None:
    model = spoilt(tmp_path)
    shutil.rmtree(tmp_path / "model")
    (note,) = diagnose(model).notes
    assert "no second load" in note


def test_probes_that_show_nothing_are_refused(factworld_gpt2: HookedModel) -> None:
    with pytest.raises(InputError, match="unlike length"):
        diagnose(factworld_gpt2, PROBES[:1])


def test_the_command_says_what_was_measured_and_its_status_is_the_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["diagnose", "--model", "factworld", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"]
    assert said["checks"]["the mask forgotten"]["must"] == ">"
    assert main(["diagnose", "--model", "factworld"]) == 0
    assert "ok: " in capsys.readouterr().out


def test_a_diagnosis_is_kept(factworld_gpt2: HookedModel, tmp_path: Path) -> None:
    found = me.diagnose(factworld_gpt2)
    assert Diagnosis.load(found.save(tmp_path / "d")).equals(found)
