"""What is asked of a model about a fact: every prompt once, and which of them a family of metrics reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from mechedit.data import prompts
from mechedit.data.records import FactEdit
from mechedit.evaluation.other_relations import other_relations

__all__ = ["FAMILIES", "N_PASSAGES", "TO_STAY", "FactQuestions", "Question"]

#: The roles of prompts that a family scores; the texts of "generation" are no scored prompts
#: (`mechedit.evaluation.fluency`).
FAMILIES: dict[str, tuple[str, ...]] = {
    "probability": ("rewrite", "paraphrase", "neighborhood"),
    "argmax": ("rewrite", "paraphrase", "neighborhood"),
    "token": ("rewrite", "paraphrase", "neighborhood"),
    "doubt": ("doubt_1", "doubt_2"),
    "subject": ("other_relation",),
    "generation": (),
}
#: Roles of prompts whose answers an edit is to leave alone.
TO_STAY = ("neighborhood", "other_relation")
#: Passages of running text that every edited model reads (`mechedit.evaluation.elsewhere`).
N_PASSAGES = 24


@dataclass(frozen=True)
class Question:
    """One prompt about a fact.

    Attributes:
        role: What the prompt is for, as "paraphrase".
        index: Its place among the prompts of that role.
        prompt: The text.
        fact: The fact that it tests.
        true: The right answer before the edit: the true object, or the neighbour's own answer.
    """

    role: str
    index: int
    prompt: str
    fact: FactEdit
    true: str


@dataclass(frozen=True)
class FactQuestions:
    """A fact with all questions about it, which are made once.

    >>> fact = FactEdit("Ann", "{} speaks", "Dutch", "Greek", neighborhood_prompts=("Bob speaks",))
    >>> [(question.role, question.prompt) for question in FactQuestions(fact).read_by(["argmax"])]
    [('rewrite', 'Ann speaks'), ('neighborhood', 'Bob speaks')]
    """

    fact: FactEdit

    @cached_property
    def questions(self) -> list[Question]:
        """The questions of every role but "other_relation"."""
        fact, rewrite = self.fact, self.fact.rewrite_prompt
        texts: dict[str, tuple[str, ...]] = {
            "rewrite": (rewrite,),
            "paraphrase": fact.paraphrase_prompts,
            "neighborhood": fact.neighborhood_prompts,
            "doubt_1": (prompts.doubt(rewrite, fact.target_new, space=fact.space),),
            "doubt_2": (prompts.doubt_old(rewrite, fact.target_new, fact.target_true, space=fact.space),),
        }
        answers = {"neighborhood": fact.neighborhood_answers} if fact.neighborhood_answers else {}
        return [
            Question(role, index, prompt, fact, answers[role][index] if role in answers else fact.target_true)
            for role in texts
            for index, prompt in enumerate(texts[role])
        ]

    @cached_property
    def others(self) -> list[Question]:
        """What else is asked about the subject; the answers are the unedited model's own."""
        fact = self.fact
        texts = enumerate(other_relations(fact))
        return [Question("other_relation", index, text, fact, fact.target_true) for index, text in texts]

    def of_roles(self, roles: Iterable[str]) -> list[Question]:
        """The questions of these roles, in the order of `questions`."""
        wanted = set(roles)
        others = self.others if "other_relation" in wanted else []
        return [question for question in self.questions if question.role in wanted] + others

    def to_stay(self, families: Iterable[str]) -> list[Question]:
        """The questions whose answers are to stay as they are: neighbours, and what else these families ask."""
        read = {role for family in families for role in FAMILIES[family]}
        return self.of_roles({"neighborhood"} | read & {*TO_STAY})

    def read_by(self, families: Iterable[str]) -> list[Question]:
        """The questions that these families of metrics read, each once."""
        return self.of_roles(role for family in families for role in FAMILIES[family])
