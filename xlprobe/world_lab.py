"""The embedded languages as a laboratory: pairs, tasks, alignment, fine-tuning and scores for `xlprobe.transfer`.

Four pairs (the source language with each target), tasks `pos` (tags of words, on first sub-words) and `topic` (of a
sentence, from the mean state). Text for alignment, task, test and distances is drawn apart; a sentence that occurs in
two of them is drawn anew, so nothing leaks.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from xlprobe.conflict import combine
from xlprobe.distances import Parallel
from xlprobe.encoder import Encoder
from xlprobe.gradients import Loss
from xlprobe.laboratory import Joint, Score
from xlprobe.langworld.grammar import Meaning, align_words, draw, realise
from xlprobe.langworld.lexicon import LANGUAGES, TOPICS
from xlprobe.objectives import Pair, objective_loss
from xlprobe.training import Training, derive, train

__all__ = ["Sizes", "WorldLab"]

TASKS = ("pos", "topic")
TAGS = ("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "NOUN", "NUM", "PRON", "PROPN", "PUNCT", "VERB")


@dataclass(frozen=True)
class Sizes:
    """Sentences of each set and steps of each training; batches of 32."""

    bitext: int = 1600
    train: int = 1600
    test: int = 400
    held_out: int = 300
    align_steps: int = 200
    finetune_steps: int = 150
    head_steps: int = 150
    align_lr: float = 5e-4
    finetune_lr: float = 5e-4
    probe_batches: int = 24


@dataclass(frozen=True)
class Text:
    """Parallel text, as `xlprobe.distances.Parallel`."""

    source: tuple[tuple[str, ...], ...]
    target: tuple[tuple[str, ...], ...]
    links: tuple[tuple[tuple[int, int], ...], ...]


class WorldLab:
    """See `xlprobe.laboratory.Laboratory`, whose methods these are."""

    def __init__(self, encoder: Encoder, sizes: Sizes | None = None, *, seed: int = 0) -> None:
        self.encoder = encoder
        self.sizes = sizes or Sizes()
        self.seed = seed
        self.name = "langworld"
        self.pairs = tuple(f"source-{name}" for name in LANGUAGES if name != "source")
        self.tasks = TASKS
        self._heads: dict[tuple[str, str], nn.Linear] = {}
        self._texts: dict[tuple[str, str], list[Pair]] = {}

    @cached_property
    def meanings(self) -> dict[str, list[Meaning]]:
        """The sets, drawn apart: no two hold the same source sentence."""
        sizes = self.sizes
        wanted = {
            "held_out": sizes.held_out,
            "test": sizes.test,
            "train": sizes.train,
            "bitext": sizes.bitext,
        }
        seen: set[str] = set()
        found: dict[str, list[Meaning]] = {}
        for name, n in wanted.items():
            rng, drawn = random.Random(f"{self.seed}:{name}"), list[Meaning]()
            while len(drawn) < n:
                meaning = draw(rng.choice(list(TOPICS)), rng)
                text = " ".join(word.form for word in realise(meaning, "source"))
                if text not in seen:
                    seen.add(text)
                    drawn.append(meaning)
            found[name] = drawn
        return found

    @property
    def data(self) -> dict[str, Any]:
        """The grammar's sets by sha256 of their meanings."""
        digests = {
            name: hashlib.sha256(repr(drawn).encode()).hexdigest()[:16]
            for name, drawn in self.meanings.items()
        }
        return {"source": "the embedded languages", "seed": self.seed, **digests}

    def held_out(self, pair: str) -> Parallel:
        """Held-out sentences with gold links."""
        rows = self._parallel("held_out", pair)
        return Text(*(tuple(map(tuple, side)) for side in zip(*rows, strict=True)))

    def aligned(self, pair: str, objective: str, *, seed: int, shuffled: bool = False) -> Encoder:
        """A copy, aligned."""
        encoder = self.encoder.copy()
        module = _Alignment(encoder, objective, self._bitext(pair, shuffled=shuffled))
        sizes = self.sizes
        plan = Training(
            steps=sizes.align_steps, batch=32, lr=sizes.align_lr, warmup=10, seed=derive(seed, "align")
        )
        train(module, plan, n_items=len(module.pairs), device=encoder.device, progress=False)
        return encoder

    def finetuned(self, encoder: Encoder, task: str, *, seed: int, joint: Joint | None = None) -> _TaskModel:
        """A task model on a copy of `encoder`."""
        model = _TaskModel(encoder.copy(), task, self._labelled("train", "source", task), seed=seed)
        module: nn.Module = model
        if joint is not None:
            module = _JointModel(model, joint, self._bitext(joint.pair, shuffled=False))
        sizes = self.sizes
        plan = Training(
            steps=sizes.finetune_steps, batch=32, lr=sizes.finetune_lr, warmup=10, seed=derive(seed, "task")
        )
        train(module, plan, n_items=sizes.train, device=encoder.device, progress=False)
        model.encoder.model.requires_grad_(True)
        return model

    @torch.no_grad()
    def score(self, model: _TaskModel, task: str, pair: str) -> Score:
        """Accuracy on the target language's test sentences, and macro-F1 over the labels that occur."""
        sentences, labels = self._labelled("test", pair.split("-")[1], task)
        predicted = model.predict(sentences)
        pairs = [
            list(zip(p, y, strict=False)) for p, y in zip(predicted, labels, strict=True)
        ]  # a cut-off word: wrong
        hits = tuple(float(sum(a == b for a, b in some)) for some in pairs)
        return Score(
            hits, tuple(float(len(y)) for y in labels), macro_f1([ab for some in pairs for ab in some])
        )

    def task_loss(self, encoder: Encoder, task: str, *, pair: str | None = None) -> Loss:
        """Its head is trained on the frozen encoder."""
        head = self._head(encoder, task)
        language = "source" if pair is None else pair.split("-")[1]
        model = _TaskModel(encoder, task, self._labelled("train", language, task), seed=0, head=head)
        rows = torch.arange(min(self.sizes.train, 32 * self.sizes.probe_batches)).split(32)
        return Loss(f"{task} in {language}", rows, model, (head,))

    def alignment_loss(self, encoder: Encoder, pair: str, objective: str, *, shuffled: bool = False) -> Loss:
        """Masks and orders are drawn anew for each batch, by its number."""
        module = _Alignment(encoder, objective, self._bitext(pair, shuffled=shuffled))
        n = min(self.sizes.bitext, 32 * self.sizes.probe_batches)
        numbered = list(enumerate(torch.arange(n).split(32)))

        def of(batch: tuple[int, Tensor]) -> Tensor:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(self.seed, "probe", batch[0]))
                loss: Tensor = module(batch[1])
                return loss

        heads = tuple(head for head in (module.head, module.lm_head) if head is not None)
        return Loss(f"{objective}{', shuffled' if shuffled else ''} on {pair}", numbered, of, heads)

    def _head(self, encoder: Encoder, task: str) -> nn.Linear:
        """The task's head, trained on the frozen encoder; once for each of them."""
        key = (encoder.hash, task)
        if key not in self._heads:
            warm = _TaskModel(encoder.copy(), task, self._labelled("train", "source", task), seed=0)
            warm.encoder.model.requires_grad_(False)
            plan = Training(steps=self.sizes.head_steps, batch=32, lr=1e-2, seed=derive(0, "head"))
            train(warm, plan, n_items=self.sizes.train, device=encoder.device, progress=False)
            self._heads[key] = warm.head
        return self._heads[key]

    # -- text --------------------------------------------------------------------------------------------

    def _parallel(self, which: str, pair: str) -> list[Pair]:
        if (which, pair) in self._texts:
            return self._texts[which, pair]
        rows: list[Pair] = []
        for meaning in self.meanings[which]:
            source, target = realise(meaning, "source"), realise(meaning, pair.split("-")[1])
            links = align_words(source, target)
            rows.append(
                ([w.form for w in source], [w.form for w in target], one_to_one(source, target, links))
            )
        return rows

    def _bitext(self, pair: str, *, shuffled: bool) -> list[Pair]:
        """Aligned pairs, or the same with each target replaced by another sentence's, word links drawn by chance."""
        rows = self._parallel("bitext", pair)
        if not shuffled:
            return rows
        rng = random.Random(f"{self.seed}:shuffled:{pair}")
        shift = rng.randrange(1, len(rows))
        others = rows[shift:] + rows[:shift]
        return [
            (a, b, _links_by_chance(a, b, len(links), rng))
            for (a, _, links), (_, b, _) in zip(rows, others, strict=True)
        ]

    def _labelled(self, which: str, language: str, task: str) -> tuple[list[list[str]], list[list[int]]]:
        sentences, labels = [], []
        for meaning in self.meanings[which]:
            words = realise(meaning, language)
            sentences.append([word.form for word in words])
            topic = [list(TOPICS).index(meaning.topic)]
            labels.append([TAGS.index(word.tag) for word in words] if task == "pos" else topic)
        return sentences, labels


def one_to_one(
    source: Sequence[Any], target: Sequence[Any], links: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Links of words that have one partner each and are not the same string."""
    firsts, seconds = [a for a, _ in links], [b for _, b in links]
    return [
        (a, b)
        for a, b in links
        if firsts.count(a) == seconds.count(b) == 1 and source[a].form != target[b].form
    ]


def macro_f1(pairs: Sequence[tuple[int, int]]) -> float:
    """The mean F1 over the labels that occur among (predicted, true), on either side.

    >>> macro_f1([(0, 0), (0, 1), (1, 1), (1, 1)])  # F1 2/3 and 4/5
    0.7333333333333334
    """
    labels = sorted({label for pair in pairs for label in pair})
    scores = []
    for label in labels:
        hits = sum(a == b == label for a, b in pairs)
        scores.append(2 * hits / (sum(a == label for a, _ in pairs) + sum(b == label for _, b in pairs)))
    return sum(scores) / len(scores)


def _links_by_chance(a: Sequence[str], b: Sequence[str], n: int, rng: random.Random) -> list[tuple[int, int]]:
    n = min(n, len(a), len(b))
    return list(zip(rng.sample(range(len(a)), n), rng.sample(range(len(b)), n), strict=True))


# -- what is trained ------------------------------------------------------------------------------------------


class _Alignment(nn.Module):
    """The objective's loss of the pairs `rows`."""

    def __init__(self, encoder: Encoder, objective: str, pairs: list[Pair]) -> None:
        super().__init__()
        self.model, self.encoder, self.objective, self.pairs = encoder.model, encoder, objective, pairs
        self.lm_head = encoder.lm_head if objective in ("mlm", "tlm") else None
        self.head = _projection(encoder.d_model) if objective == "token" else None

    def forward(self, rows: Tensor) -> Tensor:
        return objective_loss(
            self.encoder, self.objective, [self.pairs[i] for i in rows.tolist()], head=self.head
        )


def _projection(width: int) -> nn.Module:
    """d → d → 128 [Wu & Dredze 2020], the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(0, "projection"))
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))


class _TaskModel(nn.Module):
    """An encoder with a linear head: over first sub-words (pos) or the mean of the content (topic)."""

    def __init__(
        self,
        encoder: Encoder,
        task: str,
        data: tuple[list[list[str]], list[list[int]]],
        *,
        seed: int,
        head: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.task = encoder, task
        self.model = encoder.model
        self.batch = encoder.encode(data[0])
        kept = (
            self.batch.firsts.sum(1).tolist() if task == "pos" else [1] * len(self.batch)
        )  # words not cut off
        self.labels = [labels[:n] for labels, n in zip(data[1], kept, strict=True)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "head"))
            fresh = nn.Linear(encoder.d_model, len(TAGS if task == "pos" else TOPICS))
        self.head = head or fresh

    def forward(self, rows: Tensor) -> Tensor:
        labels = torch.tensor([label for i in rows.tolist() for label in self.labels[i]])
        return cross_entropy(self.logits(self.batch[rows]).float(), labels.to(self.encoder.device))

    def logits(self, batch: Any) -> Tensor:
        """[questions, labels] in the order of the sentences."""
        states = self.encoder.forward(batch)
        if self.task == "pos":
            logits: Tensor = self.head(states[batch.firsts.to(states.device)])
            return logits
        content = batch.content.to(states.device)[:, :, None]
        pooled: Tensor = self.head((states * content).sum(1) / content.sum(1))
        return pooled

    @torch.no_grad()
    def predict(self, sentences: list[list[str]]) -> list[list[int]]:
        """The label of each question, sentence by sentence."""
        batch = self.encoder.encode(sentences)
        found: list[list[int]] = [[] for _ in sentences]
        for rows, part in batch.chunks(128):
            labels = self.logits(part).argmax(-1).cpu()
            counts = part.firsts.sum(1).tolist() if self.task == "pos" else [1] * len(rows)
            for row, own in zip(rows.tolist(), labels.split(counts), strict=True):
                found[row] = own.tolist()
        return found


class _JointModel(nn.Module):
    """Task and alignment in one step; item i of the task goes with pair i of the bitext."""

    def __init__(self, task: _TaskModel, joint: Joint, pairs: list[Pair]) -> None:
        super().__init__()
        self.task, self.joint = task, joint
        self.alignment = _Alignment(task.encoder, joint.objective, pairs)
        table = task.encoder.parameter_table()
        named = dict(task.encoder.model.named_parameters())
        for name in table.loc[table["layer"].isin(joint.frozen), "name"]:
            named[name].requires_grad_(False)

    def forward(self, rows: Tensor) -> Tensor:
        losses = [self.task(rows), self.alignment(rows % len(self.alignment.pairs))]
        if self.joint.aggregator == "sum":
            return losses[0] + self.joint.weight * losses[1]
        shared = list(self.task.encoder.model.parameters())
        return combine(losses, shared, self.joint.aggregator)  # type: ignore[arg-type]
