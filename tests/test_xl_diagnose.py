"""The diagnosis on encoders that are sound, and on one that is made unsound."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import pytest
import torch
from tokenizers import processors

from experiments import checkpoints
from reports.errors import InputError
from tests.xl_tiny import Arch, tiny_encoder, tiny_folder
from xlprobe.diagnose import Diagnosis, diagnose
from xlprobe.encoders.batches import Batch
from xlprobe.encoders.encoder import Encoder, load_encoder
from xlprobe.probes import invariance
from xlprobe.probes.invariance import CHECKS

module = importlib.import_module("xlprobe.diagnose")  # the package gives its name to the function

SENTENCES = [
    "She was born in Rome",
    "Tim Duncan plays the sport of basketball in the city of San Antonio",
    "Lily",
]


@pytest.mark.parametrize("arch", ["xlm-roberta", "roberta", "bert"])
def test_padding_and_mates_change_nothing_and_a_forgotten_mask_does(arch: Arch) -> None:
    found = diagnose(tiny_encoder(arch), SENTENCES)
    relative = found.checks.set_index("check")["measured"]
    assert set(CHECKS) <= set(relative.index)
    assert relative["repeat"] == 0
    assert relative[["padding", "batch mate", "place"]].max() < 1e-4
    assert relative["no mask"] > 1e-2
    assert found.ok
    assert (found.dtype, found.attention) == ("float32", "sdpa")


def test_double_precision_is_nearer_and_half_further_off() -> None:
    worst = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        encoder = tiny_encoder().copy()
        for parameter in encoder.model.parameters():
            parameter.data = parameter.data.to(dtype)
        found = diagnose(encoder, SENTENCES)
        worst[dtype] = found.checks.set_index("check")["measured"][["padding", "batch mate", "place"]].max()
    assert worst[torch.float64] < 1e-12 < worst[torch.float32] < 1e-4 < worst[torch.bfloat16]


class Leaky(Encoder):
    """An encoder whose rows see each other: each state gets a little of the batch's mean."""

    def forward(self, batch):  # type: ignore[no-untyped-def]
        states = super().forward(batch)
        return states + 0.1 * states.mean(dim=(0, 1))


def test_an_encoder_whose_rows_see_each_other_is_found() -> None:
    sound = tiny_encoder()
    leaky = Leaky(sound.model, sound.tokenizer, name="leaky", source="test")
    found = diagnose(leaky, SENTENCES)
    assert not found.ok
    assert found.checks.set_index("check")["measured"]["batch mate"] > 1e-4


def test_the_encoder_is_left_as_it_was_and_the_result_is_kept(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    before = encoder.hash
    found = diagnose(encoder, SENTENCES)
    assert encoder.hash == before
    assert all(parameter.grad is None for parameter in encoder.model.parameters())
    assert Diagnosis.load(found.save(tmp_path / "d")).equals(found)


def test_sentences_that_show_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2"):
        diagnose(tiny_encoder(), SENTENCES[:1])
    with pytest.raises(InputError, match="unlike lengths"):
        diagnose(tiny_encoder(), ["Lily", "Lily"])


def test_an_encoder_that_was_changed_after_loading_is_found() -> None:
    encoder = tiny_encoder().copy()
    with torch.no_grad():
        next(iter(encoder.blocks[0].parameters())).add_(0.5)
    found = diagnose(encoder, SENTENCES).checks.set_index("check")["ok"]
    assert not found["states of transformers, eager"]
    assert not found["states of transformers, sdpa"]
    assert found["padding"]


def test_a_tokenizer_without_its_template_is_found() -> None:
    sound = tiny_encoder()
    tokenizer = copy.deepcopy(sound.tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    encoder = Encoder(sound.model, tokenizer, name="bare", source="test")
    found = diagnose(encoder, SENTENCES).checks.set_index("check")["ok"]
    assert not found["special tokens"]


class Noisy(Encoder):
    """An encoder that says something else each time, as with dropout left on."""

    def forward(self, batch):  # type: ignore[no-untyped-def]
        states = super().forward(batch)
        return states + 0.01 * torch.randn_like(states)


def test_an_encoder_that_says_something_else_each_time_is_found() -> None:
    sound = tiny_encoder()
    found = diagnose(Noisy(sound.model, sound.tokenizer, name="noisy", source="test"), SENTENCES)
    assert set(found.checks[~found.checks["ok"]]["check"]) == {"repeat", "padding", "batch mate", "place"}


def test_padding_that_is_seen_is_found_and_the_control_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = invariance._widened

    def unmasked(encoder: Encoder, batch: Batch, width: int) -> Batch:
        padded = whole(encoder, batch, width)
        return Batch(padded.input_ids, torch.ones_like(padded.attention_mask), padded.word_ids)

    monkeypatch.setattr(invariance, "_widened", unmasked)
    ok = diagnose(tiny_encoder(), SENTENCES).checks.set_index("check")["ok"]
    assert not ok[["padding", "batch mate", "place"]].any()
    monkeypatch.setattr(
        invariance, "_widened", lambda encoder, batch, width: batch
    )  # nothing is padded at all
    rows = {check.name: check.ok for check in invariance.invariance(tiny_encoder(), SENTENCES[:1] * 2)}
    assert not rows["no mask"]


def test_a_layer_that_does_not_run_is_found() -> None:
    encoder = tiny_encoder().copy()
    encoder.blocks = [*encoder.blocks[:-1], copy.deepcopy(encoder.blocks[-1])]
    found = diagnose(encoder, SENTENCES).checks.set_index("check")
    assert not found["ok"]["hooks fire once"]
    assert "layer 3" in found["change"]["hooks fire once"]


def test_half_precision_is_outside_single_precisions_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(tiny_folder("xlm-roberta"), device="cpu", dtype="bfloat16")
    assert invariance.tolerance(encoder.dtype) == 0.05  # and not 1000 epsilons, which are 7.8
    monkeypatch.setattr(module, "tolerance", lambda dtype: invariance.tolerance(torch.float32))
    found = diagnose(encoder, SENTENCES).checks
    assert {"states against float64", "gradients against float64"} <= set(found[~found["ok"]]["check"])


def test_memory_that_does_not_suffice_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for reads in (module, checkpoints):
        monkeypatch.setattr(reads, "free_bytes", lambda device: -1)
    found = diagnose(tiny_encoder(), SENTENCES)
    assert set(found.checks[~found.checks["ok"]]["check"]) == {"memory of a gradient"}
    assert "are free on cpu" in found.notes[0]


def test_every_check_has_a_test_in_which_it_fails() -> None:
    shown = Path(__file__).read_text(encoding="utf-8")
    found = diagnose(tiny_encoder(), SENTENCES).checks["check"]
    assert [name for name in found if f'"{name}"' not in shown] == []
