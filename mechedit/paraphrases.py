"""Other ways to ask for the same fact: what an editor is fitted on.

A paraphrase of a template is another template of the same relation. They come from the user's own table, or from the
table of the embedded world; a fact's evaluation prompts are always left out, so nothing is fitted on what it is
measured by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from mechedit.facts import FactEdit

__all__ = ["Paraphrases", "paraphrases"]

# rewrite template -> other templates of the same relation, each with {} in the subject's place
Paraphrases = Mapping[str, Sequence[str]]


def paraphrases(fact: FactEdit, table: Paraphrases | None = None) -> list[str]:
    """The rewrite prompt first, then the table's templates about the fact's subject, without its evaluation prompts.

    With no table the embedded world's is used; a template that it does not know has no paraphrase but itself.

    >>> fact = FactEdit("Anna Novak", "{} speaks", "French", "Greek", paraphrase_prompts=("Anna Novak talks",))
    >>> paraphrases(fact, {"{} speaks": ["{} talks", "The language of {} is"]})
    ['Anna Novak speaks', 'The language of Anna Novak is']
    """
    templates = (_embedded_table() if table is None else table).get(fact.prompt, ())
    prompts = [fact.rewrite_prompt, *(template.replace("{}", fact.subject) for template in templates)]
    measured = {*fact.paraphrase_prompts, *fact.neighborhood_prompts}
    return [prompts[0], *dict.fromkeys(p for p in prompts[1:] if p not in measured and p != prompts[0])]


@cache
def _embedded_table() -> dict[str, tuple[str, ...]]:
    from mechedit.factworld.world import RELATIONS

    return {
        template: relation.templates for relation in RELATIONS.values() for template in relation.templates
    }
