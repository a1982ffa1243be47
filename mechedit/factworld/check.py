"""What an embedded model knows and does, measured: recall, statements in context, doubts.

Every case is a prompt and the one right answer; a case counts when all tokens of the answer are the argmax,
teacher-forced (the same as greedy decoding). Statements are counterfactual; foreign ones are about somebody who
shares a name with the subject in half of the cases, or about another relation of the same subject.
"""

from __future__ import annotations

import random

import pandas as pd

from mechedit.data import prompts
from mechedit.factworld.text import Writer
from mechedit.factworld.world import HOPS, RELATIONS, World, alias
from mechedit.models.hooked import HookedModel
from mechedit.models.scoring import score_pairs
from reports.results import wilson

Case = tuple[str, str]
# The share of cases that a shipped model must get right.
FLOORS = {"recall_seen": 0.99, "recall_held_out": 0.95, "follow": 0.95, "ignore_foreign": 0.95}


def recall_cases(world: World, *, held_out: bool, limit: int | None = None, seed: int = 0) -> list[Case]:
    """Every fact in each of its seen (or held-out) templates, or `limit` of them by chance."""
    pick = world.held_out if held_out else world.seen
    cases = [
        (RELATIONS[relation].templates[i].replace("{}", subject), value)
        for (subject, relation), value in world.facts.items()
        for i in pick(subject, relation)
    ]
    return random.Random(seed).sample(cases, limit) if limit and limit < len(cases) else cases


def context_cases(world: World, *, n: int = 500, seed: int = 1) -> dict[str, list[Case]]:
    """`n` cases of each kind: follow, ignore_foreign, doubts, hops, aliases."""
    writer = Writer(world, random.Random(f"check:{seed}"), alias_share=0.0)
    rng = writer.rng
    cases: dict[str, list[Case]] = {
        k: [] for k in ("follow", "ignore_foreign", "doubt", "doubt_after_statement", "imply", "hop", "alias")
    }
    for _ in range(n):
        relation = writer.relation()
        subject = writer.subject(relation)
        old, new = world.facts[subject, relation], writer.made_up(subject, relation)
        p, q = writer.prompt(subject, relation, new), writer.prompt(subject, relation, new)
        said = rng.choice((prompts.repeat(p, new, q), prompts.avoid(p, old, new, q)))
        cases["follow"].append((said, new))
        stranger = writer.stranger(subject, relation)
        other = writer.prompt(*stranger)
        said = rng.choice((prompts.repeat(p, new, other), prompts.avoid(p, old, new, other)))
        cases["ignore_foreign"].append((said, world.facts[stranger]))
        ask = rng.choice(
            (prompts.doubt(q, new), prompts.doubt_old(q, new, writer.made_up(subject, relation)))
        )
        cases["doubt"].append((ask, old))
        ask = rng.choice((prompts.doubt(q, new), prompts.doubt_old(q, new, old)))
        cases["doubt_after_statement"].append((prompts.avoid(p, old, new, ask), new))
        hop = rng.choice(list(HOPS.values()))
        someone = rng.choice(world.subjects(hop.path[0]))
        c = rng.choice(hop.templates).replace("{}", someone)
        cases["hop"].append((c, world.follow(someone, hop.name)))
        other_value = writer.made_up(someone, hop.path[0])
        fact = f"{writer.prompt(someone, hop.path[0], other_value)} {other_value}"
        cases["imply"].append(
            (prompts.pretend(fact, c), world.follow(someone, hop.name, {(someone, hop.path[0]): other_value}))
        )
        person = rng.choice(world.persons)
        kind = rng.choice([r for r in RELATIONS if RELATIONS[r].subject_kind == "person"])
        cases["alias"].append(
            (writer.prompt(person, kind).replace(person, alias(person)), world.facts[person, kind])
        )
    return cases


def check(model: HookedModel, world: World | None = None, *, n: int = 500) -> pd.DataFrame:
    """Frame: check, right, n, share, low, high (95 % Wilson), floor (NaN where none is set), ok.

    All facts in all templates for recall where `n` is at least 500, else `n` by chance.
    """
    world = world or World()
    limit = None if n >= 500 else n
    cases = {
        "recall_seen": recall_cases(world, held_out=False, limit=limit),
        "recall_held_out": recall_cases(world, held_out=True, limit=limit),
        **context_cases(world, n=n),
    }
    rows = []
    for name, pairs in cases.items():
        right = sum(
            scored.all_hit == 1.0
            for scored in score_pairs(model, [model.continuation(*pair) for pair in pairs])
        )
        low, high = wilson(right, len(pairs))
        share, floor = right / len(pairs), FLOORS.get(name, float("nan"))
        rows.append((name, right, len(pairs), share, low, high, floor, not share < floor))
    return pd.DataFrame(rows, columns=["check", "right", "n", "share", "low", "high", "floor", "ok"])
