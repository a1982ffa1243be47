"""One rule for every verdict: an answer needs enough numbers and an interval inside it, else it is "not shown".

Steps: too few cells, or gradients that are mostly noise, show nothing. Otherwise the answer is the region in which the
whole interval lies. An interval that touches two answers shows neither, and the verdict says how many more sentences,
batches or cells would narrow it enough: an interval's width falls as 1/√n.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from reports.answers import NOT_SHOWN

__all__ = ["NOISE", "NOT_SHOWN", "ORTHOGONAL", "decide", "needed", "takes"]

NOISE = 0.5  # halves of a mean gradient below it: mostly noise
ORTHOGONAL = 0.1  # |cosine| up to which two gradients count as orthogonal


def decide(low: float, high: float, **answers: tuple[float, float]) -> str:
    """The first of `answers` (name: lowest and highest value) that holds the whole interval, else "not shown".

    >>> decide(0.1, 0.3, agrees=(0.0, 1.0), conflicts=(-1.0, 0.0))
    'agrees'
    >>> decide(-0.1, 0.3, agrees=(0.0, 1.0), conflicts=(-1.0, 0.0))
    'not shown'
    """
    for name, (least, most) in answers.items():
        if least <= low and high <= most:  # never for a nan
            return name.replace("_", " ")
    return NOT_SHOWN


def needed(half_width: float, ways: Iterable[float], *, n: float = 1.0) -> float:
    """The n that narrows an interval to the largest of the distances `ways`, infinite where none is above 0.

    >>> needed(0.5, [0.25, -0.5], n=100)
    400.0
    """
    farthest = max((way for way in ways if way > 0), default=0.0)
    return n * (half_width / farthest) ** 2 if farthest > 0 else math.inf


def takes(n: float, what: str) -> str:
    """What it would take, in words; a rough number, which is rounded up to two digits."""
    if not math.isfinite(n):
        return f"no number of {what} would show it at this value"
    step = 10 ** max(0, math.floor(math.log10(max(n, 1))) - 1)
    return f"it would take about {math.ceil(n / step) * step:,} {what}"
