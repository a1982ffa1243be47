"""The experiments that a recipe can name, each with its configuration, its plan and how it is run."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiments.recipe import Experiment, Plan
from mechedit.recipes import plans
from mechedit.recipes.configurations import (
    AnatomyConfig,
    ComparisonConfig,
    DemoConfig,
    EvaluationConfig,
    FaithfulnessConfig,
)

__all__ = ["experiments"]

_PLANNED: dict[str, tuple[type[Any], Callable[[Any], Plan]]] = {
    "compare": (ComparisonConfig, plans.plan_comparison),
    "anatomy": (AnatomyConfig, plans.plan_anatomy),
    "evaluate": (EvaluationConfig, plans.plan_evaluation),
    "faithfulness": (FaithfulnessConfig, plans.plan_faithfulness),
    "demo": (DemoConfig, plans.plan_demo),
}


def experiments() -> dict[str, Experiment]:
    """By the name that a recipe gives in its key `experiment`."""
    return {name: Experiment(name, *planned, partial(_run, name)) for name, planned in _PLANNED.items()}


def _run(name: str, config: Any, out: Path, progress: bool) -> dict[str, Any]:
    """Runs the experiment. What runs a model is loaded here, because a plan needs none of it."""
    run: Callable[[Any, Path, bool], dict[str, Any]] = pkgutil.resolve_name(f"mechedit.recipes.runs:{name}")
    return run(config, out, progress)
