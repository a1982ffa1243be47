"""Align an encoder on translation pairs: one objective or a weighted sum, some layers frozen, an early stop.

1. Word links, where an objective needs them: those of the bitext, else the encoder's own (`xlprobe.training.links`).
2. Training (`xlprobe.training.loop`) of a copy: the sum of weight · loss of the objectives
   (`xlprobe.training.objectives`, and `l2` here), over all parameters but those of the frozen layers.
3. Every `check_every` steps weak retrieval on held-out pairs; training ends when it has not risen `patience` times,
   and the best weights are restored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from reports.errors import InputError
from xlprobe.data.corpora import Bitext
from xlprobe.encoders.batches import sentence_means
from xlprobe.encoders.encoder import Encoder
from xlprobe.probes.similarity import retrieval_hits
from xlprobe.training.links import argmax_links, usable_links
from xlprobe.training.loop import Training, derive, train
from xlprobe.training.objectives import OBJECTIVES, Pair, linked_words, objective_loss, probe_layer

__all__ = ["ALIGNABLE", "AlignmentLoss", "align", "freeze_layers", "l2_loss", "retrieval"]

ALIGNABLE = (*OBJECTIVES, "l2")
WORDS = ("token", "l2")  # objectives that need word links
DEFAULT = Training(steps=80, batch=24, lr=2e-3, warmup=10)
PULL = 1.0  # weight of ‖θ − θ₀‖², added to the distance of aligned words


def align(
    encoder: Encoder,
    bitext: Bitext,
    *,
    objective: str | Mapping[str, float] = "sentence",
    training: Training = DEFAULT,
    freeze: Iterable[int] = (),
    held_out: Bitext | None = None,
    check_every: int = 50,
    patience: int = 3,
    folder: Path | None = None,
    progress: bool = True,
) -> Encoder:
    """An aligned copy of `encoder`, which remains unchanged.

    Args:
        encoder: The encoder to start from.
        bitext: The pairs to align on.
        objective: mlm, sentence, token, tlm, l2, or weights of several ({"sentence": 1.0, "mlm": 0.5}).
        training: The default suits the embedded encoder; XLM-R base takes lr 2e-5 and a batch of 512, or 1e-4 and 128
            [Xhelili et al. 2024].
        freeze: Layers that are not trained (0: the embeddings).
        held_out: Pairs for the early stop; without them there is none.
        check_every: Steps between two checks of the early stop.
        patience: Checks in a row without a rise that end the training.
        folder: Where checkpoints go, from which the same call goes on.
        progress: Show a progress bar.

    Raises:
        InputError: No such objective, no LM head for mlm and tlm, no pairs, or no usable word link.
        TrainingError: The loss is not finite.

    >>> from xlprobe.encoders.encoder import load_encoder
    >>> encoder = load_encoder("langworld", device="cpu")
    >>> pairs = Bitext((("this", "teacher"), ("a", "river")), (("de", "zuda"), ("drei", "brel")))
    >>> aligned = align(encoder, pairs, training=Training(steps=2, batch=2, lr=1e-3), progress=False)
    >>> aligned.hash != encoder.hash
    True
    """
    copy = encoder.copy()
    module = AlignmentLoss(copy, bitext, objective, seed=training.seed)
    frozen = freeze_layers(copy, freeze)
    stop = _Stop(copy, held_out, check_every, patience) if held_out is not None else None
    # Not by length: negatives of a contrastive loss are to be a fair sample of the pairs.
    train(
        module,
        training,
        n_items=len(module.pairs),
        device=copy.device,
        folder=folder,
        watch=stop,
        label="+".join(module.weights),
        progress=progress,
    )
    if stop is not None:
        stop.restore()
    for parameter in frozen:
        parameter.requires_grad_(True)
    return copy


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
def retrieval(encoder: Encoder, bitext: Bitext, *, batch_size: int = 128) -> float:
    """Weak retrieval (0 to 1), both directions, of mean-pooled sentences in the layer where alignment is made."""
    sides = []
    for sentences in (bitext.source, bitext.target):
        batch = encoder.encode(sentences)
        means = torch.empty(len(sentences), encoder.d_model)
        for rows, part in batch.chunks(batch_size):
            states = encoder.state(part, probe_layer(encoder.n_layers)).float().cpu()
            means[rows] = sentence_means(states, part)
        sides.append(means)
    return float(retrieval_hits(*sides).mean())


class AlignmentLoss(nn.Module):
    """The weighted loss of some pairs, which `align` trains and joint fine-tuning adds to a task.

    Raises:
        InputError: As for `align`.
    """

    def __init__(
        self, encoder: Encoder, bitext: Bitext, objective: str | Mapping[str, float], *, seed: int = 0
    ) -> None:
        super().__init__()
        self.encoder, self.model = encoder, encoder.model
        self.weights = _weights(objective)
        needs_head = {"mlm", "tlm"} & set(self.weights)
        if needs_head and encoder.lm_head is None:
            raise InputError(
                f"objective: {min(needs_head)} needs an LM head, which {encoder.name} does not have; load a checkpoint "
                "of a masked language model"
            )
        self.lm_head = encoder.lm_head if needs_head else None
        self.pairs = _pairs(encoder, bitext, words=any(name in WORDS for name in self.weights))
        self.projection = _projection(encoder.d_model, seed) if "token" in self.weights else None
        self.start = (
            [parameter.detach().clone() for parameter in encoder.model.parameters()]
            if "l2" in self.weights
            else []
        )

    def forward(self, rows: Tensor) -> Tensor:
        """The loss of the pairs with the numbers `rows` [n], a scalar."""
        pairs = [self.pairs[i] for i in rows.tolist()]
        losses = [weight * self._loss(name, pairs) for name, weight in self.weights.items()]
        return torch.stack(losses).sum()

    def _loss(self, name: str, pairs: list[Pair]) -> Tensor:
        if name != "l2":
            return objective_loss(self.encoder, name, pairs, head=self.projection)
        drift = sum(
            ((now - then) ** 2).sum() for now, then in zip(self.model.parameters(), self.start, strict=True)
        )
        return l2_loss(self.encoder, pairs) + PULL * drift


def l2_loss(encoder: Encoder, pairs: Sequence[Pair]) -> Tensor:
    """Mean over aligned words of ‖f(w) − f(w')‖², in the layer where alignment is made [Cao et al. 2020].

    Raises:
        InputError: No word of the pairs is linked.
    """
    batch = encoder.encode([list(p[0]) for p in pairs] + [list(p[1]) for p in pairs]).to(encoder.device)
    x, y = linked_words(encoder.state(batch, probe_layer(encoder.n_layers)), batch, pairs)
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
    best: float = -math.inf
    waited: int = 0
    kept: list[Tensor] = field(default_factory=list)

    def __call__(self, step: int, loss: float) -> bool:
        if (step + 1) % self.every:
            return False
        self.encoder.model.eval()
        score = retrieval(self.encoder, self.held_out)
        self.encoder.model.train()
        if score > self.best:
            self.best, self.waited = score, 0
            self.kept = [parameter.detach().clone() for parameter in self.encoder.model.parameters()]
        else:
            self.waited += 1
        return self.waited >= self.patience

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the best weights, if there was a check at all."""
        if not self.kept:
            return
        for parameter, best in zip(self.encoder.model.parameters(), self.kept, strict=True):
            parameter.copy_(best)


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


def _pairs(encoder: Encoder, bitext: Bitext, *, words: bool) -> list[Pair]:
    if not len(bitext):
        raise InputError("bitext: expected at least one pair, found none")
    if not words:
        return [(a, b, ()) for a, b in zip(bitext.source, bitext.target, strict=True)]
    linked = bitext if bitext.links is not None else argmax_links(encoder, bitext)
    pairs: list[Pair] = list(zip(linked.source, linked.target, usable_links(linked), strict=True))
    kept = [pair for pair in pairs if pair[2]]
    if not kept:
        raise InputError("links: no one-to-one link between unlike words in any pair; give other links")
    return kept


def _projection(width: int, seed: int) -> nn.Module:
    """The map d → d → 128 [Wu & Dredze 2020], the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "projection"))
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))
