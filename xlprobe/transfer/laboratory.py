"""What a transfer study needs of its material: an encoder, pairs, tasks, and how they are aligned, trained and scored.

The study (`xlprobe.transfer.study`) knows this class alone, so the embedded languages, real text and a user's own data
go through the same steps. How an encoder is aligned, tuned and scored stands here; a laboratory adds its text, by
`_parallel`, `_task` and `_labelled`.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from reports.errors import InputError
from xlprobe.data.corpora import Bitext, Labelled, Links, Words
from xlprobe.data.tasks import Kind, Task
from xlprobe.encoders.batches import Pooling
from xlprobe.encoders.encoder import Encoder
from xlprobe.probes.gradient_stream import Loss
from xlprobe.training.alignment import WORDS, AlignmentLoss, align
from xlprobe.training.cached_contrast import Vectors
from xlprobe.training.conflict import Aggregator, check_weight
from xlprobe.training.defaults import task_training
from xlprobe.training.finetune import Joint, TaskModel, finetune, macro_f1
from xlprobe.training.links import require_words
from xlprobe.training.loop import Precision, Training, derive

__all__ = ["TASKS", "JointPlan", "Laboratory", "Score", "Sizes"]

SOURCE = "source"  # what a material calls its one source language
#: Sizes that came later, with the values at which a study is the one that it was before: provenance leaves them out.
LATER: dict[str, Any] = {
    "layer": None,
    "pooling": "mean",
    "micro": 0,
    "tuned": "all",
    "head_lr": None,
    "precision": "no",
}
TASKS: dict[str, Kind] = {"pos": "tagging", "topic": "classification"}


@dataclass(frozen=True)
class Score:
    """Right answers and questions of each test sentence: accuracy is Σ hits / Σ counts.

    >>> Score((2.0, 1.0), (4.0, 1.0)).accuracy
    0.6
    """

    hits: tuple[float, ...]
    counts: tuple[float, ...]
    macro_f1: float = float("nan")

    @property
    def accuracy(self) -> float:
        """Micro accuracy over all questions."""
        return sum(self.hits) / sum(self.counts)


@dataclass(frozen=True)
class JointPlan:
    """Fine-tuning with an alignment objective beside the task: both losses count in every step.

    Attributes:
        objective: The alignment objective.
        pair: The language pair whose bitext is aligned.
        weight: What the alignment's loss is multiplied by, for the aggregator "sum" alone (None: 0.1).
        aggregator: "sum" adds the two losses; "upgrad", "pcgrad" and "cagrad" let TorchJD settle conflicts
            (`xlprobe.training.conflict`).
        frozen: Layers that are not trained (0: the embeddings).
    """

    objective: str
    pair: str
    weight: float | None = None
    aggregator: Aggregator | Literal["sum"] = "sum"
    frozen: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_weight(self.weight, self.aggregator)


@dataclass(frozen=True)
class Sizes:
    """Sentences of each set, steps of each training, sentences (or pairs) of a batch; what of the encoder is used.

    `finetune_lr` was chosen for the embedded languages among 5e-4 to 4e-3, by accuracy on sentences of the training
    split that were not trained on. Topics of the source language are then right in 98 %, those of unaligned targets in
    35 to 73 % (three seeds), where chance is 17 %.

    Attributes:
        bitext: Sentence pairs to align on.
        train: Sentences of the source language to learn a task from.
        test: Sentences of each language that are asked.
        held_out: Parallel sentences for distances and retrieval, in no training.
        align_steps: Steps of an alignment.
        finetune_steps: Steps of fine-tuning on a task.
        head_steps: Steps that train a head on the frozen encoder, before gradients are read.
        align_lr: Learning rate of the alignment; left out: what suits the encoder.
        finetune_lr: Learning rate of fine-tuning; left out: what suits the encoder.
        probe_batches: Batches over which gradients are averaged.
        batch: Sentences, or pairs, of a batch.
        layer: The layer that is aligned; left out: two thirds up.
        pooling: How a sentence's words become one vector.
        micro: Sentences that go through the encoder at once in an alignment; 0: the whole batch.
        tuned: Whether fine-tuning trains the whole model or its head.
        head_lr: Learning rate of a head that is trained alone; left out: what suits the encoder.
        precision: Autocast of alignment and fine-tuning; gradients, distances and scores are never cast.
    """

    bitext: int = 1600
    train: int = 1600
    test: int = 400
    held_out: int = 300
    align_steps: int = 200
    finetune_steps: int = 150
    head_steps: int = 150
    align_lr: float | None = 5e-4
    finetune_lr: float | None = 2e-3
    probe_batches: int = 24
    batch: int = 32
    layer: int | None = None
    pooling: Pooling = "mean"
    micro: int = 0
    tuned: Literal["all", "head"] = "all"
    head_lr: float | None = None
    precision: Precision = "no"

    def __post_init__(self) -> None:
        for key in fields(self):
            value, least = getattr(self, key.name), 2 if key.name == "probe_batches" else 1
            if value is None or isinstance(value, str) or key.name in ("layer", "micro"):
                continue
            if isinstance(value, int) and value < least:
                raise InputError(f"sizes.{key.name}: expected at least {least}, found {value}")
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"sizes.{key.name}: expected a number above 0, found {value}")
        Vectors(self.layer, self.pooling, self.micro)
        if self.tuned not in ("all", "head"):
            raise InputError(f"sizes.tuned: expected all or head, found {self.tuned!r}")
        if self.precision not in get_args(Precision):
            raise InputError(f"sizes.precision: expected no, bf16 or fp16, found {self.precision!r}")


class Laboratory(ABC):
    """The material of a study. Its arguments and the seed decide every answer, so a repeated call gives the same.

    Attributes:
        name: Name of the material, for titles and provenance.
        origin: Where its text comes from, for provenance.
        encoder: The pretrained encoder; no method changes it.
        pairs: Names of the language pairs, SOURCE-TARGET.
        tasks: Names of the tasks.
        sizes: How much text and training a study takes.
    """

    name: ClassVar[str]
    origin: ClassVar[str]
    pairs: tuple[str, ...]
    tasks: tuple[str, ...] = tuple(TASKS)

    def __init__(self, encoder: Encoder, sizes: Sizes, *, seed: int = 0) -> None:
        self.encoder = encoder
        self.sizes = sizes
        self.seed = seed
        self._heads: dict[tuple[str, str, str], nn.Linear] = {}

    @property
    def data(self) -> dict[str, Any]:
        """Where the text comes from and how much of it is used, for provenance."""
        sizes = {key: value for key, value in asdict(self.sizes).items() if value != LATER.get(key, ...)}
        return {"source": self.origin, "seed": self.seed, **sizes}

    # -- text --------------------------------------------------------------------------------------------

    @abstractmethod
    def _parallel(self, which: Literal["bitext", "held_out"], pair: str) -> Bitext:
        """Translation pairs with word links: to align on, or held out from every other use."""

    @abstractmethod
    def _task(self, task: str, source: str = SOURCE) -> Task:
        """The task as it is learned in a source language, with the classes of its head; no tests."""

    @abstractmethod
    def _labelled(self, which: Literal["train", "test"], language: str, task: str) -> Labelled:
        """Sentences with the task's labels, in a source or in a target language."""

    def source(self, pair: str) -> str:
        """The language in which the tasks of a pair are learned."""
        return SOURCE

    def accepts(self, pair: str) -> bool:
        """Whether the pair can be studied; `pairs` are those that are studied where none is named."""
        return pair in self.pairs

    def lacks(self, pair: str, task: str) -> str:
        """Why the task cannot be studied on the pair, in words; empty where it can."""
        return ""

    def check(self, pair: str, objective: str) -> None:
        """Refuse, before any training, an objective for which the pair's text is not made.

        Raises:
            InputError: An objective of words, and a side without spaces between them.
        """
        if objective in WORDS:
            require_words(self._text(pair))

    def _text(self, pair: str) -> Bitext:
        """The pairs to align on, with or without links."""
        return self._parallel("bitext", pair)

    def held_out(self, pair: str) -> Bitext:
        """Parallel text that no other method uses."""
        return self._parallel("held_out", pair)

    # -- training and scores -----------------------------------------------------------------------------

    def aligned(
        self, pair: str, objective: str, *, seed: int, shuffled: bool = False, progress: bool = False
    ) -> Encoder:
        """A copy of the encoder, aligned on the pair; `shuffled` with translations that do not belong together."""
        training = self._training(self.sizes.align_steps, self.sizes.align_lr, derive(seed, "align"))
        bitext = self._bitext(pair, shuffled=shuffled)
        options: dict[str, Any] = {"layer": self.sizes.layer, "pooling": self.sizes.pooling}
        return align(
            self.encoder, bitext, objective=objective, training=training, progress=progress, **options
        )

    def finetuned(
        self,
        encoder: Encoder,
        task: str,
        *,
        seed: int,
        joint: JointPlan | None = None,
        source: str = SOURCE,
        train: str | None = None,
        progress: bool = False,
    ) -> TaskModel:
        """A model of the task on a copy of `encoder`, trained on a source language, with `joint` on both losses.

        `train` says what is trained, "all" or the "head" (at the rate that suits a head); None: what the sizes say.
        """
        sizes, learned, alignment = self.sizes, self._task(task, source), None
        rate = sizes.finetune_lr
        if train == "head":
            rate = sizes.head_lr or task_training(encoder, len(learned.train), head_only=True).lr
        if joint is not None:
            bitext = self._bitext(joint.pair, shuffled=False)
            alignment = Joint(
                bitext,
                joint.objective,
                weight=joint.weight,
                aggregator=joint.aggregator,
                layer=self.sizes.layer,
                pooling=self.sizes.pooling,
            )
        return finetune(
            encoder,
            learned,
            training=self._training(sizes.finetune_steps, rate, derive(seed, "task")),
            alignment=alignment,
            train="head" if joint is None and (train or sizes.tuned) == "head" else "all",
            freeze=joint.frozen if joint is not None else (),
            progress=progress,
        )

    def score(self, model: TaskModel, task: str, pair: str, *, progress: bool = False) -> Score:
        """Zero-shot: accuracy on the target language's test sentences; a word that was cut off counts as wrong."""
        corpus = self._labelled("test", pair.split("-")[1], task)
        answers = model.answers(corpus, progress=progress)
        hits = tuple(float(sum(guess == label for guess, label in sentence)) for sentence in answers)
        macro = macro_f1([answer for sentence in answers for answer in sentence])
        return Score(hits, tuple(float(len(labels)) for labels in corpus.labels), macro)

    # -- losses, for their gradients ---------------------------------------------------------------------

    def task_loss(
        self,
        encoder: Encoder,
        task: str,
        *,
        pair: str | None = None,
        source: str = SOURCE,
        progress: bool = False,
    ) -> Loss:
        """The task's loss on its source language, or on the pair's target language.

        Its head is trained on the frozen encoder first: a random head's gradients say nothing.
        """
        language = source if pair is None else pair.split("-")[1]
        corpus = self._labelled("train", language, task)
        labels = self._task(task, source).labels  # the head's: the target language may have others, or fewer
        model = TaskModel(encoder, Task(TASKS[task], train=corpus, test={}, labels=labels))
        model.head = self._head(encoder, task, source, progress)
        return Loss(f"{task} in {language}", self._probed(len(corpus)), model, (model.head,))

    def alignment_loss(self, encoder: Encoder, pair: str, objective: str, *, shuffled: bool = False) -> Loss:
        """The objective's loss on the pair's bitext; the number of a batch decides its masks and orders."""
        vectors = Vectors(self.sizes.layer, self.sizes.pooling)
        bitext = self._bitext(pair, shuffled=shuffled)
        module = AlignmentLoss(encoder, bitext, objective, vectors=vectors)

        def of(batch: tuple[int, Tensor]) -> Tensor:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(self.seed, "probe", batch[0]))
                loss: Tensor = module(batch[1])
                return loss

        heads = tuple(head for head in (module.projection, module.lm_head) if head is not None)
        name = f"{objective}{', shuffled' if shuffled else ''} on {pair}"
        return Loss(name, list(enumerate(self._probed(len(module.pairs)))), of, heads)

    def _training(self, steps: int, lr: float | None, seed: int) -> Training:
        if lr is None:
            raise InputError("sizes: expected learning rates, found none; only a `FileLab` chooses them")
        sizes = self.sizes
        options: dict[str, Any] = {"batch": sizes.batch, "micro": sizes.micro, "precision": sizes.precision}
        return Training(steps=steps, lr=lr, warmup=10, seed=seed, **options)

    def _probed(self, n: int) -> tuple[Tensor, ...]:
        """The batches of a gradient, as numbers of the first of `n` items."""
        size = self.sizes.batch
        return torch.arange(min(n, size * self.sizes.probe_batches)).split(size)

    def _head(self, encoder: Encoder, task: str, source: str, progress: bool) -> nn.Linear:
        """The task's head, trained on the frozen encoder; each is trained once."""
        key = (encoder.hash, task, source)
        if key not in self._heads:
            sizes = self.sizes
            training = Training(steps=sizes.head_steps, batch=sizes.batch, lr=1e-2, seed=derive(0, "head"))
            layers = range(encoder.n_layers + 1)
            model = finetune(
                encoder, self._task(task, source), training=training, freeze=layers, progress=progress
            )
            self._heads[key] = model.head
        return self._heads[key]

    def _bitext(self, pair: str, *, shuffled: bool) -> Bitext:
        """Aligned pairs, or the same with each target replaced by another sentence's, word links drawn by chance."""
        bitext = self._parallel("bitext", pair)
        if not shuffled:
            return bitext
        rng = random.Random(f"{self.seed}:shuffled:{pair}")
        shift = rng.randrange(1, len(bitext))
        target = bitext.target[shift:] + bitext.target[:shift]
        links = tuple(
            _links_by_chance(source, stranger, len(linked), rng)
            for source, stranger, linked in zip(bitext.source, target, bitext.links or (), strict=True)
        )
        return Bitext(bitext.source, target, links)


def _links_by_chance(source: Words, target: Words, n: int, rng: random.Random) -> Links:
    n = min(n, len(source), len(target))
    return tuple(zip(rng.sample(range(len(source)), n), rng.sample(range(len(target)), n), strict=True))
