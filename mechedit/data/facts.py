"""Facts to edit: loaders that refuse what they do not understand.

Steps of `load_facts`:

1. read the rows of a JSON, JSONL or Parquet file, or of a `datasets` name or folder;
2. detect the schema by the first row's keys (`mechedit.data.schemas`);
3. build one `FactEdit` a row; a row that is not as its schema says is an `InputError` with file, index and
   field, or is left out and logged where the caller says so.

EasyEdit's `rephrase_prompt` is one of CounterFact's *generation* prompts, so a score on it is not ROME's
paraphrase score: `source_schema` says so, the loader logs it, and an evaluation carries the note.
"""

from __future__ import annotations

import json
import logging
import os
import re
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from mechedit.data.records import FactEdit, RippleQuery, RippleTest, clip_line, facts_hash
from mechedit.data.schemas import BUILDERS, Schema, detect, from_row
from reports.errors import InputError

__all__ = ["FactEdit", "RippleQuery", "RippleTest", "Schema", "facts_hash", "load_facts"]

log = logging.getLogger(__name__)

_SUFFIXES = (".json", ".jsonl", ".parquet")
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def load_facts(
    path_or_dataset_name: str | os.PathLike[str],
    *,
    limit: int | None = None,
    schema: Schema | None = None,
    skip_malformed: bool = False,
) -> list[FactEdit]:
    """The edits in a file, or in a data set that `datasets` can load.

    A `.json` file holds one array of objects, `.jsonl` one object a line, `.parquet` one row an edit.

    Args:
        path_or_dataset_name: A file; whatever is no path is taken for a `datasets` name, `owner/name` or
            `owner/name:split` (`datasets` loads a folder of such files too).
        limit: Takes the first rows, and only those are checked.
        schema: "counterfact", "easyedit", "ripple" (RippleEdits) or "zsre"; detected from the first row if None.
        skip_malformed: Leaves a malformed row out and logs it, for files that are known to hold some.

    Raises:
        InputError: The source is missing, unreadable or empty, or a row is malformed; names source, index and field.

    >>> import tempfile
    >>> row = {"case_id": 3, "prompt": "Ann speaks", "subject": "Ann", "target_new": "Greek"}
    >>> row |= {"ground_truth": "Dutch", "rephrase_prompt": "Ann talks", "locality_prompt": "Bob speaks"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "facts.json"
    ...     _ = file.write_text(json.dumps([row]), encoding="utf-8")
    ...     fact = load_facts(file)[0]
    >>> fact.prompt, fact.source_schema
    ('{} speaks', 'easyedit')
    """
    source = os.fspath(path_or_dataset_name)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit: expected at least 1 or None, found {limit!r}")
    if schema is not None and schema not in get_args(Schema):
        raise InputError(f"schema: expected one of {', '.join(get_args(Schema))}, found {schema!r}")
    rows = _rows(source, limit)
    if not rows:
        raise InputError(f"{source}: expected at least one record, found none")
    schema = schema or detect(rows[0], source)
    facts = []
    for index, row in enumerate(rows):
        try:
            facts.append(from_row(BUILDERS[schema], row, index, where=f"{source}: record {index}"))
        except InputError as error:
            if not skip_malformed:
                raise
            log.warning("left out: %s", error)
    if not facts:
        raise InputError(f"{source}: expected at least one record that is as its schema says, found none")
    if schema == "easyedit":
        log.warning(
            "%s: EasyEdit's rephrase_prompt is one of CounterFact's generation prompts; "
            "PS and Gen on it are not ROME's paraphrase scores",
            source,
        )
    return facts


# --- rows of a source -------------------------------------------------------------------------------


def _rows(source: str, limit: int | None) -> list[Any]:
    path = Path(source)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # a name longer than the file system allows
        raise InputError(f"{clip_line(source)}: expected a data file ({_one_line(error)})") from error
    if is_file:
        return _file_rows(path)[:limit]
    looks_like_path = path.suffix.lower() in _SUFFIXES or not _NAME.fullmatch(source)
    if not is_folder and looks_like_path:
        raise InputError(f"{source}: expected a data file, found none; check the path")
    return _dataset_rows(source, limit, is_folder=is_folder)


def _file_rows(path: Path) -> list[Any]:
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(
            f"{path}: expected a {', '.join(_SUFFIXES)} file, found {path.suffix or 'no suffix'}"
        )
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(path).to_pylist()
        text = path.read_text(encoding="utf-8-sig")
        rows = _lines(text) if path.suffix.lower() == ".jsonl" else json.loads(text)
    except (OSError, ValueError, LookupError, RuntimeError) as error:  # each is one that Arrow raises
        raise InputError(f"{path}: not readable as {path.suffix[1:].lower()} ({_one_line(error)})") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a JSON array of records, found {type(rows).__name__}")
    return rows


def _lines(text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return rows


def _dataset_rows(source: str, limit: int | None, *, is_folder: bool) -> list[Any]:
    import datasets

    name, _, split = (source, "", "") if is_folder else source.partition(":")
    try:
        loaded = datasets.load_dataset(name)
    except (
        Exception
    ) as error:  # `datasets` documents no common base of what it raises for a name it cannot load
        raise InputError(
            f"{source}: no such file, and no data set of that name could be loaded ({_one_line(error)})"
        ) from error
    if not split and len(loaded) > 1:
        splits = ", ".join(loaded)
        raise InputError(f"{source}: expected one split, found {splits}; write {name}:{next(iter(loaded))}")
    split = split or next(iter(loaded))
    if split not in loaded:
        raise InputError(f"{source}: expected one of the splits {', '.join(loaded)}, found {split!r}")
    return list(islice(loaded[split], limit))


def _one_line(error: Exception) -> str:
    return clip_line(f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error))
