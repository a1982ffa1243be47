"""The experiments that a recipe can name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.recipe import Experiment

if TYPE_CHECKING:
    from xlprobe.recipes.study import StudyBase

__all__ = ["experiments"]


def experiments() -> dict[str, Experiment]:
    """By the name that a recipe gives in its key `experiment`."""
    from xlprobe.recipes.real_text import RealTextRecipe
    from xlprobe.recipes.study import StudyRecipe, plan_study

    known = (StudyRecipe, RealTextRecipe)
    return {one.experiment: Experiment(one.experiment, one, plan_study, _study) for one in known}


def _study(recipe: StudyBase, out: Path, progress: bool) -> dict[str, Any]:
    from xlprobe.recipes.study import run_study

    study, trial, report = run_study(recipe, out, progress=progress)
    return {"cells": len(study.cells), "trial": trial is not None, "report": str(report)}
