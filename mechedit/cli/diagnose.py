"""`mechedit diagnose`: can a number measured on this model be trusted, and what has to change if not?"""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.diagnosis import show
from mechedit.cli.options import command
from mechedit.cli.pairs import read_pairs


def diagnose(options: argparse.Namespace) -> int:
    """Holds a model against plain transformers, float64 and itself; says what to change; status 1 if a check fails."""
    from mechedit.diagnose import PROBES
    from mechedit.diagnose import diagnose as run
    from mechedit.recipes.configured_model import load

    probes = list(zip(*read_pairs(options.prompts), strict=True)) if options.prompts else PROBES
    return show(run(load(options), probes), json=options.json)


def add(commands: Any) -> None:
    """`diagnose`."""
    p = command(commands, "diagnose", diagnose, "mechedit diagnose --model gpt2-xl --dtype bfloat16")
    p.add_argument(
        "--prompts", metavar="FILE", help="probes: .json, .csv or .tsv of prompt, target (else: built in)"
    )
