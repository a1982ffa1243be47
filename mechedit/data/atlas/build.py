"""Edits of the atlas as records: a fact with another object of the same kind, and the prompts that test the edit.

Steps of `edit_of`, by a chance that depends on the fact alone, so that an edit is the same in every split:

1. *New object*: another one of the relation's objects. It begins otherwise than the old one under all their names, so
   that the next token can tell them apart, and it is not named by the subject.
2. *Paraphrases*: the held-out templates.
3. *Neighbours*: other subjects with the old object, as in CounterFact. Where nobody shares it (one capital belongs to
   one country), other subjects of the relation, with their own objects as `neighborhood_answers`: these must stay.
   Every second one is asked by the rewrite prompt first, the others in held-out words.
4. *Tests of what follows*, in RippleEdits' axes: RS the subject under other relations; SA the subject's other names;
   CI a fact of the new object, asked by way of the subject, where it is not also a fact of the old one; CII the edited
   fact, asked by way of somebody who leads to the subject; LG, of a symmetric relation, the way back. FN has no test:
   every relation has one object a subject.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from functools import cache

from mechedit.data.atlas.hops import hop_templates
from mechedit.data.atlas.tables import Atlas, Fact, RelationTable
from mechedit.data.records import FactEdit, RippleQuery, RippleTest, shown
from reports.errors import InputError

__all__ = ["MOST_PROMPTS", "all_facts", "draw", "edit_of"]

MOST_PROMPTS = 10  # neighbourhood and attribute prompts of an edit, as in CounterFact
GENERATION_PROMPTS = 3


def all_facts(atlas: Atlas, relations: Collection[str] | None = None) -> tuple[Fact, ...]:
    """The facts of some relations.

    Args:
        atlas: the tables.
        relations: names of relations; None for all.

    Returns:
        The facts, relation by relation, in the order of the files.

    Raises:
        InputError: for a name that no relation has.

    Example:
        >>> from mechedit.data import atlas
        >>> all_facts(atlas.load(), ["symbol"])[0]
        Fact(relation='symbol', subject='aluminum', object='Al')
    """
    if isinstance(relations, str):
        raise InputError(f"relations: expected names of relations in a list, found {shown(relations)}")
    chosen = atlas.relations.values() if relations is None else [atlas.relation(name) for name in relations]
    return tuple(Fact(r.name, subject, value) for r in chosen for subject, value in r.objects.items())


def draw(
    atlas: Atlas,
    n: int | None,
    seed: int = 0,
    *,
    relations: Collection[str] | None = None,
    skip: Sequence[FactEdit] = (),
) -> list[FactEdit]:
    """`n` edits by chance, as many of each relation as can be, no two about one subject.

    Args:
        atlas: the tables.
        n: how many edits; None for all, one a subject.
        seed: another number draws other facts; the edit of a fact is always the same.
        relations: names of the relations to draw from; None for all.
        skip: no edit is about a subject of these, which is the way to disjoint splits.

    Returns:
        The edits, one relation after another by turns.

    Raises:
        InputError: for a name that no relation has, and where fewer edits are left than asked for.

    Example:
        >>> from mechedit.data import atlas
        >>> [fact.relation for fact in draw(atlas.load(), 2, relations=["capital", "sport"])]
        ['capital', 'sport']
    """
    chosen = _dealt(
        all_facts(atlas, relations), random.Random(f"atlas:draw:{seed}"), {f.subject for f in skip}
    )
    n = len(chosen) if n is None else n
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(chosen):
        raise InputError(f"n: expected 1 to {len(chosen)} edits, found {n}")
    return [edit_of(atlas, fact.relation, fact.subject) for fact in chosen[:n]]


def edit_of(atlas: Atlas, relation: str, subject: str) -> FactEdit:
    """The counterfactual edit of one fact.

    Args:
        atlas: the tables.
        relation: name of the relation.
        subject: name of the subject, as it is in the tables.

    Returns:
        The edit, with every prompt and test that the atlas has for it.

    Raises:
        InputError: for a relation or a subject that is not in the tables.

    Example:
        >>> from mechedit.data import atlas
        >>> fact = edit_of(atlas.load(), "currency", "Denmark")
        >>> fact.target_true, fact.target_new != "krone", fact.neighborhood_prompts[0]
        ('krone', True, 'The monetary unit of Norway is the')
    """
    about = atlas.relation(relation)
    rng = random.Random(f"atlas:edit:{relation}:{subject}")
    old, new = _old_object(about, subject), rng.choice(_new_objects(atlas, about, subject))
    neighbours = _neighbours(about, subject, new, rng)
    answers = tuple(about.objects[neighbour] for neighbour, _ in neighbours)
    return FactEdit(
        subject=subject,
        prompt=about.templates[0],
        target_true=old,
        target_new=new,
        case_id=f"{relation}.{_slug(subject)}",
        relation=relation,
        paraphrase_prompts=tuple(template.replace("{}", subject) for template in about.held_out),
        neighborhood_prompts=tuple(template.replace("{}", s) for s, template in neighbours),
        neighborhood_answers=() if set(answers) == {old} else answers,
        generation_prompts=_generation_prompts(atlas, about, subject, rng),
        attribute_prompts=_attribute_prompts(about, new, rng),
        aliases=atlas.names(subject)[1:],
        target_new_aliases=_answer(atlas, new)[1:],
        ripple=tuple(_tests(atlas, about, subject, new, rng)),
        source_schema="atlas",
    )


# --- the draw -----------------------------------------------------------------------------------------


def _dealt(facts: Sequence[Fact], rng: random.Random, taken: set[str]) -> list[Fact]:
    """The facts shuffled, relations by turns, each subject once and none that is taken."""
    decks: dict[str, list[Fact]] = {}
    for fact in facts:
        decks.setdefault(fact.relation, []).append(fact)
    for deck in decks.values():
        rng.shuffle(deck)
    chosen: list[Fact] = []
    while any(decks.values()):
        for deck in decks.values():
            while deck and deck[-1].subject in taken:
                deck.pop()
            if deck:
                chosen.append(deck.pop())
                taken.add(chosen[-1].subject)
    return chosen


# --- the new object and the neighbours ----------------------------------------------------------------


def _old_object(about: RelationTable, subject: str) -> str:
    if subject not in about.objects:
        raise InputError(
            f"subject: expected one of {about.name}'s {len(about.objects)}, found {shown(subject)}"
        )
    return about.objects[subject]


def _new_objects(atlas: Atlas, about: RelationTable, subject: str) -> list[str]:
    """Objects that a next token tells from the old one, and from the subject; at least one."""
    old = about.objects[subject]
    others = sorted(set(about.objects.values()) - {old, *atlas.names(subject)})
    told_from = (*_answer(atlas, old), subject)
    candidates = [
        value
        for value in others
        if value.casefold() not in subject.casefold()
        and not any(_begin_alike(a, b) for a in _answer(atlas, value) for b in told_from)
    ]
    if not candidates:
        raise InputError(
            f"relation: expected an object of {about.name} that begins otherwise than {shown(old)}, found none"
        )
    return candidates


def _begin_alike(a: str, b: str) -> bool:
    """Whether two names share their first letters: two of them, one where a name is as short as a symbol."""
    length = 2 if min(len(a), len(b)) > 2 else 1
    return _plain(a)[:length] == _plain(b)[:length]


def _neighbours(about: RelationTable, subject: str, new: str, rng: random.Random) -> list[tuple[str, str]]:
    """Neighbours with a template each, every neighbour once before any comes twice."""
    old = about.objects[subject]
    alike = [s for s in about.subjects_of(old) if s != subject]
    if not alike:
        touched = {subject, old, new}  # a symmetric relation has facts about its objects
        alike = [s for s, value in about.objects.items() if s not in touched and value not in touched]
    rng.shuffle(alike)
    asked: list[list[str]] = []
    for i in range(len(alike)):
        held_out = rng.sample(about.held_out, len(about.held_out))
        asked.append([*held_out[: i % 2], about.templates[0], *held_out[i % 2 :]])
    rounds = range(1 + len(about.held_out))
    pairs = [(s, templates[turn]) for turn in rounds for s, templates in zip(alike, asked, strict=True)]
    return pairs[:MOST_PROMPTS]


# --- prompts ------------------------------------------------------------------------------------------


def _others(atlas: Atlas, about: RelationTable, subject: str) -> list[RelationTable]:
    """The other relations that know the subject."""
    return [r for r in atlas.relations.values() if r.name != about.name and subject in r.objects]


def _generation_prompts(
    atlas: Atlas, about: RelationTable, subject: str, rng: random.Random
) -> tuple[str, ...]:
    """Beginnings of texts about the subject, of every relation that knows it, in words for fitting."""
    pools = [
        rng.sample(r.templates[1:], len(r.templates) - 1) for r in (about, *_others(atlas, about, subject))
    ]
    turns = [template for turn in zip(*pools, strict=False) for template in turn]
    return tuple(template.replace("{}", subject) for template in turns[:GENERATION_PROMPTS])


def _attribute_prompts(about: RelationTable, new: str, rng: random.Random) -> tuple[str, ...]:
    """Rewrite prompts about subjects of whom the new object is true."""
    have = about.subjects_of(new)
    return tuple(about.ask(s) for s in rng.sample(have, min(MOST_PROMPTS, len(have))))


# --- what follows -------------------------------------------------------------------------------------


def _tests(
    atlas: Atlas, about: RelationTable, subject: str, new: str, rng: random.Random
) -> Iterator[RippleTest]:
    for other in _others(atlas, about, subject):
        asked = _known(atlas, other, subject)
        yield RippleTest("RS", (asked,), (asked,))
    if about.symmetric:
        back = RippleQuery(about.ask(new), (_answer(atlas, subject),))
        yield RippleTest("LG", (back,), (_known(atlas, about, about.objects[subject]),))
    for name in atlas.names(subject)[1:]:
        yield RippleTest("SA", (RippleQuery(about.ask(name), (_answer(atlas, new),)),))
    yield from _first_hops(atlas, about, subject, new, rng)
    yield from _second_hops(atlas, about, subject, new, rng)


def _first_hops(
    atlas: Atlas, about: RelationTable, subject: str, new: str, rng: random.Random
) -> Iterator[RippleTest]:
    """(subject, edited relation, new object) and then a fact about the new object that the old one does not share."""
    for hop in about.hops:
        asked = atlas.relations[hop]
        if new in asked.objects and asked.objects[new] != asked.objects.get(about.objects[subject]):
            template = rng.choice(hop_templates(atlas, about.name, hop, held_out=True))
            query = RippleQuery(template.replace("{}", subject), (_answer(atlas, asked.objects[new]),))
            yield RippleTest("CI", (query,), (_known(atlas, asked, new),))


def _second_hops(
    atlas: Atlas, about: RelationTable, subject: str, new: str, rng: random.Random
) -> Iterator[RippleTest]:
    """Somebody whose object is the subject, and then the edited fact."""
    for leading in atlas.relations.values():
        through = leading.subjects_of(subject) if about.name in leading.hops else ()
        if through:
            someone = rng.choice(through)
            template = rng.choice(hop_templates(atlas, leading.name, about.name, held_out=True))
            query = RippleQuery(template.replace("{}", someone), (_answer(atlas, new),))
            yield RippleTest("CII", (query,), (_known(atlas, leading, someone),))


def _known(atlas: Atlas, about: RelationTable, subject: str) -> RippleQuery:
    """The fact as it is, asked by the rewrite prompt."""
    return RippleQuery(about.ask(subject), (_answer(atlas, about.objects[subject]),))


def _answer(atlas: Atlas, name: str) -> tuple[str, ...]:
    """The names that answer: without an article, which would begin the answer to anything."""
    return tuple(dict.fromkeys(other.removeprefix("the ") for other in atlas.names(name)))


@cache
def _plain(name: str) -> str:
    """`name` in small letters without accents."""
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().casefold()


def _slug(subject: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", _plain(subject)).strip("-")
