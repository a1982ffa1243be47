"""A fact to edit, as a record: one counterfactual edit with the prompts that test it.

A `FactEdit` checks itself, so a malformed one cannot exist. `RippleTest` and `RippleQuery` are RippleEdits'
tests of what follows from an edit [Cohen et al., TACL 2024; edenbiran/RippleEdits].
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

from mechedit.data.joining import Space, check_space, gap, joined
from reports.errors import InputError

__all__ = [
    "EDIT_FIELDS",
    "Axis",
    "FactEdit",
    "RippleQuery",
    "RippleTest",
    "Unmeasurable",
    "check_text",
    "check_texts",
    "clip_line",
    "edit_fields",
    "fact_fields",
    "facts_hash",
    "normalised",
    "shown",
]

# What a saved edit keeps of its fact; the prompts that test the fact stay with whoever measures it.
EDIT_FIELDS = ("subject", "prompt", "target_true", "target_new", "case_id", "relation", "space")
# Prompts that an answer follows.
_ASKED = ("prompt", "paraphrase_prompts", "neighborhood_prompts")
# Prompts that are asked as they are.
_FILLED = ("paraphrase_prompts", "neighborhood_prompts", "generation_prompts", "attribute_prompts")
Axis = Literal["RS", "LG", "SA", "CI", "CII", "FN"]


class Unmeasurable(InputError):
    """A fact that is well-formed, but that no score could say anything about."""


@dataclass(frozen=True)
class RippleQuery:
    """A prompt and what answers it: for every target all of its names, of which one must come.

    >>> RippleQuery("Ann's country is", (("Greece", "Hellas"),)).answers
    (('Greece', 'Hellas'),)
    """

    prompt: str
    answers: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        check_text(self.prompt, "prompt")
        if not self.answers or not all(self.answers):
            raise InputError(f"answers: expected at least one name of each target, found {self.answers!r}")
        object.__setattr__(self, "answers", tuple(check_texts(names, "answers") for names in self.answers))


@dataclass(frozen=True)
class RippleTest:
    """One test of an axis: passed if some (`any_of`) or all of its queries are answered after the edit.

    Attributes:
        axis: RS relation specificity, LG logical generalisation, SA subject aliasing, CI and CII compositionality, FN
            forgetfulness.
        queries: What is asked after the edit.
        conditions: Queries that must be answered for the test to be run (`mechedit.evaluation.ripple`).
        any_of: Whether one answered query is enough.
    """

    axis: Axis
    queries: tuple[RippleQuery, ...]
    conditions: tuple[RippleQuery, ...] = ()
    any_of: bool = True

    def __post_init__(self) -> None:
        if self.axis not in get_args(Axis):
            raise InputError(f"axis: expected one of {', '.join(get_args(Axis))}, found {shown(self.axis)}")
        if not self.queries:
            raise InputError("queries: expected at least one, found none")


@dataclass(frozen=True)
class FactEdit:
    """One edit: the model shall answer `target_new` where it answers `target_true`.

    Targets are bare ("French"); whether a space goes before them is decided where they are scored.

    Attributes:
        prompt: Holds exactly one `{}`, the place of `subject`.
        neighborhood_prompts: Prompts about other subjects, which the edit must leave as they are.
        neighborhood_answers: The right answers to `neighborhood_prompts`, one each; without any they are all
            `target_true`, as in CounterFact.
        aliases: Other names of the subject.
        target_new_aliases: Other spellings of the new object.
        ripple: RippleEdits' tests.
        space: Whether a space stands between a prompt and its answer: "always", "never", or "auto", which asks both
            (`mechedit.data.joining`).
        source_schema: The schema that it was loaded from ("" if built by hand).

    Raises:
        InputError: A text is empty, the prompt has not one `{}`, another prompt still has one, or a value is of another
            type; names the field.
        Unmeasurable: The new object, or a spelling of it, is the old one: no score could tell whether the edit took.

    >>> fact = FactEdit("Danielle Darrieux", "The mother tongue of {} is", "French", "English")
    >>> fact.rewrite_prompt
    'The mother tongue of Danielle Darrieux is'
    """

    subject: str
    prompt: str
    target_true: str
    target_new: str
    _: KW_ONLY
    case_id: int | str = 0
    relation: str = ""
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    neighborhood_answers: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    attribute_prompts: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    target_new_aliases: tuple[str, ...] = ()
    ripple: tuple[RippleTest, ...] = ()
    source_schema: str = ""
    space: Space = "auto"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "ripple":
                if not all(isinstance(test, RippleTest) for test in value):
                    raise InputError(f"ripple: expected RippleTests, found {shown(value)}")
            elif isinstance(field.default, tuple):
                object.__setattr__(self, field.name, check_texts(value, field.name))
            elif field.name == "case_id":
                if isinstance(value, bool) or not isinstance(value, int | str):
                    raise InputError(f"case_id: expected an integer or a text, found {shown(value)}")
                check_text(str(value), "case_id", empty=True)
            else:
                check_text(value, field.name, empty=field.name in ("relation", "source_schema"))
        check_space(self.space)
        self._check_prompts()
        self._check_objects()

    def _check_prompts(self) -> None:
        if self.prompt.count("{}") != 1:
            raise InputError(
                f"prompt: expected one {{}} in the place of the subject, found {self.prompt.count('{}')} "
                f"in {shown(self.prompt)}; write {{}} where {shown(self.subject)} belongs"
            )
        if self.neighborhood_answers and len(self.neighborhood_answers) != len(self.neighborhood_prompts):
            raise InputError(
                f"neighborhood_answers: expected none or one for each of the {len(self.neighborhood_prompts)} "
                f"neighborhood_prompts, found {len(self.neighborhood_answers)}"
            )
        for field in _FILLED:
            for i, text in enumerate(getattr(self, field)):
                if "{}" in text:
                    raise InputError(
                        f"{field}[{i}]: expected the subject in the place of {{}}, found {shown(text)}"
                    )

    def _check_objects(self) -> None:
        old = normalised(self.target_true)
        for i, name in enumerate((self.target_new, *self.target_new_aliases)):
            if normalised(name) == old:
                field = f"target_new_aliases[{i - 1}]" if i else "target_new"
                raise Unmeasurable(
                    f"{field}: expected another object than target_true, found {shown(name)} in both"
                )
        for i, answer in enumerate(self.neighborhood_answers):
            if normalised(answer) == normalised(self.target_new):
                raise Unmeasurable(
                    f"neighborhood_answers[{i}]: expected another object than target_new, found {shown(answer)} in both"
                )

    @property
    def rewrite_prompt(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace("{}", self.subject)

    def stated(self, answer: str) -> str:
        """The rewrite prompt with an answer behind it."""
        return joined(self.rewrite_prompt, answer, self.space)


def facts_hash(facts: Sequence[FactEdit]) -> str:
    """sha256 over every field of every fact, in order: what a run's provenance says of its data.

    >>> facts_hash([]) == facts_hash([FactEdit("Ann", "{} speaks", "Dutch", "Greek")])
    False
    """
    rows = [fact_fields(fact) for fact in facts]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def fact_fields(fact: FactEdit) -> dict[str, Any]:
    """Every field of a fact as plain data, for a digest.

    `space` is left out where it changes nothing against a space before every answer, as it always was: "auto" between
    words of scripts with spaces.
    """
    fields = dataclasses.asdict(fact)
    prompts = {name: (fact.rewrite_prompt,) if name == "prompt" else getattr(fact, name) for name in _ASKED}
    answers = (fact.target_new, fact.target_true, *fact.neighborhood_answers, *fact.target_new_aliases)
    pairs = [(prompt, answer) for texts in prompts.values() for prompt in texts for answer in answers]
    if fact.space == "auto" and all(gap(*pair) == gap(*pair, "always") for pair in pairs):
        del fields["space"]
    return fields


def edit_fields(fact: FactEdit) -> dict[str, Any]:
    """What a saved edit keeps of its fact; `FactEdit(**...)` makes it again."""
    fields = {name: getattr(fact, name) for name in EDIT_FIELDS}
    return {name: value for name, value in fields.items() if (name, value) != ("space", "auto")}


def normalised(text: str) -> str:
    """`text` in Unicode's composed form (NFC), white space single and none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def check_text(value: Any, field: str, *, empty: bool = False) -> str:
    """`value`, if it is a text that a tokenizer can read; else `InputError` naming `field`."""
    if not isinstance(value, str):
        raise InputError(f"{field}: expected a text, found {shown(value)}")
    if not empty and not value.strip():
        raise InputError(f"{field}: expected a text, found an empty one ({value!r})")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair; no tokenizer can read it
        raise InputError(f"{field}: expected valid Unicode, found {shown(value)}") from error
    return value


def check_texts(value: Any, field: str) -> tuple[str, ...]:
    """A list of texts as a tuple; else `InputError` naming `field` and the item."""
    if not isinstance(value, list | tuple):
        raise InputError(f"{field}: expected a list of texts, found {shown(value)}")
    return tuple(check_text(item, f"{field}[{i}]") for i, item in enumerate(value))


def shown(value: object) -> str:
    """Type and value in one line of an error."""
    return f"{type(value).__name__} {clip_line(ascii(value) if isinstance(value, str) else repr(value))}"


def clip_line(text: str) -> str:
    """`text` in one line of at most 70 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 70 else text[:69] + "…"
