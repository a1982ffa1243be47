# ruff: noqa: E402 (what is imported below may be hidden)
"""mechedit: how a knowledge edit works inside a language model.

Attribute a fact to layers, heads and neurons (NLKA), edit it by steering attention (MEGA), and measure the edit
beside its controls. `load_model`, `attribute`, `editors`, `evaluate` and `anatomy` are the main road.

Importing the package costs nothing: each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING


def _refuse_shadows() -> None:
    """Raises `ImportError` where files of the user's own hide the `experiments` or `reports` beside this package."""
    from importlib.util import find_spec
    from pathlib import Path

    for name in ("experiments", "reports"):
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            continue  # not installed: the import itself says so
        if Path(spec.origin).resolve().parent != (Path(__file__).parent.parent / name).resolve():
            raise ImportError(
                f"{__name__}: {spec.origin} hides {__name__}'s own package {name!r}; rename it, or start Python in "
                "another folder"
            )


_refuse_shadows()

from experiments.face import lazy

if TYPE_CHECKING:
    from mechedit import editors, factworld
    from mechedit.anatomy import (
        AnatomyStudy,
        CheckpointContrast,
        OutcomeContrast,
        StatementContrast,
        anatomy,
        contrast_checkpoints,
        edit_contrast,
        outcome_contrast,
        statement_contrast,
    )
    from mechedit.attribution import (
        Attribution,
        AttributionContrast,
        Attributions,
        HeadAttention,
        attribute,
        attribute_many,
        contrast,
        head_attention,
    )
    from mechedit.data.facts import FactEdit, load_facts, save_facts
    from mechedit.diagnose import Diagnosis, diagnose
    from mechedit.evaluation.evaluate import Evaluation, evaluate
    from mechedit.evaluation.ripple import RippleEvaluation, ripple
    from mechedit.faithfulness import Ablation, ablate
    from mechedit.models.hooked import HookedModel, load_model
    from mechedit.models.residual import ResidualView
    from reports.attribution_circuit import AttributionCircuit

__version__ = "0.1.0"

_NAMES = {
    "mechedit.anatomy": (
        "AnatomyStudy",
        "CheckpointContrast",
        "OutcomeContrast",
        "StatementContrast",
        "anatomy",
        "contrast_checkpoints",
        "edit_contrast",
        "outcome_contrast",
        "statement_contrast",
    ),
    "mechedit.attribution": (
        "Attribution",
        "AttributionContrast",
        "Attributions",
        "HeadAttention",
        "attribute",
        "attribute_many",
        "contrast",
        "head_attention",
    ),
    "mechedit.data.facts": ("FactEdit", "load_facts", "save_facts"),
    "mechedit.diagnose": ("Diagnosis", "diagnose"),
    "mechedit.evaluation.evaluate": ("Evaluation", "evaluate"),
    "mechedit.evaluation.ripple": ("RippleEvaluation", "ripple"),
    "mechedit.faithfulness": ("Ablation", "ablate"),
    "mechedit.models.hooked": ("HookedModel", "load_model"),
    "mechedit.models.residual": ("ResidualView",),
    "reports.attribution_circuit": ("AttributionCircuit",),
}
if not TYPE_CHECKING:  # a type checker would take any name for one of the package's
    __getattr__, __dir__ = lazy(
        __name__,
        _NAMES,
        rooms=(
            "attribution",
            "data",
            "editors",
            "evaluation",
            "factworld",
            "faithfulness",
            "models",
            "recipes",
        ),
    )

__all__ = [
    "Ablation",
    "AnatomyStudy",
    "Attribution",
    "AttributionCircuit",
    "AttributionContrast",
    "Attributions",
    "CheckpointContrast",
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
    "contrast_checkpoints",
    "diagnose",
    "edit_contrast",
    "editors",
    "evaluate",
    "factworld",
    "head_attention",
    "load_facts",
    "save_facts",
    "load_model",
    "outcome_contrast",
    "ripple",
    "statement_contrast",
]
