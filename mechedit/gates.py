"""Gates: whether a prompt is one that an edit is about.

An edit that steers every prompt is precise nowhere; an edit that never steers is "specific" for free. So a gate is
part of the edit, and every comparison also shows the gate alone and the edit without it.

`hidden`: the hidden state at the prompt's last token, at the input of a layer not above the first steered one, is
nearer to one of the edit's own prompts than a threshold (SAKE's hidden-state variant; nearest instead of mean, since
paraphrases form several clusters). By mid-depth this state holds both the subject and what is asked of it. It is read
in the very forward pass that is steered, so it costs one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reports.errors import InputError

__all__ = ["AlwaysOn", "Gate", "HiddenGate", "calibrate"]


class Gate(Protocol):
    """Decides for prompts by their last tokens' states at the input of layer `layer` (None: without looking)."""

    @property
    def layer(self) -> int | None:
        """Whose input is looked at."""

    def ratio(self, states: Tensor) -> Tensor:
        """[B] for states [B, d]: at most 1 where the gate opens; of several open gates the smallest wins."""


@dataclass(frozen=True)
class AlwaysOn:
    """Opens for every prompt: the ungated row of every comparison.

    >>> AlwaysOn().ratio(torch.zeros(2, 3))
    tensor([0., 0.])
    """

    layer: None = None

    def ratio(self, states: Tensor) -> Tensor:
        """Zeros [B]."""
        return states.new_zeros(len(states))


@dataclass(frozen=True, eq=False)
class HiddenGate:
    """Opens within `threshold` (Euclidean, in units of the hidden state) of one of `centres` [k, d].

    >>> gate = HiddenGate(layer=2, centres=torch.zeros(1, 2), threshold=5.0)
    >>> gate.ratio(torch.tensor([[3.0, 4.0], [6.0, 8.0]]))
    tensor([1., 2.])
    """

    layer: int
    centres: Tensor
    threshold: float

    def ratio(self, states: Tensor) -> Tensor:
        """Distance to the nearest centre over the threshold, [B]."""
        return nearest(states, self.centres) / self.threshold


def nearest(states: Tensor, centres: Tensor) -> Tensor:
    """[B]: distance of each state [B, d] to the nearest of centres [k, d]."""
    return torch.cdist(states, centres.to(states), compute_mode="donot_use_mm_for_euclid_dist").amin(1)


def calibrate(own: Sequence[float], foreign: Sequence[float]) -> float:
    """The threshold that separates an edit's prompts (distances `own`) from others (`foreign`) with fewest errors.

    Both sides weigh the same whatever their numbers; between equally good thresholds the middle of the widest gap is
    taken. Errors: `InputError` if a side is empty or not finite.

    >>> calibrate([1.0, 2.0], [4.0, 9.0])
    3.0
    """
    a, b = torch.tensor(own, dtype=torch.float64), torch.tensor(foreign, dtype=torch.float64)
    for name, values in (("own", a), ("foreign", b)):
        if not len(values) or not torch.isfinite(values).all():
            raise InputError(f"{name}: expected finite distances, at least one, found {len(values)}")
    edges = torch.cat([a, b]).unique()
    cuts = torch.cat([edges[:1] / 2, (edges[1:] + edges[:-1]) / 2, edges[-1:] * 1.5])
    errors = (a[None] > cuts[:, None]).double().mean(1) + (b[None] <= cuts[:, None]).double().mean(1)
    widths = torch.cat([edges[:1], edges.diff(), edges[-1:]])
    best = (errors == errors.min()).nonzero()[:, 0]
    return float(cuts[best[widths[best].argmax()]])
