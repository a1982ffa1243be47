"""What an embedded model knows and does, measured: recall, statements in context, doubts.

Every question is a prompt and its only right answer; it counts when all tokens of the answer are the argmax,
teacher-forced (the same as greedy decoding). Statements are counterfactual; foreign ones are about somebody who
shares a name with the subject in half of the questions, or about another relation of the same subject.
"""

from __future__ import annotations

import random

import pandas as pd

from mechedit.data import prompts
from mechedit.factworld.text import Writer
from mechedit.factworld.world import HOPS, RELATIONS, World, alias
from mechedit.models.hooked import HookedModel
from mechedit.models.scoring import score_pairs
from reports.intervals import wilson

Question = tuple[str, str]
#: The share of questions that a shipped model must get right.
FLOORS = {"recall_seen": 0.99, "recall_held_out": 0.95, "follow": 0.95, "ignore_foreign": 0.95}


def recall_questions(world: World, *, held_out: bool, limit: int | None) -> list[Question]:
    """Every fact in each of its seen (or held-out) templates, or `limit` of them by chance."""
    pick = world.held_out if held_out else world.seen
    questions = [
        (RELATIONS[relation].templates[i].replace("{}", subject), value)
        for (subject, relation), value in world.facts.items()
        for i in pick(subject, relation)
    ]
    return random.Random(0).sample(questions, limit) if limit and limit < len(questions) else questions


def context_questions(world: World, *, n: int) -> dict[str, list[Question]]:
    """`n` questions of each kind: statements in context, doubts, hops and aliases."""
    writer = Writer(world, random.Random("check:1"), alias_share=0.0)
    rng = writer.rng
    kinds = ("follow", "ignore_foreign", "doubt", "doubt_after_statement", "imply", "hop", "alias")
    questions: dict[str, list[Question]] = {kind: [] for kind in kinds}
    for _ in range(n):
        relation = writer.relation()
        subject = writer.subject(relation)
        old, new = world.facts[subject, relation], writer.made_up(subject, relation)
        p, q = writer.prompt(subject, relation, new), writer.prompt(subject, relation, new)
        stated = rng.choice((prompts.repeat(p, new, q), prompts.avoid(p, old, new, q)))
        questions["follow"].append((stated, new))
        stranger = writer.stranger(subject, relation)
        foreign = writer.prompt(*stranger)
        stated = rng.choice((prompts.repeat(p, new, foreign), prompts.avoid(p, old, new, foreign)))
        questions["ignore_foreign"].append((stated, world.facts[stranger]))
        doubt = rng.choice(
            (prompts.doubt(q, new), prompts.doubt_old(q, new, writer.made_up(subject, relation)))
        )
        questions["doubt"].append((doubt, old))
        doubt = rng.choice((prompts.doubt(q, new), prompts.doubt_old(q, new, old)))
        questions["doubt_after_statement"].append((prompts.avoid(p, old, new, doubt), new))
        hop = rng.choice(list(HOPS.values()))
        someone = rng.choice(world.subjects(hop.path[0]))
        asks = rng.choice(hop.templates).replace("{}", someone)
        questions["hop"].append((asks, world.follow(someone, hop.name)))
        value = writer.made_up(someone, hop.path[0])
        fact = f"{writer.prompt(someone, hop.path[0], value)} {value}"
        follows = world.follow(someone, hop.name, {(someone, hop.path[0]): value})
        questions["imply"].append((prompts.pretend(fact, asks), follows))
        person = rng.choice(world.persons)
        relation = rng.choice([name for name in RELATIONS if RELATIONS[name].subject_kind == "person"])
        by_alias = writer.prompt(person, relation).replace(person, alias(person))
        questions["alias"].append((by_alias, world.facts[person, relation]))
    return questions


def check(model: HookedModel, world: World | None = None, *, n: int = 500) -> pd.DataFrame:
    """Frame: check, right, n, share, low, high (95 % Wilson), floor (NaN where none is set), ok.

    Args:
        model: Trained on the world.
        world: None: the one of the shipped models.
        n: Questions of each kind; from 500 on, recall is asked of all facts in all templates.
    """
    world = world or World()
    limit = None if n >= 500 else n
    questions = {
        "recall_seen": recall_questions(world, held_out=False, limit=limit),
        "recall_held_out": recall_questions(world, held_out=True, limit=limit),
        **context_questions(world, n=n),
    }
    rows = []
    for name, pairs in questions.items():
        right = sum(
            scored.all_hit == 1.0
            for scored in score_pairs(model, [model.continuation(*pair) for pair in pairs])
        )
        low, high = wilson(right, len(pairs))
        share, floor = right / len(pairs), FLOORS.get(name, float("nan"))
        rows.append((name, right, len(pairs), share, low, high, floor, not share < floor))
    return pd.DataFrame(rows, columns=["check", "right", "n", "share", "low", "high", "floor", "ok"])
