"""Align an encoder on translation pairs: one objective or a weighted sum, some layers frozen, an early stop.

1. Word links, where an objective needs them: those of the bitext, else the encoder's own (`xlprobe.training.links`).
2. Training (`xlprobe.training.loop`) of a copy: the sum of weight · loss of the objectives
   (`xlprobe.training.objectives`, and `l2` here), over all parameters but those of the frozen layers.
3. Every `check_every` steps weak retrieval on held-out pairs; training ends when it has not risen `patience` times,
   and the best weights are restored.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reports.errors import InputError
from xlprobe.data.corpora import Bitext, Links
from xlprobe.encoders.batches import Pooling, pooled
from xlprobe.encoders.coverage import heed
from xlprobe.encoders.encoder import Encoder
from xlprobe.probes.similarity import retrieval_hits
from xlprobe.training.cached_contrast import Vectors
from xlprobe.training.defaults import align_training, heed_collapse, spread
from xlprobe.training.hierarchical import HICTL
from xlprobe.training.identity import bitext_facts, encoder_facts
from xlprobe.training.links import argmax_links, require_words, usable_links
from xlprobe.training.loop import Training, derive, train
from xlprobe.training.objectives import OBJECTIVES, PLAIN, Pair, linked_vectors, objective_loss

__all__ = ["ALIGNABLE", "AlignmentLoss", "align", "freeze_layers", "l2_loss", "retrieval"]

logger = logging.getLogger(__name__)

ALIGNABLE = (*OBJECTIVES, *HICTL, "l2")
WORDS = ("token", "l2")  # objectives that need word links
CHECK_EVERY, PATIENCE = 50, 3
PULL = 1.0  # weight of ‖θ − θ₀‖², added to the distance of aligned words


def align(
    encoder: Encoder,
    bitext: Bitext,
    *,
    objective: str | Mapping[str, float] = "sentence",
    training: Training | None = None,
    layer: int | None = None,
    pooling: Pooling = "mean",
    freeze: Iterable[int] = (),
    held_out: Bitext | None = None,
    check_every: int = CHECK_EVERY,
    patience: int = PATIENCE,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Encoder:
    """An aligned copy of `encoder`, which remains unchanged.

    Args:
        encoder: The encoder to start from.
        bitext: The pairs to align on.
        objective: mlm, sentence, token, tlm, hictl, hictl_sentence, hictl_word, l2, or weights of several
            ({"sentence": 1.0, "mlm": 0.5}).
        training: By default what suits the encoder's size (`xlprobe.training.defaults`).
        layer: The layer that is aligned (0: the embeddings); by default the one two thirds up.
        pooling: A sentence is the "mean" of its tokens or its "first" token; a word that of its sub-words.
        freeze: Layers that are not trained (0: the embeddings).
        held_out: Pairs for the early stop; without them there is none.
        check_every: Steps between two checks of the early stop.
        patience: Checks in a row without a rise that end the training.
        folder: Where checkpoints go, from which the same call goes on, and gives its end again once it has ended.
        progress: Show a progress bar.

    Raises:
        InputError: No such objective, no LM head for mlm and tlm, no pairs, no usable word link, words of a language
            written without spaces, an early stop's options without held-out pairs, or another training in `folder`.
        TrainingError: The loss is not finite.

    >>> from xlprobe.encoders.encoder import load_encoder
    >>> encoder = load_encoder("langworld", device="cpu")
    >>> pairs = Bitext((("this", "teacher"), ("a", "river")), (("de", "zuda"), ("drei", "brel")))
    >>> aligned = align(encoder, pairs, training=Training(steps=2, batch=2, lr=1e-3), progress=False)
    >>> aligned.hash != encoder.hash
    True
    """
    layers, copy = sorted(set(freeze)), encoder.copy()
    training = training or align_training(encoder, len(bitext))
    vectors = Vectors(layer, pooling, training.micro)
    module = AlignmentLoss(copy, bitext, objective, seed=training.seed, vectors=vectors, progress=progress)
    before = spread(encoder, bitext.source, vectors)
    frozen = freeze_layers(copy, layers)
    stop = _stop(copy, held_out, check_every, patience, training.steps, vectors)
    facts = module.facts(encoder) | _stop_facts(stop) | {"freeze": layers} if folder is not None else None
    _run(module, training, stop, facts, folder, progress)
    if stop is not None:
        stop.restore()
    for weight in frozen:
        weight.requires_grad_(True)
    heed_collapse(before, copy, bitext.source, vectors, training)
    return copy


def _run(
    module: AlignmentLoss,
    training: Training,
    stop: _Stop | None,
    facts: dict[str, Any] | None,
    folder: str | Path | None,
    progress: bool,
) -> None:
    """The steps; not by length, for negatives of a contrastive loss are to be a fair sample of the pairs."""
    train(
        module,
        training,
        n_items=len(module.pairs),
        device=module.encoder.device,
        folder=None if folder is None else Path(folder),
        watch=stop,
        facts=facts,
        label="+".join(module.weights),
        progress=progress,
    )


def freeze_layers(encoder: Encoder, layers: Iterable[int]) -> list[nn.Parameter]:
    """Switch the gradients of these layers off (0: the embeddings, i: block i − 1); their parameters.

    Raises:
        InputError: A layer that the encoder lacks.
    """
    chosen, known = set(layers), range(encoder.n_layers + 1)
    if not chosen <= set(known):
        raise InputError(
            f"freeze: expected layers 0 to {encoder.n_layers}, found {sorted(chosen - set(known))}"
        )
    table, named = encoder.parameter_table(), dict(encoder.model.named_parameters())
    frozen: list[nn.Parameter] = [named[name] for name in table.loc[table["layer"].isin(chosen), "name"]]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


@torch.no_grad()
def retrieval(
    encoder: Encoder,
    bitext: Bitext,
    *,
    layer: int | None = None,
    pooling: Pooling = "mean",
    batch_size: int = 128,
    progress: bool = True,
) -> float:
    """Weak retrieval (0 to 1), both directions, of sentences in the layer where alignment is made.

    >>> from xlprobe.encoders.encoder import load_encoder
    >>> pairs = Bitext((("this", "teacher"), ("a", "river")), (("this", "teacher"), ("a", "river")))
    >>> retrieval(load_encoder("langworld", device="cpu"), pairs)
    1.0
    """
    sides, at = [], Vectors(layer).at(encoder)
    for sentences in (bitext.source, bitext.target):
        batch = encoder.encode(sentences)
        means = torch.empty(len(sentences), encoder.d_model)
        for rows, part in batch.chunks(batch_size, label="retrieval", progress=progress):
            means[rows] = pooled(encoder.state(part, at).float().cpu(), part, pooling)
        sides.append(means)
    return float(retrieval_hits(*sides).mean())


class AlignmentLoss(nn.Module):
    """The weighted loss of some pairs, which `align` trains and joint fine-tuning adds to a task.

    Raises:
        InputError: As for `align`.
    """

    def __init__(
        self,
        encoder: Encoder,
        bitext: Bitext,
        objective: str | Mapping[str, float],
        *,
        seed: int = 0,
        vectors: Vectors = PLAIN,
        progress: bool = False,
    ) -> None:
        super().__init__()
        vectors.at(encoder)
        self.vectors = vectors
        self.encoder, self.model, self.bitext = encoder, encoder.model, bitext
        self.weights = _weights(objective)
        needs_head = {"mlm", "tlm"} & set(self.weights)
        if needs_head and encoder.lm_head is None:
            raise InputError(
                f"objective: {min(needs_head)} needs an LM head, which {encoder.name} does not have; load a checkpoint "
                "of a masked language model"
            )
        self.lm_head = encoder.lm_head if needs_head or "hictl" in self.weights else None
        if "hictl" in self.weights and encoder.lm_head is None:
            logger.warning("objective: %s has no LM head; hictl is its two contrastive terms", encoder.name)
        words = any(name in WORDS for name in self.weights)
        self.pairs = _pairs(encoder, bitext, words, vectors, progress)
        if "tlm" in self.weights:
            heed(encoder, [[*a, *b] for a, b, _ in self.pairs], "bitext, both sides at once")
        self.projection = _projection(encoder.d_model, seed) if "token" in self.weights else None
        self.start = (
            [parameter.detach().clone() for parameter in encoder.model.parameters()]
            if "l2" in self.weights
            else []
        )

    def facts(self, encoder: Encoder) -> dict[str, Any]:
        """What a training on this loss depends on (`xlprobe.training.identity`), begun at `encoder`."""
        data = bitext_facts(self.bitext)
        looked_at = {"layer": self.vectors.at(encoder), "pooling": self.vectors.pooling}
        return {"objective": self.weights, "bitext": data, "encoder": encoder_facts(encoder)} | looked_at

    def forward(self, rows: Tensor) -> Tensor:
        """The loss of the pairs with the numbers `rows` [n], a scalar."""
        pairs = [self.pairs[i] for i in rows.tolist()]
        losses = [weight * self._loss(name, pairs) for name, weight in self.weights.items()]
        return torch.stack(losses).sum()

    def _loss(self, name: str, pairs: list[Pair]) -> Tensor:
        if name != "l2":
            return objective_loss(self.encoder, name, pairs, head=self.projection, vectors=self.vectors)
        drift = sum(
            ((now - then) ** 2).sum() for now, then in zip(self.model.parameters(), self.start, strict=True)
        )
        return l2_loss(self.encoder, pairs, vectors=self.vectors) + PULL * drift


def l2_loss(encoder: Encoder, pairs: Sequence[Pair], *, vectors: Vectors = PLAIN) -> Tensor:
    """Mean over aligned words of ‖f(w) − f(w')‖², in the layer where alignment is made [Cao et al. 2020].

    Raises:
        InputError: No word of the pairs is linked.
    """
    batch = encoder.encode([list(p[0]) for p in pairs] + [list(p[1]) for p in pairs]).to(encoder.device)
    x, y, _ = linked_vectors(encoder, batch, pairs, vectors)
    if not len(x):
        raise InputError("pairs: objective l2 needs at least one linked word in a batch, found none")
    return ((x - y) ** 2).sum(1).mean()


@dataclass
class _Stop:
    """The early stop, called after every step."""

    encoder: Encoder
    held_out: Bitext
    every: int
    patience: int
    vectors: Vectors = PLAIN
    best: float = -math.inf
    waited: int = 0
    checks: list[float] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)

    def __call__(self, step: int, loss: float) -> bool:
        if (step + 1) % self.every:
            return False
        self.encoder.model.eval()
        layer, pooling = self.vectors.layer, self.vectors.pooling
        score = retrieval(self.encoder, self.held_out, layer=layer, pooling=pooling, progress=False)
        self.encoder.model.train()
        if score > self.best:
            self.best, self.waited = score, 0
            self.kept = [parameter.detach().clone() for parameter in self.encoder.model.parameters()]
        else:
            self.waited += 1
        self.checks.append(score)
        return self.waited >= self.patience

    def state(self) -> tuple[dict[str, Any], list[Tensor]]:
        """See `Watch`."""
        return {"checks": self.checks, "waited": self.waited}, self.kept

    def load(self, facts: Mapping[str, Any], tensors: list[Tensor]) -> None:
        """See `Watch`."""
        self.checks, self.waited = list(facts["checks"]), int(facts["waited"])
        self.best = max(self.checks, default=-math.inf)
        self.kept = [tensor.to(self.encoder.device) for tensor in tensors]

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the best weights, if there was a check at all."""
        if not self.kept:
            return
        for parameter, best in zip(self.encoder.model.parameters(), self.kept, strict=True):
            parameter.copy_(best)


def _stop(
    encoder: Encoder, held_out: Bitext | None, every: int, patience: int, steps: int, vectors: Vectors
) -> _Stop | None:
    for name, value in (("check_every", every), ("patience", patience)):
        if value < 1:
            raise InputError(f"{name}: expected at least 1, found {value}")
    if held_out is None:
        if (every, patience) != (CHECK_EVERY, PATIENCE):
            raise InputError(
                "held_out: check_every and patience are the early stop's, which needs held-out pairs"
            )
        return None
    if not len(held_out):
        raise InputError("held_out: expected at least one pair, found none")
    if every > steps:
        logger.warning(
            "check_every: the early stop never looks, for %d is more than the %d steps", every, steps
        )
    heed(encoder, [*held_out.source, *held_out.target], "held_out")
    return _Stop(encoder, held_out, every, patience, vectors)


def _stop_facts(stop: _Stop | None) -> dict[str, Any]:
    if stop is None:
        return {"early_stop": None}
    held_out = bitext_facts(stop.held_out)
    return {"early_stop": {"held_out": held_out, "check_every": stop.every, "patience": stop.patience}}


def _weights(objective: str | Mapping[str, float]) -> dict[str, float]:
    weights = {objective: 1.0} if isinstance(objective, str) else dict(objective)
    for name, weight in weights.items():
        if name not in ALIGNABLE:
            raise InputError(f"objective: expected one of {', '.join(ALIGNABLE)}, found {name!r}")
        if not (math.isfinite(weight) and weight > 0):
            raise InputError(f"objective: expected a weight above 0 for {name}, found {weight}")
    if not weights:
        raise InputError(f"objective: expected at least one of {', '.join(ALIGNABLE)}, found none")
    return weights


def _pairs(encoder: Encoder, bitext: Bitext, words: bool, vectors: Vectors, progress: bool) -> list[Pair]:
    if not len(bitext):
        raise InputError("bitext: expected at least one pair, found none")
    seen = heed(encoder, [*bitext.source, *bitext.target], "bitext")
    empty = {number % len(bitext) for number in seen.empty}
    if len(empty) == len(bitext):
        raise InputError("bitext: the tokenizer leaves nothing of one side of every pair")
    if repeated := bitext.n_duplicates:
        logger.warning(
            "bitext: %d of %d pairs share a side with an earlier pair; they are no negatives of it",
            repeated,
            len(bitext),
        )
    links: Sequence[Links] = ((),) * len(bitext)
    if words:
        require_words(bitext)
        if bitext.links is None:
            bitext = argmax_links(encoder, bitext, vectors=vectors, progress=progress)
        links = usable_links(bitext)
    pairs: list[Pair] = list(zip(bitext.source, bitext.target, links, strict=True))
    kept = [pair for i, pair in enumerate(pairs) if i not in empty and (pair[2] or not words)]
    if not kept:
        raise InputError("links: no one-to-one link between unlike words in any pair; give other links")
    return kept


def _projection(width: int, seed: int) -> nn.Module:
    """The map d → d → 128 [Wu & Dredze 2020], the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "projection"))
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))
