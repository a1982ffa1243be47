"""The look of every figure of the project: style, sizes, the map of signed scores, and files for a paper.

Choices, and why:

- **No pyplot state.** Each figure is a `matplotlib.figure.Figure` of its own (or is drawn into the axes that it is
  given) inside `rc_context`, from matplotlib's defaults: nobody's settings leak in, none leak out, no figure stays
  open.
- **Colour never speaks alone.** A second mark goes with it: marker, dash, filling, or a dot. The pairs green/purple
  (objects) and blue/orange (signs) are told apart by readers with any of the common colour-vision deficiencies, and
  each colour has a contrast of at least 4.5 : 1 on white.
- **Text stays text** (`svg.fonttype: none`, `pdf.fonttype: 42`): it can be searched, selected, read aloud; in a page it
  takes the page's colour, in a PDF its font is embedded. The price in SVG is that the viewer's font decides the
  width; labels are laid out with DejaVu Sans, wider than the usual sans-serif fonts, so that a narrower one leaves
  gaps and never overlaps.
- **The same numbers give the same bytes**: no date, no random id.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from reports.colours import LIGHT
from reports.errors import InputError

__all__ = ["DIVERGING", "WIDTHS", "check", "row", "save", "style", "styled"]

DIVERGING = LinearSegmentedColormap.from_list(
    "mechedit_sign", ["#8a3203", LIGHT["neg"], "#f2c19c", "#f7f7f5", "#a9cdec", LIGHT["pos"], "#073f6e"]
)
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": LIGHT["muted"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": LIGHT["ink"],
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": LIGHT["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.6,
    "hatch.color": LIGHT["muted"],
    "hatch.linewidth": 0.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": LIGHT["ink"],
    "lines.linewidth": 1.7,
    "lines.markersize": 5,
    "pdf.fonttype": 42,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "mechedit",
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # a token may hold two dollar signs
    "xtick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["ink"],
    "xtick.labelsize": 8.5,
    "ytick.color": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["ink"],
    "ytick.labelsize": 8.5,
}
#: Width in inches of a figure over one or two columns of a paper (those of the two-column templates of ACL and IEEE).
WIDTHS = {1: 3.3, 2: 6.9}
_NO_DATE: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "png": {"Software": None},
}
P = ParamSpec("P")
T = TypeVar("T")


def style() -> AbstractContextManager[None]:
    """Returns a context in which matplotlib draws in the house style; on leaving it, its settings are as before.

    >>> before = dict(mpl.rcParams)
    >>> with style():
    ...     mpl.rcParams["svg.fonttype"]
    'none'
    >>> dict(mpl.rcParams) == before
    True
    """
    return mpl.rc_context(_defaults() | _STYLE)


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function that draws, so that it does so inside `style`."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with style():
            return draw(*args, **kwargs)

    return inside


def _defaults() -> dict[Any, Any]:
    """Matplotlib's own defaults but for the backend, which is the process's business and not a look."""
    kept = ("backend", "interactive", "toolbar", "webagg", "tk.", "macosx", "date.")
    return {key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith(kept)}


@styled
def row(n: int, *, width: float = 7.2, height: float = 2.8, sharey: bool = False) -> list[Axes]:
    """Returns `n` axes side by side in a new figure of `width` × `height` inches.

    >>> [ax.get_subplotspec().colspan.start for ax in row(2)]
    [0, 1]
    """
    figure = Figure(figsize=(width, height))
    return list(figure.subplots(1, n, squeeze=False, sharey=sharey)[0])


def save(axes: Axes, path: str | os.PathLike[str], *, columns: int | None = None, dpi: int = 300) -> Path:
    """Writes the figure of `axes` as PNG, SVG or PDF, by the suffix of `path`; the same figure gives the same bytes.

    The text keeps its size in points and the layout is made anew.

    Args:
        axes: Any axes of the figure.
        path: The file.
        columns: 1 or 2, the width in a two-column paper (`WIDTHS`, inches); by default the figure's own.
        dpi: Dots an inch of a PNG, which is on the paper's white.

    Raises:
        InputError: Another suffix or number of columns, or axes that were removed from their figure.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, style():
    ...     save(row(1)[0], Path(folder) / "figure.pdf", columns=1).read_bytes()[:5]
    b'%PDF-'
    """
    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    if kind not in _NO_DATE:
        raise InputError(f"path: expected a name that ends in .png, .svg or .pdf, found {target.name!r}")
    if columns not in (None, *WIDTHS):
        raise InputError(f"columns: expected 1 or 2, found {columns!r}")
    figure = axes.get_figure(root=True)
    if figure is None:
        raise InputError("axes: expected axes of a figure, found axes that were removed from theirs")
    width, height = map(float, figure.get_size_inches())
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        try:
            if columns is not None:
                figure.set_size_inches(WIDTHS[columns], height)
            face = LIGHT["paper"] if kind == "png" else "none"
            figure.savefig(target, format=kind, dpi=dpi, metadata=_NO_DATE[kind], facecolor=face)
        finally:
            figure.set_size_inches(width, height)
    return target


def check(frame: pd.DataFrame, columns: Iterable[str], *, key: Iterable[str] = ()) -> None:
    """Refuses a frame that cannot be drawn.

    Args:
        frame: The frame.
        columns: The columns that it must have.
        key: Columns of which no two rows may agree.

    Raises:
        InputError: The frame lacks a column, has no row, or has two rows of one `key`.
    """
    if missing := [name for name in columns if name not in frame]:
        present = ", ".join(map(str, frame.columns))
        raise InputError(f"frame: expected a column {missing[0]!r}, found {present}")
    if frame.empty:
        raise InputError("frame: expected at least one row, found none")
    if (names := list(key)) and frame.duplicated(names).any():
        first = frame.loc[frame.duplicated(names), names].iloc[0].tolist()
        raise InputError(f"frame: expected one row for each {names}, found {first} twice; filter it first")
