"""A training's folder: it belongs to one training, refuses any other with what differs, and gives its end again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reports.errors import InputError, IntegrityError
from tests.test_xl_alignment import PAIRS, SHORT
from tests.test_xl_finetune import BRIEF, POS, TOPIC
from tests.xl_tiny import build, tiny_encoder
from xlprobe.data.corpora import Bitext
from xlprobe.data.tasks import Task
from xlprobe.encoders.encoder import Encoder, load_encoder
from xlprobe.training.alignment import AlignmentLoss, align, retrieval
from xlprobe.training.finetune import Joint, finetune
from xlprobe.training.loop import Training, train

REVERSED = Bitext(PAIRS.source[::-1], PAIRS.target[::-1], PAIRS.links)


def fresh(seed: int) -> Encoder:
    import tempfile

    return load_encoder(build("xlm-roberta", tempfile.mkdtemp(), seed=seed), device="cpu")


def dropped(encoder: Encoder) -> Encoder:
    """The same weights with dropout."""
    twin = encoder.copy()
    for module in twin.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    return twin


OTHERS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "data": (lambda: {"bitext": REVERSED}, "bitext.text"),
    "objective": (lambda: {"objective": "token"}, "objective"),
    "weight": (lambda: {"objective": {"sentence": 5.0}}, "objective.sentence is 1.0 there and 5.0 here"),
    "freeze": (lambda: {"freeze": (0, 1)}, r"freeze is \[\] there and \[0, 1\] here"),
    "encoder": (lambda: {"encoder": fresh(1)}, "encoder.weights"),
    "dropout": (lambda: {"encoder": dropped(tiny_encoder())}, "encoder.dropout"),
    "early stop": (lambda: {"held_out": PAIRS, "check_every": 2}, "early_stop"),
    "rate": (lambda: {"training": replace(SHORT, lr=2e-3)}, "training.lr is 0.001 there and 0.002 here"),
    "seed": (lambda: {"training": replace(SHORT, seed=1)}, "training.seed is 0 there and 1 here"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_alignment_in_the_folder_is_refused_with_what_differs(name: str, tmp_path: Path) -> None:
    make, match = OTHERS[name]
    call: dict[str, Any] = {"encoder": tiny_encoder(), "bitext": PAIRS, "training": SHORT, "progress": False}
    first = align(**call, folder=tmp_path)
    changed = call | make()
    with pytest.raises(InputError, match=f"holds another training: .*{match}"):
        align(**changed, folder=tmp_path)
    assert align(**changed).hash != first.hash  # another one indeed
    assert (
        align(**call, folder=str(tmp_path)).hash == first.hash
    )  # a string is a folder, and its end comes again


def test_another_tokenizer_in_the_folder_is_refused(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    align(encoder, PAIRS, training=SHORT, folder=tmp_path, progress=False)
    twin = load_encoder(encoder.source, device="cpu")
    twin.tokenizer.add_tokens(["Keller's"])
    with pytest.raises(InputError, match=r"encoder\.tokenizer"):
        align(twin, PAIRS, training=SHORT, folder=tmp_path, progress=False)


def test_other_versions_or_another_method_are_refused(tmp_path: Path) -> None:
    call: dict[str, Any] = {"training": SHORT, "folder": tmp_path, "progress": False}
    align(tiny_encoder(), PAIRS, **call)
    record = json.loads((tmp_path / "training.json").read_text())
    old = record["settings"] | {"versions.torch": "1.0", "method": 1}
    (tmp_path / "training.json").write_text(json.dumps({"digest": "old", "settings": old}))
    with pytest.raises(InputError, match=r"method is 1 there and 2 here; versions.torch is 1.0 there and "):
        align(tiny_encoder(), PAIRS, **call)
    (tmp_path / "training.json").write_text("[]")
    with pytest.raises(IntegrityError, match="record of a training"):
        align(tiny_encoder(), PAIRS, **call)
    (tmp_path / "training.json").unlink()  # as an earlier version left it
    with pytest.raises(InputError, match="does not say what it depends on"):
        align(tiny_encoder(), PAIRS, **call)


def test_the_same_encoder_in_another_folder_goes_on(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    first = align(encoder, PAIRS, training=SHORT, folder=tmp_path / "a", progress=False)
    moved = load_encoder(encoder.save(tmp_path / "moved"), device="cpu")
    assert align(moved, PAIRS, training=SHORT, folder=tmp_path / "a", progress=False).hash == first.hash


@pytest.mark.parametrize("name", ["encoder", "task", "labels", "joint", "weight", "freeze"])
def test_another_fine_tuning_in_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    joint = Joint(PAIRS, "sentence", weight=0.5)
    call: dict[str, Any] = {"encoder": tiny_encoder(), "task": POS, "training": BRIEF, "alignment": joint}
    call |= {"folder": tmp_path, "progress": False}
    first = finetune(**call)
    changes: dict[str, tuple[dict[str, Any], str]] = {
        "encoder": (
            {"encoder": align(tiny_encoder(), PAIRS, training=SHORT, progress=False)},
            "encoder.weights",
        ),
        "task": ({"task": TOPIC}, "task.kind is tagging there and classification here"),
        "labels": ({"task": Task("tagging", POS.train, {}, labels=(*POS.labels, "X"))}, "task.labels"),
        "joint": ({"alignment": None}, "joint"),
        "weight": ({"alignment": replace(joint, weight=0.6)}, "joint.weight is 0.5 there and 0.6 here"),
        "freeze": ({"freeze": (0,)}, "freeze"),
    }
    changed, match = changes[name]
    with pytest.raises(InputError, match=f"holds another training: .*{match}"):
        finetune(**call | changed)
    assert finetune(**call).encoder.hash == first.encoder.hash


def test_an_ended_training_gives_its_best_weights_again(tmp_path: Path) -> None:
    """A rate that ruins the encoder after its best check: the last weights are not the best ones."""
    plan = Training(steps=12, batch=8, lr=5e-2, decay=0.01)
    call: dict[str, Any] = {
        "training": plan,
        "held_out": PAIRS,
        "check_every": 2,
        "patience": 3,
        "progress": False,
    }
    whole = align(tiny_encoder(), PAIRS, **call)
    last = align(tiny_encoder(), PAIRS, training=plan, progress=False)
    assert whole.hash != last.hash
    for _ in range(3):
        again = align(tiny_encoder(), PAIRS, **call, folder=tmp_path)
        assert again.hash == whole.hash
    assert retrieval(again, PAIRS) == retrieval(whole, PAIRS)


@pytest.mark.parametrize("at", [3, 5, 7])
def test_a_killed_early_stop_ends_as_one_that_was_not(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the early stop has seen, best weights and patience, goes on with the run."""
    plan = Training(steps=12, batch=8, lr=5e-2, decay=0.01)
    call: dict[str, Any] = {"training": plan, "held_out": PAIRS, "check_every": 2, "patience": 99}
    call["progress"] = False
    whole = align(tiny_encoder(), PAIRS, **call)
    original, calls = AlignmentLoss.forward, [0]

    def forward(self: AlignmentLoss, rows: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == at + 1:
            raise KeyboardInterrupt
        return original(self, rows)

    monkeypatch.setattr(AlignmentLoss, "forward", forward)
    monkeypatch.setattr("xlprobe.training.alignment.train", partial(train, save_every=1))
    with pytest.raises(KeyboardInterrupt):
        align(tiny_encoder(), PAIRS, **call, folder=tmp_path)
    assert align(tiny_encoder(), PAIRS, **call, folder=tmp_path).hash == whole.hash
    assert calls == [12 + 1]  # each step once, and the one that was killed
    assert align(tiny_encoder(), PAIRS, **call, folder=tmp_path).hash == whole.hash


class Line(nn.Module):
    """Two weights that are pulled to 1."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.7], dtype=dtype))

    def forward(self, rows: Tensor) -> Tensor:
        return ((self.weight - 1) ** 2).sum() * len(rows)


def test_history_comes_again_and_nothing_is_trained(tmp_path: Path) -> None:
    losses = train(Line(), SHORT, n_items=8, folder=tmp_path, progress=False)
    line = Line()
    line.forward = None  # type: ignore[method-assign,assignment]  # it must not be called
    assert train(line, SHORT, n_items=8, folder=tmp_path, progress=False) == losses
    assert len(losses) == SHORT.steps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_move_as_those_of_float32_do(dtype: torch.dtype) -> None:
    """Oracle: the same training of a float32 copy, rounded once; a step of 2e-5 alone would be lost in bfloat16."""
    plan = Training(steps=40, batch=8, lr=2e-5)
    half = tiny_encoder().copy()
    nn.Module.to(half.model, dtype)
    wide = half.copy()
    wide.model.float()
    trained, expected = (align(e, PAIRS, training=plan, progress=False) for e in (half, wide))
    assert {p.dtype for p in trained.model.parameters()} == {dtype}
    moved = total = 0
    for before, after, oracle in zip(
        half.model.parameters(), trained.model.parameters(), expected.model.parameters(), strict=True
    ):
        assert torch.equal(after, oracle.to(dtype))
        if not torch.equal(oracle, before.float()):  # a layer that alignment reaches
            moved, total = moved + int((after != before).sum()), total + before.numel()
    lost = sum(int((p - torch.tensor(2e-5, dtype=dtype) == p).sum()) for p in half.model.parameters())
    assert lost > 0.5 * sum(p.numel() for p in half.model.parameters()) or dtype == torch.float16
    assert moved > 0.15 * total


def test_half_precision_goes_on_where_it_stopped(tmp_path: Path) -> None:
    half = tiny_encoder().copy()
    nn.Module.to(half.model, torch.bfloat16)
    call: dict[str, Any] = {"training": SHORT, "folder": tmp_path, "progress": False}
    first = align(half, PAIRS, **call)
    assert align(half, PAIRS, **call).hash == first.hash
