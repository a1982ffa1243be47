"""Attribution: which layers, heads and neurons of a model add to the log-probability of a token.

`nlka.attribute` (Yu & Ananiadou, EMNLP 2024, arXiv 2312.12141) does the work and returns an `Attribution`;
the tensor functions under it know no model: `projection` (B with the final norm and its frozen scale),
`scores` (inc), `terms` (what each layer adds), `layers`, `neurons`, `query`. `contrast` sets a new target
against an old one, `edit_contrast` an edited model against the unedited one, `a - b` any two results;
`attribute_many` takes many prompts, `ablate` the neurons that were found out of the forward pass,
`Attribution.attention` says where the heads of a circuit look; `vocabulary` reads a neuron's own vector in the
vocabulary.
"""

from mechedit.anatomy.edit_contrast import edit_contrast
from mechedit.attribution.attribute_many import attribute_many
from mechedit.attribution.circuits.attention import HeadAttention
from mechedit.attribution.difference import AttributionContrast, contrast_json
from mechedit.attribution.nlka import attribute
from mechedit.attribution.result import Attribution, attribution_json
from mechedit.attribution.target_contrast import contrast
from mechedit.attribution.vocabulary import vocabulary
from mechedit.faithfulness.ablate import Ablation, ablate

__all__ = [
    "Ablation",
    "Attribution",
    "AttributionContrast",
    "HeadAttention",
    "ablate",
    "attribute",
    "attribute_many",
    "attribution_json",
    "contrast",
    "contrast_json",
    "edit_contrast",
    "vocabulary",
]
