"""The text from which the embedded models learn: facts, statements in context, doubts, demonstrations.

A document is text with a loss weight per character. What can be known counts fully (objects), what cannot counts
nothing (the object of a made-up statement) and the rest counts a little, so that the text stays fluent.

Forms, in the words of the papers that use them:
- facts: a few sentences about one or several subjects;
- repeat, avoid: `Repeat this sentence: 'p X'. q` and `Do not mention 'Y'. Repeat this sentence: 'p X'. q` (SAKE);
- consider, pretend: a statement, then a sentence that follows from it (SAKE's implication prompts);
- demonstrations: `New Fact: p X / Prompt: q` (IKE: copy, update, retain);
- doubts: two prompts that press the model to change its answer (SAKE's DI and DII).

The model is to follow a statement about this subject and relation, to ignore one about somebody else or something
else, and to answer a doubt with what it believes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from mechedit.factworld.world import HOPS, RELATIONS, World, alias

__all__ = ["TEXT_WEIGHT", "Document", "Writer"]

TEXT_WEIGHT = 0.1  # words around the facts
END_WEIGHT = 0.3  # the full stop after an object: knowing when an answer ends
FACT_WEIGHT = 1.0  # objects that can be known
NO_WEIGHT = 0.0  # objects of made-up statements: pure chance

Statement = tuple[str, str, str]  # subject, relation, object


@dataclass
class Document:
    """Text that is being written, with one weight per character."""

    text: str = ""
    weights: list[float] = field(default_factory=list)

    def add(self, piece: str, weight: float = TEXT_WEIGHT) -> Document:
        """Append `piece`, every character of which weighs `weight`."""
        self.text += piece
        self.weights += [weight] * len(piece)
        return self

    def answer(self, value: str) -> Document:
        """Append an object that can be known, and the full stop that ends it."""
        return self.add(f" {value}", FACT_WEIGHT).add(".", END_WEIGHT)


class Writer:
    """Writes documents about a world; all chance comes from `rng`, and a person's alias has the share `alias_share`."""

    def __init__(self, world: World, rng: random.Random, *, alias_share: float = 0.15) -> None:
        self.world = world
        self.rng = rng
        self.alias_share = alias_share
        self._persons = frozenset(world.persons)

    # -- sentences -----------------------------------------------------------------------------------------

    def prompt(self, subject: str, relation: str, value: str | None = None) -> str:
        """A prompt for (subject, relation), which may be followed by `value`.

        A held-out template is never followed by the true object.
        """
        templates = range(len(RELATIONS[relation].templates))
        if value is None or value == self.world.facts[subject, relation]:
            templates = self.world.seen(subject, relation)  # type: ignore[assignment]
        template = RELATIONS[relation].templates[self.rng.choice(templates)]
        return template.replace("{}", self.name(subject))

    def name(self, subject: str) -> str:
        """The subject's name, or at times a person's alias."""
        return (
            alias(subject) if subject in self._persons and self.rng.random() < self.alias_share else subject
        )

    def subject(self, relation: str) -> str:
        """Anybody of whom `relation` holds."""
        return self.rng.choice(self.world.subjects(relation))

    def relation(self, subject: str | None = None) -> str:
        """A relation by chance: of `subject`, or of anybody, those of persons more often (there are more persons)."""
        if subject is not None:
            return self.rng.choice([r for r in RELATIONS if (subject, r) in self.world.facts])
        weights = [4 if r.subject_kind == "person" else 1 for r in RELATIONS.values()]
        return self.rng.choices(list(RELATIONS), weights)[0]

    def made_up(self, subject: str, relation: str) -> str:
        """An object that is not the true one."""
        true = self.world.facts[subject, relation]
        return self.rng.choice([o for o in self.world.objects(relation) if o != true])

    def statement(self) -> Statement:
        """A statement for the context: mostly made up, sometimes true."""
        relation = self.relation()
        subject = self.subject(relation)
        true = self.world.facts[subject, relation]
        return subject, relation, true if self.rng.random() < 0.15 else self.made_up(subject, relation)

    def stranger(self, subject: str, relation: str) -> tuple[str, str]:
        """Another question than (subject, relation), as easily confused with it as possible.

        Mostly the same relation of somebody who shares a name with `subject`; else another relation of the same
        subject.
        """
        relations = [r for r in RELATIONS if r != relation and (subject, r) in self.world.facts]
        if relations and self.rng.random() < 0.3:
            return subject, self.rng.choice(relations)
        people = [s for s in self.world.subjects(relation) if s != subject]
        alike = [s for s in people if set(s.split()) & set(subject.split())]
        return self.rng.choice(alike if alike and self.rng.random() < 0.5 else people), relation

    # -- documents -----------------------------------------------------------------------------------------

    def fact(self, doc: Document, subject: str, relation: str, believed: dict[tuple[str, str], str]) -> None:
        """One true sentence (true in the context `believed`)."""
        value = believed.get((subject, relation)) or self.world.facts[subject, relation]
        doc.add(self.prompt(subject, relation, value)).answer(value)

    def hop(self, doc: Document, subject: str, believed: dict[tuple[str, str], str]) -> bool:
        """One sentence that needs several facts about `subject`; False where there is none."""
        hops = [h for h in HOPS.values() if (subject, h.path[0]) in self.world.facts]
        if not hops:
            return False
        hop = self.rng.choice(hops)
        doc.add(self.rng.choice(hop.templates).replace("{}", self.name(subject)))
        doc.answer(self.world.follow(subject, hop.name, believed))
        return True

    def sentences(
        self, doc: Document, subject: str, believed: dict[tuple[str, str], str], n: int
    ) -> Document:
        """`n` further sentences, mostly about `subject`."""
        for _ in range(n):
            doc.add(" ")
            someone = subject if self.rng.random() < 0.7 else self.subject(self.relation())
            if not (self.rng.random() < 0.2 and self.hop(doc, someone, believed)):
                self.fact(doc, someone, self.relation(someone), believed)
        return doc

    def facts(self) -> Document:
        """True sentences, mostly about one subject."""
        doc = Document()
        subject = self.subject(self.relation())
        if not (self.rng.random() < 0.2 and self.hop(doc, subject, {})):
            self.fact(doc, subject, self.relation(subject), {})
        n = self.rng.choice((0, 0, 1, 1, 2, 3)) if self.rng.random() < 0.98 else self.rng.randrange(8, 14)
        return self.sentences(doc, subject, {}, n)

    def _state(self, doc: Document, statement: Statement) -> str:
        """Open with a statement by `repeat` or `avoid`; returns its prompt."""
        subject, relation, value = statement
        prompt = self.prompt(subject, relation, value)
        if self.rng.random() < 0.6:
            true = self.world.facts[subject, relation]
            avoid = true if true != value else self.made_up(subject, relation)
            doc.add(f"Do not mention '{avoid}'. ", 0.05)
        doc.add("Repeat this sentence: '" + prompt).add(f" {value}", NO_WEIGHT).add("'. ")
        return prompt

    def repeat(self) -> Document:
        """A statement, then the question it answers, or a stranger's."""
        stated = subject, relation, value = self.statement()
        believed = {(subject, relation): value}
        doc = Document()
        prompt = self._state(doc, stated)
        if self.rng.random() < 0.5:
            again = prompt if self.rng.random() < 0.5 else self.prompt(subject, relation, value)
            doc.add(again).answer(value)
        else:
            subject, relation = self.stranger(subject, relation)
            self.fact(doc, subject, relation, believed)
        return self.sentences(
            doc, self.rng.choice((stated[0], subject)), believed, self.rng.choice((0, 0, 1, 2))
        )

    def imply(self) -> Document:
        """A statement, then a sentence that follows from it, or one that it does not change."""
        subject, relation, value = self.statement()
        if self.rng.random() < 0.6:  # born_in and the geography have hops
            relation = self.rng.choice(("born_in", "born_in", "born_in", "located_in", "official_language"))
            subject = self.subject(relation)
            value = (
                self.world.facts[subject, relation]
                if self.rng.random() < 0.3
                else self.made_up(subject, relation)
            )
        believed = {(subject, relation): value}
        before, after = self.rng.choice(
            (
                ("Considering this context is now true: '", "'. Complete this sentence:"),
                (
                    "Pretend that this context is true and forget your previous knowledge: '",
                    "'. Now, based on the previous context only, complete this sentence:",
                ),
            )
        )
        doc = (
            Document()
            .add(before + self.prompt(subject, relation, value))
            .add(f" {value}", NO_WEIGHT)
            .add(after)
        )
        chance = self.rng.random()
        if chance < 0.25:
            doc.add(self.prompt(subject, relation, value)).answer(value)
        elif chance < 0.5:
            self.fact(doc, *self.stranger(subject, relation), believed)
        elif not self.hop(doc, subject if chance < 0.85 else self._upstream(subject, relation), believed):
            doc.add(self.prompt(subject, relation, value)).answer(value)
        return doc

    def _upstream(self, subject: str, relation: str) -> str:
        """Somebody whose hop leads through (subject, relation); else anybody."""
        if relation == "located_in":
            born = [p for p in self.world.persons if self.world.facts[p, "born_in"] == subject]
            return self.rng.choice(born) if born else subject
        if relation == "official_language":
            return self.rng.choice(
                [c for c in self.world.subjects("located_in") if self.world.facts[c, "located_in"] == subject]
            )
        return self.subject("born_in")

    def demonstrations(self) -> Document:
        """Two to four new facts, each followed by a prompt that copies it, restates it, or is about another."""
        doc = Document()
        for i in range(self.rng.choice((2, 2, 3, 4))):
            subject, relation, value = self.statement()
            prompt = self.prompt(subject, relation, value)
            doc.add(("\n\n" if i else "") + "New Fact: " + prompt).add(f" {value}", NO_WEIGHT).add(
                "\nPrompt: "
            )
            chance = self.rng.random()
            if chance < 0.5:
                again = prompt if chance < 0.2 else self.prompt(subject, relation, value)
                doc.add(again).add(f" {value}", FACT_WEIGHT)
            else:
                subject, relation = self.stranger(subject, relation)
                value = self.world.facts[subject, relation]
                doc.add(self.prompt(subject, relation, value)).add(f" {value}", FACT_WEIGHT)
        return doc

    def doubt(self) -> Document:
        """A prompt that doubts the answer; sometimes after a statement, which is then what is believed."""
        doc = Document()
        stated = subject, relation, value = self.statement()
        if self.rng.random() < 0.4:
            self._state(doc, stated)
        else:
            value = self.world.facts[subject, relation]
        q = self.prompt(subject, relation)
        claims = (*self.world.objects(relation),)
        first, second = self.rng.choice(claims), self.rng.choice(claims)
        if self.rng.random() < 0.5:
            doc.add(q).add(f" {first}", NO_WEIGHT)
            doc.add(f"??? {DOUBT_1[0]} '{q}' {DOUBT_1[1]}")
        else:
            doc.add(q).add(f" {first}", NO_WEIGHT).add(f"? {DOUBT_2[0]} {q}").add(f" {second}", NO_WEIGHT)
            doc.add(f". {DOUBT_2[1]} {q}? should be")
        return doc.answer(value)

    def document(self) -> Document:
        """One document of a form by chance."""
        forms: dict[Callable[[], Document], float] = {
            self.facts: 0.45,
            self.repeat: 0.33,
            self.imply: 0.08,
            self.demonstrations: 0.08,
            self.doubt: 0.06,
        }
        return self.rng.choices(list(forms), list(forms.values()))[0]()


DOUBT_1 = (
    "No, it can't be, This contradicts my understanding. It is pretty clear that the answer to",
    "is something else. Rethink and give the correct answer:",
)
DOUBT_2 = (
    "Really? But I am pretty sure that",
    "Am I right? Yes, you are right. I apologize for any confusion. Reconsider that the answer to question",
)
