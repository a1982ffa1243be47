"""Recipes: one TOML file names an experiment, its configuration, and perhaps a grid of them.

    experiment = "compare"          # which of the program's experiments
    limit = 40                      # keys of its configuration (a frozen dataclass)
    [matrix]                        # one run for each combination, each in a sub folder
    model = ["factworld", "factworld-llama"]

Steps of `read`:

1. the file's table, with the command line's KEY=VALUE on top: command line over file over default;
2. the experiment by its name; without [matrix] one cell, else one for each combination;
3. every cell is built and checked before any runs, and no two may share a folder.

`Plan` is what a run expects to do, made of the same list of cases that the run itself walks.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments import config
from experiments.case_ids import check_case_id
from reports.errors import InputError
from reports.parsing import parse_toml

__all__ = ["Cell", "Experiment", "Plan", "describe", "read", "recorded"]


@dataclass(frozen=True)
class Plan:
    """What a run expects to do.

    Attributes:
        cases: Ids of the files that it writes under `cases/`.
        sequences: Prompts with an object behind them that go through the model to be scored, one forward pass each
            before batching.
        edits: Edits that are applied, each with forward passes of its own.
        weights_bytes: Bytes of the model's weights, in its dtype; None where the model is not on this machine.
        notes: What is not counted.
    """

    cases: tuple[str, ...]
    sequences: int
    edits: int = 0
    weights_bytes: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One kind of experiment: `plan` and `run` take an instance of `config`, a frozen dataclass."""

    name: str
    config: type[Any]
    plan: Callable[[Any], Plan]
    run: Callable[[Any, Path, bool], dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        experiment: Its experiment.
        config: The configuration.
        folder: The sub folder ("" without a matrix).
    """

    experiment: Experiment
    config: Any
    folder: str = ""

    def to_toml(self) -> str:
        """Returns the resolved configuration, which `read` reads back."""
        return f'experiment = "{self.experiment.name}"\n{config.dump(self.config)}'


def recorded(experiment: str, settings: Any) -> dict[str, Any]:
    """Returns what a run folder's config.toml holds: a recipe that gives the same run again."""
    values = {key: value for key, value in asdict(settings).items() if value is not None}
    return {"experiment": experiment, **values}


def read(
    path: str | os.PathLike[str], experiments: Mapping[str, Experiment], *, settings: Sequence[str] = ()
) -> list[Cell]:
    """Reads the cells of the recipe `path`.

    Args:
        path: The TOML file.
        experiments: The program's experiments, by name.
        settings: KEY=VALUE of the command line, values as in TOML (or bare words).

    Raises:
        InputError: What `config.load` refuses, an unknown experiment, a matrix with an axis that is no list or that
            the file also sets, or two cells that would share a folder; the message names the file and the key.
    """
    table = config.read_table(path)
    name = table.pop("experiment", None)
    if not isinstance(name, str) or name not in experiments:
        raise InputError(f"{path}: experiment: {_nearest(name, experiments)}")
    axes = table.pop("matrix", {})
    _check_axes(axes, table, path)
    for key, value in map(_setting, settings):
        axes.pop(key, None)
        _put(table, key, value)
    where = f"{path} with {' '.join(settings)}" if settings else str(path)
    experiment, cells = experiments[name], []
    for values in itertools.product(*axes.values()):
        cell_table = table | dict(zip(axes, values, strict=True))
        folder = "_".join(f"{key}-{_slug(value)}" for key, value in zip(axes, values, strict=True))
        cells.append(Cell(experiment, config.build(cell_table, experiment.config, where=where), folder))
    _check_folders([cell.folder for cell in cells], path)
    return cells


def _check_axes(axes: Any, table: Mapping[str, Any], path: Any) -> None:
    if not isinstance(axes, dict):
        raise InputError(f"{path}: matrix: expected a table of lists, found {axes!r}")
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: matrix.{key}: expected a list of at least one value, found {values!r}")
        if key in table:
            raise InputError(f"{path}: key {key!r} stands in the recipe and in [matrix]; remove one of them")


def _check_folders(folders: Sequence[str], path: Any) -> None:
    for folder in folders:
        if folder and folders.count(folder) > 1:
            raise InputError(f"{path}: matrix: two cells would share the folder {folder!r}; change a value")
        if folder:
            check_case_id(folder)


def _nearest(name: Any, experiments: Mapping[str, Experiment]) -> str:
    known = ", ".join(experiments)
    if name is None:
        return f"this key is missing; one of {known}"
    near = difflib.get_close_matches(str(name), experiments, n=1, cutoff=0.5)
    return f"expected one of {known}, found {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE; a value that TOML does not read is a word, so that quotes may be left out."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.-]*", key):
        raise InputError(f"overrides: expected KEY=VALUE, as limit=20, found {text!r}")
    try:
        return key, parse_toml(f"value = {value}")["value"]
    except ValueError:
        return key, value


def _put(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = table.get(parent, {})
        table[parent] = dict(inner) if isinstance(inner, dict) else {}
        table = table[parent]
    table[last] = value


def _slug(value: Any) -> str:
    """A value as part of a folder's name."""
    if isinstance(value, list):
        return ".".join(map(_slug, value)) or "none"
    if isinstance(value, dict):
        return ".".join(f"{key}-{_slug(item)}" for key, item in value.items())
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(value)).strip("-") or "none"


def describe(cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """Yields for each cell: folder, experiment, config (resolved), cases, sequences, edits, weights_bytes, notes."""
    for cell in cells:
        plan = cell.experiment.plan(cell.config)
        yield {
            "folder": cell.folder,
            "experiment": cell.experiment.name,
            "config": tomllib.loads(cell.to_toml()),
            **{key: value for key, value in asdict(plan).items() if key != "cases"},
            "cases": len(plan.cases),
        }
