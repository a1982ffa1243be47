"""The models that come with the package: their names and folders, known without torch."""

from __future__ import annotations

from pathlib import Path

__all__ = ["EMBEDDED", "FOLDERS", "MODELS"]

MODELS = Path(__file__).parent.parent / "factworld" / "models"
EMBEDDED = {"factworld": "gpt2", "factworld-llama": "llama"}
FOLDERS = {model: MODELS / folder for model, folder in EMBEDDED.items()}
