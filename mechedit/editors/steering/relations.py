"""Which relation a template asks for, by its words: so that a record without a relation has paraphrases too.

A template is the set of its words that carry meaning, cut to their stems and weighted by how few relations of the table
use them (inverse document frequency). Two templates are as alike as the weight of the words that they share is large
beside that of all their words (weighted Jaccard), and a relation is as near as its nearest template.

Words alone leave some templates open: "{} plays" asks for an instrument, a position or a genre. Then all relations that
come near are named, and the fit keeps the prompts behind which the model says the old object
(`mechedit.editors.steering.fit`).
A template without a word that carries meaning ("{}, in") is near to none.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

__all__ = ["near_relations", "stems"]

LEAST = 0.35  # below this likeness two templates share too little
AS_NEAR = 0.9  # relations within this share of the nearest's likeness are as near
_SAYS_NOTHING = frozenset(
    [
        "the",
        "a",
        "an",
        "of",
        "is",
        "was",
        "are",
        "were",
        "in",
        "on",
        "at",
        "to",
        "by",
        "for",
        "from",
        "with",
        "and",
        "that",
        "which",
        "who",
        "whom",
        "whose",
        "it",
        "its",
        "this",
        "as",
        "has",
        "have",
        "had",
        "be",
        "been",
        "being",
        "does",
        "do",
        "did",
        "what",
        "where",
        "s",
    ]
)
_ENDINGS = ("ing", "ers", "ies", "er", "ed", "es", "ly", "s", "y")


def near_relations(template: str, table: Mapping[str, Sequence[str]]) -> list[str]:
    """The relations of `table` whose templates are most like `template`, the nearest first; none where none is near.

    >>> table = {"P103": ["{} is a native speaker of"], "P19": ["{} was born in", "The birthplace of {} is"]}
    >>> near_relations("{}, a native speaker of", table), near_relations("{}, in", table)
    (['P103'], [])
    """
    words = {relation: [stems(text) for text in templates] for relation, templates in table.items()}
    uses = Counter(stem for texts in words.values() for stem in set().union(*texts))

    def weight(shared: frozenset[str]) -> float:
        return sum(math.log(1 + len(table) / (0.5 + uses[stem])) for stem in shared)

    asked = stems(template)
    likeness = {
        relation: max((weight(asked & text) / (weight(asked | text) or 1.0) for text in texts), default=0.0)
        for relation, texts in words.items()
    }
    best = max(likeness.values(), default=0.0)
    near = [relation for relation, value in likeness.items() if value >= max(LEAST, AS_NEAR * best)]
    return sorted(near, key=lambda relation: -likeness[relation])


def stems(template: str) -> frozenset[str]:
    """The words of a template that carry meaning, cut to their stems.

    >>> sorted(stems("The birthplace of {} is"))
    ['birthplace']
    """
    words = re.findall(r"[^\W_]+", template.replace("{}", " ").lower())
    return frozenset(_stem(word) for word in words if word not in _SAYS_NOTHING)


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) >= len(ending) + 4:
            return word.removesuffix(ending)
    return word
