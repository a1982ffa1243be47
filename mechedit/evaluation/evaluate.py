"""Measure an edit: facts edited one at a time or together, every prompt scored, beside the unedited model.

Steps of `evaluate`:

1. check that every prompt and object of every fact can be tokenised, before anything is edited or written;
2. once, on the unedited model: which facts it knows (it would greedily write the true object behind the rewrite
   prompt), and what it says on the neighbourhood prompts;
3. for each fact: edit, score all its prompts for the new and the true object in padded batches, undo; or all facts
   edited one upon the other or at once, and then scored; each edited model also reads running text that has nothing to
   do with the fact (`mechedit.evaluation.elsewhere`: KL, Top1);
4. reduce prompts to records, records to a table with n and 95 % intervals (`Evaluation.summary`).

What is reported [our choice, where the sources are silent]: scores are over the facts that the *unedited*
model knows, `n_known` of `n_total`, since an edit of a fact that is not there is an insertion. The published
tables of ROME and SAKE are over all records: `summary(over="all")` is the figure to hold against them. Where
the model knows none of the facts there is no score at all: nothing is edited and the table says so.

Metrics: `mechedit.evaluation.metrics`, `mechedit.evaluation.fluency`. The families are not comparable with each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from experiments.case_ids import check_case_id
from experiments.cases import Case, every_case, finished, settings_digest
from experiments.progress import bar
from experiments.runs import RunFolder
from experiments.settings import fingerprint
from mechedit.data.case_keys import evaluation_key
from mechedit.data.facts import FactEdit, LoadedFacts, facts_hash
from mechedit.data.records import fact_fields
from mechedit.editors.base import Editor
from mechedit.editors.ike import PromptedModel
from mechedit.editors.settings import resolved
from mechedit.evaluation.elsewhere import Cost, RunningText, running_text
from mechedit.evaluation.fluency import References, generated_texts
from mechedit.evaluation.measure import PromptScore, answer, measure
from mechedit.evaluation.questions import FAMILIES, TO_STAY, FactQuestions, Question
from mechedit.evaluation.result import (
    KNOWS_NONE,
    NOT_ROMES_PS,
    OWN_ANSWERS,
    CaseScores,
    Evaluation,
    Mode,
    gather,
)
from mechedit.models.deciding import decide, read_anew, says_object
from mechedit.models.hooked import HookedModel
from mechedit.models.scoring import score_pairs
from reports.errors import InputError

__all__ = [
    "KNOWS_NONE",
    "NOT_ROMES_PS",
    "OWN_ANSWERS",
    "Baseline",
    "Evaluation",
    "Mode",
    "Neighbour",
    "baseline",
    "check_facts",
    "evaluate",
    "known_facts",
]


#: What a sequence of edits is: 2 since every edit takes C of the model before the first one.
SEQUENCE = 2


def evaluate(
    model: HookedModel,
    editor: Editor,
    facts: Sequence[FactEdit],
    *,
    families: Sequence[str] = ("probability", "argmax"),
    mode: Mode = "single",
    references: Mapping[str, Sequence[str]] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
    run: RunFolder | None = None,
    unedited: Baseline | None = None,
    text: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Edit the facts by `editor`, score their prompts, undo, and gather the scores.

    Errors of the editor pass through; the model is then as it was. Memory: "sequential" keeps what each edit replaced
    until all are undone.

    Args:
        model: The unedited model, in every mode the one whose knowledge counts.
        editor: What edits it.
        facts: The edits, each with a case_id of its own.
        families: "probability" (ES, EM, PS, PM, NS, NM, `_acc`, S), "argmax" (Acc, Gen, Spec), "token" (Rel, Gen, Loc:
            `_tok` and `_all`), "doubt" (DI, DII), "subject" (Other), "generation" (GE, and RS with `references`).
        mode: "single", each fact alone; "sequential", one edit upon the other, then all scored; "batch", one edit.
        references: Texts by new object, for RS.
        batch_size: Prompts of one forward pass; it changes rounding only.
        seed: Of the generated texts.
        progress: Whether a bar is shown.
        run: Each case is written as it ends, as `<editor>-<case_id>`, and read instead of measured where it exists.
            (The facts of the other modes stand or fall together.)
        unedited: `baseline(model, facts)` of these families, where several editors are evaluated on the same facts.
        text: File, folder or data set of running text for KL and Top1 (None: the project's own, or `unedited`'s).

    Raises:
        InputError: There are no facts, or two of one case_id, or a family or mode is unknown, a target encodes to
            nothing, a prompt is too long, or a case in `run` is of another model, editor, fact or family.

    >>> import mechedit as me
    >>> model, facts = me.load_model("factworld"), me.factworld.edits(3)
    >>> scores = evaluate(model, me.editors.NoEdit(), facts, progress=False).summary().set_index("metric")["value"]
    >>> float(scores["Acc"]), float(scores["Spec"])
    (0.0, 1.0)
    """
    questions = [FactQuestions(fact) for fact in facts]
    families = _checked(model, questions, families)
    if mode not in get_args(Mode):
        raise InputError(f"mode: expected one of {', '.join(get_args(Mode))}, found {mode!r}")
    space = References(references) if references is not None else None
    base = unedited or _baseline(model, questions, batch_size, text, families)
    used = resolved(editor, model) if any(base.known) else {"name": editor.name, "edits": "none"}
    task = _Task(model, editor, used, questions, families, mode, base, batch_size, seed, run, progress)
    cases = task.one_by_one() if mode == "single" else task.together()
    result = gather(model, editor, cases, used, families=families, mode=mode, references=space)
    if left_out := facts.left_out if isinstance(facts, LoadedFacts) else ():
        note = f"left out {len(left_out)} of {len(left_out) + len(facts)} records; the first: {left_out[0]}"
        result = dataclasses.replace(result, notes=(*result.notes, note))
    return result


def check_facts(
    model: HookedModel, facts: Sequence[FactEdit], *, families: Sequence[str] = ("probability", "argmax")
) -> tuple[str, ...]:
    """Checks that `evaluate` can score every fact; call it before a run folder is made.

    Returns:
        The families without repetition.

    Raises:
        InputError: As `evaluate`, naming the record.
    """
    return _checked(model, [FactQuestions(fact) for fact in facts], families)


def _checked(
    model: HookedModel, questions: Sequence[FactQuestions], families: Sequence[str]
) -> tuple[str, ...]:
    unknown = [family for family in families if family not in FAMILIES]
    if unknown or not families:
        raise InputError(f"families: expected some of {', '.join(FAMILIES)}, found {unknown or 'none'}")
    if not questions:
        raise InputError("facts: expected at least one FactEdit, found none")
    seen: set[str] = set()
    for index, about in enumerate(questions):
        case_id = about.fact.case_id
        if str(case_id) in seen:
            raise InputError(f"facts: record {index}: case_id {case_id!r} occurs twice; give each its own")
        seen.add(str(case_id))
        _check_tokens(model, index, about.read_by(families))
    return tuple(dict.fromkeys(families))


def _check_tokens(model: HookedModel, index: int, questions: Sequence[Question]) -> None:
    for question in questions:
        fact = question.fact
        for name, target in (("target_new", fact.target_new), ("target_true", question.true)):
            try:
                model.continuation(question.prompt, target, space=fact.space)
            except InputError as error:
                where = (
                    f"facts: record {index} (case_id {fact.case_id}): {name} behind a {question.role} prompt"
                )
                raise InputError(f"{where}: {error}") from error


# --- the unedited model -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbour:
    """What the unedited model says to a prompt that is to stay: p(new), p(true), argmax and answer (`PromptScore`)."""

    p_new: float
    p_true: float
    argmax: str
    answer: str = ""


@dataclass(frozen=True)
class Baseline:
    """What `evaluate` asks of the unedited model: measured once, it serves every editor on the same facts.

    Attributes:
        known: Whether the model answers each fact.
        neighbourhoods: For each fact a `Neighbour` by prompt that is to stay (`TO_STAY`).
        elsewhere: What the model says on running text; None: not measured.
        answers: What the model says behind each rewrite prompt (`PromptScore.answer`).
    """

    known: list[bool]
    neighbourhoods: list[dict[str, Neighbour]]
    elsewhere: RunningText | None = None
    answers: Sequence[str] = ()


def baseline(
    model: HookedModel,
    facts: Sequence[FactEdit],
    *,
    families: Sequence[str] = ("probability", "argmax"),
    batch_size: int = 32,
    text: str | os.PathLike[str] | None = None,
) -> Baseline:
    """The `Baseline` of `facts`; where the model knows none of them nothing else is measured.

    Args:
        model: The unedited model.
        facts: The edits.
        families: That will be evaluated.
        batch_size: Prompts of one forward pass.
        text: As of `evaluate`.
    """
    return _baseline(model, [FactQuestions(fact) for fact in facts], batch_size, text, families)


def _baseline(
    model: HookedModel,
    questions: Sequence[FactQuestions],
    batch_size: int,
    text: str | os.PathLike[str] | None,
    families: Sequence[str],
) -> Baseline:
    known, answers = _knowledge(model, [about.fact for about in questions], batch_size)
    if not any(known):
        return Baseline(known, [{} for _ in questions], answers=answers)
    near = list(_to_stay(model, questions, batch_size, families))
    return Baseline(known, near, running_text(model, text), answers)


def known_facts(model: HookedModel, facts: Sequence[FactEdit], *, batch_size: int = 32) -> list[bool]:
    """For each fact whether greedy decoding of the rewrite prompt would write the true object's tokens.

    Where the new object begins with the whole true one ("New York|er"), it must not go on to that.
    """
    return _knowledge(model, facts, batch_size)[0]


def _knowledge(
    model: HookedModel, facts: Sequence[FactEdit], batch_size: int
) -> tuple[list[bool], list[str]]:
    """`known_facts`, and what the model says behind each rewrite prompt."""
    pairs = [model.continuation(fact.rewrite_prompt, fact.target_true, space=fact.space) for fact in facts]
    scores = score_pairs(model, pairs, batch_size=batch_size)
    known = [scored.all_hit == 1.0 for scored in scores]
    for i, (fact, (_, true)) in enumerate(zip(facts, pairs, strict=True)):
        if known[i]:
            prompt, old, new, space = fact.rewrite_prompt, fact.target_true, fact.target_new, fact.space
            new_ids = model.continuation(prompt, new, space=space)[1]
            if decide(model.tokenizer, true.tolist(), new_ids.tolist()).begins_old:
                known[i] = says_object(model, [prompt], old, new, space=space)[0]
    return known, [answer(model.tokenizer, scored) for scored in scores]


def _to_stay(
    model: HookedModel, questions: Sequence[FactQuestions], batch_size: int, families: Sequence[str]
) -> Iterator[dict[str, Neighbour]]:
    """For each fact what the unedited model says, by prompt that is to stay; all facts in one go."""
    near = [about.to_stay(families) for about in questions]
    scores = iter(
        measure(model, [question for of_fact in near for question in of_fact], batch_size=batch_size)
    )
    for of_fact in near:
        of_prompts = [next(scores) for _ in of_fact]
        yield {
            score.prompt: Neighbour(score.p_new, score.p_true, score.argmax, score.answer)
            for score in of_prompts
        }


# --- cases ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """What `evaluate` is to do."""

    model: HookedModel
    editor: Editor
    used: dict[str, Any]  # the editor's settings, and what it reads
    questions: Sequence[FactQuestions]
    families: tuple[str, ...]
    mode: Mode
    base: Baseline
    batch_size: int
    seed: int
    run: RunFolder | None
    progress: bool

    def one_by_one(self) -> list[CaseScores]:
        """Each fact edited alone."""
        keys, settings = self._keys(), self._settings()

        def make(i: int) -> Case:
            scores = self._unmeasured(i)
            if any(self.base.known):
                with self.editor.apply(self.model, [self.questions[i].fact]) as edited:
                    scores = self._measured(edited, i)
            return self._record(scores, settings[i])

        label = self.editor.name
        cases = every_case(self.run, keys, make, settings=settings, label=label, progress=self.progress)
        return self._read(cases)

    def together(self) -> list[CaseScores]:
        """All facts edited, one upon the other or at once, and then scored."""
        keys, settings = self._keys(), self._settings()
        done = [finished(self.run, key, settings=digest) for key, digest in zip(keys, settings, strict=True)]
        cases = [case for case in done if case is not None]
        if len(cases) == len(keys):
            return self._read(cases)
        places = range(len(keys))
        scores = [self._unmeasured(i) for i in places]
        if any(self.base.known):
            scores = list(self._edited_together())
        if self.run is not None:
            for i in places:
                self.run.write_case(keys[i], self._record(scores[i], settings[i]))
        return scores

    def _edited_together(self) -> Iterator[CaseScores]:
        facts = [about.fact for about in self.questions]
        label = f"{self.editor.name}, {self.mode}"
        with contextlib.ExitStack() as stack:
            shown = stack.enter_context(bar(label, 2 * len(facts), progress=self.progress, unit="fact"))
            edited = self.model
            for group in [facts] if self.mode == "batch" else [[fact] for fact in facts]:
                edited = stack.enter_context(self.editor.apply(edited, group))
                shown.update(len(group))
            first = self.base.known.index(True)  # one edited model, so one cost
            for i in range(len(facts)):
                yield self._measured(edited, i, cost=i == first)
                shown.update()

    def _unmeasured(self, i: int) -> CaseScores:
        return CaseScores(self.questions[i].fact, self.base.known[i])

    def _measured(self, edited: HookedModel, i: int, *, cost: bool = True) -> CaseScores:
        about = self.questions[i]
        scores = measure(edited, about.read_by(self.families), batch_size=self.batch_size)
        prompts = [self._with_base(score, i) for score in scores]
        texts: list[str] = []
        if "generation" in self.families:
            texts = generated_texts(edited, about.fact, seed=self.seed, batch_size=self.batch_size)
        elsewhere = self.base.elsewhere
        costs = elsewhere.cost(edited) if cost and elsewhere is not None else None
        shown: tuple[int, ...] = ()
        if isinstance(edited, PromptedModel) and edited.left_out:
            shown = (edited.demonstrations, edited.left_out)
        return CaseScores(about.fact, self.base.known[i], prompts, texts, shown, costs)

    def _with_base(self, score: PromptScore, i: int) -> PromptScore:
        """The score of a prompt of fact i beside what the unedited model says to it."""
        if score.role == "rewrite" and self.base.answers:
            return dataclasses.replace(score, base_answer=self.base.answers[i])
        if score.role not in TO_STAY:
            return score
        near = self.base.neighbourhoods[i].get(score.prompt, Neighbour(math.nan, math.nan, ""))
        return dataclasses.replace(
            score,
            base_p_new=near.p_new,
            base_p_true=near.p_true,
            base_argmax=near.argmax,
            base_answer=near.answer,
        )

    def _keys(self) -> list[str]:
        """The ids of the cases; the run records what the editor is set to and reads, and refuses cases of another."""
        keys = [evaluation_key(self.editor.name, about.fact, self.mode) for about in self.questions]
        if self.run is not None:
            keys = [check_case_id(key) for key in keys]
            self.run.settle(self.editor.name, self.used, cases=keys)
        return keys

    def _settings(self) -> list[str]:
        """For each fact the sha256 of what its numbers depend on (not the batch size, which moves the last digits)."""
        model, facts = self.model, [about.fact for about in self.questions]
        common: list[Any] = [model.hash, str(model.dtype), fingerprint(self.used), sorted(self.families)]
        common += [model.framing] if model.framing else []
        seed = self.seed if "generation" in self.families else 0
        together: list[Any] = [] if self.mode == "single" else [self.mode, facts_hash(facts)]
        together += [SEQUENCE] if self.mode == "sequential" else []
        text = self.base.elsewhere  # the project's own adds nothing: cases of earlier versions stay valid
        together += [text.digest] if text is not None and text.source else []
        parts = ([*common, fact_fields(fact), seed, *together] for fact in facts)
        return [settings_digest(*part, *self._read_anew(i)) for i, part in enumerate(parts)]

    def _read_anew(self, i: int) -> list[str]:
        fact = self.questions[i].fact
        asked = self.questions[i].read_by(self.families)
        pairs = ((question.prompt, fact.target_new, question.true) for question in asked)
        return read_anew(self.model, pairs, space=fact.space)

    def _read(self, cases: Sequence[Case]) -> list[CaseScores]:
        """The scores of cases of the run folder, which are in the order of the facts."""
        return [
            CaseScores(
                about.fact,
                known,
                [PromptScore(**score) for score in case["prompts"]],
                case["texts"],
                case.get("demonstrations", ()),
                self._cost_of(case),
            )
            for about, known, case in zip(self.questions, self.base.known, cases, strict=True)
        ]

    def _record(self, scores: CaseScores, settings: str) -> Case:
        """What the run folder keeps of a case."""
        cost = {} if scores.cost is None else {"elsewhere": dataclasses.asdict(scores.cost)}
        return cost | {
            "case_id": scores.fact.case_id,
            "subject": scores.fact.subject,
            "known": scores.known,
            "settings": settings,
            "made_with": {self.editor.name: fingerprint(self.used)},
            "prompts": [dataclasses.asdict(score) for score in scores.prompts],
            "texts": list(scores.texts),
            **({"demonstrations": list(scores.demonstrations)} if scores.demonstrations else {}),
        }

    def _cost_of(self, case: Case) -> Cost | None:
        """What a case of the run folder has cost; None where it was measured on other passages, or not at all."""
        text = self.base.elsewhere
        cost = Cost(**case["elsewhere"]) if "elsewhere" in case else None
        return cost if cost is not None and text is not None and cost.digest == text.digest else None
