"""What else is asked about the subject of an edit: prompts under other relations, whose answers are to stay.

An edit that says its new object whenever its subject is named is no edit of a fact. So the subject is asked under
`N_OTHER` other relations in words that no editor and no gate is fitted on: of the atlas' relations those that are not
the fact's own, nor the like of it, in the templates that are held out; for a fact of the embedded world its world's.
A fact whose relation is not recognised has none: any of them might be its own.
"""

from __future__ import annotations

import random

from mechedit.data import atlas
from mechedit.data.records import FactEdit
from mechedit.editors.steering.relation_prompts import other_questions, own_relations
from mechedit.factworld.world import of_world

__all__ = ["N_OTHER", "other_relations"]

N_OTHER = 4


def other_relations(fact: FactEdit) -> list[str]:
    """Prompts about the fact's subject under other relations, the same every time.

    >>> prompts = other_relations(FactEdit("Ann", "{} is a native speaker of", "Dutch", "Greek"))
    >>> len(prompts), all("Ann" in prompt for prompt in prompts)
    (4, True)
    """
    if of_world(fact.subject, fact.relation, fact.prompt):
        return other_questions(fact, N_OTHER)
    own = own_relations(fact)
    if not own:
        return []
    dice = random.Random(f"other relations:{fact.subject}:{fact.prompt}")
    names = dice.sample([name for name in atlas.relations() if name not in own], N_OTHER)
    return [dice.choice(atlas.held_out(name)).replace("{}", fact.subject) for name in names]
