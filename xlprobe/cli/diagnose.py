"""`xlprobe diagnose`: does padding or a batch mate change an example's gradient?"""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.output import print_json
from xlprobe.cli.options import command, load, read_lines

SENTENCES = [
    "A dog runs .",
    "Two birds sing in the garden , and the children listen to them .",
    "We see it .",
]


def diagnose(options: argparse.Namespace) -> int:
    """Does padding or a batch mate change an example's gradient, in this dtype and attention?"""
    from xlprobe.diagnose import diagnose as run

    sentences = read_lines(options.text, argument="text")[:20] if options.text else SENTENCES
    found = run(load(options), sentences, seed=options.seed)
    if options.json:
        checks = {row["check"]: row for row in found.checks.to_dict("records")}
        facts = {
            "ok": found.ok,
            "dtype": found.dtype,
            "attention": found.attention,
            "tolerance": found.tolerance,
        }
        print_json({**facts, "checks": checks})
    else:
        print(f"{found.dtype}, {found.attention}: tolerance {found.tolerance:.1e}")
        print(found.checks.to_string(index=False, float_format=lambda x: f"{x:.3g}"))
        print("ok" if found.ok else "not ok: do not trust a gradient probe in this setting")
    return 0 if found.ok else 1


def add(commands: Any) -> None:
    """`diagnose`."""
    p = command(
        commands, "diagnose", diagnose, "xlprobe diagnose --encoder xlm-roberta-base --dtype bfloat16"
    )
    p.add_argument(
        "--text", help="text file, a sentence a line; its first 20 are used (default: three built in)"
    )
