"""Faithfulness: does a ranking of neurons find those that carry the answer? NLKA beside its peers, by one ablation.

`ablate` takes the neurons of one result out of the model, `rank` has the methods, `faithfulness` the study over facts.
"""

from mechedit.faithfulness.ablate import Ablation, ablate
from mechedit.faithfulness.rankings import METHODS, rank
from mechedit.faithfulness.study import FaithfulnessStudy, faithfulness

__all__ = ["METHODS", "Ablation", "FaithfulnessStudy", "ablate", "faithfulness", "rank"]
