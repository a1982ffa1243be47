"""Conflict-aware training on two losses: TorchJD gives the step's weights, any training loop takes the step.

UPGrad [Quinton & Rey 2024], PCGrad [Yu et al. 2020] and CAGrad [Liu et al. 2021] all step along a combination Jᵀ w of
the losses' gradients whose weights depend on their Gram matrix J Jᵀ alone. `combine` finds that matrix over the shared
parameters, asks TorchJD for w and returns the scalar Σ w_i · loss_i with w held fixed: its backward is the aggregated
step on the shared parameters. A head, which one loss alone reaches, gets that loss's gradient times w_i; Adam does not
see a constant factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from reports.errors import InputError
from xlprobe.probes.gradient_stream import dot

__all__ = ["AGGREGATORS", "Aggregator", "check_weight", "combine", "weights_of"]

Aggregator = Literal["upgrad", "pcgrad", "cagrad"]
AGGREGATORS: tuple[Aggregator, ...] = get_args(Aggregator)


def check_weight(weight: float | None, aggregator: str) -> None:
    """Refuse a weight that no step could take, or that an aggregator would not look at.

    Raises:
        InputError: Another aggregator, a weight that is not above 0, or one beside an aggregator other than "sum".

    >>> check_weight(0.5, "sum")
    """
    if aggregator not in ("sum", *AGGREGATORS):
        raise InputError(f"aggregator: expected one of sum, {', '.join(AGGREGATORS)}, found {aggregator!r}")
    if weight is None:
        return
    if aggregator != "sum":
        raise InputError(
            f"weight: {aggregator} finds the weights itself; expected none beside it, found {weight}"
        )
    if not (math.isfinite(weight) and weight > 0):
        raise InputError(f"weight: expected a number above 0, found {weight}")


def weights_of(aggregator: Aggregator) -> Callable[[Tensor], Tensor]:
    """TorchJD's weighting: a Gram matrix [m, m] to weights [m].

    Raises:
        InputError: Another aggregator, or TorchJD is not installed (extra `conflict`).

    >>> gramian = torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    >>> [round(w, 3) for w in weights_of("upgrad")(gramian).tolist()]  # no conflict: the mean of the losses
    [0.5, 0.5]
    """
    if aggregator not in AGGREGATORS:
        raise InputError(f"aggregator: expected one of {', '.join(AGGREGATORS)}, found {aggregator!r}")
    try:
        from torchjd import aggregation as jd  # here: it is slow to import, and an extra
    except ImportError as error:
        raise InputError(
            f"aggregator: {aggregator} needs TorchJD, which is not installed; pip install 'mechedit[conflict]'"
        ) from error
    makers: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        "upgrad": jd.UPGradWeighting,
        "pcgrad": jd.PCGradWeighting,
        "cagrad": lambda: jd.CAGradWeighting(c=0.5),
    }
    return makers[aggregator]()


def combine(losses: Sequence[Tensor], shared: Sequence[Tensor], aggregator: Aggregator) -> Tensor:
    """The scalar Σ w_i · loss_i, w from the losses' gradients on the shared parameters.

    It costs one backward pass a loss more than the plain sum. Parameters without `requires_grad` are frozen and take no
    part.

    Raises:
        InputError: Every shared parameter is frozen.

    >>> x = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> a, b = (x * torch.tensor([1.0, 0.0])).sum(), (x * torch.tensor([-2.0, 1.0])).sum()
    >>> combine([a, b], [x], "upgrad").backward()
    >>> bool((x.grad * torch.tensor([1.0, 0.0])).sum() >= -1e-6)  # the step does not harm the first loss
    True
    """
    open_ = [parameter for parameter in shared if parameter.requires_grad]
    if not open_:
        raise InputError("shared: expected parameters that are trained, found only frozen ones")
    rows = [torch.autograd.grad(loss, open_, retain_graph=True, allow_unused=True) for loss in losses]
    size = len(rows)
    gramian = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(i, size):
            pairs = zip(rows[i], rows[j], strict=True)
            gramian[i, j] = gramian[j, i] = sum(
                float(dot(a, b)) for a, b in pairs if a is not None and b is not None
            )
    # The weights do not depend on the scale, but the solvers' tolerance does.
    scale = gramian.diagonal().mean().clamp(min=1e-30)
    weights = weights_of(aggregator)((gramian / scale).float()).tolist()
    return torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum()
