"""Fine-tune an encoder on a task in one language and score it in others, zero-shot.

- *Tagging*: a linear layer over the last state of each word's first sub-word, cross entropy over words.
- *Classification*: a linear layer over the mean of the last states of the text, special tokens left out.

With `alignment`, fine-tuning sees an alignment loss too: `during` adds weight · loss to each step, `alternate` takes
turns. The seed alone decides data order, head and dropout, so two runs on the CPU are the same run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
from torch import Tensor, nn

from reports.errors import InputError
from reports.intervals import wilson
from reports.missing import explained
from reports.results import Result
from xlprobe.data.corpora import Bitext, Labelled
from xlprobe.data.tasks import Task
from xlprobe.encoders.batches import Pooling
from xlprobe.encoders.encoder import Encoder
from xlprobe.training import scores
from xlprobe.training.alignment import AlignmentLoss, freeze_layers
from xlprobe.training.cached_contrast import Vectors
from xlprobe.training.conflict import Aggregator, check_weight, combine
from xlprobe.training.defaults import heed_collapse, spread, task_training
from xlprobe.training.identity import bitext_facts, encoder_facts, task_facts
from xlprobe.training.loop import Training
from xlprobe.training.loop import train as fit
from xlprobe.training.selection import Selection
from xlprobe.training.task_model import TaskModel

__all__ = ["Joint", "TaskModel", "TransferScores", "finetune", "finetune_seeds", "macro_f1"]

JOINT_WEIGHT = 0.1


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
        layer: As for `align`.
        pooling: As for `align`.

    Raises:
        InputError: Another schedule or aggregator, a weight that is not above 0, or an aggregator other than "sum" with
            a weight or with the schedule "alternate".
    """

    bitext: Bitext
    objective: str | Mapping[str, float]
    weight: float | None = None
    schedule: Literal["during", "alternate"] = "during"
    aggregator: Aggregator | Literal["sum"] = "sum"
    layer: int | None = None
    pooling: Pooling = "mean"

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
        provenance: What the scores depend on, where the command line saved them.
    """

    kind: ClassVar[str] = "transfer_scores"
    scores: pd.DataFrame
    encoder: str
    task: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> pd.DataFrame:
        """Frame language, accuracy and macro_f1 (means over seeds), sd of the accuracy, seeds, missing."""
        grouped = self.scores.groupby("language", sort=False)
        summary = grouped.agg(
            accuracy=("accuracy", "mean"),
            sd=("accuracy", "std"),
            macro_f1=("macro_f1", "mean"),
            seeds=("seed", "size"),
        )
        return explained(summary.reset_index(), {"sd": "one seed has no spread"})


def finetune(
    encoder: Encoder,
    task: Task,
    *,
    training: Training | None = None,
    alignment: Joint | None = None,
    train: Literal["all", "head"] = "all",
    freeze: Iterable[int] = (),
    pooling: Pooling = "mean",
    dev: Labelled | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    **selection: Any,
) -> TaskModel:
    """A task model on a copy of `encoder`, trained on the task's source language.

    Args:
        encoder: The encoder to start from, which remains unchanged.
        task: What to learn.
        training: By default what suits the encoder's size (`xlprobe.training.defaults`).
        alignment: An alignment loss beside the task's.
        train: "all" trains encoder and head, "head" the head alone.
        freeze: Layers that are not trained (0: the embeddings).
        pooling: A text is the "mean" of its tokens, or its "first" token.
        dev: Sentences by which the best state is kept; without them it is the last.
        folder: Where checkpoints go, from which the same call goes on; any other training is refused there.
        progress: Show a progress bar.
        selection: With `dev`: metric, check_every and patience (`xlprobe.training.selection.Selection`).

    Raises:
        InputError: As `align`, or `folder` holds another training.
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
    layers = _frozen(encoder, train, freeze, alignment)
    head_only = len(layers) > encoder.n_layers
    training = training or task_training(encoder, len(task.train), head_only=head_only)
    model = TaskModel(encoder.copy(), task, seed=training.seed, pooling=pooling, micro=training.micro)
    best = None if dev is None else Selection(model, dev, **selection)
    return _trained(model, encoder, task, training, alignment, layers, best, folder, progress)


def _trained(
    model: TaskModel,
    encoder: Encoder,
    task: Task,
    training: Training,
    alignment: Joint | None,
    layers: list[int],
    best: Selection | None,
    folder: str | Path | None,
    progress: bool,
) -> TaskModel:
    """The model, trained in place and restored to its best state."""
    pooling, head_only = model.pooling, len(layers) > encoder.n_layers
    joint = None if alignment is None else _JointLoss(model, alignment, training.seed)
    frozen = freeze_layers(model.encoder, layers)
    facts: dict[str, Any] = {
        "task": task_facts(task),
        "joint": joint.facts() if joint else None,
        "freeze": layers,
    }
    facts |= {"pooling": pooling} if pooling != "mean" else {}
    facts |= {"selection": best.facts()} if best is not None else {}
    before = math.nan if head_only else spread(encoder, task.train.words, Vectors(pooling=pooling))
    fit(
        joint or model,
        training,
        n_items=len(task.train),
        lengths=model.lengths,
        device=encoder.device,
        folder=None if folder is None else Path(folder),
        before=joint.begin if joint else None,
        watch=best,
        facts=None if folder is None else facts | {"encoder": encoder_facts(encoder)},
        label=task.kind,
        progress=progress,
    )
    if best is not None:
        best.restore()
    for parameter in frozen:
        parameter.requires_grad_(True)
    if not head_only:
        heed_collapse(before, model.encoder, task.train.words, Vectors(pooling=pooling), training)
    return model


def _frozen(encoder: Encoder, train: str, freeze: Iterable[int], alignment: Joint | None) -> list[int]:
    """The layers that are not trained."""
    layers = sorted(set(freeze))
    if train not in ("all", "head"):
        raise InputError(f"train: expected all or head, found {train!r}")
    if train == "all":
        return layers
    if layers or alignment is not None:
        given = "freeze" if layers else "alignment"
        raise InputError(f"{given}: the head alone is trained (train='head'), which leaves nothing for it")
    return list(range(encoder.n_layers + 1))


def finetune_seeds(
    encoder: Encoder,
    task: Task,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    training: Training | None = None,
    folder: str | Path | None = None,
    models: str | Path | None = None,
    **options: Any,
) -> TransferScores:
    """One fine-tuning a seed, scored in every test language; one seed alone says nothing of its noise.

    Args:
        encoder: The encoder to start from.
        task: What to learn and ask.
        seeds: They take the place of the training's seed.
        training: As for `finetune`.
        folder: Where checkpoints go, a folder a seed.
        models: Where the models are kept (`TaskModel.save`), a folder a seed.
        options: The others of `finetune`.

    >>> from xlprobe.encoders.encoder import load_encoder
    >>> corpus = Labelled((("this", "river"), ("my", "robot")), (("DET", "NOUN"),) * 2, ("0", "1"))
    >>> scores = finetune_seeds(
    ...     load_encoder("langworld", device="cpu"),
    ...     Task("tagging", train=corpus, test={"source": corpus}),
    ...     seeds=(0, 1),
    ...     training=Training(steps=2, batch=2, lr=1e-3),
    ...     progress=False,
    ... )
    >>> scores.scores["seed"].tolist()
    [0, 1]
    """
    rows: list[tuple[Any, ...]] = []
    head_only = options.get("train") == "head"
    training = training or task_training(encoder, len(task.train), head_only=head_only)
    options["freeze"] = tuple(options.get("freeze", ()))
    for seed in seeds:
        model = finetune(
            encoder,
            task,
            training=replace(training, seed=seed),
            folder=None if folder is None else Path(folder) / f"seed-{seed}",
            **options,
        )
        if models is not None:
            model.save(Path(models) / f"seed-{seed}")
        for language, corpus in task.test.items():
            score = model.score(corpus, progress=options.get("progress", True))
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

    >>> round(macro_f1([("a", "a"), ("a", "b"), ("b", "b"), ("b", "b")]), 6)  # F1 2/3 and 4/5
    0.733333
    """
    return scores.macro_f1([pairs])


class _JointLoss(nn.Module):
    """Task and alignment: item i of the task goes with pair i of the bitext, which begins anew when it ends."""

    def __init__(self, task: TaskModel, joint: Joint, seed: int) -> None:
        super().__init__()
        self.task, self.joint = task, joint
        vectors = Vectors(joint.layer, joint.pooling, task.micro)
        # The projection of conflict-aware training has always had the seed 0; saved trials go on with it.
        seed = seed if joint.aggregator == "sum" else 0
        self.alignment = AlignmentLoss(
            task.encoder, joint.bitext, joint.objective, seed=seed, vectors=vectors
        )
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
            "layer": self.alignment.vectors.at(self.task.encoder),
            "pooling": joint.pooling,
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
