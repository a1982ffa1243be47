"""mechedit: how a knowledge edit works inside a language model.

Attribute a fact to layers, heads and neurons (NLKA), edit it by steering attention (MEGA), and measure the edit
beside its controls. `load_model`, `attribute`, `editors`, `evaluate` and `anatomy` are the main road.

Importing the package costs nothing: each name is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechedit import editors, factworld
    from mechedit.anatomy import (
        AnatomyStudy,
        OutcomeContrast,
        StatementContrast,
        anatomy,
        edit_contrast,
        outcome_contrast,
        statement_contrast,
    )
    from mechedit.attribution import (
        Attribution,
        AttributionContrast,
        HeadAttention,
        attribute,
        attribute_many,
        contrast,
        head_attention,
    )
    from mechedit.data.facts import FactEdit, load_facts
    from mechedit.diagnose import Diagnosis, diagnose
    from mechedit.evaluation.evaluate import Evaluation, evaluate
    from mechedit.evaluation.ripple import RippleEvaluation, ripple
    from mechedit.faithfulness import Ablation, ablate
    from mechedit.models.hooked import HookedModel, load_model
    from mechedit.models.residual import ResidualView

__version__ = "0.1.0"

_ROOMS = ("attribution", "data", "editors", "evaluation", "factworld", "faithfulness", "models", "recipes")
_NAMES = {
    "mechedit.anatomy": (
        "AnatomyStudy",
        "OutcomeContrast",
        "StatementContrast",
        "anatomy",
        "edit_contrast",
        "outcome_contrast",
        "statement_contrast",
    ),
    "mechedit.attribution": (
        "Attribution",
        "AttributionContrast",
        "HeadAttention",
        "attribute",
        "attribute_many",
        "contrast",
        "head_attention",
    ),
    "mechedit.data.facts": ("FactEdit", "load_facts"),
    "mechedit.diagnose": ("Diagnosis", "diagnose"),
    "mechedit.evaluation.evaluate": ("Evaluation", "evaluate"),
    "mechedit.evaluation.ripple": ("RippleEvaluation", "ripple"),
    "mechedit.faithfulness": ("Ablation", "ablate"),
    "mechedit.models.hooked": ("HookedModel", "load_model"),
    "mechedit.models.residual": ("ResidualView",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "Ablation",
    "AnatomyStudy",
    "Attribution",
    "AttributionContrast",
    "Diagnosis",
    "Evaluation",
    "FactEdit",
    "HeadAttention",
    "HookedModel",
    "OutcomeContrast",
    "ResidualView",
    "RippleEvaluation",
    "StatementContrast",
    "ablate",
    "anatomy",
    "attribute",
    "attribute_many",
    "contrast",
    "diagnose",
    "edit_contrast",
    "editors",
    "evaluate",
    "factworld",
    "head_attention",
    "load_facts",
    "load_model",
    "outcome_contrast",
    "ripple",
    "statement_contrast",
]


def __getattr__(name: str) -> Any:
    """The public name, loaded on first use (PEP 562)."""
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for `dir` and tab completion, loaded or not."""
    return sorted({*globals(), *__all__})


class _Face(ModuleType):
    """This package. A function called like the room it lives in (`anatomy`, `diagnose`) stays the function: Python
    binds a submodule to its package once it is imported, and `me.anatomy(...)` would call a module."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
