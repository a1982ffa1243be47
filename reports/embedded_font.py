"""The letters that a picture needs of the house's font for drawings, as a style sheet for an SVG of its own.

Cut out of the DejaVu Sans Mono that matplotlib brings with it (a free licence, which allows this), so that the words
keep their widths wherever the file is opened; a viewer that reads no embedded fonts takes one of `FONTS`.
"""

from __future__ import annotations

import base64
import io

from fontTools import subset
from matplotlib import font_manager

__all__ = ["FONTS", "font_face"]

#: What the words of a drawing are set in, the first that a viewer has; all are 0.6 em wide.
FONTS = ("DejaVu Sans Mono", "Menlo", "Consolas", "Liberation Mono", "monospace")


def font_face(text: str, *, bold: str = "") -> str:
    """The style sheet with the letters of `text` and, in bold, those of `bold`; the same letters give the same bytes.

    >>> font_face("In").startswith('@font-face { font-family: "DejaVu Sans Mono"; font-weight: 400; src: url(data:')
    True
    """
    weights = ((400, "normal", text), (700, "bold", bold))
    return "\n".join(_face(weight, name, letters) for weight, name, letters in weights if letters)


def _face(weight: int, name: str, letters: str) -> str:
    file = font_manager.findfont(font_manager.FontProperties(family=[FONTS[0]], weight=name))
    options = subset.Options(layout_features=[], hinting=False, recalc_timestamp=False, flavor="woff")
    options.drop_tables.append("FFTM")  # the font editor's own dates
    buffer = io.BytesIO()
    with subset.load_font(str(file), options) as font:
        cutter = subset.Subsetter(options)
        cutter.populate(unicodes=sorted(set(map(ord, letters))))
        cutter.subset(font)
        subset.save_font(font, buffer, options)
    data = base64.b64encode(buffer.getvalue()).decode()
    source = f"url(data:font/woff;base64,{data}) format('woff')"
    return f'@font-face {{ font-family: "{FONTS[0]}"; font-weight: {weight}; src: {source}; }}'
