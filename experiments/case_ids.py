"""What may be the id of a case: the stem of a file name that cannot leave its folder or hide a file."""

from __future__ import annotations

import re

from reports.errors import InputError

__all__ = ["check_case_id"]


_CASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_case_id(case_id: int | str) -> str:
    """Returns `case_id` as the stem of a file name.

    Raises:
        InputError: It has other characters than letters, digits, `.`, `_` and `-`, more than 128 of them, or no
            letter or digit first: no id can leave the folder or hide a file.

    >>> check_case_id(42)
    '42'
    """
    text = str(case_id)
    if not _CASE_ID.fullmatch(text):
        shown = " ".join(repr(text).split())
        raise InputError(
            "case_id: expected at most 128 letters, digits, '.', '_' or '-', a letter or digit first, "
            f"found {shown if len(shown) <= 60 else shown[:59] + '…'}"
        )
    return text
