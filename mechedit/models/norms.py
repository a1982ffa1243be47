"""What a norm computes, read off what it does to a vector rather than off its name.

Decoders store their norms in several ways: with a weight or with a weight less 1 (Gemma, Nemotron), with the mean taken
off (LayerNorm, Cohere's too) or not (RMSNorm), without any weight (OLMo). A module is run once on a vector with a mean,
and the one of the four forms

    (x − mean x) / σ ⊙ (weight + offset) + bias      x / σ ⊙ (weight + offset) + bias      offset 0 or 1

that gives the same is what it computes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch

from reports.errors import InputError

__all__ = ["NormForm", "norm_form"]

#: What a norm without an eps of its own has inside (OLMo).
EPS = 1e-5
# Half precision rounds to 1e-2; the wrong one of the four forms is off by a tenth or more.
_NEAR = 3e-2


@dataclass(frozen=True)
class NormForm:
    """What a norm computes.

    Attributes:
        kind: "layer" takes the mean off, "rms" does not.
        offset: What is added to the stored weight.
        eps: What is added to the power under the root.
    """

    kind: Literal["layer", "rms"]
    offset: float
    eps: float


_known: WeakKeyDictionary[torch.nn.Module, NormForm] = WeakKeyDictionary()


def norm_form(module: torch.nn.Module) -> NormForm:
    """The form of a norm; found once a module.

    Raises:
        InputError: It has none of the four.

    >>> norm_form(torch.nn.LayerNorm(4)).kind, norm_form(torch.nn.RMSNorm(4, eps=1e-6)).eps
    ('layer', 1e-06)
    """
    if module not in _known:
        _known[module] = _measured(module)
    return _known[module]


@torch.no_grad()
def _measured(module: Any) -> NormForm:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    width = len(weight) if weight is not None else int(module.normalized_shape[-1])
    like = torch.zeros(1) if weight is None else weight
    x = (1.5 + torch.linspace(-2, 3, width).sin() + torch.linspace(0, 40, width).cos()).to(like)
    found = module(x[None, None])[0, 0].double()
    eps = next(
        (float(e) for n in ("variance_epsilon", "eps") if (e := getattr(module, n, None)) is not None), EPS
    )
    errors: dict[NormForm, float] = {}
    kinds: tuple[Literal["layer", "rms"], ...] = ("layer", "rms")
    for kind, offset in itertools.product(kinds, (0.0, 1.0) if weight is not None else (0.0,)):
        y = x.double() - x.double().mean() if kind == "layer" else x.double()
        y = y / (y.square().mean() + eps).sqrt()
        y = y if weight is None else y * (weight.double() + offset)
        y = y if bias is None else y + bias.double()
        errors[NormForm(kind, offset, eps)] = float((y - found).norm() / found.norm().clamp(min=1e-12))
    best = min(errors, key=lambda form: errors[form])
    if not errors[best] < _NEAR:
        raise InputError(
            f"model: {type(module).__name__} is no norm that this package knows: it computes neither a LayerNorm nor "
            f"an RMSNorm of its weight (off by {errors[best]:.1e})"
        )
    return best
