"""The command line; `xlprobe --help` lists the commands.

Every command prints a table, or one JSON object with `--json`. Exit status: 0 done, 1 failed, 2 wrong usage
(one line on standard error), 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.cli.options import Parser
from experiments.cli.program import execute
from xlprobe.cli import (
    align,
    demo,
    diagnose,
    distances,
    finetune,
    gradients,
    langworld,
    pretrain,
    report,
    run,
    study,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    return execute(_parser(), argv)


def _parser() -> Parser:
    from importlib.metadata import version

    parser = Parser(
        prog="xlprobe",
        description="What cross-lingual alignment does to transfer, in distances and gradients.",
    )
    parser.add_argument("--version", action="version", version=version("mechedit"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    made = (pretrain, align, finetune, distances, gradients, study, run)
    for module in (demo, *made, langworld, diagnose, report):
        module.add(commands)
    return parser
