"""The atlas: real facts of this project's own, to edit in models that read real text.

Written from general knowledge; nothing in it comes from a data set. A relation (capital, continent, author, ...) is one
TOML file: 40 to 200 subjects, each with one clearly right object, templates for fitting, of which the first one is the
rewrite prompt, and four templates that are never fitted on. Disputed facts are left out, and the files say so. Objects
stand right behind the templates, so none needs an article: no city here is of "the Netherlands", though "the
Netherlands" has a capital.

`edits` gives `FactEdit`s with every prompt and test that the tables allow: paraphrases, neighbours, other names, the
same subject under other relations, and hops (city -> country -> continent, language, currency). Neighbours share the
old object; where nobody does, they are other subjects of the relation, whose own objects must stay
(`FactEdit.neighborhood_answers`). Templates for fitting are `templates(relation)` and `paraphrase_table()`, questions
that follow from a fact are `implication_table()`. `load` reads a folder of your own, `build.draw` makes edits of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mechedit.data.atlas import build, hops
from mechedit.data.atlas.tables import Atlas, Fact, RelationTable, load, shipped_atlas
from mechedit.data.records import FactEdit

__all__ = [
    "Atlas",
    "Fact",
    "RelationTable",
    "aliases",
    "edit",
    "edits",
    "facts",
    "held_out",
    "implication_table",
    "load",
    "paraphrase_table",
    "relation",
    "relations",
    "templates",
]


def relations() -> tuple[str, ...]:
    """The names of all relations.

    Returns:
        The names in alphabetical order.

    Example:
        >>> relations()[:3]
        ('animal_class', 'author', 'birth_country')
    """
    return tuple(shipped_atlas().relations)


def relation(name: str) -> RelationTable:
    """One relation with its templates and facts.

    Args:
        name: one of `relations()`.

    Returns:
        The relation.

    Raises:
        InputError: if there is none of this name.

    Example:
        >>> relation("continent").objects["Kenya"]
        'Africa'
    """
    return shipped_atlas().relation(name)


def facts(relations: Collection[str] | None = None) -> tuple[Fact, ...]:
    """All facts, or those of some relations.

    Args:
        relations: names of relations; None for all.

    Returns:
        The facts, relation by relation.

    Raises:
        InputError: for a name that no relation has.

    Example:
        >>> facts(["continent"])[0]
        Fact(relation='continent', subject='Algeria', object='Africa')
    """
    return build.all_facts(shipped_atlas(), relations)


def templates(relation: str) -> tuple[str, ...]:
    """The templates of a relation that an editor may be fitted on.

    Args:
        relation: name of the relation.

    Returns:
        Templates with `{}` for the subject, the rewrite prompt first.

    Raises:
        InputError: if there is none of this name.

    Example:
        >>> templates("capital")[:2]
        ('The capital of {} is the city of', 'The capital city of {} is')
    """
    return shipped_atlas().relation(relation).templates


def held_out(relation: str) -> tuple[str, ...]:
    """The templates of a relation that nothing may be fitted on: the paraphrases of an evaluation.

    Args:
        relation: name of the relation.

    Returns:
        Four templates with `{}` for the subject.

    Raises:
        InputError: if there is none of this name.

    Example:
        >>> set(held_out("capital")) & set(templates("capital"))
        set()
    """
    return shipped_atlas().relation(relation).held_out


def aliases(name: str) -> tuple[str, ...]:
    """The other names of a subject or an object.

    Args:
        name: its name in the tables.

    Returns:
        Its other names; none for one that has no other, or that is not in the tables.

    Example:
        >>> aliases("Mumbai")
        ('Bombay',)
    """
    return shipped_atlas().names(name)[1:]


def edit(relation: str, subject: str) -> FactEdit:
    """The counterfactual edit of one fact.

    Args:
        relation: name of the relation.
        subject: name of the subject, as it is in the tables.

    Returns:
        The edit, the same as in every draw of `edits`.

    Raises:
        InputError: for a relation or a subject that is not in the tables.

    Example:
        >>> fact = edit("city_country", "Lyon")
        >>> fact.case_id, fact.target_true, sorted({test.axis for test in fact.ripple})
        ('city_country.lyon', 'France', ['CI'])
    """
    return build.edit_of(shipped_atlas(), relation, subject)


def edits(
    n: int | None,
    seed: int = 0,
    *,
    relations: Collection[str] | None = None,
    skip: Sequence[FactEdit] = (),
) -> list[FactEdit]:
    """`n` counterfactual edits by chance, as many of each relation as can be, no two about one subject.

    Args:
        n: how many edits; None for all, one a subject.
        seed: another number draws other facts; the edit of a fact is always the same.
        relations: names of the relations to draw from; None for all.
        skip: no edit is about a subject of these, which is the way to disjoint splits.

    Returns:
        The edits, one relation after another by turns.

    Raises:
        InputError: for a name that no relation has, and where fewer edits are left than asked for.

    Example:
        >>> first = edits(20)
        >>> second = edits(20, seed=1, skip=first)
        >>> {fact.subject for fact in first} & {fact.subject for fact in second}
        set()
    """
    return build.draw(shipped_atlas(), n, seed, relations=relations, skip=skip)


def paraphrase_table() -> dict[str, tuple[str, ...]]:
    """Name of a relation -> its templates for fitting, as `editors.steering.paraphrases` takes them.

    Returns:
        The table, without a held-out template.

    Example:
        >>> from mechedit.editors.steering.paraphrases import paraphrases
        >>> paraphrases(edit("capital", "France"), paraphrase_table())[1]
        'The capital city of France is'
    """
    return hops.paraphrase_table(shipped_atlas())


def implication_table() -> dict[str, tuple[str, ...]]:
    """Name of a relation -> questions that follow from a fact of it, as `editors.steering.implications` takes them.

    Returns:
        The table, of the relations that have hops, without a held-out template or phrase.

    Example:
        >>> from mechedit.editors.steering.paraphrases import implications
        >>> implications(edit("city_country", "Lyon"), implication_table())[0]
        'On a map of the world, the country where Lyon lies is found on the continent of'
    """
    return hops.implication_table(shipped_atlas())
