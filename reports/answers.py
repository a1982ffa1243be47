"""What a run's numbers say to a claim: it holds, it does not hold, or neither is shown."""

from __future__ import annotations

__all__ = ["HOLDS", "NOT", "NOT_SHOWN", "above", "answer"]

HOLDS, NOT, NOT_SHOWN = "holds", "does not hold", "not shown"


def answer(*conditions: tuple[float, float]) -> str:
    """The answer to a claim that each of some numbers lies above 0, by their intervals.

    It holds if every interval lies above 0, does not hold if one lies below; else, and for NaN, neither is shown.

    Args:
        conditions: (low, high) of each number.

    >>> answer((0.1, 0.3), (0.2, 0.9)), answer((0.1, 0.3), (-0.9, -0.2)), answer((0.1, 0.3), (-0.1, 0.2))
    ('holds', 'does not hold', 'not shown')
    """
    if any(high < 0 for _, high in conditions):
        return NOT
    return HOLDS if all(low > 0 for low, _ in conditions) else NOT_SHOWN


def above(interval: tuple[float, float], other: tuple[float, float]) -> str:
    """The answer to a claim that one number lies above another, by whether their intervals overlap.

    >>> above((0.5, 0.6), (0.1, 0.2)), above((0.1, 0.2), (0.5, 0.6)), above((0.5, 0.6), (0.1, 0.5))
    ('holds', 'does not hold', 'not shown')
    """
    return answer((interval[0] - other[1], interval[1] - other[0]))
