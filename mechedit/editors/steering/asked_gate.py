"""A gate of two questions: who is asked about, and what is asked.

*Who*: the prompt names the subject or an alias of it, as words of the text: whatever the case, with or without a
possessive. A pronoun or a translation is missed.

*What*: the relation, by two witnesses whose log-odds are added (naive Bayes):

1. a *state* z of the prompt's last token. Prompts about many subjects and relations, which the package writes itself,
   are points x_i of a space in which states of one relation vary by 1 in every direction (`learn_relations`). With the
   points of the edit's own prompts among those of its relation R, and a width τ,

       s(z) = log mean_{i ∈ R} exp(−|z − x_i|²/2τ) − log mean_{i ∉ R} exp(−|z − x_i|²/2τ)

2. the *words* of the sentence that names the subject (`mechedit.editors.steering.relation_words`).

The gate opens where their sum is at least the threshold.

*Doubted*: a text that calls an answer wrong ends in no question of any relation, and its last state says nothing of
one. Where the last state is farther from every relation than questions are, the last question that the text itself
answers with one of the edit's objects counts: the state of the token in front of the object.

Sources: Fisher's discriminant for the metric, Parzen's kernel density for the odds; the choice of evidence is ours, by
measurement on real models.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache

import torch
from torch import Tensor

from mechedit.editors.steering.gates import AlwaysOn, CentredGate, Reading, Whitening, whitening
from mechedit.editors.steering.relation_words import RelationWords
from reports.errors import InputError

__all__ = ["AskedGate", "Gate", "RelationSpace", "learn_relations", "names_subject", "without_subject"]

SHRINKAGE = 0.3  # of the covariance within relations, towards its mean variance
SOFTNESS = 10.0  # log-odds to a ratio: how much nearer one edit is than another


def names_subject(text: str, names: Sequence[str]) -> bool:
    """Whether the text names one of `names` as whole words; case and Unicode form do not count, possessives may follow.

    >>> names_subject("The mother tongue of ANNA NOVAK's is", ["Anna Novak"]), names_subject("Annabel speaks", ["Anna"])
    (True, False)
    """
    return without_subject(text, names) is not None


def without_subject(text: str, names: Sequence[str]) -> str | None:
    """The last sentence that names one of `names`, with {} in its place; None where none does.

    >>> without_subject("It rains. ANNA NOVAK's mother tongue is", ["Anna Novak"])
    "{}'s mother tongue is"
    """
    folded = _folded(text)
    for name in sorted((_folded(name) for name in names if name.strip()), key=len, reverse=True):
        if name in folded:  # of many edits most are about others
            folded = _pattern(name).sub("{}", folded)
    sentences = [sentence for sentence in _SENTENCE_END.split(folded) if "{}" in sentence]
    return sentences[-1] if sentences else None


_SENTENCE_END = re.compile(r"(?<=[.!?:\n。！？])\s+|\n")


@lru_cache(maxsize=4096)
def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


@cache
def _pattern(name: str) -> re.Pattern[str]:
    # A boundary only where letters would run on: scripts without spaces have none between words.
    before = r"(?<![^\W_])" if _spaced(name[0]) else ""
    behind = r"(?![^\W_])" if _spaced(name[-1]) else ""
    return re.compile(before + re.escape(name) + behind)


def _spaced(letter: str) -> bool:
    """Whether words of the letter's script are set apart by spaces."""
    return letter.isalnum() and not any(
        script in unicodedata.name(letter, "")
        for script in ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER")
    )


@dataclass(frozen=True, eq=False)
class RelationSpace:
    """Where a model keeps the relation that is asked for.

    Attributes:
        layer: Whose input is read.
        whitening: By the covariance within relations.
        names: The relations.
        points: Prompts whose relation is known, whitened [n, d].
        relations: Of each point, which of the names [n].
        width: τ, squared: how far a point reaches.
        far: The distance from the nearest relation's mean beyond which a state asks for none.
        words: Of the relations' templates.
    """

    layer: int
    whitening: Whitening
    names: tuple[str, ...]
    points: Tensor
    relations: Tensor
    width: float
    far: float
    words: RelationWords

    def coordinates(self, states: Tensor) -> Tensor:
        """The states [n, d], whitened."""
        return self.whitening(states.float())

    def log_odds(
        self, coordinates: Tensor, centres: Tensor, own: Sequence[str], *, among: Tensor | None = None
    ) -> Tensor:
        """S of states [n, d].

        Args:
            coordinates: The states, whitened [n, d].
            centres: Prompts of the edit itself [k, d].
            own: The relations that are the edit's own.
            among: The points that count for each state [n, n_points]; None: all.
        """
        mine = torch.tensor([name in own for name in self.names])[self.relations.cpu()]
        near = torch.cat([self.points[mine].to(coordinates), centres.to(coordinates)])
        counts = (
            None
            if among is None
            else torch.cat([among[:, mine], among.new_ones(len(among), len(centres))], 1)
        )
        others = None if among is None else among[:, ~mine]
        far = self.points[~mine].to(coordinates)
        return self._density(coordinates, near, counts) - self._density(coordinates, far, others)

    def _density(self, states: Tensor, points: Tensor, counts: Tensor | None) -> Tensor:
        """The log of the mean kernel [n], over the points that count."""
        reach = -torch.cdist(states, points).square() / (2 * self.width)
        if counts is None:
            return torch.logsumexp(reach, 1) - math.log(max(1, len(points)))
        kept = reach.masked_fill(~counts.to(reach.device), -torch.inf)
        return torch.logsumexp(kept, 1) - counts.sum(1).clamp_min(1).log().to(reach)

    @cached_property
    def means(self) -> Tensor:
        """Of each relation, whitened [n_relations, d]."""
        return torch.stack([self.points[self.relations == i].mean(0) for i in range(len(self.names))])

    def asks_nothing(self, coordinates: Tensor) -> Tensor:
        """[n]: whether states [n, d] are far from every relation."""
        return torch.cdist(coordinates, self.means.to(coordinates)).amin(1) > self.far


def learn_relations(
    states: Tensor,
    relations: Sequence[str],
    *,
    layer: int,
    width: float = 10.0,
    words: RelationWords | None = None,
) -> RelationSpace:
    """The space of relations of prompts whose relation is known.

    Args:
        states: Of their last tokens at the input of `layer` [n, d].
        relations: Of each prompt.
        layer: The layer.
        width: How far a point reaches.
        words: Of the relations' templates; None: words say nothing.

    >>> draw = torch.Generator().manual_seed(0)
    >>> relations = ["a", "b"] * 50
    >>> states = torch.randn(100, 3, generator=draw) + torch.tensor([[9.0, 0, 0], [0, 9.0, 0]]).repeat(50, 1)
    >>> space = learn_relations(states, relations, layer=2)
    >>> own = space.coordinates(states[::2])
    >>> bool((space.log_odds(own, own[:3], ["a"]) > 0).all())
    True
    """
    names = tuple(sorted(set(relations)))
    index = torch.tensor([names.index(relation) for relation in relations], device=states.device)
    wide = states.double()
    means = torch.stack([wide[index == i].mean(0) for i in range(len(names))])
    white = whitening((wide - means[index]).float(), reg=SHRINKAGE)
    points = white(states.float())
    distances = torch.cdist(points, white(means.float())).amin(1)
    far = float(distances.quantile(0.99))
    return RelationSpace(layer, white, names, points, index, width, far, words or RelationWords({}))


@dataclass(frozen=True, eq=False)
class AskedGate:
    """Opens where the prompt names the subject and asks for the edit's relation.

    Attributes:
        names: The subject and its aliases.
        centres: The edit's own prompts, whitened [k, d].
        threshold: The log-odds from which it opens.
        own: The relations of the space that are the edit's own.
        objects: The tokens of the old and the new object, as they stand in a text.
        space: The relations.
    """

    names: tuple[str, ...]
    centres: Tensor
    threshold: float
    own: tuple[str, ...]
    objects: tuple[tuple[int, ...], ...]
    space: RelationSpace = field(repr=False)

    @property
    def kind(self) -> Hashable:
        """Gates of one kind are asked at once (`mechedit.editors.steering.gate_bank`)."""
        return ("asked", id(self.space))

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The states that it reads."""
        return (Reading(self.space.layer, "all"),)

    def score(self, text: str, ids: Tensor, states: Tensor) -> float:
        """The log-odds of a prompt.

        Args:
            text: The prompt without the subject that it names (`without_subject`).
            ids: Its tokens [T].
            states: At the layer that is read [T, d].
        """
        words = self.space.words.log_odds(text, self.own)
        last = self.space.coordinates(states[-1:])
        score = words + float(self.space.log_odds(last, self.centres, self.own))
        places = answered(ids, self.objects)
        if score >= self.threshold or not places or not bool(self.space.asks_nothing(last)):
            return score
        if bool(states[places[-1]].isnan().any()):
            raise InputError(
                "past_key_values: the gate reads the question that the prompt answers, which was cached before the "
                "edits were attached; fill the cache while they are, or hand the whole prompt over without a cache"
            )
        asked = self.space.coordinates(states[places[-1:]])
        return words + float(self.space.log_odds(asked, self.centres, self.own))

    def ratio(self, score: float) -> float:
        """At most 1 where the gate opens, the smaller the surer."""
        return float(torch.exp(torch.tensor((self.threshold - score) / SOFTNESS).clamp(-60, 60)))


def answered(ids: Tensor, objects: Sequence[Sequence[int]]) -> list[int]:
    """The places of the tokens in front of each mention of one of the objects, in order.

    >>> answered(torch.tensor([5, 6, 7, 8, 7]), [(7, 8)])
    [1]
    """
    tokens = ids.tolist()
    return [
        i - 1
        for i in range(1, len(tokens))
        if any(tokens[i : i + len(mention)] == list(mention) for mention in objects if mention)
    ]


Gate = AlwaysOn | CentredGate | AskedGate
