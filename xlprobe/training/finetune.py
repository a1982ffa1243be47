"""Fine-tune an encoder on a task in one language and score it in others, zero-shot.

- *Tagging*: a linear layer over the last state of each word's first sub-word, cross entropy over words.
- *Classification*: a linear layer over the mean of the last states of the text, special tokens left out.

With `alignment`, fine-tuning sees an alignment loss too: `during` adds weight · loss to each step, `alternate` takes
turns. The seed alone decides data order, head and dropout, so two runs on the CPU are the same run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from reports.errors import InputError
from reports.intervals import wilson
from reports.results import Result
from xlprobe.data.corpora import Bitext, Labelled
from xlprobe.data.tasks import Task
from xlprobe.encoders.batches import Batch, sentence_means
from xlprobe.encoders.coverage import heed
from xlprobe.encoders.encoder import Encoder
from xlprobe.training.alignment import AlignmentLoss, freeze_layers
from xlprobe.training.conflict import Aggregator, check_weight, combine
from xlprobe.training.identity import bitext_facts, encoder_facts, task_facts
from xlprobe.training.loop import Training, derive, train

__all__ = ["Joint", "TaskModel", "TransferScores", "finetune", "finetune_seeds", "macro_f1"]

JOINT_WEIGHT = 0.1
DEFAULT = Training(steps=150, batch=32, lr=2e-3, warmup=10)


@dataclass(frozen=True)
class Joint:
    """An alignment loss that is trained with the task's, both in every step or each in turn.

    Attributes:
        bitext: The pairs to align on.
        objective: As for `align`.
        weight: What the alignment's loss is multiplied by, for the aggregator "sum" alone (None: 0.1).
        schedule: "during" takes both losses in each step, "alternate" takes turns.
        aggregator: How the two losses of a step become one: "sum", or conflicts settled by TorchJD
            (`xlprobe.training.conflict`).

    Raises:
        InputError: Another schedule or aggregator, a weight that is not above 0, or an aggregator other than "sum" with
            a weight or with the schedule "alternate".
    """

    bitext: Bitext
    objective: str | Mapping[str, float]
    weight: float | None = None
    schedule: Literal["during", "alternate"] = "during"
    aggregator: Aggregator | Literal["sum"] = "sum"

    def __post_init__(self) -> None:
        if self.schedule not in ("during", "alternate"):
            raise InputError(f"schedule: expected during or alternate, found {self.schedule!r}")
        check_weight(self.weight, self.aggregator)
        if self.schedule == "alternate" and self.aggregator != "sum":
            raise InputError(
                f"aggregator: {self.aggregator} needs both losses in one step; expected the schedule during, found "
                "alternate"
            )

    @property
    def share(self) -> float:
        """The weight, or its default."""
        return JOINT_WEIGHT if self.weight is None else self.weight


@dataclass(frozen=True, repr=False, eq=False)
class TransferScores(Result):
    """Scores of several fine-tunings.

    Attributes:
        scores: Frame seed, language, accuracy, low, high (95 %, Wilson), macro_f1, n, lost (of them, words that the
            encoder never saw).
        encoder: Name of the encoder.
        task: Kind of the task.
    """

    kind: ClassVar[str] = "transfer_scores"
    scores: pd.DataFrame
    encoder: str
    task: str

    def summary(self) -> pd.DataFrame:
        """Frame language, accuracy and macro_f1 (means over seeds), sd of the accuracy (nan for one seed), seeds."""
        grouped = self.scores.groupby("language", sort=False)
        return grouped.agg(
            accuracy=("accuracy", "mean"),
            sd=("accuracy", "std"),
            macro_f1=("macro_f1", "mean"),
            seeds=("seed", "size"),
        ).reset_index()


class TaskModel(nn.Module):
    """An encoder with a linear head for a task; `model(rows)` is the loss of the training sentences `rows`, in nats."""

    def __init__(self, encoder: Encoder, task: Task, *, seed: int = 0) -> None:
        super().__init__()
        self.encoder, self.task, self.model = encoder, task, encoder.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "head"))
            self.head = nn.Linear(encoder.d_model, len(task.labels)).to(encoder.device, encoder.dtype)
        self.batch = encoder.encode(task.train.words)
        heed(encoder, task.train.words, "train")
        index = {label: i for i, label in enumerate(task.labels)}
        self.targets = [
            [index[labels[place]] for place in places]
            for labels, places in zip(task.train.labels, self._places(self.batch), strict=True)
        ]

    def forward(self, rows: Tensor) -> Tensor:
        """Mean cross entropy over the questions of the sentences with the numbers `rows` [n]."""
        targets = torch.tensor([label for i in rows.tolist() for label in self.targets[i]])
        logits = self.logits(self.batch[rows]).float()
        return nn.functional.cross_entropy(logits, targets.to(logits.device))

    def logits(self, batch: Batch) -> Tensor:
        """The logits [questions, labels]: a question a word (tagging) or a text, in the order of the sentences."""
        batch = batch.to(self.encoder.device)
        states = self.encoder.forward(batch)
        tagging = self.task.kind == "tagging"
        logits: Tensor = self.head(states[batch.firsts] if tagging else sentence_means(states, batch))
        return logits

    @torch.no_grad()
    def predict(self, sentences: Sequence[Sequence[str]], *, batch_size: int = 128) -> list[list[str]]:
        """The label of each word, or of each text.

        Words behind the last one that has a token were cut off and have no label; a word before it of which the
        tokenizer leaves nothing has an empty one.
        """
        batch = self.encoder.encode(sentences)
        labels: list[list[str]] = [[] for _ in sentences]
        for rows, part in batch.chunks(batch_size):
            best = iter(self.logits(part).argmax(-1).tolist())
            for row, places in zip(rows.tolist(), self._places(part), strict=True):
                labels[row] = [""] * (places[-1] + 1 if places else 0)
                for place in places:
                    labels[row][place] = self.task.labels[next(best)]
        return labels

    def score(self, corpus: Labelled) -> dict[str, float]:
        """The accuracy, macro_f1 and n over all words (or texts), and `lost`: how many of them the encoder never saw.

        Such a word, cut off or without a token, counts as wrong.
        """
        answers = [answer for sentence in self.answers(corpus) for answer in sentence]
        right = sum(guess == label for guess, label in answers)
        lost = sum(not guess for guess, _ in answers)
        return {
            "accuracy": right / len(answers),
            "macro_f1": macro_f1(answers),
            "n": len(answers),
            "lost": lost,
        }

    def answers(self, corpus: Labelled) -> list[list[tuple[str, str]]]:
        """(predicted, true) of each word, or of each text, by sentence; the prediction of a lost word is empty."""
        heed(self.encoder, corpus.words, "asked")
        return [
            list(zip([*guesses, *[""] * (len(labels) - len(guesses))], labels, strict=True))
            for guesses, labels in zip(self.predict(corpus.words), corpus.labels, strict=True)
        ]

    def _places(self, batch: Batch) -> list[list[int]]:
        """The numbers of the words that are asked in each sentence, those with a token; 0 for a text."""
        if self.task.kind != "tagging":
            return [[0]] * len(batch)
        counts: list[int] = batch.firsts.sum(1).tolist()
        return [part.tolist() for part in batch.word_ids[batch.firsts].split(counts)]


def finetune(
    encoder: Encoder,
    task: Task,
    *,
    training: Training = DEFAULT,
    alignment: Joint | None = None,
    freeze: Iterable[int] = (),
    folder: str | Path | None = None,
    progress: bool = True,
) -> TaskModel:
    """A task model on a copy of `encoder`, trained on the task's source language.

    Args:
        encoder: The encoder to start from, which remains unchanged.
        task: What to learn.
        training: The default suits the embedded encoder; for XLM-R base: tagging lr 2e-5, batch 32, 10 epochs; SIB-200
            lr 1e-5, batch 32, 40 epochs.
        alignment: An alignment loss beside the task's.
        freeze: Layers that are not trained (0: the embeddings).
        folder: Where checkpoints go, from which the same call goes on; any other training is refused there.
        progress: Show a progress bar.

    Raises:
        InputError: A layer that does not exist, a fault of the alignment (see `align`), or `folder` holds another
            training.
        TrainingError: The loss is not finite; the last checkpoint is kept.

    >>> from xlprobe.encoders.encoder import load_encoder
    >>> corpus = Labelled((("this", "river"), ("my", "robot")), (("DET", "NOUN"),) * 2, ("0", "1"))
    >>> model = finetune(
    ...     load_encoder("langworld", device="cpu"),
    ...     Task("tagging", train=corpus, test={"source": corpus}),
    ...     training=Training(steps=20, batch=2, lr=1e-3),
    ...     progress=False,
    ... )
    >>> model.score(corpus)["accuracy"]
    1.0
    """
    model = TaskModel(encoder.copy(), task, seed=training.seed)
    joint = None if alignment is None else _JointLoss(model, alignment, training.seed)
    layers = sorted(set(freeze))
    frozen = freeze_layers(model.encoder, layers)
    facts = {"task": task_facts(task), "joint": joint.facts() if joint else None, "freeze": layers}
    train(
        joint or model,
        training,
        n_items=len(task.train),
        lengths=model.batch.lengths,
        device=encoder.device,
        folder=None if folder is None else Path(folder),
        before=joint.begin if joint else None,
        facts=None if folder is None else facts | {"encoder": encoder_facts(encoder)},
        label=task.kind,
        progress=progress,
    )
    for parameter in frozen:
        parameter.requires_grad_(True)
    return model


def finetune_seeds(
    encoder: Encoder,
    task: Task,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    training: Training = DEFAULT,
    alignment: Joint | None = None,
    freeze: Iterable[int] = (),
    progress: bool = True,
) -> TransferScores:
    """One fine-tuning a seed, scored in every test language; one seed alone says nothing of its noise.

    The arguments are those of `finetune`; `seeds` take the place of the training's seed.
    """
    rows, frozen = [], tuple(freeze)
    for seed in seeds:
        model = finetune(
            encoder,
            task,
            training=replace(training, seed=seed),
            alignment=alignment,
            freeze=frozen,
            progress=progress,
        )
        for language, corpus in task.test.items():
            score = model.score(corpus)
            n = int(score["n"])
            low, high = wilson(round(score["accuracy"] * n), n)
            rows.append(
                (seed, language, score["accuracy"], low, high, score["macro_f1"], n, int(score["lost"]))
            )
    columns = ["seed", "language", "accuracy", "low", "high", "macro_f1", "n", "lost"]
    return TransferScores(pd.DataFrame(rows, columns=columns), encoder.name, task.kind)


def macro_f1(pairs: Sequence[tuple[str, str]]) -> float:
    """The mean of 2 hits / (predicted + true) over the labels that occur on either side of (predicted, true).

    An empty prediction is a miss of its true label and no label of its own.

    >>> macro_f1([("a", "a"), ("a", "b"), ("b", "b"), ("b", "b")])  # F1 2/3 and 4/5
    0.7333333333333334
    """
    labels = sorted({label for pair in pairs for label in pair if label})
    scores = [
        2 * sum(a == b == label for a, b in pairs) / sum((a == label) + (b == label) for a, b in pairs)
        for label in labels
    ]
    return sum(scores) / len(scores)


class _JointLoss(nn.Module):
    """Task and alignment: item i of the task goes with pair i of the bitext, which begins anew when it ends."""

    def __init__(self, task: TaskModel, joint: Joint, seed: int) -> None:
        super().__init__()
        self.task, self.joint = task, joint
        # The projection of conflict-aware training has always had the seed 0; saved trials go on with it.
        seed = seed if joint.aggregator == "sum" else 0
        self.alignment = AlignmentLoss(task.encoder, joint.bitext, joint.objective, seed=seed)
        self.step = 0

    def begin(self, step: int) -> None:
        """Note the step's number, which decides whose turn it is: a resumed run knows it, unlike a count of calls."""
        self.step = step

    def facts(self) -> dict[str, Any]:
        """What the alignment adds to what a fine-tuning depends on."""
        joint = self.joint
        return {
            "objective": self.alignment.weights,
            "bitext": bitext_facts(joint.bitext),
            "weight": joint.share if joint.aggregator == "sum" else None,
            "schedule": joint.schedule,
            "aggregator": joint.aggregator,
        }

    def forward(self, rows: Tensor) -> Tensor:
        pairs, joint = rows % len(self.alignment.pairs), self.joint
        if joint.aggregator != "sum":
            losses = [self.task(rows), self.alignment(pairs)]
            return combine(losses, list(self.task.encoder.model.parameters()), joint.aggregator)
        if joint.schedule == "during":
            both: Tensor = self.task(rows) + joint.share * self.alignment(pairs)
            return both
        turn: Tensor = self.task(rows) if self.step % 2 == 0 else joint.share * self.alignment(pairs)
        return turn
