"""The colours of every figure and page, light and dark, each for one meaning.

Green and purple are the new and the old object, blue and orange the two signs: pairs that readers with any of
the common colour-vision deficiencies tell apart. Text colours reach a contrast of 4.5 : 1 on `paper` and on
`band` (WCAG 2.2, level AA), data colours as well, so that a coloured number is as readable as a black one.
Figures are drawn in the light colours; `reports.inline` exchanges each value for a CSS variable of its name,
so no value may repeat.
"""

from __future__ import annotations

__all__ = ["DARK", "LIGHT", "contrast", "paint"]

LIGHT = {
    "ink": "#1f2329",
    "muted": "#59616b",
    "grid": "#d9dde2",
    "paper": "#fefefe",
    "band": "#eef1f5",
    "new": "#00714f",
    "old": "#8b3f9e",
    "pos": "#0b62a8",
    "neg": "#ad4208",
}
DARK = {
    "ink": "#e7e9ec",
    "muted": "#a7afb9",
    "grid": "#3a414a",
    "paper": "#16191d",
    "band": "#242a31",
    "new": "#3cc79c",
    "old": "#d596e6",
    "pos": "#74b9f5",
    "neg": "#f59f65",
}


def paint(name: str) -> str:
    """Returns the colour `name` as a CSS value: the page's variable, else the light colour.

    >>> paint("ink")
    'var(--ink, #1f2329)'
    """
    return f"var(--{name}, {LIGHT[name]})"


def contrast(first: str, second: str) -> float:
    """Returns the contrast ratio of two colours `#rrggbb` [WCAG 2.2, relative luminance of sRGB], 1 to 21.

    >>> round(contrast("#000000", "#ffffff"), 6)
    21.0
    """
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
