"""What every command prints: a table, or one JSON object."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def print_json(value: dict[str, Any]) -> None:
    """Prints one JSON object on one line."""
    print(json.dumps(finite(value), ensure_ascii=False))


def finite(value: Any) -> Any:
    """Replaces NaN and infinities by None: JSON has neither."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_table(frame: pd.DataFrame) -> str:
    """Returns a frame as aligned columns, four decimals."""
    return str(frame.to_string(index=False, float_format=lambda x: f"{x:.4f}"))
