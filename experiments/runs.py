"""The run folder: one experiment on disk, resumable after any crash.

    config.toml        what was asked for; the run can be done again from it
    provenance.json    schema version, versions, model and data hashes, seeds, device, git commit; settings, by name
                       and fingerprint, of what made the cases (`settle`)
    cases/<id>.json    one file per finished case
    results/<name>/    saved `Result` objects
    manifest.json      name, size and sha256 of every file above; written last, so its presence means "finished"

Steps: `RunFolder.open` validates before it writes, and takes the folder's lock (`experiments.lock`): one process writes
at a time. Every file is written to a hidden temporary name, flushed to the disk and renamed, so a reader sees a whole
file or none and a killed process leaves at most temporary files, which everything here ignores and the next `open`
removes; a resumed run skips the cases that exist and are whole; `finish` writes the manifest. The same folder with
another configuration, or another model, data or seed under it, is refused; only more of the same data is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import tomli_w

from experiments.case_ids import check_case_id
from experiments.config import BEGUN
from experiments.lock import LOCK, FolderLock, lock
from experiments.provenance import provenance
from experiments.run_checks import (
    CONFIG,
    PROVENANCE,
    SAME,
    SCHEMA_VERSION,
    check_provenance,
    check_same,
    check_version,
    grown,
    is_run,
    read_json,
    read_toml,
    recorded_facts,
    refuse_links,
    without,
)
from experiments.settings import changes, fingerprint, identity
from reports.codec import encode
from reports.errors import InputError, IntegrityError, MechEditError
from reports.files import TEMPORARY, write
from reports.results import Result

__all__ = ["SAME", "RunFolder", "continued", "provenance"]

log = logging.getLogger(__name__)

C = TypeVar("C")

_MANIFEST = "manifest.json"


class RunFolder:
    """One run on disk. Make it with `RunFolder.open`.

    >>> import tempfile
    >>> facts = provenance(
    ...     model={}, data={}, seeds={"all": 0}, device="cpu", dtype="float32", attn_implementation="eager"
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = RunFolder.open(folder, {"editor": "mega"}, provenance=facts)
    ...     run.write_case(7, {"score": 1.0})
    ...     again = RunFolder.open(folder, {"editor": "mega"}, provenance=facts)
    ...     again.done(), again.read_case(7), again.finished
    ({'7'}, {'score': 1.0}, False)
    """

    def __init__(self, path: Path, config: dict[str, Any], *, held: FolderLock | None = None) -> None:
        self.path = path
        self.config = config
        self._held = held  # given up with the last object that has it

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: dict[str, Any],
        *,
        provenance: dict[str, Any],
        first: Callable[[int], dict[str, Any]] | None = None,
    ) -> RunFolder:
        """Creates the run folder `path`, or resumes the one that is there, or extends it to a larger `limit`.

        Nothing is written before the checks have passed.

        Args:
            path: The folder.
            config: What TOML can hold (str, int, float, bool, lists, tables); tuples become lists.
            provenance: What `provenance()` returns.
            first: Gives the "data" of the provenance where only so many of the data are taken. With it, a run whose
                configuration has a smaller `limit`, and whose data are the first of these, is extended.

        Raises:
            InputError: `config` holds anything else; `path` is a file or a folder with other content; a part of it is
                a link that leads elsewhere; the run there has another configuration, model, data, seed, device or
                dtype (the message names the first key that differs); another process writes there.
            IntegrityError: The run there is damaged or of another schema version.
            MechEditError: The disk does not take it.
        """
        folder, text = Path(path), _to_toml(config)
        before = cls.check(folder, config, provenance=provenance, first=first)
        plain, facts = tomllib.loads(text), encode(provenance, where="provenance")
        with _disk(folder):
            (folder / "cases").mkdir(parents=True, exist_ok=True)
        held = lock(folder)
        _sweep(folder)
        if before is not None:
            _extend(folder, facts)
        if before is not None or not (folder / CONFIG).exists():
            _write(folder / CONFIG, text.encode())
        if not (folder / PROVENANCE).exists():
            _write(folder / PROVENANCE, _to_json({"schema_version": SCHEMA_VERSION, **facts}))
        with _disk(folder):
            _sync_folder(folder)
        return cls(folder, plain, held=held)

    @staticmethod
    def check(
        path: str | os.PathLike[str],
        config: dict[str, Any],
        *,
        provenance: dict[str, Any],
        first: Callable[[int], dict[str, Any]] | None = None,
    ) -> int | None:
        """Refuses what `open` would, before a choice that takes long; nothing is written.

        Arguments and errors are those of `open`.

        Returns:
            The smaller `limit` of the run that is there, where it would be extended, else None.
        """
        folder, plain = Path(path), tomllib.loads(_to_toml(config))
        facts = encode(provenance, where="provenance")
        refuse_links(folder)
        if not is_run(folder):
            return None
        check_version(folder)
        there = read_toml(folder / CONFIG)
        before = None if first is None else grown(there, plain)
        grows = () if before is None else ("limit", BEGUN)
        check_same(without(plain, *grows), without(there, *grows), f"config of the run in {folder}")
        check_provenance(folder, facts, None if before is None or first is None else first(before))
        return before

    @property
    def finished(self) -> bool:
        """Whether `finish` has been called and nothing was written since."""
        return (self.path / _MANIFEST).is_file()

    @property
    def provenance(self) -> dict[str, Any]:
        """What the run was started with."""
        return recorded_facts(self.path)

    def settle(self, name: str, settings: dict[str, Any], *, cases: Iterable[int | str] = ()) -> str:
        """Records in the provenance what `name` is set to and reads, and returns the fingerprint it is kept under.

        A case says in "made_with" which it was made with: {name: fingerprint}.

        Args:
            name: As an editor's.
            settings: Plain data; what makes no other run stands under "about" (`experiments.settings`).
            cases: Ids; those of them that are finished have to be made with the same settings.

        Raises:
            InputError: One was made with others; the message names the first that differs.
        """
        plain = encode(settings, where=f"settings of {name}")
        mark, facts = fingerprint(plain), recorded_facts(self.path)
        recorded = facts.get("settings", {}).get(name, {})
        for case_id in cases:
            before = self._made_with(case_id).get(name, mark)
            if before != mark and before in recorded:
                there, what = recorded[before], f"settings of {name} in {self.path}"
                for key, old, new in changes(there, plain):
                    raise InputError(f"{what}: {key!r} is {old} there and {new} now; choose another folder")
                check_same(identity(plain), identity(there), what)
        if mark not in recorded:
            kept = {**facts.get("settings", {}), name: {**recorded, mark: plain}}
            self._withdraw_manifest()
            _write(
                self.path / PROVENANCE,
                _to_json({"schema_version": SCHEMA_VERSION, **facts, "settings": kept}),
            )
        return mark

    def _made_with(self, case_id: int | str) -> dict[str, str]:
        file = self._case_file(case_id)
        try:
            return dict(read_json(file).get("made_with", {})) if file.is_file() else {}
        except IntegrityError:  # it is made again
            return {}

    def done(self) -> set[str]:
        """Returns the ids of the finished cases, as strings."""
        files = (self.path / "cases").glob("*.json")
        return {file.stem for file in files if not file.name.startswith(".")}

    def write_case(self, case_id: int | str, obj: dict[str, Any]) -> None:
        """Writes one finished case, whole or not at all; an older one is replaced and a manifest withdrawn.

        Args:
            case_id: A file name's stem (`check_case_id`).
            obj: None, bool, int, float (nan and infinities too), str, lists and str-keyed dicts of these.

        Raises:
            InputError: `obj` holds anything else, or the id is no file name.
        """
        file = self._case_file(case_id)
        data = _to_json(encode(obj, where=f"case {case_id}"))
        self._withdraw_manifest()
        _write(file, data)

    def read_case(self, case_id: int | str) -> dict[str, Any]:
        """Returns the object that `write_case` stored.

        Raises:
            InputError: There is none.
            IntegrityError: It is damaged.
        """
        file = self._case_file(case_id)
        if not file.is_file():
            raise InputError(f"case_id: expected a finished case, found no {file}")
        return read_json(file)

    def find_case(self, case_id: int | str) -> dict[str, Any] | None:
        """Returns the finished case, or None where it is still to be made; a damaged one is logged and made again."""
        file = self._case_file(case_id)
        try:
            return read_json(file) if file.is_file() else None
        except IntegrityError as error:
            log.warning("%s; it is done again", error)
            return None

    def cases(self) -> dict[str, dict[str, Any]]:
        """Returns every finished case by its id, in the order of the ids (numbers by value, before words)."""
        return {case_id: self.read_case(case_id) for case_id in sorted(self.done(), key=_natural)}

    def write_result(self, result: Result, name: str) -> Path:
        """Saves `result` to `results/<name>` and returns that folder; an older one of its kind is replaced."""
        check_case_id(name)
        self._withdraw_manifest()
        with _disk(self.path / "results" / name):
            return result.save(self.path / "results" / name)

    def write_json(self, name: str, obj: dict[str, Any]) -> None:
        """Writes `<name>.json` beside the cases: what the page of the run reads. Plain data, as `write_case`."""
        self._write_top(f"{check_case_id(name)}.json", _to_json(encode(obj, where=name)))

    def write_frame(self, name: str, frame: pd.DataFrame) -> None:
        """Writes `<name>.parquet` beside the cases, without its index."""
        self._write_top(f"{check_case_id(name)}.parquet", frame.to_parquet(index=False))

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes `manifest.json`: `summary`, and path, size and sha256 of every file of the run.

        Raises:
            InputError: `summary` is not plain data.
        """
        text = encode(summary, where="summary")
        self._withdraw_manifest()
        files = [
            {
                "path": name.as_posix(),
                "size": (self.path / name).stat().st_size,
                "sha256": _sha256(self.path / name),
            }
            for name in self._files()
        ]
        manifest = {"kind": "run", "schema_version": SCHEMA_VERSION, "summary": text, "files": files}
        _write(self.path / _MANIFEST, _to_json(manifest))
        with _disk(self.path):
            _sync_folder(self.path / "cases")
            _sync_folder(self.path)

    def _write_top(self, name: str, data: bytes) -> None:
        if name in (PROVENANCE, _MANIFEST):
            raise InputError(f"name: {name!r} is the run folder's own; choose another")
        self._withdraw_manifest()
        _write(self.path / name, data)

    def _files(self) -> list[Path]:
        files = [file.relative_to(self.path) for file in self.path.rglob("*") if file.is_file()]
        return sorted(name for name in files if not _is_temporary(name) and name.name != LOCK)

    def _case_file(self, case_id: int | str) -> Path:
        return self.path / "cases" / f"{check_case_id(case_id)}.json"

    def _withdraw_manifest(self) -> None:
        with _disk(self.path / _MANIFEST):
            (self.path / _MANIFEST).unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"


def continued(settings: C, path: str | os.PathLike[str]) -> C:
    """`settings`, with the `limit` that the run in `path` began with where it has been extended, or is to be.

    What is chosen on other data is chosen behind those of the first `limit`, so that finished cases stay as they are.

    Args:
        settings: A configuration with the fields `limit` and `begun_with`; another one is returned as it is.
        path: The run folder, which may be still to be made.

    Raises:
        InputError: `config.toml` there is no TOML.
    """
    file, limit = Path(path) / CONFIG, getattr(settings, "limit", None)
    if getattr(settings, BEGUN, 0) is not None or not file.is_file():
        return settings
    there = read_toml(file)
    begun = there.get(BEGUN, grown(there, {} if limit is None else {"limit": limit}))
    if not isinstance(begun, int) or (limit is not None and limit < begun):
        return settings
    return dataclasses.replace(settings, **{BEGUN: begun})  # type: ignore[type-var]


def _extend(folder: Path, facts: dict[str, Any]) -> None:
    """Writes down that the run has more data; all else stays as it was begun."""
    (folder / _MANIFEST).unlink(missing_ok=True)
    if (folder / PROVENANCE).is_file():
        record = {"schema_version": SCHEMA_VERSION, **recorded_facts(folder), "data": facts.get("data", {})}
        _write(folder / PROVENANCE, _to_json(record))


def _is_temporary(path: Path) -> bool:
    return any(TEMPORARY.fullmatch(part) for part in path.parts)


def _natural(case_id: str) -> tuple[bool, int, str]:
    number = case_id.isdecimal()
    return (not number, int(case_id) if number else 0, case_id)


# --- bytes ------------------------------------------------------------------------------------------


def _to_toml(config: dict[str, Any]) -> str:
    if not isinstance(config, dict):
        raise InputError(f"config: expected a dict, found {type(config).__name__}")
    return tomli_w.dumps(_plain(config, "config"))


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    hint = "; TOML cannot say None: leave the key out" if value is None else ""
    kind = type(value).__name__
    raise InputError(f"{where}: expected str, int, float, bool, list or table, found {kind}{hint}")


def _to_json(obj: Any) -> bytes:
    return (json.dumps(obj, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write(file: Path, data: bytes) -> None:
    with _disk(file):
        write(file, data)


@contextlib.contextmanager
def _disk(target: Path) -> Iterator[None]:
    """Turns an error of the disk (full, read-only and the like) into one line instead of a traceback."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise MechEditError(
            f"cannot write {target} ({reason}); what is finished is kept: make room or give write permission, and the "
            "same command goes on"
        ) from error


def _sweep(folder: Path) -> None:
    """Removes what a killed process has left half written; the lock is held, so nobody else writes now."""
    for place in (folder, folder / "cases", folder / "results"):
        for left in place.glob(".*") if place.is_dir() else ():
            if not TEMPORARY.fullmatch(left.name):
                continue
            with _disk(left):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut (Windows cannot open a folder: there nothing is done)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
