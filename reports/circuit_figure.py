"""A drawn circuit as a matplotlib figure, for files that need no browser: PDF and PNG."""

from __future__ import annotations

import functools
import unicodedata
import warnings

from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from reports.circuit import Drawing
from reports.circuit_shapes import Box, Line, Words, words_of
from reports.colours import LIGHT
from reports.embedded_font import FONTS
from reports.look import style

__all__ = ["paint"]


def paint(drawing: Drawing, *, inches: float) -> Axes:
    """The axes of a new figure of this width that show `drawing`, shape by shape.

    Letters that the house's font lacks are drawn in an installed font that has them; a warning names those that none
    has.

    >>> from reports.circuit import Circuit, Node, draw
    >>> nodes = (Node("t", "target", 1, " Paris", -0.5),)
    >>> axes = paint(draw(Circuit(" Paris", "In", 1.0, nodes, ())), inches=3.3)
    >>> [text.get_text() for text in axes.texts][:2]
    ['·Paris', 'log p −0.500']
    """
    points = 72 * inches / drawing.width  # of a pixel
    texts = [words.text for words in words_of(drawing.shapes)]
    with style(), rc_context({"font.family": _families("".join(texts)), "lines.scale_dashes": False}):
        figure = Figure(figsize=(inches, inches * drawing.height / drawing.width))
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
        axes.set_axis_off()
        for order, shape in enumerate(drawing.shapes):
            if isinstance(shape, Line):
                axes.add_patch(_line(shape, points, order))
            elif isinstance(shape, Box):
                axes.add_patch(_box(shape, points, order))
            for words in words_of([shape]):
                _write(axes, words, points, order)
    return axes


def _line(line: Line, points: float, order: int) -> PathPatch:
    path = Path(line.points, [Path.MOVETO, *[Path.CURVE4] * (len(line.points) - 1)])
    return PathPatch(
        path,
        fill=False,
        edgecolor=LIGHT[line.colour],
        alpha=0.62,
        linewidth=line.width * points,
        linestyle=_dashed(line.dash, points),
        capstyle="butt",
        zorder=order,
    )


def _box(box: Box, points: float, order: int) -> FancyBboxPatch:
    return FancyBboxPatch(
        (box.x, box.y),
        box.width,
        box.height,
        boxstyle=f"round,pad=0,rounding_size={min(box.corner, box.height / 2)}",
        facecolor=LIGHT[box.fill],
        edgecolor="none" if box.stroke is None else LIGHT[box.stroke],
        linewidth=box.line * points,
        linestyle=_dashed(box.dash, points),
        zorder=order,
    )


def _write(axes: Axes, words: Words, points: float, order: int) -> None:
    axes.text(
        words.x,
        words.y,
        _left_to_right(words.text),
        color=LIGHT[words.colour],
        fontsize=words.size * points,
        fontweight="bold" if words.bold else "normal",
        ha="center" if words.anchor == "middle" else "left",
        va="baseline",
        zorder=order,
    )


def _left_to_right(text: str) -> str:
    """A line with words from right to left in it stays a line from left to right."""
    turned = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text)
    return f"\u200e{text}" if turned else text


def _dashed(dash: tuple[float, ...], points: float) -> tuple[float, tuple[float, ...] | None]:
    return (0, tuple(part * points for part in dash) or None)


def _families(text: str) -> list[str]:
    """The house's font, and installed ones for the letters that it lacks (that of boxes with codes is none)."""
    families = [FONTS[0]]
    missing = set(text) - _letters(font_manager.findfont(FONTS[0]))
    installed = font_manager.fontManager.ttflist if missing else []
    for entry in (font for font in installed if not font.name.startswith("Last Resort")):
        if covered := missing & _letters(entry.fname):
            families.append(entry.name)
            missing -= covered
    if missing:
        shown = " ".join(sorted(missing)[:8])
        warnings.warn(
            f"no installed font has the letters {shown}, which are drawn as boxes; install one that has them, or save "
            "as .svg or .html, which the viewer's own fonts draw",
            stacklevel=4,
        )
    return families


@functools.cache
def _letters(file: str) -> frozenset[str]:
    """The letters of a font file; none of one that cannot be read."""
    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()
