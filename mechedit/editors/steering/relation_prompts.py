"""What a model keeps of the relation that is asked for, learned from prompts that the package writes itself.

1. *Prompts*: about the subject of every selection fact, one of each relation of the table that its template belongs to,
   and all of its own relation's.
2. *Space*: at each layer the relations' means and the covariance within them (`mechedit.editors.steering.asked_gate`).
3. *Threshold*: the fewest errors between the facts' own prompts, each left out of its edit's mean in turn, with their
   evaluation paraphrases, and prompts about the same subject under other relations, by templates that the space has not
   seen. Both sides weigh the same.
4. *Layer*: the one with the fewest errors, the deepest of equals.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechedit.data import atlas
from mechedit.data.facts import FactEdit
from mechedit.editors.steering.asked_gate import RelationSpace, learn_relations
from mechedit.editors.steering.gates import calibrate
from mechedit.editors.steering.paraphrases import relation_templates
from mechedit.editors.steering.relations import near_relations
from mechedit.factworld.world import RELATIONS
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import resid_pre
from mechedit.models.states import last_states

__all__ = ["learn_asked", "own_relations", "relation_table"]

DEPTHS = (0.3, 0.4, 0.5, 0.6, 0.7)  # of the model, where the relation is looked for
FOREIGN = 8  # prompts a fact that the threshold stands on


def relation_table(fact: FactEdit) -> Mapping[str, Sequence[str]]:
    """Relation to templates: the embedded world's or the atlas' for a fact of theirs, else those of CounterFact."""
    world = {name: relation.templates for name, relation in RELATIONS.items()}
    for table in (world, atlas.paraphrase_table()):
        if fact.relation in table:
            return table
    return relation_templates()


def own_relations(fact: FactEdit) -> tuple[str, ...]:
    """The relations of its table that the fact may belong to: by its template, its relation, or the template's words.

    >>> own_relations(FactEdit("Ann", "{} is a native speaker of", "Dutch", "Greek"))
    ('P103',)
    """
    table = relation_table(fact)
    exact = [name for name, templates in table.items() if fact.prompt in templates or name == fact.relation]
    return tuple(exact or near_relations(fact.prompt, table))


@dataclass(frozen=True, eq=False)
class _Asked:
    """The prompts about one selection fact, as places in the list of all."""

    own: list[int]
    measured: list[int]
    foreign: list[int]
    relations: tuple[str, ...]


@torch.no_grad()
def learn_asked(
    model: HookedModel,
    facts: Sequence[FactEdit],
    own: Sequence[Sequence[str]],
    *,
    max_fpr: float | None,
    seed: int = 0,
) -> tuple[RelationSpace, float, dict[str, float]]:
    """The space of relations, the threshold of the log-odds, and the rates of missed and of false openings.

    Args:
        model: The unedited model.
        facts: That are never evaluated.
        own: The prompts that ask for each fact.
        max_fpr: The share of foreign prompts that the gate may open for (None: fewest errors in all).
        seed: Of the choice of templates.
    """
    prompts, relations, asked = _written(facts, own, random.Random(f"relations:{seed}"))
    layers = sorted({max(1, round(depth * model.shape.n_layers)) for depth in DEPTHS})
    states = last_states(model, prompts, [resid_pre(layer) for layer in layers])
    best: tuple[float, RelationSpace, float, dict[str, float]] | None = None
    known = [i for i, relation in enumerate(relations) if relation is not None]
    names = [relation for relation in relations if relation is not None]
    for layer, at_layer in zip(layers, states, strict=True):
        space = learn_relations(at_layer[known], names, layer=layer)
        near, far = _scores(space, space.coordinates(at_layer), asked)
        surest = max(near + far) + 1.0  # log-odds as distances: positive, the smaller the surer
        cut = calibrate(
            [surest - score for score in near], [surest - score for score in far], max_fpr=max_fpr
        )
        threshold = surest - cut
        missed = sum(score < threshold for score in near) / len(near)
        false = sum(score >= threshold for score in far) / len(far)
        if best is None or missed + false <= best[0]:
            best = missed + false, space, threshold, {"gate_missed": missed, "gate_false": false}
    assert best is not None
    return best[1], best[2], best[3]


def _written(
    facts: Sequence[FactEdit], own: Sequence[Sequence[str]], dice: random.Random
) -> tuple[list[str], list[str | None], list[_Asked]]:
    """All prompts, the relation of those that the space is learned from, and each fact's places."""
    prompts: list[str] = []
    relations: list[str | None] = []

    def add(texts: Sequence[str], relation: str | None) -> list[int]:
        prompts.extend(texts)
        relations.extend([relation] * len(texts))
        return list(range(len(prompts) - len(texts), len(prompts)))

    asked = []
    for fact, texts in zip(facts, own, strict=True):
        table, mine = relation_table(fact), own_relations(fact)
        own_places = add(texts, mine[0] if mine else fact.prompt)
        others = {name: list(templates) for name, templates in table.items() if name not in mine}
        for name, templates in others.items():
            dice.shuffle(templates)
            add([templates[0].replace("{}", fact.subject)], name)
        chosen = dice.sample(sorted(others), min(FOREIGN, len(others)))
        foreign = [others[name][-1].replace("{}", fact.subject) for name in chosen if len(others[name]) > 1]
        asked.append(
            _Asked(own_places, add(fact.paraphrase_prompts, None), add(foreign, None), mine or (fact.prompt,))
        )
    return prompts, relations, asked


def _scores(space: RelationSpace, states: Tensor, asked: Sequence[_Asked]) -> tuple[list[float], list[float]]:
    """Log-odds of the facts' own prompts, each against the mean of the rest, and of foreign ones."""
    near: list[float] = []
    far: list[float] = []
    for one in asked:
        mine = states[one.own]
        centre = mine.mean(0)
        for i in range(len(mine) if len(mine) > 1 else 0):
            rest = (centre * len(mine) - mine[i]) / (len(mine) - 1)
            near += space.log_odds(mine[i : i + 1], rest, one.relations).tolist()
        near += space.log_odds(states[one.measured], centre, one.relations).tolist()
        far += space.log_odds(states[one.foreign], centre, one.relations).tolist()
    return near, far
