"""Training as a researcher knows it: cached gradients, rates by size, selection, the head alone, kept models."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from reports.errors import InputError
from tests.xl_tiny import Arch, tiny_encoder
from xlprobe.data.corpora import Bitext, Labelled
from xlprobe.data.tasks import Task
from xlprobe.encoders.encoder import Encoder, load_encoder
from xlprobe.training import scores
from xlprobe.training.alignment import AlignmentLoss, align, retrieval
from xlprobe.training.cached_contrast import Vectors, probe_layer
from xlprobe.training.defaults import align_training, heed_collapse, spread, task_training
from xlprobe.training.finetune import Joint, finetune
from xlprobe.training.loop import Training, train
from xlprobe.training.objectives import contrastive
from xlprobe.training.selection import Selection
from xlprobe.training.task_model import TaskModel

WORDS = ("Anna", "Keller", "speaks", "Rome", "Berlin", "Paris", "was", "born", "in", "She")
SOURCE = tuple(tuple(WORDS[(i + j * (1 + i // 10)) % 10] for j in range(2 + i % 5)) for i in range(14))
TARGET = tuple(
    tuple(WORDS[(3 * i + j * (1 + i // 10)) % 10] + "s" for j in range(2 + i % 4)) for i in range(14)
)
PAIRS = Bitext(SOURCE, TARGET, tuple(((0, 0), (1, 1)) for _ in range(14)))
ROWS = torch.arange(14)
TAGS = Labelled(
    SOURCE,
    tuple(tuple("N" if word[0].isupper() else "V" for word in words) for words in SOURCE),
    tuple(map(str, range(14))),
)
TEXTS = Labelled(SOURCE, tuple((("a", "b")[len(s) > 3],) for s in SOURCE), TAGS.ids)


def gradient(module: nn.Module, rows: Tensor = ROWS) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient on all parameters of the encoder in one vector."""
    model: Any = module.model
    parameters = list(model.parameters())
    torch.manual_seed(0)
    loss = module(rows)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    parts = [
        torch.zeros_like(p).flatten() if g is None else g.flatten()
        for p, g in zip(parameters, grads, strict=True)
    ]
    return loss.detach(), torch.cat(parts)


# -- cached gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["sentence", "token", "mlm", "tlm", "l2"])
@pytest.mark.parametrize("micro", [1, 5])
def test_parts_give_the_gradient_of_the_whole_batch(objective: str, micro: int) -> None:
    encoder = tiny_encoder()
    whole, parts = (
        gradient(AlignmentLoss(encoder, PAIRS, objective, vectors=Vectors(micro=n))) for n in (0, micro)
    )
    assert torch.allclose(whole[0], parts[0], rtol=1e-5)
    assert float((whole[1] - parts[1]).norm() / whole[1].norm()) < 1e-5


@pytest.mark.parametrize("arch", ["bert", "distilbert", "xlm-roberta-xl", "modernbert", "deberta-v2"])
def test_parts_give_it_in_every_architecture(arch: Arch) -> None:
    encoder = tiny_encoder(arch)
    whole, parts = (
        gradient(AlignmentLoss(encoder, PAIRS, "sentence", vectors=Vectors(micro=n))) for n in (0, 4)
    )
    assert float((whole[1] - parts[1]).norm() / whole[1].norm()) < 1e-5


def test_a_sum_over_smaller_batches_is_another_gradient() -> None:
    """The oracle can fail: gradient accumulation as it is usually done loses the negatives of the other parts."""
    encoder = tiny_encoder()
    loss = AlignmentLoss(encoder, PAIRS, "sentence")
    whole = gradient(loss)[1]
    added = sum(gradient(loss, rows)[1] for rows in ROWS.split(7))
    assert float((whole - added / 2).norm() / whole.norm()) > 0.05


def test_a_task_and_both_losses_in_parts() -> None:
    encoder = tiny_encoder()
    task = Task("tagging", TAGS, {})
    whole, parts = (gradient(TaskModel(encoder, task, micro=n)) for n in (0, 3))
    assert float((whole[1] - parts[1]).norm() / whole[1].norm()) < 1e-5


def test_training_in_parts_ends_at_the_same_weights() -> None:
    plain = Training(steps=3, batch=8, lr=1e-3)
    ends = [
        align(
            tiny_encoder(),
            PAIRS,
            objective={"sentence": 1.0, "token": 0.5},
            training=replace(plain, micro=n),
            progress=False,
        )
        for n in (0, 3)
    ]
    assert same_way(*ends)
    other = align(tiny_encoder(), PAIRS, training=replace(plain, seed=1), progress=False)
    assert not same_way(ends[0], other)


def same_way(*ends: Any) -> bool:
    """Whether two trainings moved the weights alike: Adam's first steps are signs, so rounding turns the smallest."""
    start, *moved = (
        torch.cat([p.detach().flatten() for p in end.model.parameters()]) for end in (tiny_encoder(), *ends)
    )
    a, b = (end - start for end in moved)
    return float(a @ b / (a.norm() * b.norm())) > 0.999


def test_conflict_aware_training_in_parts() -> None:
    joint = Joint(PAIRS, "sentence", aggregator="upgrad")
    task = Task("tagging", TAGS, {})
    ends = [
        finetune(
            tiny_encoder(), task, training=Training(2, 8, 1e-3, micro=n), alignment=joint, progress=False
        )
        for n in (0, 3)
    ]
    assert same_way(*ends)


# -- layer and pooling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_layer_and_pooling_are_those_of_the_states(layer: int, pooling: Any) -> None:
    encoder = tiny_encoder()
    loss = AlignmentLoss(encoder, PAIRS, "sentence", vectors=Vectors(layer, pooling))(ROWS)
    sides = []
    for sentences in (SOURCE, TARGET):
        batch = encoder.encode(sentences)
        states = encoder.states(batch)[layer]
        rows = [
            s[0] if pooling == "first" else s[w >= 0].mean(0)
            for s, w in zip(states, batch.word_ids, strict=True)
        ]
        sides.append(torch.stack(rows))
    assert loss.item() == pytest.approx(contrastive(*sides).item(), rel=1e-5)
    hits = retrieval(encoder, PAIRS, layer=layer, pooling=pooling)
    if layer == probe_layer(encoder.n_layers) and pooling == "mean":
        assert hits == retrieval(encoder, PAIRS)


def test_a_word_may_be_its_first_sub_word() -> None:
    encoder = tiny_encoder()
    losses = [
        AlignmentLoss(encoder, PAIRS, "l2", vectors=Vectors(2, pooling))(ROWS)
        for pooling in ("mean", "first")
    ]
    batch = encoder.encode([*SOURCE, *TARGET])
    states = encoder.states(batch)[2]
    firsts = [[int((batch.word_ids[row] == word).nonzero()[0]) for word in (0, 1)] for row in range(28)]
    differences = [
        states[i, firsts[i][w]] - states[i + 14, firsts[i + 14][w]]
        for i in range(14)
        for w in (0, 1)
        if SOURCE[i][w] != TARGET[i][w]
    ]
    assert losses[1].item() == pytest.approx(torch.stack(differences).square().sum(1).mean().item(), rel=1e-5)
    assert losses[0].item() != pytest.approx(losses[1].item(), rel=1e-3)


def test_a_layer_or_a_pooling_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="layer: expected 0 to 3, found 9"):
        align(tiny_encoder(), PAIRS, layer=9, progress=False)
    with pytest.raises(InputError, match="pooling: expected mean or first, found 'max'"):
        align(tiny_encoder(), PAIRS, pooling="max", progress=False)  # type: ignore[arg-type]


# -- rates by size, collapse -------------------------------------------------------------------------------------


class Sized(Encoder):
    """An encoder that says it has so many parameters in its blocks."""

    def parameter_table(self) -> Any:
        table = super().parameter_table()
        return table.assign(numel=(table["layer"] > 0) * 100_000_000 // int((table["layer"] > 0).sum()))


def test_a_larger_encoder_takes_smaller_steps() -> None:
    small = load_encoder("langworld", device="cpu")
    assert align_training(small, 1600) == Training(steps=80, batch=24, lr=2e-3, warmup=10)
    assert task_training(small, 1600) == Training(steps=150, batch=32, lr=2e-3, warmup=10)
    large = Sized(small.model, small.tokenizer, name="large", source="x", lm_head=small.lm_head)
    assert align_training(large, 6400).lr == task_training(large, 6400).lr == 2e-5
    assert (align_training(large, 6400).steps, task_training(large, 6400).steps) == (100, 600)
    assert task_training(large, 6400, head_only=True).lr == 1e-3
    assert align_training(large, 6400, epochs=2, batch=32, lr=1e-5) == Training(400, 32, 1e-5, warmup=10)
    with pytest.raises(InputError, match="expected epochs or steps, found both"):
        align_training(small, 100, epochs=1, steps=5)


def test_states_that_collapse_are_said(caplog: pytest.LogCaptureFixture) -> None:
    encoder, training = tiny_encoder(), Training(steps=1, batch=2, lr=0.5)
    before = spread(encoder, SOURCE, Vectors())
    collapsed = encoder.copy()
    with torch.no_grad():
        for name, weight in collapsed.model.named_parameters():
            weight.mul_(0.0 if "word_embeddings" in name or "position" in name else 1.0)
    with caplog.at_level(logging.WARNING, logger="xlprobe"):
        assert not heed_collapse(before, encoder, SOURCE, Vectors(), training)
        assert not caplog.records
        assert heed_collapse(before, collapsed, SOURCE, Vectors(), training)
    assert "the states of layer 2 collapse" in caplog.records[0].getMessage()
    assert "smaller learning rate than 0.5" in caplog.records[0].getMessage()


# -- selection, the head alone -----------------------------------------------------------------------------------


def test_the_best_state_of_a_dev_set_is_kept() -> None:
    task = Task("tagging", TAGS, {})
    training = Training(steps=12, batch=14, lr=0.5)  # it breaks what it had learned
    options: dict[str, Any] = {"training": training, "dev": TAGS, "check_every": 1, "progress": False}
    model = finetune(tiny_encoder(), task, patience=12, **options)
    watched = TaskModel(tiny_encoder().copy(), task)
    watch = Selection(watched, TAGS, check_every=1, patience=12)
    train(watched, training, n_items=14, lengths=watched.lengths, watch=watch, progress=False)
    seen = watch.checks
    assert model.score(TAGS)["accuracy"] == max(seen) > min(seen)
    assert min(seen[seen.index(max(seen)) :]) < max(seen)  # the last state is not simply the best
    short = finetune(tiny_encoder(), task, patience=1, metric="macro_f1", **options)
    assert short.score(TAGS)["macro_f1"] > 0
    with pytest.raises(InputError, match="metric: expected one of accuracy, macro_f1, span_f1, found 'f2'"):
        finetune(tiny_encoder(), task, metric="f2", **options)


def test_the_head_alone_leaves_the_encoder_as_it_is() -> None:
    task = Task("tagging", TAGS, {})
    training = Training(steps=40, batch=14, lr=1e-1)
    head = finetune(tiny_encoder(), task, training=training, train="head", progress=False)
    assert head.encoder.hash == tiny_encoder().hash
    assert head.score(TAGS)["accuracy"] > TaskModel(tiny_encoder(), task).score(TAGS)["accuracy"]
    assert all(parameter.requires_grad for parameter in head.parameters())
    with pytest.raises(InputError, match="freeze: the head alone is trained"):
        finetune(tiny_encoder(), task, train="head", freeze=(0,), progress=False)
    with pytest.raises(InputError, match="train: expected all or head, found 'top'"):
        finetune(tiny_encoder(), task, train="top", progress=False)  # type: ignore[arg-type]


# -- models are kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "corpus"), [("tagging", TAGS), ("classification", TEXTS)])
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_saved_model_predicts_the_same(kind: Any, corpus: Labelled, pooling: Any, tmp_path: Path) -> None:
    task = Task(kind, corpus, {})
    model = finetune(tiny_encoder(), task, training=Training(4, 8, 1e-2), pooling=pooling, progress=False)
    again = TaskModel.load(model.save(tmp_path / "kept"), device="cpu")
    assert again.predict(SOURCE) == model.predict(SOURCE)
    assert again.score(corpus) == model.score(corpus)
    assert torch.equal(again.logits(again.encoder.encode(SOURCE)), model.logits(model.encoder.encode(SOURCE)))
    plain = AutoModel.from_pretrained(tmp_path / "kept" / "encoder", trust_remote_code=False).eval()
    batch = model.encoder.encode(SOURCE)
    with torch.no_grad():
        there = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        assert torch.equal(there, model.encoder.forward(batch))
    with pytest.raises(InputError, match="a new or an empty folder"):
        model.save(tmp_path / "kept")
    with pytest.raises(InputError, match="holds no text to learn from"):
        again(torch.arange(2))


def test_predictions_are_a_frame_of_every_word() -> None:
    model = finetune(tiny_encoder(), Task("tagging", TAGS, {}), training=Training(4, 8, 1e-2), progress=False)
    frame = model.predictions(TAGS)
    assert len(frame) == sum(map(len, SOURCE))
    assert frame["text"].tolist() == [word for words in SOURCE for word in words]
    assert frame["predicted"].tolist() == [label for labels in model.predict(SOURCE) for label in labels]
    assert frame["right"].mean() == pytest.approx(model.score(TAGS)["accuracy"])
    assert frame["probability"].between(0.5, 1).all()
    lost = model.predictions([["Rome"] * 80])
    assert lost["predicted"].tolist()[79] == ""
    assert math.isnan(lost["probability"].tolist()[79])


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no task model"):
        TaskModel.load(tmp_path)
    model = TaskModel(tiny_encoder(), Task("tagging", TAGS, {}))
    folder = model.save(tmp_path / "x")
    facts = json.loads((folder / "task_model.json").read_text())
    (folder / "task_model.json").write_text(json.dumps(facts | {"labels": ["N"]}))
    with pytest.raises(InputError, match="is not of 1 labels"):
        TaskModel.load(folder, device="cpu")
    (folder / "task_model.json").write_text(json.dumps(facts | {"kind": "parsing"}))
    with pytest.raises(InputError, match="holds no task model"):
        TaskModel.load(folder, device="cpu")


# -- scores ------------------------------------------------------------------------------------------------------


def naive_macro(pairs: list[tuple[str, str]]) -> float:
    labels = {label for pair in pairs for label in pair if label}
    return sum(
        2 * sum(a == b == label for a, b in pairs) / sum((a == label) + (b == label) for a, b in pairs)
        for label in labels
    ) / len(labels)


def test_scores_against_a_naive_count() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(4, (60, 2), generator=generator).tolist()
    pairs = [("abc "[a].strip(), "abca"[b]) for a, b in draws]
    answers = [pairs[:20], pairs[20:]]
    assert scores.macro_f1(answers) == pytest.approx(naive_macro(pairs))
    assert scores.accuracy(answers) == pytest.approx(sum(a == b for a, b in pairs) / 60)


def test_spans_count_where_type_and_ends_are_right() -> None:
    right = [("B-PER", "B-PER"), ("I-PER", "I-PER"), ("O", "O"), ("B-LOC", "B-LOC")]
    assert scores.span_f1([right]) == 1.0
    short = [("B-PER", "B-PER"), ("O", "I-PER"), ("O", "O"), ("B-LOC", "B-LOC")]
    assert scores.span_f1([short]) == 0.5
    lost = [("", "B-PER"), ("", "I-PER"), ("O", "O"), ("B-LOC", "B-LOC")]
    assert scores.span_f1([lost]) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="span_f1 needs IOB2 labels"):
        scores.span_f1([[("NOUN", "NOUN")]])


def test_an_inside_that_opens_a_span_counts_as_conlleval_counts_it() -> None:
    # I-X behind another type, behind O or at the start begins a span; seqeval's default mode says the same
    assert scores.spans(["I-PER", "I-PER", "I-LOC", "O", "I-LOC"]) == {
        ("PER", 0, 2),
        ("LOC", 2, 3),
        ("LOC", 4, 5),
    }
    assert scores.spans(["B-PER", "B-PER", "I-PER"]) == {("PER", 0, 1), ("PER", 1, 3)}
    assert scores.spans(["O"]) == set()
    assert scores.span_f1([[("O", "O")]]) == 0.0


def test_spans_are_those_of_seqeval() -> None:
    seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    names = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    draws = torch.randint(5, (30, 7, 2), generator=torch.Generator().manual_seed(0)).tolist()
    answers = [[(names[a], names[b]) for a, b in sentence] for sentence in draws]
    sides = [[[pair[k] for pair in sentence] for sentence in answers] for k in (1, 0)]
    assert scores.span_f1(answers) == pytest.approx(seqeval.f1_score(*sides))
