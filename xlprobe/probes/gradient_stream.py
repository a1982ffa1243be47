"""Mean gradients of several losses, streamed over batches: one buffer a loss, never a batch's gradient whole.

Steps, for each batch of each loss:

1. forward with dropout off, backward into the shared parameters alone (`backward(inputs=...)`: heads get nothing);
2. as soon as autograd has one parameter's gradient g_i, a hook reads ‖g_i‖² and, if wanted, g_i · ḡ with another
   loss's mean ḡ, adds g_i to this loss's buffer and frees it.

So the memory above the model is the buffers that are compared, the activations of one batch and one parameter's
gradient. An embedding's gradient is taken in its sparse form: the rows of the batch, not the whole vocabulary (for
XLM-R base 0.8 GB a batch). From the per-batch squares alone follow, without a second buffer,

    p = (‖Σ g_i‖² − Σ ‖g_i‖²) / n(n−1)      the mean dot of two different batches, an unbiased ‖E g‖²
    q = Σ ‖g_i‖² / n                         the mean square of one batch; q − p is the variance of a batch

(the estimators of the gradient noise scale, McCandlish et al. 2018, arXiv 1812.06162, appendix A).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from reports.errors import InputError

__all__ = ["Layout", "Loss", "Mean", "Moments", "dot", "probing"]

_CHUNK = 4096  # longest run that is summed in the gradient's own precision
_BLOCK = 1024 * _CHUNK


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss over batches, which should be of one size: each counts once.

    Attributes:
        name: Name of the loss, for tables and errors.
        batches: Whatever `of` takes.
        of: The mean over a batch's examples, a scalar with a graph.
        modules: The heads that it goes through, so that their dropout is off too; they get no gradient.
    """

    name: str
    batches: Sequence[Any]
    of: Callable[[Any], Tensor]
    modules: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class Layout:
    """The shared parameters in the order of the buffer, each in one cell (layer, group).

    Attributes:
        parameters: The tensors themselves.
        slices: First and one past the last place of each in the flat buffer.
        cell: Index into `cells` of each parameter.
        cells: Frame layer, group, numel; one row a cell. Layer 0 is the embeddings, as in hidden states.
    """

    parameters: tuple[nn.Parameter, ...]
    slices: tuple[tuple[int, int], ...]
    cell: tuple[int, ...]
    cells: pd.DataFrame

    @classmethod
    def of(cls, module: nn.Module, table: pd.DataFrame) -> Layout:
        """The layout of a table name, layer, group, one row a parameter of `module`.

        Raises:
            InputError: A name that the module lacks or that occurs twice, or an empty table.
        """
        named = dict(module.named_parameters())
        if table.empty:
            raise InputError("table: expected the shared parameters, one a row, found none")
        if twice := table.loc[table["name"].duplicated(), "name"].tolist():
            raise InputError(f"table: expected one row a parameter, found {twice[0]!r} twice")
        if missing := [name for name in table["name"] if name not in named]:
            raise InputError(f"table: {missing[0]!r} is no parameter of {type(module).__name__}")
        parameters = tuple(named[name] for name in table["name"])
        ends = torch.tensor([p.numel() for p in parameters]).cumsum(0).tolist()
        keys = list(zip(table["layer"].astype(int), table["group"].astype(str), strict=True))
        cells = list(dict.fromkeys(keys))
        sizes = [sum(p.numel() for p, k in zip(parameters, keys, strict=True) if k == c) for c in cells]
        frame = pd.DataFrame(cells, columns=["layer", "group"]).assign(numel=sizes)
        starts = [0, *ends[:-1]]
        return cls(
            parameters, tuple(zip(starts, ends, strict=True)), tuple(cells.index(k) for k in keys), frame
        )

    @property
    def numel(self) -> int:
        """The length of a buffer."""
        return self.slices[-1][1]

    def views(self, flat: Tensor) -> list[Tensor]:
        """One view of `flat` [numel] a parameter, sharing its memory."""
        pairs = zip(self.parameters, self.slices, strict=True)
        return [flat[start:end].view_as(parameter) for parameter, (start, end) in pairs]

    def dots(self, a: Tensor, b: Tensor) -> Tensor:
        """The dot product a · b of two buffers in each cell [n_cells], float64."""
        sums = torch.zeros(len(self.cells), dtype=torch.float64, device=a.device)
        for cell, (start, end) in zip(self.cell, self.slices, strict=True):
            sums[cell] += dot(a[start:end], b[start:end])
        return sums.cpu()


@dataclass(frozen=True)
class Moments:
    """The mean dot p and mean square q of the module's formulas, for one set of parameters.

    Attributes:
        signal: p.
        square: q.
        n: The number of batches.
    """

    signal: float
    square: float
    n: int

    @property
    def halves(self) -> float:
        """The cosine of two halves of the batches, nan for fewer than two batches.

        It is the mean dot over all ways to halve, over the mean square of a half's norm.
        """
        m = self.n // 2
        if m < 1:
            return math.nan
        norm = self.square / m + (m - 1) / m * self.signal
        return self.signal / norm if norm > 0 else math.nan

    def batches_for(self, cosine: float) -> float:
        """Batches after which the mean gradient is expected to have this cosine with the true one.

        With noise ratio r = (q − p)/p a mean of n batches has cosine c = 1/√(1 + r/n), so n = r c²/(1 − c²). It is
        infinite where the batches agree no more than by chance (p ≤ 0).
        """
        if not self.signal > 0:
            return math.inf
        return max(0.0, self.square / self.signal - 1) * cosine**2 / (1 - cosine**2)


class Mean:
    """The mean gradient of one loss over `layout`, added to batch by batch.

    Attributes:
        flat: The sum until `close`, the mean afterwards [numel].
        losses: The loss of each batch.
        squares: ‖g_i‖² of each batch by cell [n_cells].
        along: g_i · ḡ of each batch, with another loss's mean ḡ, by cell [n_cells].
        reached: Which parameters any batch's loss depends on; the others have no gradient, not a gradient of 0.
    """

    def __init__(self, layout: Layout, name: str) -> None:
        self.layout = layout
        self.name = name
        first = layout.parameters[0]
        dtype = torch.promote_types(first.dtype, torch.float32)
        self.flat = torch.zeros(layout.numel, dtype=dtype, device=first.device)
        self.losses: list[float] = []
        self.squares: list[Tensor] = []
        self.along: list[Tensor] = []
        self.reached = [False] * len(layout.parameters)

    @property
    def n(self) -> int:
        """The number of batches seen."""
        return len(self.losses)

    def add(self, loss: Tensor, *, against: Tensor | None = None) -> None:
        """Add the gradient of one batch, inside `probing(layout)`; the batches before a bad one are kept.

        Args:
            loss: The batch's scalar loss.
            against: Another mean's `flat`, with which the gradient is dotted.

        Raises:
            InputError: The loss is not one finite number, or no shared parameter reaches it.
        """
        where = f"{self.name}: the loss of batch {self.n}"
        if loss.numel() != 1:
            raise InputError(f"{where}: expected one number, found shape {tuple(loss.shape)}")
        if not torch.isfinite(loss):
            raise InputError(
                f"{where}: expected a finite number, found {loss.item()}; look at its input and dtype"
            )
        if not loss.requires_grad:
            raise InputError(f"{where}: expected a loss that depends on the encoder, found one without graph")
        square, along = self._zeros(), self._zeros()
        views = self.layout.views(self.flat)
        means: Sequence[Tensor | None] = (
            self.layout.views(against) if against is not None else [None] * len(views)
        )
        handles = [
            parameter.register_post_accumulate_grad_hook(
                _reader(view, mean, square[cell], along[cell], partial(self._reach, i))
            )
            for i, (parameter, view, mean, cell) in enumerate(
                zip(self.layout.parameters, views, means, self.layout.cell, strict=True)
            )
        ]
        try:
            torch.autograd.backward(loss, inputs=list(self.layout.parameters))
        finally:
            for handle in handles:
                handle.remove()
        self.losses.append(loss.item())
        self.squares.append(square.cpu())
        if against is not None:
            self.along.append(along.cpu())

    def _reach(self, parameter: int) -> None:
        self.reached[parameter] = True

    def reach(self) -> list[int]:
        """How many parameters of each cell the loss depends on [n_cells]."""
        sizes = [0] * len(self.layout.cells)
        for cell, parameter, there in zip(
            self.layout.cell, self.layout.parameters, self.reached, strict=True
        ):
            sizes[cell] += parameter.numel() * there
        return sizes

    def scale_along(self, factor: float) -> None:
        """Turn the dots with a sum into dots with a mean."""
        self.along = [row * factor for row in self.along]

    def close(self) -> Mean:
        """Divide the sum by the number of batches."""
        self.flat /= max(1, self.n)
        return self

    def moments(self, cells: Sequence[int], squared_norm: float) -> Moments:
        """The moments over some cells; `squared_norm` is ‖mean‖² over the same cells."""
        n = self.n
        square = float(torch.stack(self.squares)[:, list(cells)].sum()) / n
        signal = (n * squared_norm - square) / (n - 1) if n > 1 else math.nan
        return Moments(signal, square, n)

    def _zeros(self) -> Tensor:
        return torch.zeros(len(self.layout.cells), dtype=torch.float64, device=self.flat.device)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The dot product a · b of two dense tensors of one shape, float64.

    Short runs are summed in their own precision, the runs' sums in float64: one float32 dot over two million products
    is off by 1e-4, this by 1e-8, at the same speed.

    >>> float(dot(torch.full((3, 5000), 2.0), torch.full((3, 5000), 0.5)))
    15000.0
    """
    wide = torch.promote_types(a.dtype, torch.float32)
    a, b = a.reshape(-1).to(wide), b.reshape(-1).to(wide)
    if len(a) <= _CHUNK:
        return torch.linalg.vecdot(a, b).double()
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    # By blocks, so that no temporary grows with a.
    for left, right in zip(a.split(_BLOCK), b.split(_BLOCK), strict=True):
        whole = len(left) // _CHUNK * _CHUNK
        runs = torch.linalg.vecdot(left[:whole].view(-1, _CHUNK), right[:whole].view(-1, _CHUNK))
        total += runs.sum(dtype=torch.float64) + torch.linalg.vecdot(left[whole:], right[whole:])
    return total


@contextlib.contextmanager
def probing(layout: Layout, *modules: nn.Module) -> Iterator[None]:
    """Dropout off in `modules`, all of `layout`'s parameters open to gradients, embeddings' gradients sparse.

    Leaving it, in any way, restores each module's mode, each `requires_grad`, each `.grad` and each `sparse`.
    """
    inner = list({id(m): m for module in modules for m in module.modules()}.values())
    embeddings = [m for m in inner if isinstance(m, nn.Embedding)]
    modes = [(m, m.training) for m in inner]
    sparse = [(m, m.sparse) for m in embeddings]
    state = [(p, p.requires_grad, p.grad) for p in layout.parameters]
    try:
        for m in inner:
            m.training = False
        for m in embeddings:
            m.sparse = not m.scale_grad_by_freq and m.max_norm is None
        for p in layout.parameters:
            p.requires_grad_(True)
            p.grad = None
        with torch.enable_grad():
            yield
    finally:
        for m, mode in modes:
            m.training = mode
        for m, flag in sparse:
            m.sparse = flag
        for p, wanted, gradient in state:
            p.requires_grad_(wanted)
            p.grad = gradient


def _reader(
    view: Tensor, mean: Tensor | None, square: Tensor, along: Tensor, reach: Callable[[], None]
) -> Callable[[Tensor], None]:
    """The hook of one parameter: read its gradient, add it to the buffer, free it."""

    def read(parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        reach()
        with torch.no_grad():
            if gradient.is_sparse:
                gradient = gradient.coalesce()
                (rows,), values = gradient.indices(), gradient.values()
                square.add_(dot(values, values))
                if mean is not None:
                    along.add_(dot(values, mean[rows]))
                view.index_add_(0, rows, values.to(view.dtype))
            else:
                square.add_(dot(gradient, gradient))
                if mean is not None:
                    along.add_(dot(gradient, mean))
                view.add_(gradient)
        parameter.grad = None

    return read
