"""Fine-tuning: it learns, the same seed gives the same model, joint losses count, bad tasks are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.metrics import f1_score

from reports.errors import InputError
from tests.xl_tiny import tiny_encoder
from xlprobe.data.corpora import Bitext, Labelled
from xlprobe.data.tasks import Task
from xlprobe.training.finetune import (
    Joint,
    TaskModel,
    TransferScores,
    _JointLoss,
    finetune,
    finetune_seeds,
    macro_f1,
)
from xlprobe.training.identity import encoder_facts, task_facts
from xlprobe.training.loop import Training, train

NOUNS, VERBS = ["Anna", "Berlin", "Rome", "Paris", "teacher"], ["speaks", "plays", "lived", "works", "stands"]
WORDS = tuple((n, v, m) for n in NOUNS for v in VERBS for m in NOUNS if n != m)
TAGS = Labelled(WORDS, (("NOUN", "VERB", "NOUN"),) * len(WORDS), tuple(map(str, range(len(WORDS)))))
TOPICS = Labelled(WORDS, tuple((w[0],) for w in WORDS), TAGS.ids)
PLAN = Training(steps=120, batch=16, lr=3e-3)
BRIEF = Training(steps=10, batch=16, lr=3e-3)
POS = Task("tagging", train=TAGS, test={"same": TAGS})
TOPIC = Task("classification", train=TOPICS, test={"same": TOPICS})
PAIRS = Bitext(WORDS[:20], tuple(w[::-1] for w in WORDS[:20]), tuple(((0, 0), (2, 2)) for _ in range(20)))


@pytest.mark.parametrize("task", [POS, TOPIC], ids=["tagging", "classification"])
def test_a_task_is_learned_and_the_encoder_stays(task: Task) -> None:
    encoder = tiny_encoder()
    before = encoder.hash
    fresh = TaskModel(encoder.copy(), task, seed=0).score(task.test["same"])["accuracy"]
    model = finetune(encoder, task, training=PLAN, progress=False)
    score = model.score(task.test["same"])
    assert encoder.hash == before
    assert score["accuracy"] > max(0.9, fresh + 0.05)
    assert score["n"] == sum(map(len, task.train.labels))


def test_a_seed_decides_all() -> None:
    plans = [BRIEF, BRIEF, replace(BRIEF, seed=1)]
    hashes = [finetune(tiny_encoder(), POS, training=plan, progress=False).encoder.hash for plan in plans]
    assert hashes[0] == hashes[1] != hashes[2]


@torch.no_grad()
def test_the_loss_is_the_naive_one_on_first_sub_words() -> None:
    encoder = tiny_encoder().copy()
    model = TaskModel(encoder, POS, seed=0)
    total, n = 0.0, 0
    for i in (0, 7):
        batch = encoder.encode([WORDS[i]])
        states, numbers = encoder.forward(batch)[0], batch.word_ids[0].tolist()
        for word, tag in enumerate(TAGS.labels[i]):
            logits = model.head(states[numbers.index(word)]).detach()
            total -= float(logits.log_softmax(-1)[POS.labels.index(tag)])
            n += 1
    assert float(model(torch.tensor([0, 7])).detach()) == pytest.approx(total / n, abs=1e-5)


def test_words_that_are_cut_off_count_as_wrong() -> None:
    model = finetune(tiny_encoder(), POS, training=BRIEF, progress=False)
    long = Labelled((WORDS[0] * 30,), (TAGS.labels[0] * 30,), ("long",))
    said = model.predict(long.words)[0]
    assert 0 < len(said) < 90
    assert model.score(long)["n"] == 90
    assert model.score(long)["accuracy"] <= len(said) / 90


@pytest.mark.parametrize("schedule", ["during", "alternate"])
def test_an_alignment_loss_beside_the_task_changes_what_is_learned(schedule: str) -> None:
    joint = Joint(PAIRS, "token", weight=0.5, schedule=schedule)  # type: ignore[arg-type]
    with_it, again = (
        finetune(tiny_encoder(), POS, training=BRIEF, alignment=joint, progress=False) for _ in range(2)
    )
    without = finetune(tiny_encoder(), POS, training=BRIEF, progress=False)
    assert with_it.encoder.hash == again.encoder.hash != without.encoder.hash


@pytest.mark.parametrize("schedule", ["during", "alternate"])
def test_a_joint_run_that_was_stopped_ends_as_one_that_was_not(schedule: str, tmp_path: Path) -> None:
    """Stopped after an odd number of steps: were turns counted anew, the next one would be the task's again."""
    joint = Joint(PAIRS, "token", weight=0.5, schedule=schedule)  # type: ignore[arg-type]
    plan = replace(BRIEF, steps=6)

    def run(folder: Path | None) -> TaskModel:
        return finetune(tiny_encoder(), POS, training=plan, alignment=joint, folder=folder, progress=False)

    whole, part = run(None), TaskModel(tiny_encoder().copy(), POS, seed=plan.seed)
    loss = _JointLoss(part, joint, plan.seed)

    def interrupt(step: int, _: float) -> bool:
        if step == 3:
            raise KeyboardInterrupt
        return False

    facts = {
        "task": task_facts(POS),
        "joint": loss.facts(),
        "freeze": [],
        "encoder": encoder_facts(tiny_encoder()),
    }
    with pytest.raises(KeyboardInterrupt):
        train(
            loss,
            plan,
            n_items=len(POS.train),
            lengths=part.batch.lengths if part.batch else None,
            folder=tmp_path,
            save_every=3,
            before=loss.begin,
            watch=interrupt,
            facts=facts,
            progress=False,
        )
    assert part.encoder.hash != whole.encoder.hash
    assert run(tmp_path).encoder.hash == whole.encoder.hash


def test_several_seeds_give_a_table_that_can_be_saved(tmp_path_factory: pytest.TempPathFactory) -> None:
    found = finetune_seeds(tiny_encoder(), POS, seeds=(0, 1), training=BRIEF, progress=False)
    assert found.scores["seed"].tolist() == [0, 1]
    summary = found.summary().iloc[0]
    assert summary["accuracy"] == pytest.approx(found.scores["accuracy"].mean())
    folder = tmp_path_factory.mktemp("scores") / "x"
    assert TransferScores.load(found.save(folder)).equals(found)


def test_macro_f1_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    said, true = (["abcd"[i] for i in torch.randint(4, (60,), generator=generator)] for _ in range(2))
    expected = f1_score(true, said, average="macro", zero_division=0)
    assert macro_f1(list(zip(said, true, strict=True))) == pytest.approx(expected)
    assert macro_f1(list(zip(said, said, strict=True))) == 1.0


def test_a_task_of_one_class_is_refused() -> None:
    one = Labelled(WORDS[:2], (("NOUN",) * 3,) * 2, ("0", "1"))
    with pytest.raises(InputError, match="at least two classes to train on, found NOUN"):
        Task("tagging", train=one, test={"x": one})


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="x: sentence 0 has 1 labels for 3 words"):
        Task("tagging", train=TAGS, test={"x": TOPICS})
    with pytest.raises(InputError, match="holds no sentences"):
        Task("tagging", train=TAGS, test={"x": Labelled((), (), ())})
