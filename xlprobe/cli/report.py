"""`xlprobe report`: pages of run folders, built anew from their files."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from reports.command import add_arguments, make
from xlprobe.cli.options import command, print_json


def report(options: argparse.Namespace) -> None:
    """Builds the page of a run folder, an index over several, or a comparison of two, anew."""
    made = make(options)
    if options.json:
        print_json(made)
        return
    print(made["report"])
    for run in made.get("runs", ()):
        if run["state"] != "complete":
            print(f"xlprobe: {run['name']}: {run['state']}: {run['reason']}", file=sys.stderr)


def add(commands: Any) -> None:
    """`report`."""
    add_arguments(command(commands, "report", report, "xlprobe report runs/demo-xl", encoder=False))
