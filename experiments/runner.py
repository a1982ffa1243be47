"""`run` of both programs: every cell of a recipe, what a dry run says, and a run done again.

The programs hand in their experiments; what is printed is theirs to print.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments import again, config
from experiments.engine import Engine, local
from experiments.recipe import Cell, Experiment, read
from experiments.runs import RunFolder, continued
from reports.errors import InputError

__all__ = ["run_again", "run_cells"]


def run_cells(
    cells: Sequence[Cell], out: Path, *, engine: Engine = local, progress: bool = True
) -> Iterator[dict[str, Any]]:
    """Runs the cells one after another and yields the summary of each, with its folder.

    The same call goes on with runs that were stopped, by any engine.

    Raises:
        InputError: A matrix's folder is a run itself; and the experiments' own errors.
    """
    if any(cell.folder for cell in cells) and (out / "config.toml").exists():
        raise InputError(
            f"out: {out} is a run itself; a matrix makes one run a sub folder: choose another folder"
        )
    for planned in cells:
        folder = out / planned.folder
        cell = replace(planned, config=continued(planned.config, folder))
        with engine(cell):
            summary = cell.experiment.run(cell.config, folder, progress)
        yield {"folder": str(folder), **summary}


def run_again(
    folder: Path,
    out: Path | None,
    experiments: Mapping[str, Experiment],
    *,
    engine: Engine = local,
    progress: bool = True,
) -> again.Comparison:
    """Does the run in `folder` again and compares the two, case by case.

    Args:
        folder: The run.
        out: The new run; by default its name with -again.
        experiments: The program's experiments, by name.
        engine: Who makes the cases.
        progress: Whether bars are shown.

    Raises:
        InputError: `folder` holds no run that can be done again, `out` is the run itself, or model, data or seeds are
            others
            now: the comparison is about the numbers, so everything under them has to be the same.
    """
    source, target = folder, out or folder.with_name(f"{folder.name}-again")
    if not (source / "config.toml").is_file():
        raise InputError(f"again: expected a run folder, found no config.toml in {source}")
    if target.resolve() == source.resolve():
        raise InputError(f"out: {target} is the run itself; choose another folder")
    if not isinstance(config.read_table(source / "config.toml").get("experiment"), str):
        raise InputError(
            f"again: {source} was not made by `run` or a command with a recipe: it names no experiment"
        )
    (cell,) = read(source / "config.toml", experiments)
    with engine(cell):
        cell.experiment.run(cell.config, target, progress)
    before, now = (RunFolder(f, {}).provenance for f in (source, target))
    for key in ("model", "data", "seeds"):
        if before[key] != now[key]:
            raise InputError(
                f"again: {key} of {source} is {before[key]}, here it is {now[key]}; nothing to compare"
            )
    return again.compare_runs(source, target)
