"""Gates: whether a prompt is one that an edit is about.

An edit that steers every prompt is precise nowhere; an edit that never steers is "specific" for free. So a gate is
part of the edit, and every comparison also shows the gate alone and the edit without it.

- `AlwaysOn`: opens without a look at the prompt.
- `HiddenGate`: a state at the input of a layer, of the prompt's last token or the mean over its tokens, is near the
  same state of one of the edit's own prompts, by the Euclidean, cosine or Mahalanobis distance.
- `SentenceGate`: the text's embedding by a sentence encoder is near that of one of the edit's own prompts.

SAKE (arXiv 2503.01751) takes the distance to the *mean* of the prompts; here the nearest counts, since paraphrases
form several clusters. Every distance is Euclidean in some coordinates of the state, so one product with the centres
of all edits decides all gates of a batch (`mechedit.editors.steering.gate_bank`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from reports.errors import InputError

__all__ = [
    "AlwaysOn",
    "CentredGate",
    "Distance",
    "HiddenGate",
    "Pool",
    "Reading",
    "SentenceGate",
    "Whitening",
    "calibrate",
    "nearest",
    "roc",
    "whitening",
]

Distance = Literal["euclidean", "cosine", "mahalanobis"]
Pool = Literal["last", "mean", "all"]
Embed = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True, order=True)
class Reading:
    """A state that a gate reads, in a pass in which nothing is steered.

    Attributes:
        layer: Whose input it is.
        pool: That of the prompt's last token, the mean over its tokens, or those of all its tokens.
    """

    layer: int
    pool: Pool


@dataclass(frozen=True)
class AlwaysOn:
    """Opens for every prompt: the ungated row of every comparison."""

    kind = None


@dataclass(frozen=True, eq=False)
class Whitening:
    """`W h = r h + P ((s − r) ⊙ Pᵀ h)`: coordinates in which the Mahalanobis distance is Euclidean.

    Attributes:
        basis: P [d, k], principal directions of a sample.
        scale: s [k], 1 / sqrt(variance + reg) along them.
        rest: r = 1 / sqrt(reg), off their span.
    """

    basis: Tensor
    scale: Tensor
    rest: float

    def __call__(self, states: Tensor) -> Tensor:
        """W of states [B, d]."""
        basis, scale = self.basis.to(states), self.scale.to(states)
        return self.rest * states + ((states @ basis) * (scale - self.rest)) @ basis.T


@dataclass(frozen=True, eq=False)
class HiddenGate:
    """Opens near one of the states of the edit's own prompts.

    Attributes:
        layer: Whose input is read.
        centres: The states of the edit's prompts there [k, d].
        threshold: The distance from the nearest centre within which the gate opens.
        distance: "euclidean" (units of the state), "cosine" (Euclidean between states of length 1, sqrt(2 − 2 cos)) or
            "mahalanobis" (standard deviations; needs `whitening`).
        pool: The last token's state, or the mean over tokens.
        whitening: For the Mahalanobis distance.

    >>> gate = HiddenGate(layer=2, centres=torch.zeros(1, 2), threshold=5.0)
    >>> states = gate.coordinates(torch.tensor([[3.0, 4.0], [6.0, 8.0]]))
    >>> nearest(states, gate.coordinates(gate.centres)) <= gate.threshold
    tensor([ True, False])
    """

    layer: int
    centres: Tensor
    threshold: float
    distance: Distance = "euclidean"
    pool: Pool = "last"
    whitening: Whitening | None = None

    @property
    def kind(self) -> Hashable:
        """Gates of one kind are asked at once (`mechedit.editors.steering.gate_bank`)."""
        return (self.layer, self.pool, self.distance, id(self.whitening))

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The state that it reads."""
        return (Reading(self.layer, self.pool),)

    def coordinates(self, states: Tensor) -> Tensor:
        """The states [B, d] where the distance is Euclidean: as they are, of length 1, or whitened.

        Raises:
            InputError: The Mahalanobis distance without a whitening.
        """
        if self.distance == "cosine":
            return states / states.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(states.dtype).tiny)
        if self.distance == "mahalanobis":
            if self.whitening is None:
                raise InputError(
                    "whitening: expected one for the Mahalanobis distance, found None; see whitening()"
                )
            return self.whitening(states)
        return states


@dataclass(frozen=True, eq=False)
class SentenceGate:
    """Opens near the embedding of one of the edit's prompts: SAKE's gate, with the nearest in the place of their mean.

    Attributes:
        centres: The embeddings of the edit's prompts [k, e].
        threshold: The Euclidean distance from the nearest centre within which the gate opens.
        model: Name or folder of the encoder, by which a saved gate finds it again
            (`mechedit.editors.steering.sentence_encoder`).
        embed: Texts to embeddings [n, e].
    """

    centres: Tensor
    threshold: float
    model: str
    embed: Embed = field(repr=False)

    @property
    def kind(self) -> Hashable:
        """Gates of one kind are asked at once (`mechedit.editors.steering.gate_bank`)."""
        return self.model

    def coordinates(self, states: Tensor) -> Tensor:
        """The embeddings themselves."""
        return states


CentredGate = HiddenGate | SentenceGate  # opens near the edit's own prompts


def whitening(sample: Tensor, *, reg: float = 1e-2) -> Whitening:
    """The `Whitening` of the covariance of some states.

    Off the span of the sample only the regularisation is known, so no d × d matrix is formed.

    Args:
        sample: The states [n, d].
        reg: Is added to the variance along every direction, as a share of the mean variance.

    Raises:
        InputError: Fewer than two states, or a sample without variance.

    >>> draw = torch.Generator().manual_seed(0)
    >>> w = whitening(torch.randn(500, 3, generator=draw) * torch.tensor([1.0, 5.0, 25.0]), reg=1e-6)
    >>> (w(torch.eye(3)).norm(dim=1) * torch.tensor([1.0, 5.0, 25.0])).round().tolist()
    [1.0, 1.0, 1.0]
    """
    states = sample.double()
    if len(states) < 2:
        raise InputError(f"sample: expected at least two states, found {len(states)}")
    _, values, directions = torch.linalg.svd(states - states.mean(0), full_matrices=False)
    variance = values.square() / len(states)
    floor = reg * float(variance.sum()) / sample.shape[1]
    if not floor > 0:
        raise InputError("sample: expected states that differ, found none that do")
    return Whitening(directions.T.float(), (variance + floor).rsqrt().float(), floor**-0.5)


def nearest(states: Tensor, centres: Tensor) -> Tensor:
    """[B]: distance of each state [B, d] to the nearest of centres [k, d]."""
    return torch.cdist(states, centres.to(states), compute_mode="donot_use_mm_for_euclid_dist").amin(1)


def calibrate(
    own: Sequence[float], foreign: Sequence[float], *, max_fpr: float | None = None, weight: float = 1.0
) -> float:
    """The threshold that separates an edit's own prompts from foreign ones.

    With `max_fpr`, the largest that opens for at most this share of the foreign ones; else that with the fewest errors,
    weight · share missed + share of false openings, and between equally good ones the middle of the widest gap.

    Args:
        own: Distances of the edit's own prompts.
        foreign: Distances of foreign prompts.
        max_fpr: The share of foreign prompts that it may open for.
        weight: Of a missed prompt against a false opening.

    Raises:
        InputError: A side is empty or not finite, or the rate is outside of 0 to 1.

    >>> calibrate([1.0, 2.0], [4.0, 9.0])
    3.0
    >>> calibrate([1.0, 2.0], [1.5, 9.0, 9.5, 9.75], max_fpr=0.25)
    5.5
    """
    a, b = (_finite(name, values) for name, values in (("own", own), ("foreign", foreign)))
    if max_fpr is not None and not 0 <= max_fpr <= 1:
        raise InputError(f"max_fpr: expected a rate between 0 and 1, found {max_fpr}")
    edges = torch.cat([a, b]).unique()
    cuts = torch.cat([edges[:1] / 2, (edges[1:] + edges[:-1]) / 2, edges[-1:] * 1.5])
    false = (b[None] <= cuts[:, None]).double().mean(1)
    if max_fpr is not None:
        allowed = cuts[false <= max_fpr]
        return float(allowed[-1] if len(allowed) else edges[0] / 2)
    errors = weight * (a[None] > cuts[:, None]).double().mean(1) + false
    widths = torch.cat([edges[:1], edges.diff(), edges[-1:]])
    best = (errors == errors.min()).nonzero()[:, 0]
    return float(cuts[best[widths[best].argmax()]])


def roc(own: Sequence[float], foreign: Sequence[float]) -> pd.DataFrame:
    """The gate's rates at every threshold: frame threshold, true_rate, false_rate, from closed to open.

    The area under it (`numpy.trapezoid`) is the share of pairs in which the own prompt is the nearer one.

    Args:
        own: Distances of the edit's own prompts.
        foreign: Distances of foreign prompts.

    Raises:
        InputError: A side is empty or not finite.

    >>> roc([1.0, 2.0], [2.0, 9.0]).to_dict("list")["true_rate"]
    [0.0, 0.5, 1.0, 1.0]
    """
    a, b = (_finite(name, values) for name, values in (("own", own), ("foreign", foreign)))
    cuts = torch.cat([torch.zeros(1, dtype=torch.float64) - 1, torch.cat([a, b]).unique()])
    rates = {"true_rate": a, "false_rate": b}
    table = {name: (x[None] <= cuts[:, None]).double().mean(1).numpy() for name, x in rates.items()}
    return pd.DataFrame({"threshold": cuts.clamp_min(0).numpy(), **table})


def _finite(name: str, values: Sequence[float]) -> Tensor:
    distances = torch.tensor(values, dtype=torch.float64)
    if not len(distances) or not torch.isfinite(distances).all():
        raise InputError(f"{name}: expected finite distances, at least one, found {len(distances)}")
    return distances
