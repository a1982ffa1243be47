"""The command line: `mechedit demo | attribute | edit | evaluate | anatomy | faithfulness | covariance | tune |
factworld | run | report | bench`.

Every command prints a table, or one JSON object with `--json`. Exit status: 0 done, 1 failed, 2 wrong usage
(one line on standard error), 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from experiments.progress import how_to_go_on, interruptible
from mechedit.cli import (
    anatomy,
    attribute,
    bench,
    compare,
    covariance,
    demo,
    edit,
    evaluate,
    factworld,
    faithfulness,
    report,
    run,
    tune,
)
from mechedit.cli.options import Parser
from reports.errors import InputError, MechEditError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    options = _parser().parse_args(argv)
    try:
        with interruptible():
            return int(options.run(options) or 0)
    except InputError as error:
        return _fail(error, 2)
    except MechEditError as error:
        return _fail(error, 1)
    except OSError as error:  # the disk, not the code
        return _fail(f"{error.filename or 'the disk'}: {error.strerror or error}", 1)
    except KeyboardInterrupt as stop:
        said = how_to_go_on(
            stop,
            "mechedit",
            sys.argv[1:] if argv is None else argv,
            saved=getattr(options, "out", None) is not None,
        )
        print(f"mechedit: {said}", file=sys.stderr)
        return 130


def _fail(error: Exception | str, status: int) -> int:
    print("mechedit: error: " + " ".join(str(error).split()), file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    from mechedit import __version__

    parser = Parser(
        prog="mechedit", description="Attribute facts, edit them by steering attention, measure the edit."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for module in (
        demo,
        attribute,
        edit,
        evaluate,
        anatomy,
        faithfulness,
        compare,
        covariance,
        tune,
        factworld,
        run,
        report,
        bench,
    ):
        module.add(commands)
    return parser
