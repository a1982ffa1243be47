"""The embedded languages: a source, four targets that differ in a known way, and an encoder trained on all five."""

from xlprobe.langworld.world import bitext, task

__all__ = ["bitext", "task"]
