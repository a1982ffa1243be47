"""How close two languages lie: pure functions over two clouds of matched vectors X, Y [n, d].

Row i of X and row i of Y stand for the same sentence (or word) in two languages. XLM-R's space is anisotropic: two
unrelated sentences have a cosine of 0.9 and more, so a raw cosine says nothing. Each measure therefore comes as a
triple: `matched`, what it gives for the pairs, `random`, what it gives for pairs that do not belong together, and
their difference, `gap`, with a 95 % interval over the pairs.

| measure | matched | random | source |
|---|---|---|---|
| cosine, euclidean | mean over i of s(x_i, y_i) | mean over all i ≠ j of s(x_i, y_j) | |
| weak retrieval | share of i whose nearest y is y_i, both directions | 1/n | Roy et al. 2020 |
| strong retrieval | the same among all y *and* all other x | 1/(2n − 1) | Roy et al. 2020, LAReQA |
| rotated retrieval | weak, behind the best rotation of X to Y found on the other half | 1/m | Schönemann 1966 |
| linear CKA | ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F), columns centred | the same with Y's rows permuted | Kornblith et al. 2019 |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from reports.errors import InputError
from reports.intervals import Z95, bootstrap_mean, wilson

__all__ = ["METRICS", "MORE_METRICS", "Gap", "linear_cka", "measure", "procrustes", "retrieval_hits"]

METRICS = ("cosine", "euclidean", "weak_retrieval", "strong_retrieval", "rotated_retrieval", "cka")
MORE_METRICS = (
    "csls_retrieval",
    "margin_retrieval",
)  # weak retrieval that corrects for hubs, where asked for
RETRIEVAL_BY = ("cosine", "csls", "margin")
_BLOCKS = 20  # of the jackknife
_SHUFFLES = 5  # whose mean is the CKA of pairs that do not belong together


@dataclass(frozen=True)
class Gap:
    """One measure of one layer.

    Attributes:
        matched: The measure of the pairs.
        random: The measure of vectors that do not belong together.
        low: Lower end of the gap's 95 % interval.
        high: Upper end.
        n: The number of pairs.
    """

    matched: float
    random: float
    low: float
    high: float
    n: int

    @property
    def gap(self) -> float:
        """The difference matched − random."""
        return self.matched - self.random


def measure(x: Tensor, y: Tensor, *, metrics: Sequence[str] = METRICS, seed: int = 0) -> dict[str, Gap]:
    """The measures `metrics` for matched rows x, y [n, d], computed in float64.

    Intervals: a bootstrap over pairs of the linearised gap s_ii − row_i − col_i + random (dropping pair i changes
    its row *and* its column) for cosine and distance, Wilson's for retrieval, a jackknife over 20 blocks for CKA.
    It is wrong for rows that repeat: a sentence that occurs twice cannot be retrieved (a tie counts as a miss).

    Raises:
        InputError: Another metric, or x and y are not both [n, d] with n >= 4 and finite.

    >>> x = torch.eye(6, dtype=torch.float64)
    >>> gaps = measure(x, x)
    >>> gaps["cosine"].matched, gaps["cosine"].random, gaps["weak_retrieval"].gap
    (1.0, 0.0, 0.8333333333333334)
    """
    if strange := [name for name in metrics if name not in (*METRICS, *MORE_METRICS)]:
        raise InputError(
            f"metrics: expected some of {', '.join((*METRICS, *MORE_METRICS))}, found {strange[0]!r}"
        )
    x, y = _checked(x, y)
    generator = torch.Generator().manual_seed(seed)
    unit_x, unit_y = normalize(x, dim=1), normalize(y, dim=1)
    across = unit_x @ unit_y.T
    made: dict[str, Callable[[], Gap]] = {
        "cosine": lambda: _pairs(across, seed),
        "euclidean": lambda: _pairs(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist"), seed),
        "weak_retrieval": lambda: _share(_hits(across), 1 / len(x)),
        "strong_retrieval": lambda: _share(
            _hits(across, _nearest(unit_x), _nearest(unit_y)), 1 / (2 * len(x) - 1)
        ),
        "csls_retrieval": lambda: _share(_hits(_without_hubs(across, "csls", 10)), 1 / len(x)),
        "margin_retrieval": lambda: _share(_hits(_without_hubs(across, "margin", 10)), 1 / len(x)),
        "rotated_retrieval": lambda: _rotated(x, y, generator),
        "cka": lambda: _cka_gap(x, y, generator),
    }
    return {name: made[name]() for name in metrics}


def retrieval_hits(x: Tensor, y: Tensor, *, strong: bool = False, by: str = "cosine", k: int = 10) -> Tensor:
    """The share (0, ½, 1) of the two directions in which each pair's partner is the nearest by cosine [n].

    Weak: x_i searches all y, y_i all x. Strong: each also has the other rows of its own language against it. The
    partner must be nearer than every other: a tie is a miss.

    Args:
        x: Vectors of one language [n, d].
        y: Their partners [n, d].
        strong: Whether a vector's own language is searched too; with "cosine" alone.
        by: "cosine"; or, against hubs that are near to everything, "csls" = 2 cos(x, y) − r(x) − r(y) [Conneau et al.
            2018], "margin" = cos(x, y) / ½(r(x) + r(y)) [Artetxe & Schwenk 2019], r the mean cosine of the `k` nearest
            in the other language.
        k: Neighbours of r, at most n.

    Raises:
        InputError: Another measure, or `strong` beside one other than "cosine".

    >>> x, y = torch.tensor([[1.0, 0.0], [0.9, 0.1]]), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    >>> retrieval_hits(x, y).tolist(), retrieval_hits(x, y, strong=True).tolist()
    ([0.5, 0.5], [0.0, 0.0])
    """
    x, y = normalize(x, dim=1), normalize(y, dim=1)
    if by not in RETRIEVAL_BY or (strong and by != "cosine"):
        raise InputError(f"by: expected one of {', '.join(RETRIEVAL_BY)} (strong: cosine), found {by!r}")
    if strong:
        return _hits(x @ y.T, _nearest(x), _nearest(y))
    return _hits(_without_hubs(x @ y.T, by, k))


def _without_hubs(across: Tensor, by: str, k: int) -> Tensor:
    """The scores [n, n] by which a partner is searched, of the cosines."""
    if by == "cosine":
        return across
    k = min(k, len(across))
    from_x, from_y = across.topk(k, dim=1).values.mean(1), across.topk(k, dim=0).values.mean(0)
    if by == "csls":
        return 2 * across - from_x[:, None] - from_y
    return across / ((from_x[:, None] + from_y) / 2)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of x [n, d] and y [n, e], in [0, 1].

    ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F) with centred columns: 1 where one is a rotation and scaling of the other, nan where one
    of them does not vary. It is wrong for n not well above d: it tends to 1 for any two clouds, which is why `measure`
    also gives the value for permuted rows.

    >>> x = torch.eye(4, dtype=torch.float64)[:, :3]
    >>> round(linear_cka(x, 2 * x.flip(1)), 12)
    1.0
    """
    x, y = x - x.mean(0), y - y.mean(0)
    if len(x) < x.shape[1] + y.shape[1]:  # the same norms from the n × n Gram matrices
        gram_x, gram_y = x @ x.T, y @ y.T
        cross, scale = (gram_x * gram_y).sum(), gram_x.norm() * gram_y.norm()
    else:
        cross, scale = (y.T @ x).square().sum(), (x.T @ x).norm() * (y.T @ y).norm()
    return float(cross / scale) if scale > 0 else math.nan


def procrustes(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The orthogonal map of X onto Y: its rotation [d, d], the mean of x [d] and the mean of y [d].

    R = U Vᵀ with U S Vᵀ the SVD of X_cᵀ Y_c minimises ‖X_c R − Y_c‖_F over all orthogonal R [Schönemann 1966]; a row
    maps by (x − m_x) R + m_y. With n < d it is the identity's choice, not the data's, outside of the rows' span.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]], dtype=torch.float64)
    >>> quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    >>> rotation, _, _ = procrustes(x, x @ quarter + 5)
    >>> torch.allclose(rotation, quarter)
    True
    """
    mean_x, mean_y = x.mean(0), y.mean(0)
    left, _, right = torch.linalg.svd((x - mean_x).T @ (y - mean_y))
    return left @ right, mean_x, mean_y


def _hits(across: Tensor, rival_x: Tensor | None = None, rival_y: Tensor | None = None) -> Tensor:
    """Hits of the cosines across [n, n]; `rival_x`, `rival_y` [n] are cosines that a partner must beat too."""
    matched = across.diagonal()
    rivals = across.clone().fill_diagonal_(-torch.inf)
    from_x, from_y = rivals.amax(1), rivals.amax(0)
    if rival_x is not None and rival_y is not None:
        from_x, from_y = torch.maximum(from_x, rival_x), torch.maximum(from_y, rival_y)
    return ((matched > from_x).to(across.dtype) + (matched > from_y).to(across.dtype)) / 2


def _nearest(x: Tensor) -> Tensor:
    """The largest cosine of each unit row to another row of the same language."""
    within = x @ x.T
    return within.fill_diagonal_(-torch.inf).amax(1)


def _pairs(scores: Tensor, seed: int) -> Gap:
    """Diagonal against off-diagonal of s [n, n]."""
    n = len(scores)
    matched = scores.diagonal()
    rows, columns = (scores.sum(1) - matched) / (n - 1), (scores.sum(0) - matched) / (n - 1)
    random = float(rows.mean())
    low, high = bootstrap_mean((matched - rows - columns + random).cpu().numpy(), seed=seed)
    return Gap(float(matched.mean()), random, low, high, n)


def _share(hits: Tensor, chance: float) -> Gap:
    """Wilson's interval, which keeps a width where every pair is found: a pair found one way only counts as half."""
    low, high = wilson(round(float(hits.sum())), len(hits))
    return Gap(float(hits.mean()), chance, low - chance, high - chance, len(hits))


def _rotated(x: Tensor, y: Tensor, generator: torch.Generator) -> Gap:
    """Weak retrieval in each half of the pairs behind the rotation found on the other half."""
    order = torch.randperm(len(x), generator=generator).to(x.device)
    halves = order[: len(x) // 2], order[len(x) // 2 :]
    hits = []
    for fit, held_out in (halves, halves[::-1]):
        rotation, mean_x, mean_y = procrustes(x[fit], y[fit])
        hits.append(retrieval_hits((x[held_out] - mean_x) @ rotation, y[held_out] - mean_y))
    return _share(torch.cat(hits), 2 / len(x))  # one of the other half's n/2 rows


def _cka_gap(x: Tensor, y: Tensor, generator: torch.Generator) -> Gap:
    """CKA of the pairs against the mean over `_SHUFFLES` permutations, with all rows and without each block."""
    n, blocks = len(x), min(_BLOCKS, len(x))
    orders = [torch.randperm(n, generator=generator).to(x.device) for _ in range(_SHUFFLES + 1)]
    block = orders.pop()
    # The number n is the row of zeros behind the last.
    members = torch.full((blocks, math.ceil(n / blocks)), n, device=x.device)
    members[block % blocks, block // blocks] = torch.arange(n, device=x.device)
    x, y = pad(x, (0, 0, 0, 1)), pad(y, (0, 0, 0, 1))
    paired, norm_x = _cross_norms(x[members], y[members], n), _cross_norms(x[members], x[members], n)
    matched = paired.square() / (norm_x * _cross_norms(y[members], y[members], n))
    random = torch.zeros_like(matched)
    for order in orders:
        permuted = y[torch.cat([order, order.new_tensor([n])])[members]]
        cross, norm_y = _cross_norms(x[members], permuted, n), _cross_norms(permuted, permuted, n)
        random += cross.square() / (norm_x * norm_y) / len(orders)
    gap = float(matched[0] - random[0])
    error = float(((matched - random)[1:].var(correction=0) * (blocks - 1)).sqrt())
    return Gap(float(matched[0]), float(random[0]), gap - Z95 * error, gap + Z95 * error, n)


def _cross_norms(a: Tensor, b: Tensor, n: int) -> Tensor:
    """‖A_cᵀ B_c‖_F over all `n` rows, then with each block left out: [1 + k]; O(n d²), however many blocks.

    a [k, m, d], b [k, m, e]: blocks of rows, filled up to m with rows of zeros, which add nothing; the first n mod k
    blocks hold one row more.
    """
    crosses = a.mT @ b
    sizes = torch.full((len(a),), n // len(a), dtype=a.dtype, device=a.device)
    sizes[: n % len(a)] += 1
    # The first row of each leaves nothing out.
    kept = n - pad(sizes, (1, 0))
    sums_a, sums_b, left = (_left_out(parts) for parts in (a.sum(1), b.sum(1), crosses))
    left -= sums_a[:, :, None] * (sums_b / kept[:, None])[:, None]
    return left.flatten(1).norm(dim=1)


def _left_out(parts: Tensor) -> Tensor:
    """The sum of `parts` [k, ...], then the sum without each of them: [1 + k, ...]."""
    whole = parts.sum(0)[None]
    return torch.cat([whole, whole - parts])


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    for name, rows in (("x", x), ("y", y)):
        if rows.ndim != 2 or len(rows) < 4:
            raise InputError(
                f"{name}: expected vectors [n, d] of at least 4 pairs, found shape {tuple(rows.shape)}"
            )
        if not torch.isfinite(rows).all():
            raise InputError(
                f"{name}: expected finite vectors, found NaN or infinity; the encoder's forward pass overflowed"
            )
    if x.shape != y.shape:
        raise InputError(f"y: expected the shape {tuple(x.shape)} of x, found {tuple(y.shape)}")
    return x.double(), y.double()
