"""How a program runs a command and ends."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from experiments.cli.options import Parser
from experiments.progress import how_to_go_on, interruptible
from reports.errors import InputError, MechEditError

__all__ = ["execute"]


def execute(parser: Parser, argv: Sequence[str] | None) -> int:
    """Runs the command that `argv` names (None: the process's own).

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong usage (both one line on standard error), 130 interrupted,
        141 nobody reads the output any more.
    """
    lines = logging.StreamHandler(sys.stderr)
    lines.addFilter(_Once())
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", handlers=[lines])
    options = parser.parse_args(argv)
    try:
        with interruptible(quiet=bool(getattr(options, "quiet", False))):
            return int(options.run(options) or 0)
    except InputError as error:
        return _fail(parser.prog, error, 2)
    except MechEditError as error:
        return _fail(parser.prog, error, 1)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # the disk, not the code
        return _fail(parser.prog, f"{error.filename or 'the disk'}: {error.strerror or error}", 1)
    except KeyboardInterrupt as stop:
        advice = how_to_go_on(
            stop,
            parser.prog,
            sys.argv[1:] if argv is None else argv,
            saved=getattr(options, "out", None) is not None,
        )
        print(f"{parser.prog}: {advice}", file=sys.stderr)
        return 130


class _Once(logging.Filter):
    """Lets each line through once: a file that a command reads several times has one thing to say."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        line = (record.name, record.getMessage())
        new = line not in self.said
        self.said.add(line)
        return new


def _fail(program: str, error: Exception | str, status: int) -> int:
    print(f"{program}: error: " + " ".join(str(error).split()), file=sys.stderr)
    return status
