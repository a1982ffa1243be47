"""What a sub-layer's output passes on its way into the residual stream: a norm, a multiplier, or nothing.

    outlet(y) = factor · norm(y)

LLaMA adds y itself. Granite multiplies it, OLMo-2 and Gemma 3 norm it. With the norm's scale σ held still at what it
was in a forward pass, an outlet is affine, and its linear part G is what becomes of a unit's vector v (a head's, a
neuron's). With g = factor · γ / σ, and k a key that reads the stream,

    G v = (v − mean v) ⊙ g        Gᵀ k = (g ⊙ k) − mean (g ⊙ k)        (without the means, if the norm takes none off)

so that (G v) · k = v · (Gᵀ k): keys are pulled through, and no copy of W_O or W_out is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechedit.models.weights import FinalNorm

__all__ = ["Gain", "Outlet"]

_LEAST = 1e-2  # of the root mean square of g: what is divided by is no smaller


@dataclass(frozen=True, eq=False)
class Gain:
    """G: an outlet with its norm's scale frozen, as a map of vectors [..., d].

    Attributes:
        weight: factor · γ, [d] or a scalar, fp64; None: 1.
        sigma: A number, or [..., 1] for vectors of several places.
        centre: Whether the norm takes the mean off.

    >>> G = Gain(weight=torch.tensor([2.0, 4.0]).double(), sigma=2.0)
    >>> v, k = torch.tensor([1.0, 1.0]).double(), torch.tensor([3.0, 1.0]).double()
    >>> G(v).tolist(), float(G(v) @ k) == float(v @ G.pull(k))
    ([1.0, 2.0], True)
    """

    weight: Tensor | None = None
    sigma: float | Tensor = 1.0
    centre: bool = False

    def __call__(self, vectors: Tensor) -> Tensor:
        """G v for vectors [..., d]; fp32 at least."""
        if self.weight is None:
            return vectors
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        return _centred(vectors, self.centre) * self._scale(vectors)

    def pull(self, keys: Tensor) -> Tensor:
        """Gᵀ k for keys [..., d], in their dtype (fp32 at least)."""
        return keys if self.weight is None else _centred(keys * self._scale(keys), self.centre)

    def back(self, wanted: Tensor) -> Tensor:
        """V with G v = wanted [..., d]: where γ is next to nothing, what moves little is asked to move no more."""
        if self.weight is None:
            return wanted
        g = self._scale(wanted)
        least = _LEAST * g.square().mean(-1, keepdim=True).sqrt() if g.ndim else g.abs()
        return wanted / torch.where(g < 0, -1.0, 1.0) / torch.maximum(g.abs(), least)

    def _scale(self, like: Tensor) -> Tensor:
        assert self.weight is not None
        return (self.weight.to(like.device) / self.sigma).to(like.dtype)


@dataclass(frozen=True, eq=False)
class Outlet:
    """What is added to the residual stream for an output y: `outlet(y) = factor · norm(y)`.

    Attributes:
        norm: The norm behind the sub-layer, or None.
        factor: What the model multiplies it by.
    """

    norm: FinalNorm | None = None
    factor: float = 1.0

    def __call__(self, y: Tensor) -> Tensor:
        """Factor · norm(y) for y [..., d]."""
        y = y if self.norm is None else self.norm(y)
        return y if self.factor == 1 else self.factor * y

    @property
    def plain(self) -> bool:
        """Whether the output itself is added."""
        return self.norm is None and self.factor == 1

    @property
    def weight(self) -> Tensor | None:
        """Factor · γ, [d] or a scalar, fp64: what every row of W_O or W_out meets, whatever the prompt. None: 1."""
        if self.norm is not None:
            return self.factor * self.norm.weight.double()
        return None if self.factor == 1 else torch.tensor(self.factor, dtype=torch.float64)

    @property
    def shift(self) -> Tensor | None:
        """Factor · β [d], fp64, or None: what is added beside G y."""
        bias = None if self.norm is None else self.norm.bias
        return None if bias is None else self.factor * bias.double()

    def frozen(self, sigma: float | Tensor = 1.0) -> Gain:
        """G where the norm's scale was `sigma` (1 where there is no norm)."""
        return Gain(self.weight, sigma, centre=self.norm is not None and self.norm.kind == "layer")


def _centred(x: Tensor, wanted: bool) -> Tensor:
    return x - x.mean(-1, keepdim=True) if wanted else x
