"""Frames that say why a value is missing: the column `missing`, a sentence for each NaN of the row.

A NaN without its reason may be not measured, not defined, or lost. Whoever makes a frame knows which, and says so here;
whoever reads it finds the reason beside the value, in the saved file too.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

__all__ = ["COLUMN", "UNKNOWN", "explained"]

COLUMN = "missing"
UNKNOWN = "undefined for these values"


def explained(frame: pd.DataFrame, reasons: Mapping[str, str | pd.Series]) -> pd.DataFrame:
    """Returns the frame with the column `missing`, empty where nothing is: "column: reason; column: reason".

    Args:
        frame: Any frame; what it has in `missing` already stays, in front.
        reasons: For each column the reason of its NaNs, of all rows or one a row (as index). Columns that are not named
            are not looked at; a NaN whose reason is empty is "undefined for these values".

    >>> frame = pd.DataFrame({"sd": [float("nan"), 0.1]})
    >>> explained(frame, {"sd": "one seed has no spread"})["missing"].tolist()
    ['sd: one seed has no spread', '']
    """
    texts: list[list[str]] = [[text] if text else [] for text in _given(frame)]
    for column in (name for name in reasons if name in frame):
        reason = reasons[column]
        each = [reason] * len(frame) if isinstance(reason, str) else list(reason)
        for row, (absent, why) in enumerate(zip(frame[column].isna(), each, strict=True)):
            if absent:
                texts[row].append(f"{column}: {why or UNKNOWN}")
    return frame.assign(**{COLUMN: ["; ".join(parts) for parts in texts]})


def _given(frame: pd.DataFrame) -> list[str]:
    return list(frame[COLUMN].fillna("")) if COLUMN in frame else [""] * len(frame)
