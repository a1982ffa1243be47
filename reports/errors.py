"""The errors of the project: one base class and two named kinds.

A message is one line of at most `LONGEST` characters, whatever was found in a file, and names the argument, what was
expected, what was found, and what to do about it.
Commands turn `InputError` into exit status 2 and every other `MechEditError` into exit status 1; anything
else is a bug and keeps its traceback.
"""

from __future__ import annotations

__all__ = ["LONGEST", "InputError", "IntegrityError", "MechEditError", "first_line"]


LONGEST = 1000


class MechEditError(Exception):
    r"""Base class of every error that the project raises on purpose.

    >>> issubclass(InputError, MechEditError) and issubclass(IntegrityError, MechEditError)
    True
    >>> str(MechEditError("two\nlines")), len(str(MechEditError("x" * 5000)))
    ('two lines', 1000)
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_one_line(str(message)))


class InputError(MechEditError, ValueError):
    """What the caller gave cannot be used: a wrong argument, file, record or folder (exit status 2).

    Also a `ValueError`, so that code that knows nothing of the project can catch it.

    >>> raise InputError("level: expected a number between 0 and 1, found 95; write 0.95")
    Traceback (most recent call last):
        ...
    reports.errors.InputError: level: expected a number between 0 and 1, found 95; write 0.95
    """


class IntegrityError(MechEditError):
    """A file, run folder or model is damaged, incomplete, or of another kind or version than it claims.

    >>> issubclass(IntegrityError, ValueError)
    False
    """


def first_line(error: Exception) -> str:
    r"""Returns the first line of another library's error message, or the error's kind where there is none.

    >>> first_line(ValueError("no such id\n  at line 3")), first_line(ValueError())
    ('no such id', 'ValueError')
    """
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _one_line(text: str) -> str:
    """Drops line breaks, half surrogate pairs and the middle of a long text, whose end says what to do."""
    text = " ".join(part.strip() if i else part.rstrip() for i, part in enumerate(text.splitlines()))
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 303]} … {text[-300:]}"
