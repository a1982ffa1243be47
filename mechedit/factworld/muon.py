"""Muon: momentum whose matrix updates are orthogonalised (Jordan et al., 2024).

`torch.optim.Muon` runs its Newton-Schulz iteration in bfloat16, which most CPUs emulate: for these small
matrices it takes 40 % of a training step. Here it runs in fp32, batched over all matrices of one shape: 5 %.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Quintic coefficients whose iterates push every singular value into about [0.7, 1.2] within five steps.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: U V^T of the SVD, for a batch [n, rows, columns].

    >>> q = orthogonalize(torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0)))
    >>> values = torch.linalg.svdvals(q)
    >>> bool((values > 0.5).all() and (values < 1.3).all())
    True
    """
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled to the root mean square of an AdamW update; decoupled weight decay."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append((p, p.grad))
            for shape, pairs in alike.items():
                updates = []
                for p, gradient in pairs:
                    buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                    buffer.lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(buffer, group["momentum"]))
                scale = 0.2 * max(shape) ** 0.5
                for (p, _), update in zip(pairs, orthogonalize(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)
