"""Each experiment as a recipe runs it: load the model, run, say in a few words what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechedit.recipes.anatomy import run_anatomy
from mechedit.recipes.compare import run_comparison
from mechedit.recipes.configurations import (
    AnatomyConfig,
    ComparisonConfig,
    DemoConfig,
    EvaluationConfig,
    FaithfulnessConfig,
)
from mechedit.recipes.configured_model import load, load_each
from mechedit.recipes.demo import run_demo
from mechedit.recipes.evaluate import run_evaluation
from mechedit.recipes.faithfulness import run_faithfulness

__all__ = ["anatomy", "compare", "demo", "evaluate", "faithfulness"]


def compare(config: ComparisonConfig, out: Path, progress: bool) -> dict[str, Any]:
    """`mechedit.recipes.compare`."""
    comparison = run_comparison(load(config), config, out, progress=progress)
    return {"n_known": comparison.n_known, "n_total": comparison.n_total}


def anatomy(config: AnatomyConfig, out: Path, progress: bool) -> dict[str, Any]:
    """`mechedit.recipes.anatomy`."""
    study = run_anatomy(load(config), config, out, progress=progress)
    return {"n": study.n, "window": study.window}


def faithfulness(config: FaithfulnessConfig, out: Path, progress: bool) -> dict[str, Any]:
    """`mechedit.recipes.faithfulness`."""
    study = run_faithfulness(load_each(config), config, out, progress=progress)
    return {"n": study.n, "ablated": study.ablated}


def evaluate(config: EvaluationConfig, out: Path, progress: bool) -> dict[str, Any]:
    """`mechedit.recipes.evaluate`."""
    evaluation, _ = run_evaluation(config, out, progress=progress)
    return {"n_known": evaluation.n_known, "n_total": evaluation.n_total}


def demo(config: DemoConfig, out: Path, progress: bool) -> dict[str, Any]:
    """`mechedit.recipes.demo`."""
    summary = run_demo(load(config), config, out, progress=progress)
    return {"n": summary["n"], "window": summary["window"]}
