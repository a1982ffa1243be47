"""Which relation a text asks for, by the words of the templates of each: naive Bayes.

A text about a subject is the set w of its words that carry meaning, cut to their stems
(`mechedit.editors.steering.relations.stems`), the subject left out. With n_rw templates of relation r that use w, n_r
uses of words in all, V different words and the pseudocount a = 0.3,

    log p(text | r) = Σ_w log (n_rw + a) / (n_r + a (V + 1))

and the log-odds of an edit's own relations stand against the mean of all others. Words that no template uses say next
to nothing. Source: multinomial naive Bayes with Lidstone smoothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mechedit.editors.steering.relations import stems

__all__ = ["RelationWords"]

PSEUDOCOUNT = 0.3


@dataclass(frozen=True)
class RelationWords:
    """How often the templates of each relation use each stem.

    >>> words = RelationWords.of({"language": ["{} speaks", "{} talks"], "birth": ["{} was born in"]})
    >>> words.log_odds("Anna Novak, born in", {"birth"}) > 0 > words.log_odds("Anna Novak, born in", {"language"})
    True
    """

    counts: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(cls, table: Mapping[str, Sequence[str]]) -> RelationWords:
        """Of relation to templates."""
        return cls(
            {name: Counter(s for text in texts for s in sorted(stems(text))) for name, texts in table.items()}
        )

    def log_odds(self, text: str, own: Collection[str], *, without: tuple[str, str] | None = None) -> float:
        """How much likelier the words are under the relations `own` than under the others; 0 where one side is empty.

        Args:
            text: A template, or a text without its subject.
            own: Relations; of several the likeliest.
            without: A relation and one of its templates that does not count, as if it had never been seen.
        """
        words = stems(text)
        vocabulary = len(set().union(*self.counts.values())) + 1
        left_out = {} if without is None else {without[0]: stems(without[1])}
        mine: list[float] = []
        others: list[float] = []
        for name, counts in self.counts.items():
            removed = left_out.get(name, frozenset())
            total = sum(counts.values()) - len(removed) + PSEUDOCOUNT * vocabulary
            likelihood = sum(
                math.log((counts.get(s, 0) - int(s in removed) + PSEUDOCOUNT) / total) for s in words
            )
            (mine if name in own else others).append(likelihood)
        if not mine or not others:
            return 0.0
        most = max(others)
        mean = most + math.log(sum(math.exp(value - most) for value in others) / len(others))
        return max(mine) - mean
