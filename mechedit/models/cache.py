"""The cache folder: results that are costly and depend on the model alone."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """`$MECHEDIT_CACHE`, else `~/.cache/mechedit`."""
    return Path(os.environ.get("MECHEDIT_CACHE") or Path.home() / ".cache" / "mechedit")
