"""The embedded world: facts, text and two small models trained on it, so that everything runs without a download."""

from mechedit.factworld.export import edits, export
from mechedit.factworld.world import World

__all__ = ["World", "edits", "export"]
