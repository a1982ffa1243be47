"""`xlprobe diagnose`: can a number measured on this encoder be trusted, and what has to change if not?"""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.diagnosis import show
from xlprobe.cli.options import command, load, read_lines

SENTENCES = [
    "A dog runs .",
    "Two birds sing in the garden , and the children listen to them .",
    "We see it .",
]


def diagnose(options: argparse.Namespace) -> int:
    """Holds an encoder against plain transformers, float64 and itself; says what to change; 1 if a check fails."""
    from xlprobe.diagnose import diagnose as run

    sentences = read_lines(options.text, argument="text")[:20] if options.text else SENTENCES
    return show(run(load(options), sentences, seed=options.seed), json=options.json)


def add(commands: Any) -> None:
    """Add `diagnose` to the commands."""
    p = command(
        commands, "diagnose", diagnose, "xlprobe diagnose --encoder xlm-roberta-base --dtype bfloat16"
    )
    p.add_argument(
        "--text", help="text file, a sentence a line; its first 20 are used (default: three built in)"
    )
