"""The command line: `xlprobe demo | pretrain | align | finetune | distances | gradients | study | run | langworld |
diagnose | report | bench`.

Every command prints a table, or one JSON object with `--json`. Exit status: 0 done, 1 failed, 2 wrong usage
(one line on standard error), 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from experiments.progress import how_to_go_on, interruptible
from reports.errors import InputError, MechEditError
from xlprobe.cli import (
    align,
    bench,
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
from xlprobe.cli.options import Parser


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
            "xlprobe",
            sys.argv[1:] if argv is None else argv,
            saved=getattr(options, "out", None) is not None,
        )
        print(f"xlprobe: {said}", file=sys.stderr)
        return 130


def _fail(error: Exception | str, status: int) -> int:
    print("xlprobe: error: " + " ".join(str(error).split()), file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = Parser(
        prog="xlprobe",
        description="What cross-lingual alignment does to transfer, in distances and gradients.",
    )
    parser.add_argument("--version", action="version", version=version("mechedit"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    made = (pretrain, align, finetune, distances, gradients, study, run)
    for module in (demo, *made, langworld, diagnose, report, bench):
        module.add(commands)
    return parser
