"""The shapes of a drawn circuit, and the SVG of them.

The SVG for a page takes the page's colours (`reports.colours.paint`) and font; the one for a file of its own has its
namespace, its size, its colours and its font in itself.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from reports.colours import LIGHT, paint
from reports.embedded_font import FONTS, font_face

__all__ = ["Box", "Line", "Shape", "Words", "svg", "svg_file", "words_of"]


@dataclass(frozen=True)
class Box:
    """A node's box.

    Attributes:
        fill: Colour of the inside, as are `stroke` and those below a name in `reports.colours`; None for no line.
        dash: Lengths of dash and gap; () for a whole line.
        words: What stands in it.
        title: What it says where it is pointed at.
    """

    x: float
    y: float
    width: float
    height: float
    corner: float
    fill: str
    stroke: str | None
    line: float
    dash: tuple[float, ...]
    words: tuple[Words, ...]
    title: str


@dataclass(frozen=True)
class Line:
    """An edge: a start, then two handles and an end for each cubic piece."""

    points: tuple[tuple[float, float], ...]
    colour: str
    width: float
    dash: tuple[float, ...]
    title: str


@dataclass(frozen=True)
class Words:
    """A line of text; x is its middle, or its start (`anchor`), y its baseline."""

    x: float
    y: float
    text: str
    colour: str
    size: float
    anchor: str = "middle"
    bold: bool = False


Shape = Box | Line | Words


def svg(
    shapes: Sequence[Shape], *, width: float, height: float, prefix: str, title: str, description: str
) -> str:
    """The shapes as `<svg>…</svg>` for the inside of HTML; `prefix` starts its ids."""
    head = (
        f'<svg role="img" class="circuit" aria-labelledby="{prefix}-title {prefix}-desc" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="{", ".join(FONTS)}" font-size="12">'
        f'<title id="{prefix}-title">{_escape(title)}</title><desc id="{prefix}-desc">{_escape(description)}</desc>'
    )
    return head + "".join(map(_shape, shapes)) + "</svg>"


def words_of(shapes: Sequence[Shape]) -> list[Words]:
    """All the words of the shapes."""
    return [
        words
        for shape in shapes
        if not isinstance(shape, Line)
        for words in (shape.words if isinstance(shape, Box) else (shape,))
    ]


def svg_file(inner: str, shapes: Sequence[Shape], *, inches: tuple[float, float]) -> str:
    """What `svg` made of the shapes as a file of its own, of this width and height, on white and with its font."""
    colours = re.sub(r"var\(--(\w+), #[0-9a-f]{6}\)", lambda match: LIGHT[match[1]], inner)
    size = f'width="{inches[0]:.4g}in" height="{inches[1]:.4g}in"'
    named = colours.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" {size} ', 1)
    plain, bold = (
        "".join(words.text for words in words_of(shapes) if words.bold == heavy) for heavy in (False, True)
    )
    style = f"<style>{font_face(plain, bold=bold)}</style>"
    sheet = f'{style}<rect width="100%" height="100%" fill="{LIGHT["paper"]}" stroke="none"/>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{named.replace("</desc>", f"</desc>{sheet}", 1)}\n'


def _shape(shape: Shape) -> str:
    return (
        _box(shape) if isinstance(shape, Box) else _line(shape) if isinstance(shape, Line) else _words(shape)
    )


def _box(box: Box) -> str:
    stroke = "none" if box.stroke is None else paint(box.stroke)
    line = f'fill="{paint(box.fill)}" stroke="{stroke}" stroke-width="{box.line:g}"{_dash(box.dash)}'
    place = (
        f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:g}" rx="{box.corner:g}"'
    )
    words = "".join(map(_words, box.words))
    return f"<g><title>{_escape(box.title)}</title><rect {place} {line}/>{words}</g>"


def _line(line: Line) -> str:
    path = f"M{line.points[0][0]:.1f} {line.points[0][1]:.1f}"
    for i in range(1, len(line.points), 3):
        path += "C" + " ".join(f"{x:.1f} {y:.1f}" for x, y in line.points[i : i + 3])
    stroke = f'stroke="{paint(line.colour)}" stroke-width="{line.width:.2f}" stroke-opacity="0.62"'
    return (
        f'<path d="{path}" fill="none" {stroke}{_dash(line.dash)}><title>{_escape(line.title)}</title></path>'
    )


def _words(words: Words) -> str:
    weight = ' font-weight="700"' if words.bold else ""
    where = (
        f'x="{words.x:.1f}" y="{words.y:.1f}" text-anchor="{words.anchor}" font-size="{words.size:g}"{weight}'
    )
    return f'<text {where} fill="{paint(words.colour)}">{_escape(words.text)}</text>'


def _dash(dash: tuple[float, ...]) -> str:
    return f' stroke-dasharray="{" ".join(f"{part:g}" for part in dash)}"' if dash else ""


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
