"""Base of every result object: tidy frames, save and load.

A result is a frozen dataclass that inherits from `Result`. Its `DataFrame` fields become `<field>.parquet`,
all other fields one strict `result.json`; never pickle, so a result is readable without this project and
opening one runs no code. Steps of `save`:

1. encode every field, so that a field that cannot be stored fails before anything is written;
2. look at the target: free, empty, or a result of this very kind and nothing else in it; refuse the rest;
3. write into a new folder beside the target, then rename: a reader sees all of it or none.

`load` checks kind, schema version and the sha256 of each frame before it builds the object.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import os
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import pandas as pd

from reports.codec import decode, encode
from reports.errors import InputError, IntegrityError
from reports.files import whole_folder
from reports.reading import read_frame, read_record
from reports.text import visible

__all__ = ["SCHEMA_VERSION", "Result"]

SCHEMA_VERSION = 1
_RECORD = "result.json"
R = TypeVar("R", bound="Result")


class Result:
    """Mixin for the frozen dataclasses that hold a result.

    Declare subclasses as `@dataclass(frozen=True, repr=False, eq=False)`: the generated `__eq__` cannot compare frames
    (use `equals`) and the generated `__repr__` would print them whole. A field may hold a frame, None, bool, int,
    float (nan included), str, a list, tuple or str-keyed dict of these, or another dataclass of these; a tuple or
    dataclass comes back as one if the annotation declares it. Arrays and tensors are refused: make them a tidy frame.
    A field called `provenance` is stored at the top of `result.json`.

    >>> import tempfile
    >>> @dataclasses.dataclass(frozen=True, repr=False, eq=False)
    ... class Scores(Result):
    ...     kind: ClassVar[str] = "scores"
    ...     layers: pd.DataFrame
    ...     logp: float
    >>> scores = Scores(pd.DataFrame({"layer": [0, 1], "score": [0.5, float("nan")]}), logp=-1.25)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = Scores.load(scores.save(folder + "/scores"))
    >>> again
    Scores(layers=<2 rows × 2 columns>, logp=-1.25)
    >>> again.equals(scores)
    True
    """

    kind: ClassVar[str]

    def to_frame(self) -> pd.DataFrame:
        """Returns the result's main table, tidy: a copy of its first frame (subclasses may override this).

        Raises:
            InputError: The result has no frame.
        """
        for _, value in _values(self):
            if isinstance(value, pd.DataFrame):
                return value.copy()
        raise InputError(f"to_frame: {type(self).__name__} has no frame; read its fields instead")

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes the result to `folder` and returns its path; an older result of the same kind there is replaced.

        Wrong when two processes save to one folder at once: the later rename wins.

        Raises:
            InputError: A field cannot be stored, or `folder` is a file, or is not empty and not exactly a result of
                this kind (and the page that was drawn of it, which goes too).
        """
        target = Path(folder)
        frames, record = _encode_result(self)
        _check_target(target, self.kind)
        with whole_folder(target) as temporary:
            for name, frame in frames.items():
                record["frames"][name] = _write_frame(temporary / f"{name}.parquet", frame)
            text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
            (temporary / _RECORD).write_text(text + "\n", encoding="utf-8")
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads a result that `save` wrote.

        Raises:
            InputError: There is no such folder.
            IntegrityError: It holds no result, another kind, another schema version, other fields, or a frame that is
                missing or changed since.
        """
        path = Path(folder)
        if not path.is_dir():
            raise InputError(f"folder: expected a saved {cls.kind!r} result, found no folder at {path}")
        record = _read_record(path)
        if record.get("kind") != cls.kind:
            raise IntegrityError(f"{path}: expected kind {cls.kind!r}, found {record.get('kind')!r}")
        if record.get("schema_version") != SCHEMA_VERSION:
            raise IntegrityError(
                f"{path}: expected schema version {SCHEMA_VERSION}, found {record.get('schema_version')!r}; "
                "load it with the version of the project that wrote it"
            )
        try:
            return _decode_result(cls, path, record)
        except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
            raise IntegrityError(f"{path / _RECORD}: a field is not what it should be ({error})") from error

    def equals(self, other: object) -> bool:
        """Whether `other` is of the same class with the same fields and frames; NaN equals NaN."""
        if not isinstance(other, Result) or type(other) is not type(self):
            return False
        mine, yours = _encode_result(self), _encode_result(other)
        same_keys = mine[0].keys() == yours[0].keys()
        return same_keys and mine[1] == yours[1] and all(f.equals(yours[0][k]) for k, f in mine[0].items())

    def __repr__(self) -> str:
        shown = (f"{name}={_short(value)}" for name, value in _values(self) if name != "provenance")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_html_(self) -> str:
        """An escaped table of the plain fields and the first rows of each frame; folded behind `summary()`, if any."""
        rows, tables = [], []
        for name, value in _values(self):
            if isinstance(value, pd.DataFrame):
                caption = f"<p><strong>{html.escape(name)}</strong> {html.escape(_short(value))}</p>"
                tables.append(caption + _table(value.head(10)))
            else:
                cells = f"<th>{html.escape(name)}</th><td>{html.escape(visible(_short(value)))}</td>"
                rows.append(f"<tr>{cells}</tr>")
        head = f"<p><strong>{html.escape(type(self).__name__)}</strong></p>"
        fields = f"<table>{''.join(rows)}</table>{''.join(tables)}"
        if callable(summary := getattr(self, "summary", None)):
            names = ", ".join(name for name, _ in _values(self))
            fields = f"{_table(summary())}<details><summary>{html.escape(names)}</summary>{fields}</details>"
        return f"<div>{head}{fields}</div>"


def _values(result: Result) -> Iterator[tuple[str, Any]]:
    if not dataclasses.is_dataclass(result):
        raise TypeError(f"{type(result).__name__} must be a dataclass to be a Result")
    for field in dataclasses.fields(result):
        if field.init:
            yield field.name, getattr(result, field.name)


def _table(frame: pd.DataFrame) -> str:
    shown = frame.map(lambda cell: visible(cell) if isinstance(cell, str) else cell)
    return str(shown.to_html(escape=True, border=0, index=False, float_format=lambda value: f"{value:.4g}"))


def _short(value: object) -> str:
    if isinstance(value, pd.DataFrame):
        return f"<{len(value)} rows × {value.shape[1]} columns>"
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _encode_result(result: Result) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    frames: dict[str, pd.DataFrame] = {}
    values: dict[str, Any] = {}
    for name, value in _values(result):
        if isinstance(value, pd.DataFrame):
            frames[name] = value
        else:
            values[name] = encode(value, where=f"{type(result).__name__}.{name}")
    provenance = values.pop("provenance", {})
    record = {
        "kind": result.kind,
        "schema_version": SCHEMA_VERSION,
        "provenance": provenance,
        "frames": {},
        "values": values,
    }
    return frames, record


def _write_frame(path: Path, frame: pd.DataFrame) -> dict[str, Any]:
    try:
        frame.to_parquet(path, engine="pyarrow")
    except (ValueError, TypeError, NotImplementedError) as error:  # pyarrow's own errors are ValueErrors
        message = f"{path.stem}: this frame cannot be stored as Parquet ({error}); use one type a column"
        raise InputError(message) from error
    return {"file": path.name, "rows": len(frame), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _check_target(target: Path, kind: str) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"folder: expected a folder, found the file {target}; choose another name")
    made = re.compile(r"report(\.\w+|-files)")  # a page of the result, which is drawn again from it
    names = sorted(entry.name for entry in target.iterdir() if not made.fullmatch(entry.name))
    if not names:
        return
    try:
        record = _read_record(target)
    except IntegrityError:
        record = {}
    if record.get("kind") != kind:
        what = f"a result of kind {record['kind']!r}" if "kind" in record else f"other files ({names[0]!r})"
        raise InputError(f"folder: expected an empty folder or a {kind!r} result, found {what} in {target}")
    expected = {_RECORD, *(f"{name}.parquet" for name in record.get("frames", {}))}
    if foreign := [name for name in names if name not in expected and not name.startswith("report.")]:
        raise InputError(f"folder: {target} also holds {foreign[0]!r}, which would be lost; use another")


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return read_record(path / _RECORD)
    except FileNotFoundError as error:
        raise IntegrityError(f"{path}: expected {_RECORD}, found none; this is no saved result") from error


def _decode_result(cls: type[R], path: Path, record: dict[str, Any]) -> R:
    hints = typing.get_type_hints(cls)
    values = dict(record.get("values", {}))
    names = {field.name for field in dataclasses.fields(typing.cast(Any, cls)) if field.init}
    if "provenance" in names:
        values["provenance"] = record.get("provenance", {})
    frames = record.get("frames", {})
    later = {field.name for field in dataclasses.fields(typing.cast(Any, cls)) if _has_default(field)}
    if different := (names ^ {*values, *frames}) - (later & names):
        raise IntegrityError(f"{path}: fields stored and those of {cls.__name__} differ: {sorted(different)}")
    arguments = {name: decode(value, hints[name]) for name, value in values.items()}
    arguments |= {name: _read_frame(path, name, entry) for name, entry in frames.items()}
    return cls(**arguments)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    """Whether a result that an earlier version saved may lack the field."""
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _read_frame(path: Path, name: str, entry: dict[str, Any]) -> pd.DataFrame:
    file = path / f"{name}.parquet"  # from the field's name, never from the record: no path leaves the folder
    if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != entry.get("sha256"):
        raise IntegrityError(f"{file}: the sha256 differs from the one in {_RECORD}; the file was changed")
    frame = read_frame(path, name)
    if frame is None:
        raise IntegrityError(f"{path}: expected {file.name}, found none")
    return frame
