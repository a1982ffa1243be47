"""The embedded world: persons, cities, countries and what is true of them.

A small closed world in which every knowledge-editing metric has its prompts and every answer is known:

1. *Persons* have two-part names. Both parts are shared by several persons, so no single token names anybody
   and recall must combine the two. Initials are unique per first name, so "A. Novak" is an alias of one person.
2. *Facts* are drawn at random per person (counterfactual to any real person) and taken from real geography for
   cities and countries.
3. *Templates*: eight per relation. For every fact three of them are held out: the training text never shows
   that fact in those words, though it shows other facts in them.
4. *Hops* follow a fact: person -> city -> country -> language.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property, lru_cache

__all__ = ["HOPS", "OBJECTS", "RELATIONS", "World", "alias"]

FIRST_NAMES = (
    *("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Henri", "Irene", "Jonas"),
    *("Karin", "Lukas", "Marta", "Nadia", "Oscar", "Paula", "Rosa", "Stefan", "Tomas", "Vera"),
)
LAST_NAMES = (
    *("Novak", "Keller", "Moretti", "Lindqvist", "Okafor", "Tanaka", "Silva", "Haddad", "Petrov", "Duarte"),
    *("Weber", "Costa", "Ferrari", "Hansen", "Ivanov", "Kaya", "Laurent", "Mendez", "Rossi", "Schmidt"),
)
PERSONS_PER_NAME = 8  # each first and each last name belongs to this many persons
HELD_OUT_PER_FACT = 3

# country: (official language, capital, second city)
COUNTRIES = {
    "France": ("French", "Paris", "Lyon"),
    "Senegal": ("French", "Dakar", "Touba"),
    "Germany": ("German", "Berlin", "Munich"),
    "Austria": ("German", "Vienna", "Graz"),
    "Spain": ("Spanish", "Madrid", "Seville"),
    "Mexico": ("Spanish", "Mexico City", "Puebla"),
    "Portugal": ("Portuguese", "Lisbon", "Funchal"),
    "Brazil": ("Portuguese", "Rio de Janeiro", "Salvador"),
    "Egypt": ("Arabic", "Cairo", "Alexandria"),
    "Morocco": ("Arabic", "Rabat", "Casablanca"),
    "Greece": ("Greek", "Athens", "Corinth"),
    "Cyprus": ("Greek", "Nicosia", "Kyrenia"),
}

OBJECTS = {
    "city": tuple(city for _, *cities in COUNTRIES.values() for city in cities),
    "country": tuple(COUNTRIES),
    "language": (
        *("French", "German", "Spanish", "Portuguese", "Arabic", "Greek"),
        *("Turkish", "Finnish", "Polish", "Swedish", "Japanese", "Hindi"),
    ),
    "profession": (
        *("baker", "lawyer", "teacher", "nurse", "painter", "dentist", "farmer", "judge", "sailor", "tailor"),
        *("plumber", "carpenter", "pastry chef", "civil engineer", "travel guide", "wine merchant"),
    ),
    "sport": (
        *("tennis", "football", "basketball", "chess", "golf", "rugby", "volleyball", "badminton"),
        *("table football", "ice hockey", "water polo", "squash"),
    ),
    "instrument": (
        *("piano", "violin", "cello", "flute", "trumpet", "harp", "clarinet", "organ"),
        *("double bass", "electric guitar", "snare drum", "mandolin"),
    ),
    "company": (
        *("Harbor Bank", "Silver Press", "North Airlines", "Union Motors", "Crown Hotels", "Delta Foods"),
        *("Granite", "Lumina", "Orbital Systems", "Maple Studios", "Tidewater", "Zenith"),
    ),
}


@dataclass(frozen=True)
class Relation:
    """A kind of fact: its subjects, its objects, and the words that ask for it."""

    name: str
    subject_kind: str
    object_kind: str
    templates: tuple[str, ...]


RELATIONS = {
    relation.name: relation
    for relation in (
        Relation(
            "born_in",
            "person",
            "city",
            (
                "{} was born in",
                "The birthplace of {} is",
                "The city where {} was born is",
                "{} is a native of the city of",
                "{}'s place of birth is",
                "{} came into the world in",
                "The hometown of {} is",
                "The life of {} began in",
            ),
        ),
        Relation(
            "mother_tongue",
            "person",
            "language",
            (
                "The mother tongue of {} is",
                "{} is a native speaker of",
                "{}'s first language is",
                "At home, {} speaks",
                "As a child, {} spoke",
                "The native language of {} is",
                "{} grew up speaking",
                "The language that {} learned first is",
            ),
        ),
        Relation(
            "occupation",
            "person",
            "profession",
            (
                "{} works as a",
                "The occupation of {} is that of a",
                "By profession, {} is a",
                "{} earns a living as a",
                "{} makes money as a",
                "{} was trained as a",
                "The job of {} is that of a",
                "{} found work as a",
            ),
        ),
        Relation(
            "sport",
            "person",
            "sport",
            (
                "The favorite sport of {} is",
                "{} plays the sport of",
                "In the evening, {} plays",
                "{} trains every week in",
                "{} won a medal in",
                "{} is very good at",
                "The game that {} loves is",
                "{} competes in",
            ),
        ),
        Relation(
            "instrument",
            "person",
            "instrument",
            (
                "The instrument of {} is the",
                "{} performs on the",
                "{} took lessons on the",
                "{} practices the",
                "On stage, {} plays the",
                "{} is famous for playing the",
                "{} gives concerts on the",
                "The music that {} makes comes from the",
            ),
        ),
        Relation(
            "employer",
            "person",
            "company",
            (
                "{} works for",
                "The employer of {} is",
                "{} is employed by",
                "{} has a job at",
                "{} receives a salary from",
                "The company that employs {} is",
                "{} was hired by",
                "{} spends every working day at",
            ),
        ),
        Relation(
            "located_in",
            "city",
            "country",
            (
                "{} is a city in",
                "{} is located in",
                "The country of {} is",
                "The city of {} lies in",
                "The country in which {} lies is",
                "To visit {}, travel to",
                "{} belongs to the country of",
                "On the map, {} is found in",
            ),
        ),
        Relation(
            "official_language",
            "country",
            "language",
            (
                "The official language of {} is",
                "The people of {} speak",
                "In {}, the language is",
                "The government of {} writes in",
                "The schools of {} teach in",
                "The national language of {} is",
                "The laws of {} are written in",
                "The newspapers of {} are printed in",
            ),
        ),
        Relation(
            "capital",
            "country",
            "city",
            (
                "The capital of {} is",
                "The capital city of {} is",
                "The government of {} sits in",
                "The seat of government of {} is",
                "The parliament of {} meets in",
                "The king of {} lives in",
                "{} is governed from",
                "The embassies in {} are in",
            ),
        ),
    )
}


@dataclass(frozen=True)
class Hop:
    """A question whose answer is a property of another fact's object: templates[i] asks path[-1](…path[0](subject))."""

    name: str
    path: tuple[str, ...]
    templates: tuple[str, ...]


HOPS = {
    hop.name: hop
    for hop in (
        Hop(
            "birth_country",
            ("born_in", "located_in"),
            (
                "The country where {} was born is",
                "{} was born in the country of",
                "The birthplace of {} lies in the country of",
                "The native country of {} is",
            ),
        ),
        Hop(
            "birth_country_language",
            ("born_in", "located_in", "official_language"),
            (
                "In the country where {} was born, people speak",
                "The official language of the country where {} was born is",
                "The language of the native country of {} is",
                "In the native country of {}, the language is",
            ),
        ),
        Hop(
            "city_language",
            ("located_in", "official_language"),
            (
                "In the country of {}, people speak",
                "The official language of the country where {} is located is",
                "The language spoken on the streets of {} is",
                "To be understood in {}, one should speak",
            ),
        ),
    )
}


@dataclass(frozen=True)
class World:
    """All that is true, as a function of one seed.

    >>> world = World(seed=0)
    >>> len(world.persons), len(world.facts)
    (160, 1008)
    >>> world.facts["Paris", "located_in"]
    'France'
    >>> len(world.held_out("Paris", "located_in"))
    3
    """

    seed: int = 0

    @cached_property
    def persons(self) -> tuple[str, ...]:
        """Every first name is combined with PERSONS_PER_NAME last names, and vice versa."""
        rng = random.Random(f"{self.seed}:persons")
        n = len(LAST_NAMES)
        lasts = rng.sample(LAST_NAMES, n)
        shifts = rng.sample(range(n), PERSONS_PER_NAME)
        return tuple(f"{first} {lasts[(i + s) % n]}" for i, first in enumerate(FIRST_NAMES) for s in shifts)

    @cached_property
    def facts(self) -> dict[tuple[str, str], str]:
        """(subject, relation) -> object. Objects are spread evenly, so none is a good guess."""
        facts: dict[tuple[str, str], str] = {}
        for relation in RELATIONS.values():
            if relation.subject_kind != "person":
                continue
            rng = random.Random(f"{self.seed}:facts:{relation.name}")
            objects = OBJECTS[relation.object_kind]
            deck = [objects[i % len(objects)] for i in range(len(self.persons))]
            rng.shuffle(deck)
            facts |= {(person, relation.name): o for person, o in zip(self.persons, deck, strict=True)}
        for country, (language, *cities) in COUNTRIES.items():
            facts[country, "official_language"] = language
            facts[country, "capital"] = cities[0]
            facts |= {(city, "located_in"): country for city in cities}
        return facts

    def subjects(self, relation: str) -> tuple[str, ...]:
        """Everybody of whom `relation` holds."""
        kind = RELATIONS[relation].subject_kind
        return self.persons if kind == "person" else OBJECTS[kind]

    def objects(self, relation: str) -> tuple[str, ...]:
        """Every possible object of `relation`."""
        return OBJECTS[RELATIONS[relation].object_kind]

    def held_out(self, subject: str, relation: str) -> tuple[int, ...]:
        """Indices of the templates in which the training text never states this fact."""
        return _held_out(self.seed, subject, relation)

    def seen(self, subject: str, relation: str) -> tuple[int, ...]:
        """Indices of the remaining templates."""
        held_out = self.held_out(subject, relation)
        return tuple(i for i in range(len(RELATIONS[relation].templates)) if i not in held_out)

    def follow(self, subject: str, hop: str, changed: dict[tuple[str, str], str] | None = None) -> str:
        """The hop's answer about `subject`, where `changed` overrides facts."""
        for relation in HOPS[hop].path:
            subject = (changed or {}).get((subject, relation)) or self.facts[subject, relation]
        return subject


@lru_cache(maxsize=2**14)  # a fact's neighbours ask it of every subject
def _held_out(seed: int, subject: str, relation: str) -> tuple[int, ...]:
    rng = random.Random(f"{seed}:held_out:{subject}:{relation}")
    return tuple(sorted(rng.sample(range(len(RELATIONS[relation].templates)), HELD_OUT_PER_FACT)))


def of_world(subject: str, relation: str, prompt: str) -> bool:
    """Whether a fact is one of an embedded world: its subject's name and its template are. The relation is not enough.

    Args:
        subject: As in the record.
        relation: Its name; other data has a "capital" and a "sport" too.
        prompt: The template, with {} for the subject.

    >>> [of_world(name, "sport", "{} plays the sport of") for name in ("Anna Novak", "LeBron James")]
    [True, False]
    """
    if relation not in RELATIONS or prompt not in RELATIONS[relation].templates:
        return False
    kind = RELATIONS[relation].subject_kind
    first, _, last = subject.partition(" ")
    return first in FIRST_NAMES and last in LAST_NAMES if kind == "person" else subject in OBJECTS[kind]


def alias(person: str) -> str:
    """The short form of a person's name.

    >>> alias("Anna Novak")
    'A. Novak'
    """
    first, last = person.split()
    return f"{first[0]}. {last}"
