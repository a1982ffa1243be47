"""Measure an edit: facts edited one at a time or together, every prompt scored, beside the unedited model.

Steps of `evaluate`:

1. check that every prompt and object of every fact can be tokenised, before anything is edited or written;
2. once, on the unedited model: which facts it knows (it would greedily write the true object behind the rewrite
   prompt), and what it says on the neighbourhood prompts;
3. for each fact: edit, score all its prompts for the new and the true object in padded batches, undo; or all facts
   edited one upon the other or at once, and then scored;
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
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from tqdm.auto import tqdm

from experiments.cases import Case, every_case, finished
from experiments.runs import RunFolder, check_case_id
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.editors.base import Editor
from mechedit.evaluation.fluency import References, generated_texts
from mechedit.evaluation.measure import FAMILIES, PromptScore, measure, questions_of
from mechedit.evaluation.result import (
    KNOWS_NONE,
    NOT_ROMES_PS,
    OWN_ANSWERS,
    CaseScores,
    Evaluation,
    Mode,
    gather,
)
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
    "described",
    "evaluate",
    "known_facts",
]


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
) -> Evaluation:
    """Edit the facts by `editor`, score their prompts, undo, and gather the scores.

    families: "probability" (ES, EM, PS, PM, NS, NM, `_acc`, S), "argmax" (Acc, Gen, Spec), "token" (Rel, Gen, Loc:
    `_tok` and `_all`), "doubt" (DI, DII), "generation" (GE, and RS with `references`: texts by new object).
    mode: "single", each fact alone; "sequential", one edit upon the other, all scored when the last is in; "batch", one
    edit of all facts. What the unedited model knows and says is measured on the *unedited* model in every mode.
    run: each case is written as it ends, as `<editor>-<case_id>`, and read instead of measured when it
    exists; the result is the same as without an interruption. (The facts of the other modes stand or fall together.)
    unedited: `baseline(model, facts)`, where several editors are evaluated on the same facts. seed: of the texts.
    `batch_size` changes rounding only. Memory: "sequential" keeps what each edit replaced until all are undone.
    Errors: `InputError` for no facts, an unknown family or mode, two facts of one case_id, a target that encodes to
    nothing, a prompt longer than the context, or a case in `run` that was written with another model, editor,
    fact or family. Errors of the editor pass through; the model is then as it was.

    >>> import mechedit as me
    >>> model, facts = me.load_model("factworld"), me.factworld.edits(3)
    >>> scores = evaluate(model, me.editors.NoEdit(), facts, progress=False).summary().set_index("metric")["value"]
    >>> float(scores["Acc"]), float(scores["Spec"])
    (0.0, 1.0)
    """
    families = check_facts(model, facts, families=families)
    if mode not in get_args(Mode):
        raise InputError(f"mode: expected one of {', '.join(get_args(Mode))}, found {mode!r}")
    space = References(references) if references is not None else None
    base = unedited or baseline(model, facts, batch_size=batch_size)
    task = _Task(model, editor, facts, families, mode, base, batch_size, seed, run, progress)
    cases = task.one_by_one() if mode == "single" else task.together()
    return gather(
        model,
        editor,
        facts,
        families=families,
        mode=mode,
        known=base.known,
        scores=cases,
        references=space,
    )


def case_key(editor: str, fact: FactEdit, mode: str = "single") -> str:
    """The id of the case of `fact` under the editor of this name, in a run folder."""
    return f"{editor}-{'' if mode == 'single' else f'{mode}-'}{fact.case_id}"


def check_facts(
    model: HookedModel, facts: Sequence[FactEdit], *, families: Sequence[str] = ("probability", "argmax")
) -> tuple[str, ...]:
    """The families without repetition, after checking that `evaluate` can score every fact.

    Call it before a run folder is made. Errors: `InputError`, as `evaluate`, naming the record.
    """
    unknown = [family for family in families if family not in FAMILIES]
    if unknown or not families:
        raise InputError(f"families: expected some of {', '.join(FAMILIES)}, found {unknown or 'none'}")
    if not facts:
        raise InputError("facts: expected at least one FactEdit, found none")
    seen: set[str] = set()
    for index, fact in enumerate(facts):
        if str(fact.case_id) in seen:
            raise InputError(
                f"facts: record {index}: case_id {fact.case_id!r} occurs twice; give each its own"
            )
        seen.add(str(fact.case_id))
        _check_tokens(model, index, fact, families)
    return tuple(dict.fromkeys(families))


def _check_tokens(model: HookedModel, index: int, fact: FactEdit, families: Sequence[str]) -> None:
    for question in questions_of(fact, families):
        for name, target in (("target_new", fact.target_new), ("target_true", question.true)):
            try:
                model.continuation(question.prompt, target)
            except InputError as error:
                where = (
                    f"facts: record {index} (case_id {fact.case_id}): {name} behind a {question.role} prompt"
                )
                raise InputError(f"{where}: {error}") from error


# --- the unedited model -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbour:
    """What the unedited model says to a neighbourhood prompt: p(new), p(true), and its argmax (`PromptScore`)."""

    p_new: float
    p_true: float
    argmax: str


@dataclass(frozen=True)
class Baseline:
    """What `evaluate` asks of the unedited model: measured once, it serves every editor on the same facts.

    known: whether it answers each fact. neighbourhoods: for each fact a `Neighbour` by neighbourhood prompt.
    """

    known: list[bool]
    neighbourhoods: list[dict[str, Neighbour]]


def baseline(model: HookedModel, facts: Sequence[FactEdit], *, batch_size: int = 32) -> Baseline:
    """The `Baseline` of `facts`; where the model knows none of them their neighbourhoods are not measured."""
    known = known_facts(model, facts, batch_size=batch_size)
    if not any(known):
        return Baseline(known, [{} for _ in facts])
    return Baseline(known, list(_neighbourhoods(model, facts, batch_size)))


def known_facts(model: HookedModel, facts: Sequence[FactEdit], *, batch_size: int = 32) -> list[bool]:
    """For each fact whether greedy decoding of the rewrite prompt would write the true object's tokens."""
    pairs = [model.continuation(fact.rewrite_prompt, fact.target_true) for fact in facts]
    return [scored.all_hit == 1.0 for scored in score_pairs(model, pairs, batch_size=batch_size)]


def _neighbourhoods(
    model: HookedModel, facts: Sequence[FactEdit], batch_size: int
) -> Iterator[dict[str, Neighbour]]:
    """For each fact what the unedited model says, by neighbourhood prompt; all facts in one go."""
    asked = [[q for q in questions_of(fact, ("argmax",)) if q.role == "neighborhood"] for fact in facts]
    scores = iter(measure(model, [q for questions in asked for q in questions], batch_size=batch_size))
    for questions in asked:
        own = [next(scores) for _ in questions]
        yield {score.prompt: Neighbour(score.p_new, score.p_true, score.argmax) for score in own}


# --- cases ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """What `evaluate` was asked to do."""

    model: HookedModel
    editor: Editor
    facts: Sequence[FactEdit]
    families: tuple[str, ...]
    mode: Mode
    base: Baseline
    batch_size: int
    seed: int
    run: RunFolder | None
    progress: bool

    def one_by_one(self) -> list[CaseScores]:
        """Each fact edited alone."""
        settings = [self._settings(fact) for fact in self.facts]

        def make(i: int) -> Case:
            case = CaseScores()
            if any(self.base.known):
                with self.editor.apply(self.model, [self.facts[i]]) as edited:
                    case = self._measured(edited, i)
            return self._record(i, settings[i], case)

        keys = [self._key(fact) for fact in self.facts]
        cases = every_case(
            self.run, keys, make, settings=settings, label=self.editor.name, progress=self.progress
        )
        return [_scores(case) for case in cases]

    def together(self) -> list[CaseScores]:
        """All facts edited, one upon the other or at once, and then scored."""
        keys = [self._key(fact) for fact in self.facts]
        settings = [self._settings(fact) for fact in self.facts]
        done = [finished(self.run, key, settings=one) for key, one in zip(keys, settings, strict=True)]
        if all(case is not None for case in done):
            return [_scores(case) for case in done if case is not None]
        cases = list(self._edited_together()) if any(self.base.known) else [CaseScores()] * len(keys)
        for i, (key, one, case) in enumerate(zip(keys, settings, cases, strict=True)):
            if self.run is not None:
                self.run.write_case(key, self._record(i, one, case))
        return cases

    def _edited_together(self) -> Iterator[CaseScores]:
        bar = tqdm(
            total=2 * len(self.facts), desc=f"{self.editor.name}, {self.mode}", disable=not self.progress
        )
        with contextlib.ExitStack() as stack:
            edited = self.model
            for group in [list(self.facts)] if self.mode == "batch" else [[fact] for fact in self.facts]:
                edited = stack.enter_context(self.editor.apply(edited, group))
                bar.update(len(group))
            for i in range(len(self.facts)):
                yield self._measured(edited, i)
                bar.update()
        bar.close()

    def _measured(self, edited: HookedModel, i: int) -> CaseScores:
        fact, base = self.facts[i], self.base.neighbourhoods[i]
        scores = measure(edited, questions_of(fact, self.families), batch_size=self.batch_size)
        texts: list[str] = []
        if "generation" in self.families:
            texts = generated_texts(edited, fact, seed=self.seed, batch_size=self.batch_size)
        return CaseScores([_with_base(s, base) if s.role == "neighborhood" else s for s in scores], texts)

    def _key(self, fact: FactEdit) -> str:
        key = case_key(self.editor.name, fact, self.mode)
        return key if self.run is None else check_case_id(key)

    def _settings(self, fact: FactEdit) -> str:
        """sha256 of what a case's numbers depend on (not the batch size, which moves the last digits only)."""
        model = self.model
        parts: list[Any] = [model.hash, str(model.dtype), described(self.editor), sorted(self.families)]
        parts += [dataclasses.asdict(fact), self.seed if "generation" in self.families else 0]
        if self.mode != "single":
            parts += [self.mode, facts_hash(self.facts)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _record(self, i: int, settings: str, case: CaseScores) -> Case:
        """What the run folder keeps of a case."""
        fact = self.facts[i]
        return {
            "case_id": fact.case_id,
            "subject": fact.subject,
            "known": self.base.known[i],
            "settings": settings,
            "prompts": [dataclasses.asdict(score) for score in case.prompts],
            "texts": list(case.texts),
        }


def _scores(case: Case) -> CaseScores:
    return CaseScores([PromptScore(**score) for score in case["prompts"]], case["texts"])


def _with_base(score: PromptScore, base: Mapping[str, Neighbour]) -> PromptScore:
    near = base.get(score.prompt, Neighbour(math.nan, math.nan, ""))
    return dataclasses.replace(score, base_p_new=near.p_new, base_p_true=near.p_true, base_argmax=near.argmax)


def described(editor: Editor) -> dict[str, str]:
    """Every field that tells two editors apart, those that the repr hides too."""
    if not dataclasses.is_dataclass(editor):
        return {"name": editor.name}
    return {one.name: repr(getattr(editor, one.name)) for one in dataclasses.fields(editor) if one.compare}
