"""Attribution: which layers, heads and neurons of a model add to the log-probability of a token.

`nlka.attribute` (Yu & Ananiadou, EMNLP 2024, arXiv 2312.12141) does the work and returns an `Attribution`;
the functions under it stand in `projection` (B with the final norm and its frozen scale), `scores` (inc), `terms` (what
each layer adds), `layers` (the account over depth), `ranking` (the best neurons) and `circuits` (what switches them
on). `contrast` sets a new target against an old one, `a - b` subtracts any two results; `attribute_many` takes many
prompts, `head_attention` tells where the heads of a circuit look, `vocabulary` reads a neuron's vector in the
vocabulary.
"""

from mechedit.attribution.as_json import attribution_json, contrast_json
from mechedit.attribution.attribute_many import attribute_many
from mechedit.attribution.attributions import Attributions
from mechedit.attribution.circuits.attention import HeadAttention, head_attention
from mechedit.attribution.nlka import attribute
from mechedit.attribution.result import Attribution, AttributionContrast
from mechedit.attribution.target_contrast import contrast
from mechedit.attribution.vocabulary import vocabulary

__all__ = [
    "Attribution",
    "AttributionContrast",
    "Attributions",
    "HeadAttention",
    "attribute",
    "attribute_many",
    "attribution_json",
    "contrast",
    "contrast_json",
    "head_attention",
    "vocabulary",
]
