# ruff: noqa: E402 (what is imported below may be hidden)
"""mechedit: how a knowledge edit works inside a language model.

Attribute a fact to layers, heads and neurons (NLKA), edit it by steering attention (MEGA), and measure the edit
beside its controls. `load_model`, `attribute`, `editors`, `evaluate` and `anatomy` are the main road.
"""


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

from mechedit import editors, factworld
from mechedit.anatomy import (
    AnatomyStudy,
    OutcomeContrast,
    StatementContrast,
    anatomy,
    outcome_contrast,
    statement_contrast,
)
from mechedit.attribution import (
    Attribution,
    AttributionContrast,
    attribute,
    attribute_many,
    contrast,
    edit_contrast,
)
from mechedit.data.facts import FactEdit, load_facts
from mechedit.diagnose import Diagnosis, diagnose
from mechedit.evaluation.evaluate import Evaluation, evaluate
from mechedit.evaluation.ripple import RippleEvaluation, ripple
from mechedit.models.hooked import HookedModel, ResidualView, load_model

__version__ = "0.1.0"

__all__ = [
    "AnatomyStudy",
    "Attribution",
    "AttributionContrast",
    "Diagnosis",
    "Evaluation",
    "FactEdit",
    "HookedModel",
    "OutcomeContrast",
    "ResidualView",
    "RippleEvaluation",
    "StatementContrast",
    "anatomy",
    "attribute",
    "attribute_many",
    "contrast",
    "diagnose",
    "edit_contrast",
    "editors",
    "evaluate",
    "factworld",
    "load_facts",
    "load_model",
    "outcome_contrast",
    "ripple",
    "statement_contrast",
]
