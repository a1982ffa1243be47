"""Other ways to ask for the same fact, and questions that follow from it: what an editor is fitted on.

A paraphrase of a template is another template of the same relation. They come from the user's own table, else from
those of this package: the embedded world's by template, CounterFact's 34 relations by relation id, the atlas' by name.
A fact's evaluation prompts are always left out, so nothing is fitted on what it is measured by. Nothing is asked of any
service.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from mechedit.data import atlas
from mechedit.data.facts import FactEdit
from mechedit.editors.steering.relations import near_relations
from mechedit.factworld.world import HOPS, RELATIONS
from reports.errors import InputError
from reports.parsing import parse

__all__ = [
    "Paraphrases",
    "implications",
    "indirect_templates",
    "load_paraphrases",
    "paraphrases",
    "relation_templates",
]

# rewrite template, or relation -> other templates of the same relation, each with {} in the subject's place
Paraphrases = Mapping[str, Sequence[str]]


def paraphrases(fact: FactEdit, table: Paraphrases | None = None) -> list[str]:
    """The rewrite prompt first, then the table's templates about the fact's subject, without its evaluation prompts.

    The table is asked for the fact's template, then for its relation; with no table this package's own are used, and a
    record without a relation finds it by its template's words (`mechedit.editors.steering.relations`): where they fit
    several relations, those of all. A fact that no table knows has no paraphrase but itself.

    >>> fact = FactEdit("Anna Novak", "{} speaks", "French", "Greek", paraphrase_prompts=("Anna Novak talks",))
    >>> paraphrases(fact, {"{} speaks": ["{} talks", "The language of {} is"]})
    ['Anna Novak speaks', 'The language of Anna Novak is']
    """
    return [fact.rewrite_prompt, *_unmeasured(fact, _built_in() if table is None else table)]


def implications(fact: FactEdit, table: Paraphrases | None = None) -> list[str]:
    """Questions whose answer follows from the fact, about its subject; the embedded world's hops with no table.

    >>> implications(FactEdit("Anna Novak", "{} was born in", "Paris", "Rome"))[0]
    'The country where Anna Novak was born is'
    """
    return _unmeasured(fact, _hops() if table is None else table)


def load_paraphrases(path: str | Path) -> dict[str, tuple[str, ...]]:
    """A user's table: a JSON object of template or relation -> list of templates, each with one `{}`.

    Raises:
        InputError: The file cannot be read, or an entry is none; file and entry are named.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "mine.json"
    ...     _ = file.write_text('{"P103": ["{} speaks", "{} talks"]}')
    ...     load_paraphrases(file)
    {'P103': ('{} speaks', '{} talks')}
    """
    file = Path(path)
    try:
        table = parse(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}: expected a JSON file of paraphrases ({' '.join(str(error).split())})"
        ) from error
    if not isinstance(table, dict):
        raise InputError(f"{file}: expected an object of lists, found {type(table).__name__}")
    for key, templates in table.items():
        right = isinstance(templates, list) and all(
            isinstance(t, str) and t.count("{}") == 1 for t in templates
        )
        if not right:
            raise InputError(
                f"{file}: {key!r}: expected a list of templates with one {{}} each, found {templates!r:.80}"
            )
    return {key: tuple(templates) for key, templates in table.items()}


def _unmeasured(fact: FactEdit, table: Paraphrases) -> list[str]:
    """The table's templates about the fact's subject, without its evaluation prompts."""
    templates = table.get(fact.prompt) or table.get(fact.relation) or _near(fact, table)
    measured = {*fact.paraphrase_prompts, *fact.neighborhood_prompts, fact.rewrite_prompt}
    measured |= {query.prompt for test in fact.ripple for query in test.queries}
    prompts = (template.replace("{}", fact.subject) for template in templates)
    return list(dict.fromkeys(p for p in prompts if p not in measured))


def _near(fact: FactEdit, table: Paraphrases) -> tuple[str, ...]:
    """The templates of the relations that the fact's template is near to, of this package's own table."""
    if fact.relation or table is not _built_in():
        return ()
    near = near_relations(fact.prompt, relation_templates())
    return tuple(template for relation in near for template in relation_templates()[relation])


def relation_templates() -> dict[str, Sequence[str]]:
    """This package's own templates of the relations of CounterFact, by their ids."""
    return _templates("counterfact_templates.json")


def indirect_templates() -> dict[str, Sequence[str]]:
    """Of the same relations those that lean on the object without asking for it: no edit is fitted on them."""
    return _templates("indirect_templates.json")


@cache
def _templates(name: str) -> dict[str, Sequence[str]]:
    table: dict[str, Sequence[str]] = json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))
    return table


@cache
def _built_in() -> dict[str, Sequence[str]]:
    world = {
        template: relation.templates for relation in RELATIONS.values() for template in relation.templates
    }
    return relation_templates() | world | atlas.paraphrase_table()


@cache
def _hops() -> dict[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {}
    for hop in HOPS.values():
        for template in RELATIONS[hop.path[0]].templates:
            table[template] = (*table.get(template, ()), *hop.templates)
    return {**table, **atlas.implication_table()}
