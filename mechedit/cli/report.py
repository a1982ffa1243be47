"""`mechedit report`: the page of a run folder, built anew."""

from __future__ import annotations

import argparse
from typing import Any

from mechedit.cli.options import command


def report(options: argparse.Namespace) -> None:
    """Builds the page of a run folder anew."""
    from reports import page

    print(page.build(options.folder, options.out))


def add(commands: Any) -> None:
    """`report`."""
    p = command(commands, "report", report, "mechedit report runs/demo", model=False)
    p.add_argument("folder", help="run folder")
    p.add_argument("-o", "--out", help="page to write (default: report.html in the folder)")
