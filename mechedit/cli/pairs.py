"""A file of prompts with their targets: JSON, CSV or TSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from reports.errors import InputError
from reports.parsing import json_rows

__all__ = ["read_pairs"]

_COLUMNS = ["prompt", "target"]
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_pairs(path: str) -> tuple[list[Any], list[str]]:
    """Prompts and targets of a file.

    Args:
        path: A `.json` or `.jsonl` file of {"prompt": ..., "target": ...}, as an array or one a line; a prompt may
            be a list of messages; or a `.csv` or `.tsv` file with the header prompt, target (in any order).

    Raises:
        InputError: The file is not readable, or a record is not as it should be; names the file and the record.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in (".json", ".jsonl", *_DELIMITERS):
        raise InputError(
            f"prompts: expected a .json, .csv or .tsv file, found {suffix or 'no suffix'} in {path}"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
        records = _rows(text, _DELIMITERS[suffix]) if suffix in _DELIMITERS else json_rows(text)
    except FileNotFoundError as error:
        raise InputError(f"prompts: expected a file, found none at {path}") from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"prompts: {path} is not readable as {suffix[1:]} ({error})") from error
    if not isinstance(records, list) or not records:
        kind = "none" if isinstance(records, list) else type(records).__name__
        raise InputError(f"prompts: {path}: expected an array of at least one record, found {kind}")
    for index, record in enumerate(records):
        _check(record, f"prompts: {path}: record {index}")
    return [record["prompt"] for record in records], [record["target"] for record in records]


def _rows(text: str, delimiter: str) -> list[dict[str, Any]]:
    header, *rows = list(csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)) or [[]]
    if sorted(header) != _COLUMNS:
        raise ValueError(f"expected the header prompt, target, found {', '.join(header) or 'none'}")
    for number, row in enumerate(rows, start=2):
        if row and len(row) != len(header):
            raise ValueError(f"row {number}: expected {len(header)} cells, found {len(row)}")
    return [dict(zip(header, row, strict=True)) for row in rows if row]


def _check(record: object, where: str) -> None:
    if not isinstance(record, dict) or sorted(record) != _COLUMNS:
        kind = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise InputError(f"{where}: expected an object with prompt and target, found {kind or 'none'}")
    messages = record["prompt"]
    conversation = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
    for name in ["target"] if conversation and messages else _COLUMNS:
        if not isinstance(record[name], str) or not record[name].strip():
            raise InputError(f"{where}: {name}: expected a text, found {record[name]!r}")
