"""Base of every result object: tidy frames, save and load, intervals.

A result is a frozen dataclass that inherits from `Result`. Its `DataFrame` fields become `<field>.parquet`,
all other fields one strict `result.json`; never pickle, so a result is readable without this project and
opening one runs no code. Steps of `save`:

1. encode every field, so that a field that cannot be stored fails before anything is written;
2. look at the target: free, empty, or a result of this very kind and nothing else in it; refuse the rest;
3. write into a new folder beside the target, then rename: a reader sees all of it or none.

`load` checks kind, schema version and the sha256 of each frame before it builds the object.

Intervals: Wilson's score interval for one proportion [E. B. Wilson, JASA 22 (1927), 209-212] and the
percentile bootstrap of a mean over records [B. Efron, Ann. Statist. 7 (1979), 1-26].
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import math
import operator
import os
import shutil
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from reports.codec import decode, encode
from reports.errors import InputError, IntegrityError
from reports.reading import read_frame, read_record
from reports.text import visible

__all__ = ["SCHEMA_VERSION", "Result", "bootstrap_mean", "difference_interval", "wilson"]

SCHEMA_VERSION = 1
_RECORD = "result.json"
R = TypeVar("R", bound="Result")


class Result:
    """Mixin for the frozen dataclasses that hold a result.

    Declare subclasses as `@dataclass(frozen=True, repr=False, eq=False)`: the generated `__eq__` cannot
    compare frames (use `equals`) and the generated `__repr__` would print them whole. A field may hold a
    frame, None, bool, int, float (nan included), str, a list, tuple or str-keyed dict of these, or another
    dataclass of these; a tuple or dataclass comes back as one if the annotation says so. Arrays and tensors
    are refused: make them a tidy frame. A field called `provenance` is stored at the top of `result.json`.

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
        """The result's main table, tidy: a copy of its first frame (subclasses may override this)."""
        for _, value in _values(self):
            if isinstance(value, pd.DataFrame):
                return value.copy()
        raise InputError(f"to_frame: {type(self).__name__} has no frame; read its fields instead")

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the result to `folder` and return its path; an older result of the same kind there is
        replaced.

        Errors: `InputError` if a field cannot be stored, or if `folder` is a file, or is not empty and not
        exactly a result of this kind. Wrong when two processes save to one folder at once: the later rename
        wins.
        """
        target = Path(folder)
        frames, record = _encode_result(self)
        _check_target(target, self.kind)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        try:
            temporary.chmod(0o755)  # mkdtemp makes it private; a result is shared like any other file
            for name, frame in frames.items():
                record["frames"][name] = _write_frame(temporary / f"{name}.parquet", frame)
            text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
            (temporary / _RECORD).write_text(text + "\n", encoding="utf-8")
            swap_folder(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read a result that `save` wrote.

        Errors: `InputError` if there is no such folder; `IntegrityError` if it holds no result, another kind,
        another schema version, other fields, or a frame that is missing or changed since.
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
        return f"{type(self).__name__}({', '.join(f'{k}={_short(v)}' for k, v in _values(self))})"

    def _repr_html_(self) -> str:
        """An escaped table of the plain fields, then the first rows of each frame."""
        rows, tables = [], []
        for name, value in _values(self):
            if isinstance(value, pd.DataFrame):
                shown = value.head(10).map(lambda cell: visible(cell) if isinstance(cell, str) else cell)
                caption = f"<p><strong>{html.escape(name)}</strong> {html.escape(_short(value))}</p>"
                tables.append(caption + shown.to_html(escape=True, border=0, index=False))
            else:
                cells = f"<th>{html.escape(name)}</th><td>{html.escape(visible(_short(value)))}</td>"
                rows.append(f"<tr>{cells}</tr>")
        head = f"<p><strong>{html.escape(type(self).__name__)}</strong></p>"
        return f"<div>{head}<table>{''.join(rows)}</table>{''.join(tables)}</div>"


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion, `(low, high)` as fractions in [0, 1].

    With p = successes / n and z the normal quantile of (1 + level) / 2:
    (p + z²/2n ± z·sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n). n = 0 gives (nan, nan).
    Errors: `InputError` if not 0 <= successes <= n or not 0 < level < 1.
    Wrong when the trials depend on each other (several prompts of one record): bootstrap over records
    instead.

    >>> low, high = wilson(5, 10)
    >>> round(low, 4), round(high, 4)
    (0.2366, 0.7634)
    """
    successes, n = operator.index(successes), operator.index(n)
    z = _quantile(level)
    if not 0 <= successes <= n:
        raise InputError(f"successes: expected 0 <= successes <= n, found {successes} of n = {n}")
    if n == 0:
        return math.nan, math.nan
    p = successes / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # at 0/n and n/n one bound is exactly 0 or 1; rounding must not push it outside or leave 1e-17 there
    low = 0.0 if successes == 0 else max(0.0, (middle - half) / scale)
    high = 1.0 if successes == n else min(1.0, (middle + half) / scale)
    return low, high


def difference_interval(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float]:
    """Interval `(low, high)` of second − first, from (value, low, high) of each: the square-and-add rule.

    With d = p₂ − p₁: low = d − sqrt((p₂ − l₂)² + (u₁ − p₁)²), high = d + sqrt((u₂ − p₂)² + (p₁ − l₁)²) [Newcombe,
    Statistics in Medicine 17 (1998) 873–890, method 10, where the two are Wilson's; Zou & Donner 2008 for any].
    Any NaN gives (nan, nan).
    Wrong when the two are not independent: of two runs on the same records it is too wide, as a rule.

    >>> low, high = difference_interval((48 / 80, *wilson(48, 80)), (56 / 70, *wilson(56, 70)))
    >>> round(low, 4), round(high, 4)
    (0.0524, 0.3339)
    """
    (p1, l1, u1), (p2, l2, u2) = first, second
    return p2 - p1 - math.hypot(p2 - l2, u1 - p1), p2 - p1 + math.hypot(u2 - p2, p1 - l1)


def bootstrap_mean(
    values: ArrayLike, *, seed: int = 0, n_resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval `(low, high)` of the mean of `values` [n], one value a record.

    Draws `n_resamples` samples of n records with replacement and takes the (1 ∓ level)/2 quantiles of their
    means. The values are sorted first, so the interval depends on the records and the seed alone, not on
    their order. n = 0 or any NaN gives (nan, nan): a missing record is never dropped in silence.
    Errors: `InputError` if `values` is not one-dimensional, n_resamples < 1 or not 0 < level < 1.
    Wrong for few records: the interval is too narrow by about sqrt((n − 1)/n), and has no width at all for
    n = 1 or where all values agree; for a proportion use `wilson`.

    >>> bootstrap_mean([2.0, 2.0, 2.0])
    (2.0, 2.0)
    >>> low, high = bootstrap_mean([0.0, 1.0] * 50)
    >>> low < 0.5 < high
    True
    """
    _quantile(level)
    data = np.sort(np.asarray(values, dtype=np.float64))
    if data.ndim != 1:
        raise InputError(f"values: expected one dimension (a value a record), found shape {data.shape}")
    if n_resamples < 1:
        raise InputError(f"n_resamples: expected at least 1, found {n_resamples}")
    if data.size == 0 or np.isnan(data).any():
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // data.size)  # bounds the memory of the index array at 16 MB for any n
    means: list[np.ndarray] = []
    for start in range(0, n_resamples, rows):
        size = (min(rows, n_resamples - start), data.size)
        means.append(data[generator.integers(data.size, size=size)].mean(axis=1))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(max(low, data[0])), float(min(high, data[-1]))


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(f"level: expected a number between 0 and 1, found {level}; write 0.95 for 95 %")
    return NormalDist().inv_cdf((1 + level) / 2)


def _values(result: Result) -> Iterator[tuple[str, Any]]:
    if not dataclasses.is_dataclass(result):
        raise TypeError(f"{type(result).__name__} must be a dataclass to be a Result")
    for field in dataclasses.fields(result):
        if field.init:
            yield field.name, getattr(result, field.name)


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


def swap_folder(temporary: Path, target: Path) -> None:
    """Put the folder `temporary` in the place of `target`; if the second rename fails, the old result is put back."""
    if target.is_symlink():
        raise InputError(
            f"folder: expected a folder, found the link {target}; name the folder that it leads to"
        )
    if not target.exists():
        temporary.replace(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    target.replace(old)
    try:
        temporary.replace(target)
    except OSError:
        old.replace(target)
        raise
    shutil.rmtree(old)


def _check_target(target: Path, kind: str) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"folder: expected a folder, found the file {target}; choose another name")
    found = sorted(entry.name for entry in target.iterdir())
    if not found:
        return
    try:
        record = _read_record(target)
    except IntegrityError:
        record = {}
    if record.get("kind") != kind:
        what = f"a result of kind {record['kind']!r}" if "kind" in record else f"other files ({found[0]!r})"
        raise InputError(f"folder: expected an empty folder or a {kind!r} result, found {what} in {target}")
    own = {_RECORD, *(f"{name}.parquet" for name in record.get("frames", {}))}
    if foreign := [name for name in found if name not in own]:
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
    if different := names ^ {*values, *frames}:
        raise IntegrityError(f"{path}: fields stored and those of {cls.__name__} differ: {sorted(different)}")
    arguments = {name: decode(value, hints[name]) for name, value in values.items()}
    arguments |= {name: _read_frame(path, name, entry) for name, entry in frames.items()}
    return cls(**arguments)


def _read_frame(path: Path, name: str, entry: dict[str, Any]) -> pd.DataFrame:
    file = path / f"{name}.parquet"  # from the field's name, never from the record: no path leaves the folder
    if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != entry.get("sha256"):
        raise IntegrityError(f"{file}: the sha256 differs from the one in {_RECORD}; the file was changed")
    frame = read_frame(path, name)
    if frame is None:
        raise IntegrityError(f"{path}: expected {file.name}, found none")
    return frame
