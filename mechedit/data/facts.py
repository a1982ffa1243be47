"""Facts to edit: loaders that refuse what they do not understand.

Steps of `load_facts`:

1. read the rows of a JSON, JSONL or Parquet file, or of a `datasets` name or folder;
2. detect the schema by the first row's keys (`mechedit.data.schemas`);
3. build one `FactEdit` a row; a row that is not as its schema says is an `InputError` with file, index and
   field, or is left out and logged where the caller says so; one that no score could say anything about (its new object
   is the old one) is left out, counted (`LoadedFacts.left_out`) and logged.

EasyEdit's `rephrase_prompt` is one of CounterFact's *generation* prompts, so a score on it is not ROME's
paraphrase score: `source_schema` says so, the loader logs it, and an evaluation carries the note.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from mechedit.data.joining import Space, check_space
from mechedit.data.records import FactEdit, RippleQuery, RippleTest, Unmeasurable, clip_line, facts_hash
from mechedit.data.schemas import BUILDERS, Schema, asked_neighbours, detect, from_row
from reports.errors import InputError
from reports.files import whole_file
from reports.parsing import json_rows

__all__ = [
    "FactEdit",
    "LoadedFacts",
    "RippleQuery",
    "RippleTest",
    "Schema",
    "check_writable",
    "facts_hash",
    "load_facts",
    "save_facts",
    "write_rows",
]

log = logging.getLogger(__name__)

_SUFFIXES = (".json", ".jsonl", ".parquet")
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def load_facts(
    path_or_dataset_name: str | os.PathLike[str],
    *,
    limit: int | None = None,
    schema: Schema | None = None,
    skip_malformed: bool = False,
    space: Space = "auto",
) -> LoadedFacts:
    """The edits in a file, or in a data set that `datasets` can load.

    A JSON file holds one array of objects or one object a line, whatever its suffix; `.parquet` one row an edit.

    Args:
        path_or_dataset_name: A file; whatever is no path is taken for a `datasets` name, `owner/name` or
            `owner/name:split` (`datasets` loads a folder of such files too).
        limit: Takes the first rows, and only those are checked.
        schema: "counterfact", "easyedit", "ripple" (RippleEdits) or "zsre"; detected from the first row if None.
        skip_malformed: Leaves a malformed row out and logs it, for files that are known to hold some.
        space: Whether a space stands before an answer ("auto", "always", "never"), where a row's own `space` does not
            say it.

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
    check_space(space)
    rows = _rows(source, limit)
    if not rows:
        raise InputError(f"{source}: expected at least one record, found none")
    schema = schema or detect(rows[0], source)
    facts, left_out = _built(rows, schema, source, skip_malformed=skip_malformed, space=space)
    if not facts:
        reason = f"; the first: {left_out[0]}" if left_out else ""
        raise InputError(f"{source}: expected at least one record that can be measured, found none{reason}")
    if schema == "easyedit":
        log.warning(
            "%s: EasyEdit's rephrase_prompt is one of CounterFact's generation prompts; "
            "PS and Gen on it are not ROME's paraphrase scores",
            source,
        )
    return LoadedFacts(facts, left_out)


def save_facts(facts: Iterable[FactEdit], path: str | os.PathLike[str]) -> Path:
    """Writes facts with all that belongs to them, as `load_facts` reads them.

    Raises:
        InputError: The file cannot be written.

    >>> import tempfile
    >>> fact = FactEdit("Ann", "{} speaks", "Dutch", "Greek", paraphrase_prompts=("Ann talks",))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load_facts(save_facts([fact], Path(folder) / "mine.json"))[0] == fact
    True
    """
    defaults = {field.name: field.default for field in dataclasses.fields(FactEdit)}
    rows = [
        {name: value for name, value in dataclasses.asdict(fact).items() if value != defaults[name]}
        | {"case_id": fact.case_id, "source_schema": fact.source_schema}
        for fact in facts
    ]
    return write_rows(rows, path)


def check_writable(path: str | os.PathLike[str], *, data: str | None = None) -> None:
    """Refuses, before anything is computed, a place where `save_facts` could not write, or would write over its source.

    Args:
        path: Of the file that is to be written.
        data: The file that is read, if there is one.

    Raises:
        InputError: It is a folder, it lies in none, or it is `data`.
    """
    file = Path(path)
    if data is not None and file.exists() and Path(data).exists() and file.samefile(data):
        raise InputError(f"out: {file} is the file that is read (--data); choose another name")
    if file.is_dir() or not file.parent.is_dir():
        found = "is a folder" if file.is_dir() else f"has no folder {file.parent}"
        raise InputError(f"out: {file} {found}; name a file in an existing folder")


def write_rows(rows: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Writes records to a JSON file.

    Raises:
        InputError: The file cannot be written.
    """
    file = Path(path)
    try:
        with whole_file(file) as temporary:
            temporary.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"out: cannot write {file} ({error.strerror}); name a file in an existing folder"
        ) from error
    return file


class LoadedFacts(list[FactEdit]):
    """The facts of a file, and what was left out of it.

    Attributes:
        left_out: One line a row that is no fact, saying which and why.
    """

    def __init__(self, facts: Iterable[FactEdit] = (), left_out: Sequence[str] = ()) -> None:
        super().__init__(facts)
        self.left_out = tuple(left_out)


def _built(
    rows: Sequence[Any], schema: Schema, source: str, *, skip_malformed: bool, space: Space
) -> tuple[list[FactEdit], list[str]]:
    """The facts of the rows, and a line for each row that is none."""
    facts: list[FactEdit] = []
    left_out: list[str] = []
    unmeasurable: list[str] = []
    unanswered = 0
    for index, row in enumerate(rows):
        try:
            fact = from_row(BUILDERS[schema], row, index, where=f"{source}: record {index}")
        except InputError as error:
            if not skip_malformed and not isinstance(error, Unmeasurable):
                raise
            left_out.append(str(error))
            if isinstance(error, Unmeasurable):
                unmeasurable.append(str(error))
            else:
                log.warning("left out: %s", error)
            continue
        facts.append(fact if space == "auto" or "space" in row else dataclasses.replace(fact, space=space))
        unanswered += asked_neighbours(schema, row) - len(fact.neighborhood_prompts)
    if unmeasurable:
        log.warning(
            "%s: left out %d of %d records: no score could tell whether the edit took; the first: %s",
            source,
            len(unmeasurable),
            len(rows),
            unmeasurable[0],
        )
    if unanswered:
        log.warning("%s: left out %d neighbourhood prompts that have no answer", source, unanswered)
    return facts, left_out


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
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(path).to_pylist()
        if suffix not in _SUFFIXES and not _looks_like_json(path):
            raise InputError(
                f"{path}: expected a {', '.join(_SUFFIXES)} file, found {path.suffix or 'no suffix'}"
            )
        rows = json_rows(path.read_text(encoding="utf-8-sig"), json.loads)
    except (OSError, ValueError, LookupError, RuntimeError) as error:  # each is one that Arrow raises
        if isinstance(error, InputError):
            raise
        kind = suffix[1:] if suffix in _SUFFIXES else "json"
        raise InputError(f"{path}: not readable as {kind} ({_one_line(error)})") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a JSON array of records, found {type(rows).__name__}")
    return rows


def _looks_like_json(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"[", b"{")


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
