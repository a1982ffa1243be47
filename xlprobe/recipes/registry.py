"""The experiments that a recipe can name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.recipe import Experiment
from xlprobe.recipes.real_text import RealTextRecipe
from xlprobe.recipes.study import StudyBase, StudyRecipe, plan_study, run_study

__all__ = ["experiments"]


def experiments() -> dict[str, Experiment]:
    """The experiments by the name that a recipe gives in its key `experiment`."""
    known = (StudyRecipe, RealTextRecipe)
    return {recipe.experiment: Experiment(recipe.experiment, recipe, plan_study, _study) for recipe in known}


def _study(recipe: StudyBase, out: Path, progress: bool) -> dict[str, Any]:
    study, trial, report = run_study(recipe, out, progress=progress)
    return {"cells": len(study.cells), "trial": trial is not None, "report": str(report)}
