"""The command line.

Commands: `mechedit demo | attribute | edit | contrast | evaluate | known | anatomy | faithfulness | compare | drift |
covariance | tune | factworld | diagnose | run | report`. Each prints a table, or one JSON object with `--json`. Exit
status: 0 done, 1 failed, 2 wrong usage (one line on standard error), 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.cli.options import Parser
from experiments.cli.program import execute
from mechedit import __version__
from mechedit.cli import (
    anatomy,
    attribute,
    compare,
    contrast,
    covariance,
    demo,
    diagnose,
    drift,
    edit,
    evaluate,
    factworld,
    faithfulness,
    known,
    report,
    run,
    tune,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    return execute(_parser(), argv)


def _parser() -> Parser:
    parser = Parser(
        prog="mechedit", description="Attribute facts, edit them by steering attention, measure the edit."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for module in (
        demo,
        attribute,
        edit,
        contrast,
        evaluate,
        anatomy,
        faithfulness,
        known,
        compare,
        drift,
        covariance,
        tune,
        factworld,
        diagnose,
        run,
        report,
    ):
        module.add(commands)
    return parser
