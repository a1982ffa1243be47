"""What a model keeps of the relation that is asked for, learned from prompts that the package writes itself.

1. *Prompts*: about the subject of every selection fact, its own relation's, and a share of all templates of the other
   relations, so that together the facts use every template there is. Besides those that ask for the object there are
   *indirect* ones, which lean on it without asking ("Around {} there are shops such as" on the place): what data sets
   call a rephrase is often one of those, and no edit is fitted on them.
2. *Space*: at each layer the prompts' states as points, whitened by the covariance within relations
   (`mechedit.editors.steering.asked_gate`).
3. *Threshold*: the fewest errors between prompts that ask for the fact (its fit prompts, its evaluation paraphrases and
   the indirect ones, all three weighing the same) and prompts about its subject under other relations, a miss weighing
   twice (the edit is lost) as long as no more than `TOLERATED` of the others open. Each is scored as if neither its
   template nor its subject had ever been seen: their points and the template's words are left out.
4. *Layer and width*: those with the fewest errors; of equals the deepest and the widest.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mechedit.data import atlas
from mechedit.data.facts import FactEdit
from mechedit.editors.steering.asked_gate import RelationSpace, learn_relations
from mechedit.editors.steering.gates import calibrate
from mechedit.editors.steering.paraphrases import indirect_templates, relation_templates
from mechedit.editors.steering.relation_words import RelationWords
from mechedit.editors.steering.relations import near_relations
from mechedit.factworld.world import RELATIONS, of_world
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import resid_pre
from mechedit.models.states import last_states

__all__ = ["learn_asked", "other_questions", "own_relations", "phrasings", "relation_table"]

DEPTHS = (0.3, 0.4, 0.5, 0.6, 0.7)  # of the model, where the relation is looked for
WIDTHS = (3.0, 10.0, 30.0)
TOLERATED = 0.15
LEAST = 20  # prompts a fact about other relations
N_INDIRECT = 6  # prompts a fact that lean on it
#: Relations of the atlas that are relations of CounterFact too: a prompt of the one is none about another relation.
ALIKE: Mapping[str, tuple[str, ...]] = {
    "birth_country": ("P19", "P27"),
    "capital": ("P36",),
    "city_country": ("P17",),
    "company_country": ("P17", "P495"),
    "continent": ("P30",),
    "field": ("P101", "P106"),
    "landmark_country": ("P17", "P276"),
    "language": ("P37",),
    "maker": ("P176", "P178"),
    "sport": ("P641",),
}


def relation_table(fact: FactEdit) -> Mapping[str, Sequence[str]]:
    """Relation to templates: the embedded world's for a fact of it, else those of CounterFact and of the atlas."""
    if of_world(fact.subject, fact.relation, fact.prompt):
        return {name: relation.templates for name, relation in RELATIONS.items()}
    return {**relation_templates(), **atlas.paraphrase_table()}


def phrasings(fact: FactEdit) -> dict[str, tuple[str, ...]]:
    """Relation to all templates that the gate learns it from: those of its table, and the indirect ones.

    >>> "{} thinks and dreams in" in phrasings(FactEdit("Ann", "{} is a native speaker of", "Dutch", "Greek"))["P103"]
    True
    """
    indirect = indirect_templates()
    return {name: (*templates, *indirect.get(name, ())) for name, templates in relation_table(fact).items()}


def own_relations(fact: FactEdit) -> tuple[str, ...]:
    """The relations of its table that the fact may belong to: by its template, its relation, or the template's words.

    >>> own_relations(FactEdit("Ann", "{} is a native speaker of", "Dutch", "Greek"))
    ('P103',)
    """
    table = relation_table(fact)
    exact = [name for name, templates in table.items() if fact.prompt in templates or name == fact.relation]
    own = exact or near_relations(fact.prompt, table)
    alike = [
        other
        for name, others in ALIKE.items()
        for other in (name, *others)
        if name in own or set(others) & {*own}
    ]
    return tuple(name for name in dict.fromkeys([*own, *alike]) if name in table)


def other_questions(fact: FactEdit, n: int = 8) -> list[str]:
    """`n` prompts about the fact's subject under other relations than its own, the same every time.

    >>> fact = FactEdit("Ann", "{} is a native speaker of", "Dutch", "Greek")
    >>> len(other_questions(fact)), all("Ann" in prompt for prompt in other_questions(fact))
    (8, True)
    """
    table, mine = relation_table(fact), own_relations(fact)
    dice = random.Random(f"other questions:{fact.subject}:{fact.prompt}")
    others = sorted(name for name in table if name not in mine)
    chosen = dice.sample(others, min(n, len(others)))
    return [dice.choice(list(table[name])).replace("{}", fact.subject) for name in chosen]


@dataclass(frozen=True)
class _Written:
    """A prompt about a selection fact.

    Attributes:
        text: The prompt.
        fact: The number of the fact.
        kind: It asks for the fact ("own"), as its evaluation paraphrase does ("measured"), leans on it ("indirect"), or
            asks for another relation ("foreign").
        template: The text with {} for the subject.
        relation: Whose template it is; None for an evaluation paraphrase.
    """

    text: str
    fact: int
    kind: str
    template: str
    relation: str | None


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
        max_fpr: The share of foreign prompts that the gate may open for (None: fewest errors, see the module).
        seed: Of the choice of templates.
    """
    relations = [own_relations(fact) for fact in facts]
    prompts = _written(facts, own, relations, random.Random(f"relations:{seed}"))
    table = {name: templates for fact in facts for name, templates in phrasings(fact).items()}
    words = RelationWords.of(table)
    said = torch.tensor([_word_score(words, table, prompt, relations[prompt.fact]) for prompt in prompts])
    asked = [mine or (fact.prompt,) for mine, fact in zip(relations, facts, strict=True)]
    known = [i for i, prompt in enumerate(prompts) if prompt.relation is not None]
    names = [prompt.relation or "" for prompt in prompts if prompt.relation is not None]
    layers = sorted({max(1, round(depth * model.shape.n_layers)) for depth in DEPTHS})
    states = last_states(model, [prompt.text for prompt in prompts], [resid_pre(layer) for layer in layers])
    best: tuple[float, RelationSpace, float, dict[str, float]] | None = None
    for layer, at_layer in zip(layers, states, strict=True):
        learned = learn_relations(at_layer[known], names, layer=layer, words=words)
        coordinates = learned.coordinates(at_layer)
        for space in (replace(learned, width=width) for width in WIDTHS):
            scores = said.to(at_layer) + _state_scores(space, coordinates, prompts, known, asked)
            threshold, rates = _threshold(scores, [prompt.kind for prompt in prompts], max_fpr)
            errors = 2 * rates["gate_missed"] + rates["gate_false"]
            if best is None or errors <= best[0]:
                best = errors, space, threshold, rates
    assert best is not None
    return best[1], best[2], best[3]


def _written(
    facts: Sequence[FactEdit],
    own: Sequence[Sequence[str]],
    relations: Sequence[tuple[str, ...]],
    dice: random.Random,
) -> list[_Written]:
    """All prompts; the templates of other relations are dealt to the facts in turn."""
    prompts: list[_Written] = []
    for n, (fact, texts, mine) in enumerate(zip(facts, own, relations, strict=True)):
        table = phrasings(fact)
        asking = {template for name in mine for template in table[name]}
        leaning = sorted({text for name in mine for text in indirect_templates().get(name, ())})
        leaning = dice.sample(leaning, min(N_INDIRECT, len(leaning)))
        indirect = [template.replace("{}", fact.subject) for template in leaning]
        for kind, given in (("own", texts), ("measured", fact.paraphrase_prompts), ("indirect", indirect)):
            for text in given:
                template = text.replace(fact.subject, "{}")
                named = [name for name in mine if template in table[name]] or [*mine, fact.prompt]
                prompts.append(_Written(text, n, kind, template, None if kind == "measured" else named[0]))
        pairs = [(name, template) for name, templates in table.items() for template in templates]
        random.Random("dealt").shuffle(pairs)
        pairs = [*pairs[n :: len(facts)], *dice.sample(pairs, len(pairs))]
        foreign = [
            (name, text) for name, text in dict.fromkeys(pairs) if name not in mine and text not in asking
        ]
        share = max(LEAST, math.ceil(len(foreign) / len(facts)))
        prompts += [
            _Written(template.replace("{}", fact.subject), n, "foreign", template, name)
            for name, template in foreign[:share]
        ]
    return prompts


def _word_score(
    words: RelationWords, table: Mapping[str, Sequence[str]], prompt: _Written, own: tuple[str, ...]
) -> float:
    """The words' log-odds for the fact, the prompt's template never seen."""
    seen = prompt.relation is not None and prompt.template in table.get(prompt.relation, ())
    without = (prompt.relation or "", prompt.template) if seen else None
    return words.log_odds(prompt.template, own, without=without)


def _state_scores(
    space: RelationSpace,
    coordinates: Tensor,
    prompts: Sequence[_Written],
    known: Sequence[int],
    asked: Sequence[tuple[str, ...]],
) -> Tensor:
    """The states' log-odds [n] for the fact that each prompt is about, its template and subject never seen."""
    scores = coordinates.new_zeros(len(prompts))
    templates = sorted({prompt.template for prompt in prompts})
    template = torch.tensor([templates.index(prompt.template) for prompt in prompts])
    owner = torch.tensor([prompt.fact for prompt in prompts])
    others = torch.tensor(known)
    for n, relations in enumerate(asked):
        mine = (owner == n).nonzero()[:, 0]
        own = torch.tensor([i for i in mine.tolist() if prompts[i].kind == "own"])
        among = (template[others] != template[mine][:, None]) & (owner[others] != n)
        scores[mine] = space.log_odds(coordinates[mine], coordinates[own], relations, among=among)
        for i in own.tolist() if len(own) > 1 else []:  # an own prompt is held against the others
            row = int((mine == i).nonzero()[0])
            scores[i] = space.log_odds(
                coordinates[i : i + 1], coordinates[own[own != i]], relations, among=among[row : row + 1]
            )[0]
    return scores


def _threshold(scores: Tensor, kinds: Sequence[str], max_fpr: float | None) -> tuple[float, dict[str, float]]:
    """Of the log-odds, and the rates there; every kind of prompt that asks for the fact weighs the same."""
    of = {
        kind: [float(score) for score, k in zip(scores, kinds, strict=True) if k == kind]
        for kind in ("own", "measured", "indirect", "foreign")
    }
    near = list(of["own"])
    for others in (of["measured"], of["indirect"]):
        near += others * (round(len(of["own"]) / len(others)) if others else 0)
    surest = max(near + of["foreign"]) + 1.0  # log-odds as distances: positive, the smaller the surer
    sides = [surest - score for score in near], [surest - score for score in of["foreign"]]
    cut = calibrate(*sides, max_fpr=max_fpr, weight=2.0)
    if max_fpr is None and sum(distance <= cut for distance in sides[1]) > TOLERATED * len(sides[1]):
        cut = calibrate(*sides, max_fpr=TOLERATED)
    threshold = surest - cut
    rates = {
        "gate_missed": sum(s < threshold for s in near) / len(near),
        "gate_false": sum(s >= threshold for s in of["foreign"]) / len(of["foreign"]),
    }
    return threshold, rates
