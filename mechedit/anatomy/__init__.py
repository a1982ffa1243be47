"""The anatomy of an edit: where success and failure part ways.

Source: "The Anatomy of an Edit" (arXiv 2603.20795): attribution *after* an edit, successful against failed edits.
`edit_contrast` compares one edited model with the unedited one, `contrast_checkpoints` a checkpoint that any tool has
edited with the model it was made of, `anatomy` contrasts knowledge editors (`study`),
`statement_contrast` statements in context (`mechedit.attribution.statement`), `outcome_contrast` any attributions
(`outcomes`).
"""

from mechedit.anatomy.checkpoint_contrast import CheckpointContrast, contrast_checkpoints
from mechedit.anatomy.edit_contrast import edit_contrast
from mechedit.anatomy.outcomes import OutcomeContrast, outcome_contrast
from mechedit.anatomy.study import AnatomyStudy, anatomy
from mechedit.attribution.scored_pass import LayerScores, layer_scores
from mechedit.attribution.statement import StatementContrast, statement_contrast
from mechedit.attribution.window import best_window, window_scores

__all__ = [
    "AnatomyStudy",
    "CheckpointContrast",
    "LayerScores",
    "OutcomeContrast",
    "StatementContrast",
    "anatomy",
    "best_window",
    "contrast_checkpoints",
    "edit_contrast",
    "layer_scores",
    "outcome_contrast",
    "statement_contrast",
    "window_scores",
]
