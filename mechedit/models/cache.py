"""The folder in which what is costly and depends on a model alone is kept."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """`$MECHEDIT_CACHE`, else `~/.cache/mechedit`."""
    return Path(os.environ.get("MECHEDIT_CACHE") or Path.home() / ".cache" / "mechedit")
