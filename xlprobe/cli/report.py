"""`xlprobe report`: pages of run folders, built anew from their files."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli import report as shared
from xlprobe.cli.options import command


def report(options: argparse.Namespace) -> None:
    """Builds the page of a run folder, an index over several, or a comparison of two, anew."""
    shared.report(options, "xlprobe")


def add(commands: Any) -> None:
    """Add `report` to the commands."""
    shared.add_arguments(command(commands, "report", report, "xlprobe report runs/demo-xl", encoder=False))
