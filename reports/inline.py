"""A matplotlib figure as an SVG fragment for the inside of an HTML page.

Matplotlib writes a file of its own: XML prolog, namespaces (which are web addresses), a metadata block with
the date, ids that repeat from figure to figure, a fixed size, its own font. None of these may stay in HTML.
Steps of `fragment`, on the parsed tree, so that a label that looks like markup stays a label:

1. write the SVG without a date, with the fixed hash salt of `look.style`: same figure, same bytes;
2. drop prolog, metadata, style sheets and namespaces; let the size follow the page;
3. put `prefix` before every id and reference, so that two figures on a page never share one;
4. turn the house colours into CSS variables, the printed colour as fallback, and leave the font to the page;
5. name the picture for those who cannot see it: `role="img"`, a `<title>` and a `<desc>`.
"""

from __future__ import annotations

import io
import re
import warnings
from xml.etree import ElementTree

from matplotlib.axes import Axes

from reports.colours import LIGHT, paint
from reports.errors import InputError
from reports.look import style
from reports.text import visible

__all__ = ["fragment"]

_VARIABLES = {value: paint(name) for name, value in LIGHT.items()}


def fragment(axes: Axes, *, prefix: str, title: str, description: str = "") -> str:
    """Returns the figure of `axes` as `<svg>…</svg>`, to be put into HTML as it is.

    Args:
        axes: Any axes of the figure.
        prefix: A letter and then letters, digits or hyphens, unique on the page.
        title: Names the picture; escaped.
        description: What it shows, in words; escaped.

    Raises:
        InputError: Another prefix, or axes without a figure.

    >>> from reports.forests import forest
    >>> import pandas as pd
    >>> axes = forest(pd.DataFrame({"label": ["a<b"], "value": [0.5], "low": [0.4], "high": [0.6]}))
    >>> svg = fragment(axes, prefix="f1", title="Scores")
    >>> "a&lt;b" in svg, "http" in svg, svg.count("<svg")
    (True, False, 1)
    """
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9-]*", prefix):
        raise InputError(f"prefix: expected a letter, then letters, digits or hyphens, found {prefix!r}")
    figure = axes.get_figure(root=True)
    if figure is None:
        raise InputError("axes: expected axes of a figure, found axes that were removed from theirs")
    buffer = io.BytesIO()
    with style(), warnings.catch_warnings():
        # text stays text: the viewer's fonts draw what the font of the layout lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=200)
    root = ElementTree.fromstring(buffer.getvalue())
    _clean(root, prefix)
    _name(root, prefix, visible(title), visible(description) if description else "")
    return ElementTree.tostring(root, encoding="unicode")


def _clean(root: ElementTree.Element, prefix: str) -> None:
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {
            _local(name): _attribute(name, text, prefix) for name, text in element.attrib.items()
        }
        for child in list(element):
            if _local(child.tag) in ("metadata", "style"):
                element.remove(child)
            elif child.tail and not child.tail.strip():
                child.tail = ""
        if element.text and not element.text.strip() and len(element):
            element.text = ""


def _attribute(name: str, text: str, prefix: str) -> str:
    local = _local(name)
    if local == "id":
        return f"{prefix}-{text}"
    if local == "href" and text.startswith("#"):
        return f"#{prefix}-{text[1:]}"
    if local == "d":
        return " ".join(text.split())
    if local == "style":
        declarations = (part.partition(":")[::2] for part in text.split(";"))
        kept = [(key.strip(), value.strip()) for key, value in declarations if key.strip() != "font-family"]
        text = "; ".join(f"{key}: {_VARIABLES.get(value.lower(), value)}" for key, value in kept)
    return text.replace("url(#", f"url(#{prefix}-")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _name(root: ElementTree.Element, prefix: str, title: str, description: str) -> None:
    names = [("title", title)] + ([("desc", description)] if description else [])
    for place, (tag, text) in enumerate(names):
        element = ElementTree.Element(tag, {"id": f"{prefix}-{tag}"})
        element.text = text
        root.insert(place, element)
    labelled = " ".join(f"{prefix}-{tag}" for tag, _ in names)
    root.attrib.update({"role": "img", "class": "chart", "aria-labelledby": labelled})
