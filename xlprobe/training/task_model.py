"""A task model: an encoder with a linear head, which learns, predicts, scores, and is kept in a folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reports.errors import InputError, first_line
from reports.files import occupied, write
from reports.missing import explained
from reports.parsing import parse
from xlprobe.data.corpora import Labelled
from xlprobe.data.tasks import Kind, Task
from xlprobe.encoders.batches import Batch, Pooling, pooled
from xlprobe.encoders.coverage import heed
from xlprobe.encoders.encoder import Attention, Encoder, load_encoder
from xlprobe.training import scores
from xlprobe.training.cached_contrast import Vectors, in_parts
from xlprobe.training.loop import derive

__all__ = ["TaskModel"]

SCHEMA = 1
FILE = "task_model.json"


class TaskModel(nn.Module):
    """An encoder with a linear head for a task; `model(rows)` is the loss of the training sentences `rows`, in nats.

    Args:
        encoder: The encoder.
        task: The task.
        seed: Of the head's weights.
        pooling: A text is the "mean" of its tokens, or its "first" token.
        micro: Sentences that go through the encoder at once in a step; 0: all of it.
    """

    def __init__(
        self, encoder: Encoder, task: Task, *, seed: int = 0, pooling: Pooling = "mean", micro: int = 0
    ) -> None:
        super().__init__()
        self._build(encoder, task.kind, task.labels, pooling, micro)
        self.task: Task | None = task
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "head"))
            head = nn.Linear(encoder.d_model, len(task.labels))
            self.head = head.to(encoder.device, encoder.dtype)
        self.batch: Batch | None = encoder.encode(task.train.words)
        heed(encoder, task.train.words, "train")
        index = {label: i for i, label in enumerate(task.labels)}
        self.targets = [
            [index[labels[place]] for place in places]
            for labels, places in zip(task.train.labels, self._places(self.batch), strict=True)
        ]

    def _build(
        self, encoder: Encoder, kind: Kind, labels: Sequence[str], pooling: Pooling, micro: int
    ) -> None:
        """All but the head and the text to learn from."""
        vectors = Vectors(pooling=pooling, micro=micro)
        self.encoder, self.model = encoder, encoder.model
        self.kind, self.labels = kind, tuple(labels)
        self.pooling, self.micro = vectors.pooling, vectors.micro

    @property
    def lengths(self) -> Tensor | None:
        """The tokens of each sentence that is learned from [n]; None for a loaded model, which has none."""
        return None if self.batch is None else self.batch.lengths

    def forward(self, rows: Tensor) -> Tensor:
        """Mean cross entropy over the questions of the sentences with the numbers `rows` [n]."""
        if self.batch is None:
            raise InputError("model: a loaded task model holds no text to learn from; fine-tune an encoder")
        targets = torch.tensor([label for i in rows.tolist() for label in self.targets[i]])
        parts = in_parts(lambda part, _: self.logits(part).float(), self.batch[rows], self.micro)
        logits = torch.cat(parts)
        return nn.functional.cross_entropy(logits, targets.to(logits.device))

    def logits(self, batch: Batch) -> Tensor:
        """The logits [questions, labels]: a question a word (tagging) or a text, in the order of the sentences."""
        batch = batch.to(self.encoder.device)
        states = self.encoder.forward(batch)
        tagging = self.kind == "tagging"
        logits: Tensor = self.head(states[batch.firsts] if tagging else pooled(states, batch, self.pooling))
        return logits

    @torch.no_grad()
    def predict(
        self, sentences: Sequence[Sequence[str]], *, batch_size: int = 128, progress: bool = True
    ) -> list[list[str]]:
        """The label of each word, or of each text.

        Words behind the last one that has a token were cut off and have no label; a word before it of which the
        tokenizer leaves nothing has an empty one.
        """
        batch = self.encoder.encode(sentences)
        labels: list[list[str]] = [[] for _ in sentences]
        for rows, part in batch.chunks(batch_size, label="predict", progress=progress):
            best = iter(self.logits(part).argmax(-1).tolist())
            for row, places in zip(rows.tolist(), self._places(part), strict=True):
                labels[row] = [""] * (places[-1] + 1 if places else 0)
                for place in places:
                    labels[row][place] = self.labels[next(best)]
        return labels

    def score(self, corpus: Labelled, *, progress: bool = True) -> dict[str, float]:
        """The accuracy, macro_f1 and n over all words (or texts), and `lost`: how many of them the encoder never saw.

        Such a word, cut off or without a token, counts as wrong.
        """
        answers = [answer for sentence in self.answers(corpus, progress=progress) for answer in sentence]
        right = sum(guess == label for guess, label in answers)
        lost = sum(not guess for guess, _ in answers)
        return {
            "accuracy": right / len(answers),
            "macro_f1": scores.macro_f1([answers]),
            "n": len(answers),
            "lost": lost,
        }

    def answers(self, corpus: Labelled, *, progress: bool = True) -> list[list[tuple[str, str]]]:
        """(predicted, true) of each word, or of each text, by sentence; the prediction of a lost word is empty."""
        heed(self.encoder, corpus.words, "asked")
        predicted = self.predict(corpus.words, progress=progress)
        return [
            list(zip([*guesses, *[""] * (len(labels) - len(guesses))], labels, strict=True))
            for guesses, labels in zip(predicted, corpus.labels, strict=True)
        ]

    def _places(self, batch: Batch) -> list[list[int]]:
        """The numbers of the words that are asked in each sentence, those with a token; 0 for a text."""
        if self.kind != "tagging":
            return [[0]] * len(batch)
        counts: list[int] = batch.firsts.sum(1).tolist()
        return [part.tolist() for part in batch.word_ids[batch.firsts].split(counts)]

    def predictions(
        self, sentences: Labelled | Sequence[Sequence[str]], *, progress: bool = True
    ) -> pd.DataFrame:
        """Frame sentence, id, place, text, predicted, probability; of labelled text also label and right; and missing.

        One row a word (tagging) or a text, whose place is 0. A word that the encoder never saw has an empty prediction
        and the probability nan; `missing` says whether it was cut off or has no token.
        """
        words = sentences.words if isinstance(sentences, Labelled) else sentences
        shares, rows = self._probabilities(words, progress), list[dict[str, Any]]()
        for number, (text, places) in enumerate(zip(words, shares, strict=True)):
            units = list(text) if self.kind == "tagging" else [" ".join(text)]
            for place, unit in enumerate(units):
                share = places.get(place)
                best = None if share is None else int(share.argmax())
                row: dict[str, Any] = {"sentence": number, "id": str(number), "place": place, "text": unit}
                row["predicted"] = "" if best is None else self.labels[best]
                row["probability"] = math.nan if share is None or best is None else float(share[best])
                if isinstance(sentences, Labelled):
                    row |= {"id": sentences.ids[number], "label": sentences.labels[number][place]}
                    row["right"] = row["predicted"] == row["label"]
                rows.append(row | {"cut": place > max(places, default=-1)})
        frame = pd.DataFrame(rows)
        reason = frame.pop("cut").map({True: "cut off", False: "the tokenizer leaves nothing of it"})
        return explained(frame, {"probability": reason})

    @torch.no_grad()
    def _probabilities(self, sentences: Sequence[Sequence[str]], progress: bool) -> list[dict[int, Tensor]]:
        """The probabilities of the labels [labels] at each place that is asked, by sentence."""
        batch = self.encoder.encode(sentences)
        shares: list[dict[int, Tensor]] = [{} for _ in sentences]
        for rows, part in batch.chunks(128, label="predict", progress=progress):
            softened = iter(self.logits(part).float().softmax(-1).cpu())
            for row, places in zip(rows.tolist(), self._places(part), strict=True):
                shares[row] = {place: next(softened) for place in places}
        return shares

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `encoder/`, a checkpoint that plain transformers opens, `head.safetensors` and `task_model.json`.

        Raises:
            InputError: The folder holds files.
        """
        path = Path(folder)
        if occupied(path):
            raise InputError(
                f"folder: expected a new or an empty folder, found files in {path}; choose another"
            )
        path.mkdir(parents=True, exist_ok=True)
        self.encoder.save(path / "encoder")
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.head.named_parameters()}
        save_file(weights, path / "head.safetensors")
        facts = {"schema": SCHEMA, "kind": self.kind, "labels": list(self.labels), "pooling": self.pooling}
        text = json.dumps({**facts, "encoder": self.encoder.name}, indent=1, ensure_ascii=False)
        write(path / FILE, (text + "\n").encode())
        return path

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "float32",
        attention: Attention = "sdpa",
    ) -> TaskModel:
        """The model that `save` wrote; it predicts and scores, and holds no text to learn from.

        Raises:
            InputError: No such folder, or one that holds something else.
        """
        path = Path(folder)
        try:
            facts = parse((path / FILE).read_text(encoding="utf-8"))
            kind, labels, pooling = facts["kind"], facts["labels"], facts["pooling"]
            weights = load_file(path / "head.safetensors")
            if facts["schema"] != SCHEMA or kind not in get_args(Kind):
                raise ValueError(f"schema {facts['schema']}, kind {kind!r}")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(f"folder: {path} holds no task model ({first_line(error)})") from error
        encoder = load_encoder(path / "encoder", device=device, dtype=dtype, attention=attention)
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._build(encoder, kind, labels, pooling, 0)
        model.task, model.batch, model.targets = None, None, []
        model.head = nn.Linear(encoder.d_model, len(labels)).to(encoder.device, encoder.dtype)
        if {name: tuple(weight.shape) for name, weight in weights.items()} != {
            name: tuple(weight.shape) for name, weight in model.head.named_parameters()
        }:
            raise InputError(f"folder: the head in {path} is not of {len(labels)} labels and this encoder")
        model.head.load_state_dict({name: weight.to(encoder.device) for name, weight in weights.items()})
        model.head.requires_grad_(True)
        return model.eval()
