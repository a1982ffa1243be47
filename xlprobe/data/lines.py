"""Lines of a text file, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from reports.errors import InputError

__all__ = ["text_lines"]


def text_lines(path: str | Path) -> list[str]:
    r"""Lines of a UTF-8 file, without their ends (only \n and \r\n end a line: texts hold other separators).

    A file that ends in .gz is unpacked.

    Raises:
        InputError: The file cannot be read, or is not UTF-8.
    """
    try:
        content = Path(path).read_bytes()
        if str(path).endswith(".gz"):
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")  # as it is: Python would take a lone \r for a line's end
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a readable UTF-8 file ({error})") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
