"""Edits of the embedded world, as records and in the schemas of the published data sets.

An edit gives a fact another object of the same kind. Its rewrite prompt is a template that the model was
trained on for this fact, its paraphrases are the three that were held out, its neighbours are different subjects of
whom the old object is true. The schemas are CounterFact's (kmeng01/rome), RippleEdits' (edenbiran/RippleEdits)
and EasyEdit's flat one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from mechedit.data.facts import FactEdit, write_rows
from mechedit.data.records import RippleTest
from mechedit.data.schemas import BUILDERS, from_row
from mechedit.factworld.world import HOPS, RELATIONS, World, alias
from reports.errors import InputError

__all__ = ["Schema", "edits", "export", "ripple_tests"]

Schema = Literal["counterfact", "ripple", "easyedit"]
NEIGHBOURS = 10
# A capital has no neighbour: no other country shares it.
EDITABLE = tuple(name for name in RELATIONS if name != "capital")


def edits(
    limit: int | None, *, seed: int = 0, world: World | None = None, skip: Sequence[FactEdit] = ()
) -> list[FactEdit]:
    """`limit` counterfactual edits, drawn by chance.

    Args:
        limit: Their number (None: all, in an order by chance).
        seed: Of the draw.
        world: None: the one of the shipped models.
        skip: No edit is about a subject of these (for disjoint splits).

    Raises:
        InputError: `limit` is below 1, or more than there are facts left.

    >>> fact = edits(1, seed=3)[0]
    >>> len(fact.paraphrase_prompts), 1 <= len(fact.neighborhood_prompts) <= 10, fact.target_true != fact.target_new
    (3, True, True)
    """
    world = world or World()
    taken = {fact.subject for fact in skip}
    facts = [key for key in world.facts if key[1] in EDITABLE and key[0] not in taken]
    limit = len(facts) if limit is None else limit
    if not 1 <= limit <= len(facts):
        raise InputError(f"limit: expected 1 to {len(facts)} edits, found {limit}")
    chosen = random.Random(f"{world.seed}:edits:{seed}").sample(facts, limit)
    return [_edit(world, subject, relation) for subject, relation in chosen]


def ripple_tests(fact: FactEdit) -> tuple[RippleTest, ...]:
    """RippleEdits' tests of an edit of the world: what the exported file holds, as `load_facts` reads it.

    >>> sorted({test.axis for test in ripple_tests(edits(1)[0])})
    ['RS', 'SA']
    """
    return from_row(BUILDERS["ripple"], _ripple(World(), fact), 0, where="factworld").ripple


def export(path: str | os.PathLike[str], *, schema: Schema, limit: int, seed: int = 0) -> int:
    """Write `limit` edits to the JSON file `path`; returns their number.

    Args:
        path: A file in an existing folder.
        schema: "counterfact", "ripple" or "easyedit".
        limit: The number of edits.
        seed: Of the draw (`edits`).

    Raises:
        InputError: Another schema, too many edits, or a file that cannot be written.
    """
    if schema not in get_args(Schema):
        raise InputError(f"schema: expected one of {', '.join(get_args(Schema))}, found {schema!r}")
    world = World()
    build: Callable[[World, FactEdit], dict[str, Any]] = {
        "counterfact": _counterfact,
        "ripple": _ripple,
        "easyedit": _easyedit,
    }[schema]
    records = [build(world, fact) for fact in edits(limit, seed=seed, world=world)]
    write_rows(records, path)
    return len(records)


# -- one edit ------------------------------------------------------------------------------------------------


def _edit(world: World, subject: str, relation: str) -> FactEdit:
    """Chance depends on the fact alone, so an edit is the same in every split."""
    rng = random.Random(f"{world.seed}:edit:{subject}:{relation}")
    old = world.facts[subject, relation]
    person = RELATIONS[relation].subject_kind == "person"
    relations = [r for r in RELATIONS if (subject, r) in world.facts]
    return FactEdit(
        subject=subject,
        prompt=RELATIONS[relation].templates[rng.choice(world.seen(subject, relation))],
        target_true=old,
        target_new=rng.choice([o for o in world.objects(relation) if o != old]),
        case_id=list(world.facts).index((subject, relation)),
        relation=relation,
        paraphrase_prompts=_prompts(subject, relation, world.held_out(subject, relation)),
        neighborhood_prompts=_neighbours(world, subject, relation, rng),
        generation_prompts=tuple(
            _ask(world, subject, r, rng) for r in rng.sample(relations, min(3, len(relations)))
        ),
        aliases=(alias(subject),) if person else (),
        source_schema="factworld",
    )


def _neighbours(world: World, subject: str, relation: str, rng: random.Random) -> tuple[str, ...]:
    """Up to ten prompts about other subjects with the same object, every neighbour once before any comes twice."""
    old = world.facts[subject, relation]
    alike = [s for s in world.subjects(relation) if s != subject and world.facts[s, relation] == old]
    rng.shuffle(alike)
    templates = {s: rng.sample(world.seen(s, relation), len(world.seen(s, relation))) for s in alike}
    rounds = range(max(map(len, templates.values())))
    prompts = [
        p for turn in rounds for s in alike for p in _prompts(s, relation, templates[s][turn : turn + 1])
    ]
    return tuple(prompts[:NEIGHBOURS])


def _prompts(subject: str, relation: str, templates: Sequence[int]) -> tuple[str, ...]:
    return tuple(RELATIONS[relation].templates[i].replace("{}", subject) for i in templates)


def _ask(world: World, subject: str, relation: str, rng: random.Random) -> str:
    return _prompts(subject, relation, [rng.choice(world.seen(subject, relation))])[0]


# -- schemas -------------------------------------------------------------------------------------------------


def _counterfact(world: World, fact: FactEdit) -> dict[str, Any]:
    return {
        "case_id": fact.case_id,
        "pararel_idx": fact.case_id,
        "requested_rewrite": {
            "prompt": fact.prompt,
            "relation_id": fact.relation,
            "target_new": {"str": fact.target_new, "id": _id(fact.target_new)},
            "target_true": {"str": fact.target_true, "id": _id(fact.target_true)},
            "subject": fact.subject,
        },
        "paraphrase_prompts": list(fact.paraphrase_prompts),
        "neighborhood_prompts": list(fact.neighborhood_prompts),
        "attribute_prompts": _attributes(world, fact),
        "generation_prompts": list(fact.generation_prompts),
    }


def _attributes(world: World, fact: FactEdit) -> list[str]:
    """Prompts about subjects of whom the new object is true, as CounterFact has them."""
    rng = random.Random(f"{world.seed}:attributes:{fact.case_id}")
    have = [s for s in world.subjects(fact.relation) if world.facts[s, fact.relation] == fact.target_new]
    return [_ask(world, s, fact.relation, rng) for s in rng.sample(have, min(NEIGHBOURS, len(have)))]


def _easyedit(world: World, fact: FactEdit) -> dict[str, Any]:
    """Flat; its rephrase prompt is a paraphrase here (in EasyEdit's own file it is a generation prompt)."""
    return {
        "case_id": fact.case_id,
        "prompt": fact.rewrite_prompt,
        "target_new": fact.target_new,
        "subject": fact.subject,
        "ground_truth": fact.target_true,
        "rephrase_prompt": fact.paraphrase_prompts[0],
        "locality_prompt": fact.neighborhood_prompts[0],
        "locality_ground_truth": fact.target_true,
    }


def _ripple(world: World, fact: FactEdit) -> dict[str, Any]:
    rng = random.Random(f"{world.seed}:ripple:{fact.case_id}")
    kept = [r for r in RELATIONS if r != fact.relation and (fact.subject, r) in world.facts]
    names = [name for name in fact.aliases if name not in fact.rewrite_prompt]
    return {
        "example_type": "popular",
        "edit": {
            **_statement(fact, fact.target_new),
            "original_fact": _statement(fact, fact.target_true),
        },
        "Relation_Specifity": [_test([_fact_query(world, fact.subject, r, rng)]) for r in kept],
        "Logical_Generalization": [],
        "Subject_Aliasing": [
            _test([_query(fact.prompt.replace("{}", name), name, fact.relation, fact.target_new)])
            for name in names
        ],
        "Compositionality_I": _first_hops(world, fact, rng),
        "Compositionality_II": _second_hops(world, fact, rng),
        "Forgetfulness": [],
    }


def _first_hops(world: World, fact: FactEdit, rng: random.Random) -> list[dict[str, Any]]:
    """(subject, edited relation, new object) and then a fact about the new object."""
    tests = []
    for hop in HOPS.values():
        if hop.path[0] == fact.relation:
            answer = world.follow(fact.subject, hop.name, {(fact.subject, fact.relation): fact.target_new})
            prompt = rng.choice(hop.templates).replace("{}", fact.subject)
            known = _fact_query(world, fact.target_new, hop.path[1], rng)
            tests.append(_test([_query(prompt, fact.subject, hop.name, answer, two_hop=True)], [known]))
    return tests


def _second_hops(world: World, fact: FactEdit, rng: random.Random) -> list[dict[str, Any]]:
    """Somebody else whose hop leads through the edited fact."""
    tests = []
    for hop in HOPS.values():
        if fact.relation not in hop.path[1:]:
            continue
        through = [s for s in world.subjects(hop.path[0]) if world.facts[s, hop.path[0]] == fact.subject]
        if hop.path.index(fact.relation) == 1 and through:
            someone = rng.choice(through)
            answer = world.follow(someone, hop.name, {(fact.subject, fact.relation): fact.target_new})
            prompt = rng.choice(hop.templates).replace("{}", someone)
            known = _fact_query(world, someone, hop.path[0], rng)
            tests.append(_test([_query(prompt, someone, hop.name, answer, two_hop=True)], [known]))
    return tests


def _statement(fact: FactEdit, value: str) -> dict[str, Any]:
    return {
        "prompt": f"{fact.rewrite_prompt} {value}.",
        "subject_id": _id(fact.subject),
        "relation": fact.relation,
        "target_id": _id(value),
    }


def _fact_query(world: World, subject: str, relation: str, rng: random.Random) -> dict[str, Any]:
    return _query(_ask(world, subject, relation, rng), subject, relation, world.facts[subject, relation])


def _query(prompt: str, subject: str, relation: str, answer: str, *, two_hop: bool = False) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "answers": [{"value": answer, "aliases": []}],
        "query_type": "two_hop" if two_hop else "regular",
        "subject_id": _id(subject),
        "relation": relation,
        "target_ids": [_id(answer)],
        "phrase": f"{prompt} {answer}.",
    }


def _test(queries: list[dict[str, Any]], conditions: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A test counts where its condition holds; by default that is the query itself, asked before the edit."""
    return {
        "test_queries": queries,
        "test_condition": "OR",
        "condition_queries": queries if conditions is None else conditions,
    }


def _id(name: str) -> str:
    """The world has no Wikidata ids; its names are unique within their kind."""
    return name.lower().replace(" ", "_").replace(".", "")
