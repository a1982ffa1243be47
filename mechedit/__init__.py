"""mechedit: how a knowledge edit works inside a language model.

Attribute a fact to layers, heads and neurons (NLKA), edit it by steering attention (MEGA), and measure the edit
beside its controls. `load_model`, `attribute`, `editors`, `evaluate` and `anatomy` are the main road.
"""

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
