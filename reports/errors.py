"""The errors of the project: one base class and two named kinds.

A message is one line and names the argument, what was expected, what was found, and what to do about it.
Commands turn `InputError` into exit status 2 and every other `MechEditError` into exit status 1; anything
else is a bug and keeps its traceback.
"""

from __future__ import annotations

__all__ = ["InputError", "IntegrityError", "MechEditError"]


class MechEditError(Exception):
    """Base class of every error that the project raises on purpose.

    >>> issubclass(InputError, MechEditError) and issubclass(IntegrityError, MechEditError)
    True
    """


class InputError(MechEditError, ValueError):
    """What the caller gave cannot be used: a wrong argument, file, record or folder (exit status 2).

    Also a `ValueError`, so that code that knows nothing of the project can catch it.

    >>> raise InputError("level: expected a number between 0 and 1, found 95; write 0.95")
    Traceback (most recent call last):
        ...
    reports.errors.InputError: level: expected a number between 0 and 1, found 95; write 0.95
    """


class IntegrityError(MechEditError):
    """A file, run folder or model is not what it claims to be: damaged, incomplete, or of another kind or
    version.

    >>> issubclass(IntegrityError, ValueError)
    False
    """
