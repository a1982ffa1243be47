"""`xlprobe run`: the experiment of a recipe, a grid of them, or a run done again."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli import run as shared
from xlprobe.cli.options import command


def run(options: argparse.Namespace) -> int:
    """Runs the experiment of a recipe, goes on with it, says what it would do, or does a run again."""
    return shared.run(options, "xlprobe.recipes.registry:experiments")


def add(commands: Any) -> None:
    """Add `run` to the commands."""
    example = "xlprobe run experiments/recipes/transfer.toml seeds=1 --dry-run"
    shared.add_arguments(command(commands, "run", run, example, encoder=False))
