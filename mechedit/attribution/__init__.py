"""Attribution: which layers, heads and neurons of a model add to the log-probability of a token.

`nlka.attribute` (Yu & Ananiadou, EMNLP 2024, arXiv 2312.12141) does the work and returns an `Attribution`;
the tensor functions under it know no model: `projection` (B with the final norm and its frozen scale),
`scores` (inc), `terms` (what each layer adds), `layers`, `neurons`, `query`. `contrast` sets a new target
against an old one.
"""

from mechedit.attribution.nlka import attribute, contrast
from mechedit.attribution.result import Attribution, attribution_json

__all__ = ["Attribution", "attribute", "attribution_json", "contrast"]
