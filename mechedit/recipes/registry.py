"""The experiments that a recipe can name, each with its configuration, its plan and how it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.recipe import Experiment
from mechedit.recipes import plans
from mechedit.recipes.anatomy import AnatomyConfig, run_anatomy
from mechedit.recipes.compare import ComparisonConfig, compare
from mechedit.recipes.configured_model import load, load_each
from mechedit.recipes.demo import DemoConfig, run_demo
from mechedit.recipes.evaluate import EvaluationConfig, run_evaluation
from mechedit.recipes.faithfulness import FaithfulnessConfig, run_faithfulness

__all__ = ["experiments"]


def experiments() -> dict[str, Experiment]:
    """By the name that a recipe gives in its key `experiment`."""
    return {
        one.name: one
        for one in (
            Experiment("compare", ComparisonConfig, plans.plan_comparison, _compare),
            Experiment("anatomy", AnatomyConfig, plans.plan_anatomy, _anatomy),
            Experiment("evaluate", EvaluationConfig, plans.plan_evaluation, _evaluate),
            Experiment("faithfulness", FaithfulnessConfig, plans.plan_faithfulness, _faithfulness),
            Experiment("demo", DemoConfig, plans.plan_demo, _demo),
        )
    }


def _compare(config: ComparisonConfig, out: Path, progress: bool) -> dict[str, Any]:
    found = compare(load(config), config, out, progress=progress)
    return {"n_known": found.n_known, "n_total": found.n_total}


def _anatomy(config: AnatomyConfig, out: Path, progress: bool) -> dict[str, Any]:
    found = run_anatomy(load(config), config, out, progress=progress)
    return {"n": found.n, "window": found.window}


def _faithfulness(config: FaithfulnessConfig, out: Path, progress: bool) -> dict[str, Any]:
    found = run_faithfulness(load_each(config), config, out, progress=progress)
    return {"n": found.n, "ablated": found.ablated}


def _evaluate(config: EvaluationConfig, out: Path, progress: bool) -> dict[str, Any]:
    found, _ = run_evaluation(config, out, progress=progress)
    return {"n_known": found.n_known, "n_total": found.n_total}


def _demo(config: DemoConfig, out: Path, progress: bool) -> dict[str, Any]:
    summary = run_demo(load(config), config, out, progress=progress)
    return {"n": summary["n"], "window": summary["window"]}
