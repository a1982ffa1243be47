"""What is checked before a run folder is resumed, so that no run mixes two models, data sets, seeds or settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.lock import LOCK
from reports.codec import encode
from reports.errors import InputError, IntegrityError
from reports.files import TEMPORARY
from reports.parsing import parse_toml
from reports.reading import read_object

__all__ = [
    "CONFIG",
    "PROVENANCE",
    "SAME",
    "SCHEMA_VERSION",
    "check_provenance",
    "check_same",
    "check_version",
    "flattened",
    "grown",
]

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
CONFIG, PROVENANCE = "config.toml", "provenance.json"
SAME = ("model", "data", "seeds", "device", "dtype", "attn_implementation")  # must agree on resume
_ABSENT = object()


def is_run(folder: Path) -> bool:
    """True for a run, False for a free place, `InputError` for anything else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise InputError(f"path: expected a folder for the run, found the file {folder}; choose another name")
    if (folder / CONFIG).is_file():
        return True
    # a run that was killed before its config was renamed has nothing but an empty cases/ and temporary files
    cases = folder / "cases"
    started = cases.is_dir() and not any(cases.iterdir())
    foreign = [
        entry.name
        for entry in sorted(folder.iterdir())
        if not (TEMPORARY.fullmatch(entry.name) or entry.name == LOCK) and not (started and entry == cases)
    ]
    if foreign:
        raise InputError(
            f"path: expected a run or an empty folder, found {foreign[0]!r} and no {CONFIG} in {folder}; "
            "choose another folder"
        )
    return False


def refuse_links(folder: Path) -> None:
    """Refuses links that lead out of the run: nothing is written or removed behind one."""
    for name in ("cases", "results", LOCK):
        if (folder / name).is_symlink():
            raise InputError(
                f"path: {folder / name} is a link that leads elsewhere; put the files themselves there"
            )


def check_version(folder: Path) -> None:
    """Refuses to go on with a run that another version of this contract has begun."""
    if not (folder / PROVENANCE).is_file():
        return
    version = read_json(folder / PROVENANCE).get("schema_version", 1)
    if version != SCHEMA_VERSION:
        raise IntegrityError(
            f"path: the run in {folder} is of schema version {version}, this project writes {SCHEMA_VERSION}; nothing "
            "was changed: end it with the version of the project that began it, or choose another folder"
        )


def recorded_facts(folder: Path) -> dict[str, Any]:
    """The provenance without the version of the contract."""
    return {k: value for k, value in read_json(folder / PROVENANCE).items() if k != "schema_version"}


def grown(there: dict[str, Any], now: dict[str, Any]) -> int | None:
    """The `limit` of the run that is there, where it is smaller than the one that is asked for now; else None."""
    old, new = there.get("limit"), now.get("limit")
    smaller = isinstance(old, int) and (new is None or (isinstance(new, int) and new > old))
    return old if smaller else None


def without(table: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in names}


def check_provenance(folder: Path, facts: dict[str, Any], first: dict[str, Any] | None) -> None:
    """Refuses to mix cases of two models, data sets or seeds; other package versions are only logged.

    `first` is the data of a run that is extended (which may have been stopped after its provenance was written).
    """
    if not (folder / PROVENANCE).is_file():
        return
    old = encode(recorded_facts(folder), where="provenance")
    if first is not None and old.get("data") != facts.get("data"):
        facts = {**facts, "data": encode(first, where="data")}
    check_same(
        {key: facts[key] for key in SAME if key in facts},
        {key: old[key] for key in SAME if key in old},
        f"provenance of the run in {folder}",
    )
    if facts != without(old, "settings"):
        log.warning("%s was started with other package versions or another commit; going on", folder)


def check_same(mine: dict[str, Any], theirs: dict[str, Any], what: str) -> None:
    """Refuses two tables that differ, naming the first key; `what` begins the error."""
    new, old = flattened(mine), flattened(theirs)
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if repr(a) != repr(b):  # repr: nan equals nan, 1 differs from True
            raise InputError(f"{what}: {key!r} is {_show(a)} there and {_show(b)} now; choose another folder")


def flattened(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, keys joined by points; an empty table stays a value.

    >>> flattened({"a": {"b": 1, "c": {}}, "d": 2})
    {'a.b': 1, 'a.c': {}, 'd': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _show(value: object) -> str:
    if value is _ABSENT:
        return "absent"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:59] + "…"


def read_json(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except FileNotFoundError as error:
        raise IntegrityError(f"{file}: expected this file of the run, found none") from error


def read_toml(file: Path) -> dict[str, Any]:
    try:
        return parse_toml(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"path: expected a run, found {file} that is no TOML ({_show(str(error))}); choose another folder"
        ) from error
