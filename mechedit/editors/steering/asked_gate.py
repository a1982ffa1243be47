"""A gate of two questions: who is asked about, and what is asked.

*Who*: the prompt names the subject or an alias of it, as words of the text: whatever the case, with or without a
possessive. A pronoun or a translation is missed.

*What*: the relation, read off a state of the prompt's last token. Prompts about many subjects and relations, which the
package writes itself, span a space of relations (`learn_relations`): in coordinates in which the states of one relation
vary by 1 in every direction (whitened by the covariance within relations), each relation r has a mean m_r. For the mean
c of the edit's own prompts and a state z there, the log-odds of the edit's relation against all others are

    s(z) = −|z − c|²/2 − log Σ_r exp(−|z − m_r|²/2)

(linear discriminant analysis with equal priors). The gate opens where s(z) is at least the threshold.

*Doubted*: a text that calls an answer wrong ends in no question of any relation, and its last state says nothing of
one. Where the last state is farther from every relation than questions are, the last question that the text itself
answers with one of the edit's objects counts: the state of the token in front of the object.

Sources: Fisher's discriminant; the choice of evidence is ours, by measurement on real models.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechedit.editors.steering.gates import AlwaysOn, CentredGate, Reading, Whitening, whitening

__all__ = ["AskedGate", "Gate", "RelationSpace", "learn_relations", "names_subject"]

SHRINKAGE = 0.1  # of the covariance within relations, towards its mean variance
SOFTNESS = 10.0  # log-odds to a ratio: how much nearer one edit is than another


def names_subject(text: str, names: Sequence[str]) -> bool:
    """Whether the text names one of `names` as whole words; case and Unicode form do not count, possessives may follow.

    >>> names_subject("The mother tongue of ANNA NOVAK's is", ["Anna Novak"]), names_subject("Annabel speaks", ["Anna"])
    (True, False)
    """
    folded = _folded(text)
    return any(_named(folded, _folded(name)) for name in names if name.strip())


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _named(text: str, name: str) -> bool:
    # A boundary only where letters would run on: scripts without spaces have none between words.
    before = r"(?<![^\W_])" if _spaced(name[0]) else ""
    behind = r"(?![^\W_])" if _spaced(name[-1]) else ""
    return re.search(before + re.escape(name) + behind, text) is not None


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
        means: Of each, whitened [n_relations, d].
        far: The distance from the nearest relation beyond which a state asks for none.
    """

    layer: int
    whitening: Whitening
    names: tuple[str, ...]
    means: Tensor
    far: float

    def coordinates(self, states: Tensor) -> Tensor:
        """The states [n, d], whitened."""
        return self.whitening(states.float())

    def log_odds(self, coordinates: Tensor, centre: Tensor, own: Sequence[str]) -> Tensor:
        """S of states [n, d] for an edit with this centre [d]; the relations `own` are its own and no others."""
        others = torch.tensor([name not in own for name in self.names], device=self.means.device)
        near = torch.cdist(coordinates, self.means.to(coordinates)[others]).square() / 2
        return -(coordinates - centre.to(coordinates)).square().sum(1) / 2 - torch.logsumexp(-near, dim=1)

    def asks_nothing(self, coordinates: Tensor) -> Tensor:
        """[n]: whether states [n, d] are far from every relation."""
        return torch.cdist(coordinates, self.means.to(coordinates)).amin(1) > self.far


def learn_relations(states: Tensor, relations: Sequence[str], *, layer: int) -> RelationSpace:
    """The space of relations of prompts whose relation is known.

    Args:
        states: Of their last tokens at the input of `layer` [n, d].
        relations: Of each prompt.
        layer: The layer.

    >>> draw = torch.Generator().manual_seed(0)
    >>> relations = ["a", "b"] * 50
    >>> states = torch.randn(100, 3, generator=draw) + torch.tensor([[9.0, 0, 0], [0, 9.0, 0]]).repeat(50, 1)
    >>> space = learn_relations(states, relations, layer=2)
    >>> centre = space.coordinates(states[::2]).mean(0)
    >>> bool((space.log_odds(space.coordinates(states[::2]), centre, ["a"]) > 0).all())
    True
    """
    names = tuple(sorted(set(relations)))
    index = torch.tensor([names.index(relation) for relation in relations], device=states.device)
    wide = states.double()
    means = torch.stack([wide[index == i].mean(0) for i in range(len(names))])
    white = whitening((wide - means[index]).float(), reg=SHRINKAGE)
    centres = white(means.float())
    distances = torch.cdist(white(states.float()), centres).amin(1)
    return RelationSpace(layer, white, names, centres, float(distances.quantile(0.99)))


@dataclass(frozen=True, eq=False)
class AskedGate:
    """Opens where the prompt names the subject and asks for the edit's relation.

    Attributes:
        names: The subject and its aliases.
        centre: The mean of the edit's own prompts, whitened [d].
        threshold: The log-odds from which it opens.
        own: The relations of the space that are the edit's own.
        objects: The tokens of the old and the new object, as they stand in a text.
        space: The relations.
    """

    names: tuple[str, ...]
    centre: Tensor
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

    def score(self, ids: Tensor, states: Tensor) -> float:
        """The log-odds of a prompt that names the subject, of its ids [T] and states [T, d]."""
        last = self.space.coordinates(states[-1:])
        score = float(self.space.log_odds(last, self.centre, self.own))
        if score < self.threshold and bool(self.space.asks_nothing(last)):
            places = [place for place in answered(ids, self.objects) if not bool(states[place].isnan().any())]
            if places:  # a token that was cached before the edits were attached has no state
                asked = self.space.coordinates(states[places[-1:]])
                return float(self.space.log_odds(asked, self.centre, self.own))
        return score

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
