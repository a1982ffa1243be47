"""One row of a published data set as a `FactEdit`.

- counterfact [kmeng01/rome].
- easyedit [zjunlp/EasyEdit], CounterFact made flat: its rephrase prompt is one of CounterFact's generation prompts.
  KnowEdit's rows are of this kind: the true object may be a list of names, and neighbours lie in `locality`, by kind.
- zsre [MEND's slices, in zjunlp/EasyEdit]: the new object is `alt`, the true one `answers[0]`; the neighbour is an
  unrelated question (`loc`) with an answer of its own. (ROME's loader edits towards `answers[0]` instead.)
- ripple [edenbiran/RippleEdits]: names of subject and objects are not in the file, only Wikidata ids; they are read
  off the prompts (`edit.subject`, where a file has it, says the subject's name).

- fact: this project's own, the fields of `FactEdit`; `prompt` holds {} or the subject. What `save_facts` writes.

A row that is not as its schema says is an `InputError` that names the field. Any row may have a `case_id` (else it is
the row's number) and say how its answers are spaced (`space`).
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from mechedit.data.records import (
    Axis,
    FactEdit,
    RippleQuery,
    RippleTest,
    Unmeasurable,
    check_text,
    check_texts,
    clip_line,
    normalised,
    shown,
)
from mechedit.data.rows import Row, at, check_object, flat, listed, one_or_more, optional, text_at, texts
from reports.errors import InputError

__all__ = ["AXES", "BUILDERS", "Schema", "asked_neighbours", "detect", "from_row"]

Schema = Literal["counterfact", "easyedit", "ripple", "zsre", "fact"]
_DETECTED_BY: dict[str, Schema] = {
    "requested_rewrite": "counterfact",
    "target_true": "fact",
    "ground_truth": "easyedit",
    "target_new": "easyedit",
    "edit": "ripple",
    "alt": "zsre",
}
# The axes as the files spell them: the first one is spelt in both ways.
AXES: dict[str, Axis] = {
    "Relation_Specifity": "RS",
    "Relation_Specificity": "RS",
    "Logical_Generalization": "LG",
    "Subject_Aliasing": "SA",
    "Compositionality_I": "CI",
    "Compositionality_II": "CII",
    "Forgetfulness": "FN",
}


def detect(row: Any, source: str) -> Schema:
    """The schema of a file.

    Args:
        row: The first row.
        source: The file, as errors name it.

    Raises:
        InputError: No schema has such keys.

    >>> detect({"alt": "Virgo", "src": "Where is it?"}, "facts.json")
    'zsre'
    """
    check_object(row, f"{source}: record 0")
    for key, schema in _DETECTED_BY.items():
        if row.get(key) is not None:
            return schema
    keys = ", ".join(map(str, row)) or "no keys"
    raise InputError(
        f"{source}: record 0: expected CounterFact's keys ('requested_rewrite', ...), EasyEdit's "
        f"('ground_truth', ...), RippleEdits' ('edit', ...), zsRE's ('alt', ...) or a fact's own "
        f"('target_true', ...), found {clip_line(keys)}"
    )


def from_row(build: Callable[[Row, int], FactEdit], row: Any, index: int, *, where: str) -> FactEdit:
    """The fact of one row; an error of it names `where` and the field."""
    check_object(row, where)
    try:
        fact = build(row, index)
        return fact if row.get("space") is None else replace(fact, space=row["space"])
    except InputError as error:
        raise type(error)(f"{where}: field {error}") from error


# --- the schemas ------------------------------------------------------------------------------------


def _counterfact(row: Row, index: int) -> FactEdit:
    rewrite = "requested_rewrite"
    return FactEdit(
        subject=text_at(row, f"{rewrite}.subject"),
        prompt=text_at(row, f"{rewrite}.prompt"),
        target_true=text_at(row, f"{rewrite}.target_true.str"),
        target_new=text_at(row, f"{rewrite}.target_new.str"),
        case_id=optional(row, "case_id", index),
        relation=optional(row[rewrite], "relation_id", ""),
        paraphrase_prompts=at(row, "paraphrase_prompts"),
        neighborhood_prompts=at(row, "neighborhood_prompts"),
        generation_prompts=optional(row, "generation_prompts", ()),
        attribute_prompts=optional(row, "attribute_prompts", ()),
        source_schema="counterfact",
    )


def _easyedit(row: Row, index: int) -> FactEdit:
    subject, prompt = text_at(row, "subject"), text_at(row, "prompt")
    names, new = _names(row, "ground_truth"), text_at(row, "target_new")
    prompt, subject = _template(prompt, subject)
    _check_other(new, names, "target_new")
    neighbours, answers = _neighbours(row, names[0])
    return FactEdit(
        subject=subject,
        prompt=prompt,
        target_true=names[0],
        target_new=new,
        case_id=optional(row, "case_id", index),
        paraphrase_prompts=_some(row, "rephrase_prompt") or _some(row, "rephrase"),
        neighborhood_prompts=neighbours,
        neighborhood_answers=answers,
        source_schema="easyedit",
    )


def _zsre(row: Row, index: int) -> FactEdit:
    answers, new = _names(row, "answers"), text_at(row, "alt")
    prompt, subject = _template(text_at(row, "src"), text_at(row, "subject"), field="src")
    _check_other(new, answers, "alt")
    questions = [question.rstrip() for question in _some(row, "loc")]
    return FactEdit(
        subject=subject,
        prompt=prompt,
        target_true=answers[0],
        target_new=new,
        case_id=optional(row, "case_id", index),
        paraphrase_prompts=_some(row, "rephrase"),
        neighborhood_prompts=tuple(text if text.endswith("?") else f"{text}?" for text in questions),
        neighborhood_answers=_some(row, "loc_ans") if questions else (),
        source_schema="zsre",
    )


def _ripple(row: Row, index: int) -> FactEdit:
    new = text_at(row, "edit.prompt").rstrip(". ")
    if "original_fact" not in row["edit"]:
        raise InputError(
            "edit.original_fact: expected the fact before the edit, found none (a recently added fact has none)"
        )
    old = text_at(row, "edit.original_fact.prompt").rstrip(". ")
    tests = [test for key, axis in AXES.items() for test in _tests(row, key, axis)]
    prompt = _stem(new, old, [query for test in tests for query in test.queries if test.axis == "SA"])
    template, subject = _template(prompt, _subject(row, prompt), field="edit.prompt")
    return FactEdit(
        subject=subject,
        prompt=template,
        target_true=check_text(old[len(prompt) :].strip(), "edit.original_fact.prompt"),
        target_new=check_text(new[len(prompt) :].strip(), "edit.prompt"),
        case_id=optional(row, "case_id", index),
        relation=optional(row["edit"], "relation", ""),
        ripple=tuple(tests),
        source_schema="ripple",
    )


def _fact(row: Row, index: int) -> FactEdit:
    fields = {field.name for field in dataclasses.fields(FactEdit)}
    if foreign := sorted(set(row) - fields):
        raise InputError(
            f"{foreign[0]}: expected a field of a fact ({', '.join(sorted(fields))}), found another key"
        )
    given = {"case_id": index, "source_schema": "fact", **{k: v for k, v in row.items() if v is not None}}
    for name in ("subject", "prompt", "target_true", "target_new"):
        text_at(row, name)
    if "{}" not in row["prompt"]:
        given["prompt"], given["subject"] = _template(row["prompt"], row["subject"])
    given["ripple"] = tuple(
        _ripple_test(test, f"ripple[{i}]") for i, test in enumerate(row.get("ripple") or ())
    )
    return FactEdit(**given)


def _ripple_test(row: Any, where: str) -> RippleTest:
    check_object(row, where)
    queries = {
        name: tuple(
            RippleQuery(text_at(query, "prompt"), tuple(map(tuple, at(query, "answers"))))
            for query in row.get(name) or ()
        )
        for name in ("queries", "conditions")
    }
    return RippleTest(row.get("axis", ""), **queries, any_of=bool(row.get("any_of", True)))


BUILDERS: dict[Schema, Callable[[Row, int], FactEdit]] = {
    "counterfact": _counterfact,
    "easyedit": _easyedit,
    "ripple": _ripple,
    "zsre": _zsre,
    "fact": _fact,
}


# --- RippleEdits ------------------------------------------------------------------------------------


def _tests(row: Row, key: str, axis: Axis) -> Iterator[RippleTest]:
    for i, test in enumerate(listed(optional(row, key, ()), key)):
        where = f"{key}[{i}]"
        check_object(test, where)
        condition = optional(test, "test_condition", "OR")
        if condition not in ("OR", "AND"):
            raise InputError(f"{where}.test_condition: expected OR or AND, found {shown(condition)}")
        queries, conditions = (
            tuple(
                _query(q, f"{where}.{name}[{j}]")
                for j, q in enumerate(listed(test.get(name), f"{where}.{name}"))
            )
            for name in ("test_queries", "condition_queries")
        )
        try:
            yield RippleTest(axis, queries, conditions, any_of=condition == "OR")
        except InputError as error:
            raise InputError(f"{where}.{error}") from error


def _query(query: Any, where: str) -> RippleQuery:
    """A query; names of one character that is no digit answer nothing, as in the source."""
    check_object(query, where)
    answers = []
    for k, target in enumerate(listed(query.get("answers"), f"{where}.answers")):
        check_object(target, f"{where}.answers[{k}]")
        names = [
            target.get("value"),
            *listed(optional(target, "aliases", ()), f"{where}.answers[{k}].aliases"),
        ]
        names = list(check_texts(names, f"{where}.answers[{k}]"))
        answers.append(tuple(name for name in names if len(name) > 1 or name.isdigit()) or (names[0],))
    try:
        return RippleQuery(query.get("prompt", ""), tuple(answers))
    except InputError as error:
        raise InputError(f"{where}.{error}") from error


def _stem(new: str, old: str, aliasing: Sequence[RippleQuery]) -> str:
    """What the edited and the original sentence ask: an alias test names the new object, else the words they share.

    Of the shared words up to the last one in lower case: "is New York" and "is New Zealand" share a word too many.
    """
    named = {name for query in aliasing for names in query.answers for name in names}
    for name in sorted(named, key=len, reverse=True):
        stem = new.removesuffix(f" {name}")
        if stem != new and old.startswith(f"{stem} "):
            return stem
    words = new.split(" ")
    same = [a == b for a, b in zip(words, old.split(" "), strict=False)]
    shared = [*same, False].index(False)
    while shared and words[shared - 1] != words[shared - 1].lower():
        shared -= 1
    if not 0 < shared < len(words):
        raise InputError(
            f"edit.prompt: expected the original fact's sentence with another object, found {shown(new)} "
            f"beside {shown(old)}"
        )
    return " ".join(words[:shared])


def _subject(row: Row, prompt: str) -> str:
    """The subject's name in `prompt`: spelt by its id, given as `edit.subject`, or what all prompts about it share."""
    if row["edit"].get("subject") is not None:
        return check_text(row["edit"]["subject"], "edit.subject")
    subject_id = at(row, "edit.subject_id")
    words = prompt.split(" ")
    runs = [" ".join(words[a:b]) for a in range(len(words)) for b in range(len(words), a, -1)]
    spans = [re.sub(r"('s?|,)$", "", run) for run in runs]
    spelt = [span for span in spans if span.lower().replace(" ", "_").replace(".", "") == subject_id]
    if spelt:
        return spelt[0]
    about, foreign = _prompts_about(row, subject_id)
    frame = {word for text in foreign for word in text.split(" ") if word == word.lower()} | _FRAME
    shared = [
        span
        for span in spans
        if about and all(re.search(rf"(?<!\w){re.escape(span)}(?!\w)", t) for t in about)
    ]
    names = {_trimmed(run, frame) for run in shared} - {""}
    if not names:
        raise InputError(
            f"edit.subject_id: the prompts about {shown(subject_id)} share no name; write it as edit.subject"
        )
    return max(names, key=len)


_FRAME = {"the", "of", "is", "are", "in", "which", "by", "has", "name", "names"}


def _trimmed(run: str, frame: set[str]) -> str:
    """`run` without the words of the question at its ends."""
    words = run.split(" ")
    while words and (words[0] in frame or words[0] == "The"):
        words = words[1:]
    while words and words[-1] in frame:
        words = words[:-1]
    return " ".join(words)


def _prompts_about(row: Row, subject_id: Any) -> tuple[list[str], list[str]]:
    """Prompts of the row's queries about the subject under its own name, and about others."""
    named, foreign = [], []
    for key, axis in AXES.items():
        for test in optional(row, key, ()):
            for query in (*optional(test, "test_queries", ()), *optional(test, "condition_queries", ())):
                about = query.get("subject_id") == subject_id
                if about and axis in ("RS", "FN"):
                    named.append(str(query.get("prompt")))
                elif not about:
                    foreign.append(str(query.get("prompt")))
    return named, foreign


# --- fields -----------------------------------------------------------------------------------------


def _template(prompt: str, subject: str, *, field: str = "prompt") -> tuple[str, str]:
    """`prompt` with `{}` for the subject (its first occurrence as a whole word, else its first), and the subject.

    One that is written in another form of Unicode is brought into the composed form (NFC), and the prompt with it.
    """
    if subject not in prompt:
        prompt, subject = (unicodedata.normalize("NFC", text) for text in (prompt, subject))
    if subject not in prompt:
        raise InputError(f"{field}: expected it to hold the subject {shown(subject)}, found {shown(prompt)}")
    whole = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)
    start = whole.start() if whole else prompt.index(subject)
    return prompt[:start] + "{}" + prompt[start + len(subject) :], subject


def _names(row: Row, field: str) -> tuple[str, ...]:
    """The names of an object, the first of which is asked for: a text or a list of them."""
    names = one_or_more(row, field)
    if not names:
        raise InputError(f"{field}: expected at least one, found none")
    return names


def _check_other(new: str, names: Sequence[str], field: str) -> None:
    """Refuses a new object that is one of the names of the true one."""
    if normalised(new) in {normalised(name) for name in names}:
        raise Unmeasurable(f"{field}: expected another object than target_true, found {shown(new)} in both")


def _some(row: Row, field: str) -> tuple[str, ...]:
    """The texts of an optional field."""
    return () if row.get(field) is None else one_or_more(row, field)


def asked_neighbours(schema: Schema, row: Row) -> int:
    """How many neighbourhood prompts a row has that became a fact, with an answer or not."""
    if schema != "easyedit" or row.get("locality") is None:
        return {"zsre": len(_some(row, "loc")), "easyedit": len(_some(row, "locality_prompt"))}.get(
            schema, len(optional(row, "neighborhood_prompts", ()))
        )
    return len(_some(row, "locality_prompt")) + sum(1 for _ in _localities(row))


def _neighbours(row: Row, true: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The neighbourhood prompts of a flat row and their answers, none where all are the true object."""
    prompts = list(_some(row, "locality_prompt"))
    given = _some(row, "locality_ground_truth") or (true,)
    if len(given) not in (1, len(prompts)):
        raise InputError(
            f"locality_ground_truth: expected one answer or one for each of the {len(prompts)} prompts, "
            f"found {len(given)}"
        )
    answers = list(given) * len(prompts) if len(given) == 1 else list(given)
    for prompt, names in _localities(row):
        if names:
            prompts.append(prompt)
            answers.append(names[0])
    return tuple(prompts), () if set(answers) <= {true} else tuple(answers)


def _localities(row: Row) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each prompt of `locality` with the names of its answer.

    By kind either lists of prompts and answers (EasyEdit), or a list of objects of one prompt each (KnowEdit).
    """
    kinds = optional(row, "locality", {})
    check_object(kinds, "locality")
    for kind, asked in kinds.items():
        where = f"locality.{kind}"
        for i, item in enumerate(
            asked if isinstance(asked, list | tuple) else () if asked is None else [asked]
        ):
            place = f"{where}[{i}]" if isinstance(asked, list | tuple) else where
            check_object(item, place)
            prompts = texts(item.get("prompt"), f"{place}.prompt")
            answers = item.get("ground_truth")
            if len(prompts) == 1:
                yield prompts[0], tuple(flat(answers, f"{place}.ground_truth"))
                continue
            many = listed(answers, f"{place}.ground_truth")
            if len(many) != len(prompts):
                raise InputError(
                    f"{place}.ground_truth: expected {len(prompts)}, one for each prompt, found {len(many)}"
                )
            for j, (prompt, names) in enumerate(zip(prompts, many, strict=True)):
                yield prompt, tuple(flat(names, f"{place}.ground_truth[{j}]"))
