"""A run held against the same run done again: case by case, number by number, within a stated tolerance.

On the same machine, device and versions the two are equal in every bit. Elsewhere sums are taken in another order:
numbers may differ by `TOLERANCE` of the dtype, absolute below 1 and relative above. Everything else (texts, whether a
gate fired) has to be equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.runs import RunFolder
from experiments.settings import changes
from reports.errors import InputError

__all__ = ["TOLERANCE", "Comparison", "compare_runs"]

#: What rounding in another order may do to a log-probability or a score, some hundred operations deep.
TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}


#: Of a case: hashes of what it was made with, which is compared itself.
_HASHES = ("settings", "made_with")


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common.

    Attributes:
        n: Cases of both.
        identical: How many are equal in every bit.
        largest: The largest difference between two numbers.
        tolerance: How far two numbers may differ.
        differing: "case: key: old and new" beyond the tolerance, the first of each case.
        missing: Cases of one run alone.
        changed: What the provenance records differently (versions, commit, device).
        settings: What the cases were made with that differs, as "editor: key was …, is …": an editor's setting, or what
            it read.
    """

    n: int
    identical: int
    largest: float
    tolerance: float
    differing: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    settings: tuple[str, ...] = ()

    @property
    def reproduced(self) -> bool:
        """Whether every case is there in both, made with the same settings, within the tolerance."""
        return not self.differing and not self.missing and not self.settings and self.n > 0


def compare_runs(old: Path, new: Path) -> Comparison:
    """Compares the cases of the run `new` with those of `old`.

    Raises:
        InputError: One of the folders is no run.
    """
    for folder in (old, new):
        if not (folder / "config.toml").is_file() or not (folder / "provenance.json").is_file():
            raise InputError(
                f"again: expected a run folder, found no config.toml and provenance.json in {folder}"
            )
    first, second = (RunFolder(folder, {}) for folder in (old, new))
    tolerance = TOLERANCE.get(str(first.provenance.get("dtype")), TOLERANCE["float32"])
    ids = first.done() & second.done()
    differing, largest, identical = [], 0.0, 0
    facts = first.provenance, second.provenance
    made_with = tuple(side.pop("settings", {}) for side in facts)
    settings: dict[str, None] = {}
    for case_id in sorted(ids):
        cases = first.read_case(case_id), second.read_case(case_id)
        settings |= dict.fromkeys(_settings(cases, made_with))
        numbers = [{key: case[key] for key in case if key not in _HASHES} for case in cases]
        unequal = list(_differences(numbers[0], numbers[1], ""))
        identical += not unequal
        largest = max([largest, *(size for _, size in unequal if math.isfinite(size))])
        beyond = [text for text, size in unequal if size > tolerance]
        if beyond:
            differing.append(f"{case_id}: {beyond[0]}")
    return Comparison(
        n=len(ids),
        identical=identical,
        largest=largest,
        tolerance=tolerance,
        differing=tuple(differing),
        missing=tuple(sorted(first.done() ^ second.done())),
        changed=tuple(text for text, _ in _differences(*facts, "")),
        settings=tuple(settings),
    )


def _settings(cases: tuple[dict[str, Any], ...], recorded: tuple[dict[str, Any], ...]) -> Iterator[str]:
    """What two cases were made with that differs; nothing where a version that did not record it made one of them."""
    marks = [case.get("made_with", {}) for case in cases]
    for name in marks[0].keys() & marks[1].keys():
        old, new = (
            of_run.get(name, {}).get(mark[name]) for of_run, mark in zip(recorded, marks, strict=True)
        )
        if old is not None and new is not None:
            for key, before, now in changes(old, new):
                yield f"{name}: {key} was {before}, is {now}"


def _differences(a: Any, b: Any, where: str) -> Iterator[tuple[str, float]]:
    """(what, how much) of each difference; infinite for what is no number."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            yield from _differences(a.get(key), b.get(key), f"{where}.{key}" if where else key)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differences(x, y, f"{where}[{i}]")
    elif repr(a) != repr(b):  # repr: nan equals nan, 1 differs from True
        yield f"{where} was {_short(a)}, is {_short(b)}", _distance(a, b)


def _distance(a: Any, b: Any) -> float:
    numbers = all(isinstance(x, float | int) and not isinstance(x, bool) for x in (a, b))
    if not numbers or not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return float(abs(a - b) / max(1.0, abs(a)))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
