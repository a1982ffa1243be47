"""What a result's `plot` returns: a figure that a notebook shows as the last line of a cell, and that can be saved."""

from __future__ import annotations

import contextlib
import io
import os
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports import look
from reports.colours import LIGHT

__all__ = ["Plot", "after"]

_DPI = 120
_LETTER = 0.085  # inches, of a title
_LEAST = 20  # letters of a line of a title
_PROMPT = 90  # letters of a prompt in a title


class Plot:
    """A drawn figure with a title.

    Attributes:
        panels: Its axes, in order; those that it was drawn into, where there were any.

    >>> import pandas as pd
    >>> from reports.figures import layer_curve
    >>> plot = Plot(layer_curve(pd.DataFrame({"layer": [0, 1], "module": "attn", "score": [0.1, 2]})), title="Scores")
    >>> plot, plot.axes.get_title(loc="left"), plot._repr_png_()[1:4]
    (Plot('Scores'), 'Scores', b'PNG')
    """

    def __init__(self, panels: Axes | Sequence[Axes], *, title: str) -> None:
        self.panels = [panels] if isinstance(panels, Axes) else list(panels)
        self._title = title
        letters = max(_LEAST, int(float(self.figure.get_size_inches()[0]) / _LETTER))
        with look.style():
            while self._titled(letters) and letters > _LEAST:
                letters -= 4

    def _titled(self, letters: int) -> bool:
        """Writes the title in lines of so many letters; returns whether it runs out of the figure."""
        lines = "\n".join(textwrap.wrap(self._title, letters))
        if len(self.panels) == 1:
            text = self.axes.set_title(lines)  # the one in the corner that the style names
        else:
            text = self.figure.suptitle(lines, x=0.01, ha="left", fontsize=10, fontweight="bold")
        with _quiet():
            self.figure.draw_without_rendering()
            return bool(text.get_window_extent().x1 > self.figure.bbox.x1)

    @property
    def axes(self) -> Axes:
        """The axes, for changes of one's own; of several panels the first."""
        return self.panels[0]

    @property
    def figure(self) -> Figure:
        """The whole figure."""
        figure = self.axes.get_figure(root=True)
        assert figure is not None  # a plot is drawn into axes of a figure
        return figure

    def save(self, path: str | os.PathLike[str], *, columns: int | None = None, dpi: int = 300) -> Path:
        """Writes it as .png, .svg or .pdf, as wide as 1 or 2 columns of a paper: `reports.look.save`."""
        return look.save(self.axes, path, columns=columns, dpi=dpi)

    def __repr__(self) -> str:
        return f"Plot({self._title!r})"

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with look.style(), _quiet():
            self.figure.savefig(buffer, format="png", dpi=_DPI, facecolor=LIGHT["paper"])
        return buffer.getvalue()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Says nothing of letters that no font has."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def after(prompt: str) -> str:
    """“prompt” for a title; of a long one its end.

    >>> after("The capital of France is")
    '“The capital of France is”'
    """
    return f"“{prompt}”" if len(prompt) <= _PROMPT else f"“…{prompt[1 - _PROMPT :]}”"
