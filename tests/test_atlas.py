"""The tables of the atlas agree with themselves, and every rule here finds what breaks it.

A rule goes from the tables to a list of faults. Each has breakers: copies in which it must find one.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mechedit.data import atlas
from mechedit.data.atlas.build import all_facts
from mechedit.data.atlas.hops import hop_templates
from mechedit.data.atlas.tables import Atlas, RelationTable, load
from reports.errors import InputError

ATLAS = load()
FOLDER = Path(atlas.__file__).parent
ARTICLES = ("the ", "a ", "an ")


def broken(relation: str, **changes: Any) -> Atlas:
    """The atlas with one relation changed."""
    changed = replace(ATLAS.relations[relation], **changes)
    return Atlas({**ATLAS.relations, relation: changed}, ATLAS.entities)


def named(kind: str, name: str, *others: str) -> Atlas:
    """The atlas with an entry of other names changed or added."""
    return Atlas(ATLAS.relations, {**ATLAS.entities, kind: {**ATLAS.entities.get(kind, {}), name: others}})


def with_fact(relation: str, subject: str, value: str) -> Atlas:
    """The atlas with a fact changed or added."""
    return broken(relation, objects={**ATLAS.relations[relation].objects, subject: value})


def with_template(relation: str, template: str, *, held_out: bool = False) -> Atlas:
    """The atlas with the last template of a relation changed."""
    field = "held_out" if held_out else "templates"
    return broken(relation, **{field: (*getattr(ATLAS.relations[relation], field)[:-1], template)})


# -- rules of the tables ---------------------------------------------------------------------------------------


def miscounted(world: Atlas) -> list[str]:
    """Fewer than ten relations, a relation without 40 to 200 subjects, without 12 templates, without 4 held out."""
    faults = [] if len(world.relations) >= 10 else [f"{len(world.relations)} relations"]
    for r in world.relations.values():
        faults += [] if 40 <= len(r.objects) <= 200 else [f"{r.name}: {len(r.objects)} subjects"]
        faults += [] if len(r.templates) + len(r.held_out) >= 12 else [f"{r.name}: too few templates"]
        faults += [] if len(r.held_out) == 4 else [f"{r.name}: {len(r.held_out)} held out"]
        faults += [] if len(set(r.objects.values())) > 1 else [f"{r.name}: one object only"]
    return faults


def wordings(r: RelationTable) -> tuple[str, ...]:
    return (*r.templates, *r.held_out, *r.phrases, *r.phrases_held_out)


def misworded(world: Atlas) -> list[str]:
    """A template without one `{}`, with blanks at its ends, or that comes twice, held out and for fitting or not."""
    counts = Counter(text.casefold() for r in world.relations.values() for text in wordings(r))
    return [
        f"{r.name}: {text!r}"
        for r in world.relations.values()
        for text in wordings(r)
        if text.count("{}") != 1 or " ".join(text.split()) != text or counts[text.casefold()] > 1
    ]


def misbegun(world: Atlas) -> list[str]:
    """A template that begins with a subject that begins in lower case, as "the Netherlands" does."""
    return [
        f"{r.name}: {template!r} with {name!r}"
        for r in world.relations.values()
        for template in (*r.templates, *r.held_out)
        for subject in r.objects
        for name in world.names(subject)
        if template.startswith("{}") and name[0].islower()
    ]


def misspelt(world: Atlas) -> list[str]:
    """A name with blanks at its ends or that cannot be printed; an object behind an article."""
    names = {*world.aliases, *(other for others in world.aliases.values() for other in others)}
    objects = {value for r in world.relations.values() for value in r.objects.values()}
    names |= objects | {subject for r in world.relations.values() for subject in r.objects}
    faults = [f"{name!r}" for name in names if " ".join(name.split()) != name or not name.isprintable()]
    return faults + [f"object {name!r}" for name in objects if name.lower().startswith(ARTICLES)]


def kinds(world: Atlas) -> Iterator[tuple[str, str]]:
    """Every name in the relations with its kind."""
    for r in world.relations.values():
        yield from ((subject, r.subject_kind) for subject in (*r.objects, *r.left_out))
        yield from ((value, r.object_kind) for value in r.objects.values())


def ambiguous(world: Atlas) -> list[str]:
    """A name of two things: of two kinds, in two spellings, or as another name of something else."""
    meant: dict[str, set[tuple[str, str]]] = {}
    for name, kind in kinds(world):
        meant.setdefault(name.casefold(), set()).add((name, kind))
    for kind, entries in world.entities.items():
        for name, others in entries.items():
            for other in (name, *others):
                meant.setdefault(other.casefold(), set()).add((name, kind))
    faults = [f"{name}: {sorted(things)}" for name, things in meant.items() if len(things) > 1]
    listed = [other for entries in world.entities.values() for others in entries.values() for other in others]
    return faults + [f"{name!r} twice" for name, n in Counter(listed).items() if n > 1]


def strangers(world: Atlas) -> list[str]:
    """Other names of what is in no relation, or of no kind."""
    known = set(kinds(world))
    return [
        f"{k}: {name!r}" for k, names in world.entities.items() for name in names if (name, k) not in known
    ]


def given_away(world: Atlas) -> list[str]:
    """A fact whose object is its subject, or is named by it."""
    return [
        f"{fact.relation}: {fact.subject!r} is {fact.object!r}"
        for fact in all_facts(world)
        if any(re.search(rf"\b{re.escape(name)}\b", fact.subject, re.I) for name in world.names(fact.object))
    ]


def open_hops(world: Atlas) -> list[str]:
    """An object that a hop leads to and that the next relation neither knows nor leaves out; a hop without words."""
    faults = []
    for r in world.relations.values():
        if r.hops and not (r.phrases and r.phrases_held_out):
            faults.append(f"{r.name}: hops without phrases")
        for hop in (world.relations[name] for name in r.hops):
            known = {*hop.objects, *hop.left_out}
            faults += [f"{r.name}, {hop.name}: {o!r}" for o in set(r.objects.values()) - known]
            for held_out in (False, True):
                if not hop_templates(world, r.name, hop.name, held_out=held_out):
                    faults.append(f"{r.name}, {hop.name}: no template")
    return faults


def gaps(world: Atlas) -> list[str]:
    """A country that a relation about countries forgets, and a subject that is both known and left out."""
    faults = [f"{r.name}: {s!r}" for r in world.relations.values() for s in r.left_out if s in r.objects]
    countries = {name for name, kind in kinds(world) if kind == "country"}
    about = [r for r in world.relations.values() if r.subject_kind == "country"]
    return faults + [f"{r.name}: {c!r}" for r in about for c in countries - {*r.objects, *r.left_out}]


def one_way(world: Atlas) -> list[str]:
    """A fact of a symmetric relation without its way back."""
    return [
        f"{r.name}: {subject!r}"
        for r in world.relations.values()
        if r.symmetric
        for subject, value in r.objects.items()
        if r.objects.get(value) != subject
    ]


TableRule = Callable[[Atlas], list[str]]
TABLE_RULES: list[TableRule] = [
    *(miscounted, misworded, misbegun, misspelt, ambiguous, strangers, given_away, open_hops, gaps, one_way),
]
TABLE_BREAKERS: list[tuple[TableRule, Atlas]] = [
    (miscounted, Atlas(dict(list(ATLAS.relations.items())[:9]), ATLAS.entities)),
    (miscounted, broken("symbol", objects={"gold": "Au", "iron": "Fe"})),
    (miscounted, broken("river", objects=dict.fromkeys(ATLAS.relations["river"].objects, "Nile"))),
    (miscounted, broken("sport", held_out=ATLAS.relations["sport"].held_out[1:])),
    (miscounted, broken("sport", templates=ATLAS.relations["sport"].templates[:7])),
    (misworded, with_template("capital", "The capital of France is")),
    (misworded, with_template("capital", "From {} to {} it is not far to")),
    (misworded, with_template("capital", "The center of {} is ")),
    (misworded, with_template("capital", ATLAS.relations["capital"].held_out[0])),
    (misworded, with_template("capital", ATLAS.relations["continent"].templates[0], held_out=True)),
    (misbegun, with_template("capital", "{} has its capital in")),
    (misspelt, with_fact("capital", "France", "Paris ")),
    (misspelt, with_fact("city_country", "London", "the United Kingdom")),
    (misspelt, named("city", "Paris", "City of\u200bLight")),
    (ambiguous, with_fact("capital", "Germany", "berlin")),
    (ambiguous, with_fact("river", "Paris", "Gold")),
    (ambiguous, named("city", "Paris", "Lutetia", "Roma")),
    (ambiguous, named("city", "Paris", "Lutetia", "Lutetia")),
    (strangers, named("city", "Atlantis", "Sunken City")),
    (strangers, named("town", "Paris", "Lutetia")),
    (given_away, with_fact("capital", "Singapore", "Singapore")),
    (given_away, with_fact("capital", "Mumbai City State", "Mumbai")),
    (open_hops, with_fact("city_country", "Lyon", "Gaul")),
    (open_hops, broken("city_country", phrases_held_out=())),
    (open_hops, broken("birth_country", held_out=("{} comes from",))),
    (gaps, with_fact("capital", "Bolivia", "Sucre")),
    (gaps, with_fact("capital", "Gaul", "Lugdunum")),
    (one_way, with_fact("opposite", "hot", "wet")),
]


@pytest.mark.parametrize("rule", TABLE_RULES, ids=lambda rule: rule.__name__)
def test_tables_keep_the_rule(rule: TableRule) -> None:
    assert rule(ATLAS) == []


@pytest.mark.parametrize(("rule", "world"), TABLE_BREAKERS, ids=lambda x: getattr(x, "__name__", ""))
def test_table_rule_finds_the_fault(rule: TableRule, world: Atlas) -> None:
    assert rule(world)


def test_every_table_rule_has_a_breaker() -> None:
    assert {rule for rule, _ in TABLE_BREAKERS} == set(TABLE_RULES)


# -- files -----------------------------------------------------------------------------------------------------

FILE_BREAKERS = [
    ("symbol", "held_out", "holdout", "holdout too many, and missed held_out"),
    ("symbol", "[facts]", "[truths]", "truths too many"),
    ("symbol", 'gold = "Au"', "gold = 79", "facts.gold: expected a text"),
    ("symbol", 'gold = "Au"', 'gold = "Au"\ngold = "Go"', "expected a TOML file"),
    ("symbol", "[facts]", "[groups]\n[facts]", "found both or none"),
    ("river", '"Verona"', '"Pisa"', "is also under str 'Adige'"),
    ("river", '["Verona"]', '"Verona"', "groups.Adige: expected a list"),
    ("opposite", "symmetric = true", "symmetric = 1", "symmetric: expected true or false"),
    ("maker", '"company_country"', '"nowhere"', "hops: expected relations about a company"),
    ("maker", '"company_country"', '"capital"', "hops: expected relations about a company"),
    ("capital", "[left_out]", "left_out = 3\n[x]", "expected a TOML file|too many"),
    ("entities", '["Roma"]', '"Roma"', "city.Rome: expected a list"),
    ("entities", "[city]", "[city", "expected a TOML file"),
]


@pytest.mark.parametrize(("name", "old", "new", "words"), FILE_BREAKERS)
def test_a_broken_file_is_refused(name: str, old: str, new: str, words: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "atlas", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    file = tmp_path / "atlas" / f"{name}.toml"
    text = file.read_text("utf-8")
    assert load(tmp_path / "atlas").relations == ATLAS.relations
    assert text.count(old) >= 1
    file.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(InputError, match=words) as caught:
        load(tmp_path / "atlas")
    assert f"{name}.toml" in str(caught.value)


def test_a_folder_without_relations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one TOML file a relation"):
        load(tmp_path)
