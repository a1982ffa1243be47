"""Gaussian maps in the span of their samples: the map by which MEGA and SAKE steer a state.

Source: Gaussian optimal transport (Bures-Wasserstein), as used by SAKE (arXiv 2503.01751). With samples X_s,
X_t [n, d], means μ and covariances C = XᵀX/n + reg·I,

    A = C_s^-½ (C_s^½ C_t C_s^½)^½ C_s^-½        h' = A h + (μ_t − A μ_s).

Off the span of the centred samples both covariances are reg·I, so A is the identity there. The map is therefore
found and applied in an orthonormal basis P of that span, and no d × d matrix is ever formed: O(d n²) to fit,
O(d n) to apply.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reports.errors import InputError


@dataclass(frozen=True)
class AffineMap:
    """h' = h + α · P (M z + c) with z = Pᵀ(h − m); the orthogonal complement of P is left alone.

    Attributes:
        mean: The point m that is mapped from [d].
        basis: P [d, r], orthonormal columns.
        matrix: M [r, r], the map minus the identity.
        shift: The constant c [r].
    """

    mean: Tensor
    basis: Tensor
    matrix: Tensor
    shift: Tensor

    def displacement(self, h: Tensor) -> Tensor:
        """The displacement h' − h at α = 1, for h [..., d], in the dtype of `h`."""
        z = (h.to(self.mean.dtype) - self.mean) @ self.basis
        return ((z @ self.matrix.mT + self.shift) @ self.basis.mT).to(h.dtype)

    def __call__(self, h: Tensor, *, alpha: float = 1.0) -> Tensor:
        """Moves h [..., d] by `alpha` of the way."""
        return h + alpha * self.displacement(h)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> AffineMap:
        """The same map elsewhere, or in another precision."""
        return AffineMap(*(t.to(device, dtype) for t in (self.mean, self.basis, self.matrix, self.shift)))


def gaussian_map(source: Tensor, target: Tensor, *, reg: float = 1e-2, rank: int | None = None) -> AffineMap:
    """The optimal transport between the Gaussians of two clouds of states.

    Args:
        source: States [n_s, d]; solved in fp64 whatever their dtype.
        target: States [n_t, d].
        reg: Is added to both covariances' diagonals, in squared units of the states. As it grows, A goes to the
            identity and the map to the mean shift.
        rank: Keep only the leading principal directions of the pooled samples (None: all; then the map is exact).

    Raises:
        InputError: The shapes differ, a state is not finite, `reg` is not positive, or `rank` is below 1.

    When it is wrong: the map takes both clouds for Gaussians. A source made of two clusters (plain and forced
    prompts, say) is none: transport shrinks the direction between them, and the mean shift can do better.

    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(40, 8, dtype=torch.float64), 2 * torch.randn(50, 8, dtype=torch.float64) + 1
    >>> moved = gaussian_map(x, y, reg=1e-9)(x)
    >>> same_mean = torch.allclose(moved.mean(0), y.mean(0))
    >>> same_mean, torch.allclose(moved.T.cov(correction=0), y.T.cov(correction=0), atol=1e-6)
    (True, True)
    """
    source, target = _checked(source, target)
    if not reg > 0:
        raise InputError(f"reg: expected a positive number, found {reg}; 1e-2 is SAKE's choice for GPT2-XL")
    mean, basis = span(torch.cat([source, target]), rank=rank)
    zs, zt = (source - mean) @ basis, (target - mean) @ basis
    eye = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
    cs = zs.T.cov(correction=0).reshape(eye.shape) + reg * eye
    ct = zt.T.cov(correction=0).reshape(eye.shape) + reg * eye
    half, inverse_half = _power(cs, 0.5), _power(cs, -0.5)
    a = inverse_half @ _power(half @ ct @ half, 0.5) @ inverse_half
    return AffineMap(mean, basis, a - eye, zt.mean(0) - a @ zs.mean(0))


def mean_shift(source: Tensor, target: Tensor) -> AffineMap:
    """The mean shift h' = h + μ_t − μ_s: the control that every transport is held against.

    >>> x = torch.eye(3)
    >>> mean_shift(x, x + 1)(torch.zeros(3))
    tensor([1., 1., 1.])
    """
    source, target = _checked(source, target)
    difference = target.mean(0) - source.mean(0)
    length = difference.norm()
    basis = (difference / length if length > 0 else difference)[:, None]
    return AffineMap(source.mean(0), basis, difference.new_zeros(1, 1), length[None])


def span(samples: Tensor, *, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Mean [d] and an orthonormal basis [d, r] of the centred samples, leading principal directions first."""
    if rank is not None and rank < 1:
        raise InputError(f"rank: expected at least 1 or None, found {rank}")
    mean = samples.mean(0)
    # An SVD of the n × d samples by way of their QR: the same directions at a quarter of the time.
    q, r = torch.linalg.qr((samples - mean).T)
    directions, values, _ = torch.linalg.svd(r)
    floor = values.max() * max(samples.shape) * torch.finfo(values.dtype).eps
    kept = int((values > floor).sum())
    return mean, (q @ directions[:, : min(kept, rank or kept)]).contiguous()


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0) ** exponent) @ vectors.T


def _checked(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    for name, states in (("source", source), ("target", target)):
        if states.ndim != 2 or states.shape[0] < 1:
            raise InputError(f"{name}: expected states [n, d] with n >= 1, found shape {tuple(states.shape)}")
        if not torch.isfinite(states).all():
            raise InputError(
                f"{name}: expected finite states, found NaN or infinity; the model's forward pass overflowed"
            )
    if source.shape[1] != target.shape[1]:
        raise InputError(f"target: expected width {source.shape[1]} as in source, found {target.shape[1]}")
    return source.double(), target.double()
