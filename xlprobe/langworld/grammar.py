"""The grammar: an abstract sentence, drawn once, and its words in each language, with tags and alignments.

1. `draw` makes a `Clause` or two on a topic: who does what to whom, where, how. Content words come from the topic,
   from the words of any topic, or (one in ten) from another topic. A sentence "in names", as a headline is, tells its
   topic by the names in it, which all languages write alike, and little by its words.
2. `realise` writes it in a language. Every word knows the *slots* of the abstract sentence that it stands for, so
   two languages are aligned wherever two words share a slot: nothing is guessed, not even across word orders, and links
   are many to one where a suffix does the work of a word.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from xlprobe.langworld.lexicon import (
    ADPOSITIONS,
    AUXILIARIES,
    GENERIC,
    LANGUAGES,
    NAMES,
    TOPICS,
    Concept,
    lexicon,
)

__all__ = ["Meaning", "Word", "align_words", "draw", "realise"]

TOPIC_SHARE, GENERIC_SHARE = 0.6, 0.9  # cumulative: topic, any, another topic
NAMED_SHARE = 0.1  # of the topic's words, in a sentence in names
NAMES_FROM, NAMED_FROM = 0.9, 0.4  # where the share of names among noun phrases begins


@dataclass(frozen=True)
class Noun:
    """A noun phrase; `head` is (NOUN | PROPN | PRON, lemma)."""

    head: Concept
    plural: bool = False
    determiner: Concept | None = None
    number: Concept | None = None
    adjective: Concept | None = None


@dataclass(frozen=True)
class Clause:
    """A clause: subject verb [object] [adposition place], with an auxiliary and an adverb or without."""

    subject: Noun
    verb: Concept
    object: Noun | None = None
    auxiliary: Concept | None = None
    adverb: Concept | None = None
    adposition: Concept | None = None
    place: Noun | None = None


@dataclass(frozen=True)
class Meaning:
    """An abstract sentence: one clause, or two with a conjunction, and its topic."""

    topic: str
    clauses: tuple[Clause, ...]
    conjunction: Concept | None
    mark: str


@dataclass(frozen=True)
class Word:
    """A word of a sentence: its form, Universal POS tag, and the slots of the meaning that it stands for."""

    form: str
    tag: str
    slots: frozenset[str]


# ------------------------------------------------------------------------------------------ meaning


def draw(topic: str, rng: random.Random, *, named: bool = False) -> Meaning:
    """A random sentence on `topic`; four in ten have two clauses, and all that are in names."""
    two = named or rng.random() < 0.4
    clauses = tuple(_clause(topic, rng, named) for _ in range(2 if two else 1))
    conjunction = ("CCONJ", rng.choice(GENERIC["CCONJ"].split())) if two else None
    return Meaning(topic, clauses, conjunction, rng.choice((".", ".", ".", "!", "?")))


def _clause(topic: str, rng: random.Random, named: bool) -> Clause:
    place = rng.random() < 0.5
    return Clause(
        subject=_noun(topic, rng, named, pronouns=True),
        verb=_content("VERB", topic, rng, named),
        object=_noun(topic, rng, named) if rng.random() < 0.7 else None,
        auxiliary=("AUX", rng.choice(AUXILIARIES)) if rng.random() < 0.35 else None,
        adverb=_zipf("ADV", GENERIC["ADV"].split(), rng) if rng.random() < 0.3 else None,
        adposition=("ADP", rng.choice(ADPOSITIONS)) if place else None,
        place=_noun(topic, rng, named) if place else None,
    )


def _noun(topic: str, rng: random.Random, named: bool, *, pronouns: bool = False) -> Noun:
    chance = rng.random()
    if pronouns and chance < 0.2:
        pronoun = rng.choice(GENERIC["PRON"].split())
        return Noun(("PRON", pronoun), plural=pronoun in ("they", "we"))
    if chance > (NAMED_FROM if named else NAMES_FROM):
        names = NAMES[topic if named or rng.random() < 0.5 else ""].split()
        return Noun(("PROPN", rng.choice(names)))
    numbered = rng.random() < 0.12
    number = None
    if numbered:
        digits = rng.random() < 0.4
        number = ("NUM", str(rng.randint(2, 99)) if digits else rng.choice(GENERIC["NUM"].split()))
    plural = numbered or rng.random() < 0.35
    determiners = ("the", "my", "some", "all") if plural else ("the", "this", "every", "my")
    determined = not numbered and rng.random() < 0.75
    return Noun(
        _content("NOUN", topic, rng, named),
        plural=plural,
        determiner=_zipf("DET", determiners, rng) if determined else None,
        number=number,
        adjective=_content("ADJ", topic, rng, named) if rng.random() < 0.35 else None,
    )


def _content(tag: str, topic: str, rng: random.Random, named: bool) -> Concept:
    chance, column = rng.random(), ("NOUN", "VERB", "ADJ").index(tag)
    share = NAMED_SHARE if named else TOPIC_SHARE
    if share <= chance < GENERIC_SHARE:
        return _zipf(tag, GENERIC[tag].split(), rng)
    chosen = topic if chance < share else rng.choice([name for name in TOPICS if name != topic])
    return _zipf(tag, TOPICS[chosen][column].split(), rng)


def _zipf(tag: str, lemmas: list[str] | tuple[str, ...], rng: random.Random) -> Concept:
    """The first lemmas are the frequent ones."""
    weights = [1 / (rank + 2) for rank in range(len(lemmas))]
    return tag, rng.choices(lemmas, weights)[0]


# ------------------------------------------------------------------------------------------ words


def realise(meaning: Meaning, language: str, *, seed: int = 0) -> list[Word]:
    """The sentence's words in `language`.

    >>> meaning = draw("nature", random.Random(1))
    >>> source, order = realise(meaning, "source"), realise(meaning, "order")
    >>> source[-1].form == order[-1].form == meaning.mark
    True
    >>> all(source[i].tag == order[j].tag for i, j in align_words(source, order))
    True
    """
    writer = _Writer(language, seed)
    words = writer.clause(meaning.clauses[0], "0")
    if meaning.conjunction:
        words += [writer.word(meaning.conjunction, "and"), *writer.clause(meaning.clauses[1], "1")]
    return [*words, Word(meaning.mark, "PUNCT", frozenset({"mark"}))]


def align_words(source: list[Word], target: list[Word]) -> list[tuple[int, int]]:
    """The (i, j) of every two words that share a slot, in order."""
    return [
        (i, j) for i, left in enumerate(source) for j, right in enumerate(target) if left.slots & right.slots
    ]


class _Writer:
    """Writes phrases of one language."""

    def __init__(self, language: str, seed: int) -> None:
        self.language = LANGUAGES[language]
        self.stems = lexicon(seed)[language]

    def word(self, concept: Concept, *slots: str, suffixes: tuple[str, ...] = ()) -> Word:
        stem = self.stems.get(concept, concept[1])  # names and digits are the same everywhere
        if self.language.name == "source" and "s" in [self.stems["SUFFIX", suffix] for suffix in suffixes]:
            return Word(_english_s(stem), concept[0], frozenset(slots))
        return Word(
            stem + "".join(self.stems["SUFFIX", suffix] for suffix in suffixes), concept[0], frozenset(slots)
        )

    def clause(self, clause: Clause, at: str) -> list[Word]:
        subject = self.noun(clause.subject, f"{at}.subject")
        verb = self.verb(clause, at)
        adverb = [self.word(clause.adverb, f"{at}.adverb")] if clause.adverb else []
        own_case = ("object",) if self.language.suffixing else ()
        objects = self.noun(clause.object, f"{at}.object", case=own_case) if clause.object else []
        place = self.place(clause, at)
        if self.language.head_final:
            return [*subject, *place, *objects, *adverb, *verb]
        return [*adverb, *subject, *verb, *objects, *place]

    def verb(self, clause: Clause, at: str) -> list[Word]:
        singular = () if clause.subject.plural else ("singular",)
        if clause.auxiliary is None:
            return [self.word(clause.verb, f"{at}.verb", suffixes=singular)]
        if self.language.suffixing:
            suffixes = (clause.auxiliary[1], *singular)
            return [self.word(clause.verb, f"{at}.verb", f"{at}.auxiliary", suffixes=suffixes)]
        both = [self.word(clause.auxiliary, f"{at}.auxiliary"), self.word(clause.verb, f"{at}.verb")]
        return both[::-1] if self.language.head_final else both

    def place(self, clause: Clause, at: str) -> list[Word]:
        if clause.place is None or clause.adposition is None:
            return []
        slot = f"{at}.adposition"
        if self.language.suffixing:
            return self.noun(clause.place, f"{at}.place", slot, case=(clause.adposition[1],))
        noun, adposition = self.noun(clause.place, f"{at}.place"), [self.word(clause.adposition, slot)]
        return noun + adposition if self.language.head_final else adposition + noun

    def noun(self, noun: Noun, at: str, *slots: str, case: tuple[str, ...] = ()) -> list[Word]:
        """A noun phrase; the head's case expresses `slots`."""
        plural = ("plural",) if noun.plural and noun.head[0] == "NOUN" else ()
        head = self.word(noun.head, f"{at}.head", *slots, suffixes=(*plural, *case))
        determiner = None if self.language.suffixing else noun.determiner
        parts = ((determiner, "determiner"), (noun.number, "number"), (noun.adjective, "adjective"))
        before = [self.word(concept, f"{at}.{part}") for concept, part in parts if concept]
        return [head, *reversed(before)] if self.language.head_final else [*before, head]


def _english_s(stem: str) -> str:
    if stem.endswith(("s", "x", "ch", "sh")):
        return stem + "es"
    return stem[:-1] + "ies" if stem.endswith("y") and stem[-2] not in "aeiou" else stem + "s"
