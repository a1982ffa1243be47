"""Faithfulness: does a ranking of neurons find those that carry the answer? NLKA beside its peers, by one ablation.

`rank` has the methods, `faithfulness` the study over facts.
"""

from mechedit.faithfulness.rankings import METHODS, rank
from mechedit.faithfulness.study import FaithfulnessStudy, faithfulness

__all__ = ["METHODS", "FaithfulnessStudy", "faithfulness", "rank"]
