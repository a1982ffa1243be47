"""`xlprobe report`: the page of a study's run folder, built anew."""

from __future__ import annotations

import argparse
from typing import Any

from xlprobe.cli.options import command


def report(options: argparse.Namespace) -> None:
    """Builds the page of a study's run folder anew."""
    from reports import xl_page

    print(xl_page.build(options.folder, options.out))


def add(commands: Any) -> None:
    """`report`."""
    p = command(commands, "report", report, "xlprobe report runs/demo-xl", encoder=False)
    p.add_argument("folder", help="run folder")
    p.add_argument("-o", "--out", help="page to write (default: report.html in the folder)")
