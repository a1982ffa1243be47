"""Measure an edit: one fact edited at a time, every prompt of the fact scored, beside the unedited model.

Steps of `evaluate`:

1. check that every prompt and object of every fact can be tokenised, before anything is edited or written;
2. once, on the unedited model: which facts it knows (it would greedily write the true object behind the
   rewrite
   prompt), and p(new), p(true) on the neighbourhood prompts;
3. for each fact: edit, score all its prompts for the new and the true object in padded batches, undo;
4. reduce prompts to records, records to a table with n and 95 % intervals (`Evaluation.summary`).

What is reported [our choice, where the sources are silent]: scores are over the facts that the *unedited*
model knows, `n_known` of `n_total`, since an edit of a fact that is not there is an insertion. The published
tables of ROME and SAKE are over all records: `summary(over="all")` is the figure to hold against them. Where
the model knows none of the facts there is no score at all: nothing is edited and the table says so.

Metrics: `mechedit.metrics`. The two families are not comparable with each other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pandas as pd
from tqdm.auto import tqdm

from experiments.runs import RunFolder, check_case_id
from mechedit.facts import FactEdit
from mechedit.measure import FAMILIES, METRICS, PromptScore, measure, questions_of, record_values
from mechedit.metrics import bootstrap_harmonic_mean, harmonic_mean
from mechedit.scoring import score_pairs
from reports.errors import InputError
from reports.results import Result, bootstrap_mean, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mechedit.editors.base import Editor
    from mechedit.model import HookedModel

__all__ = ["Baseline", "Evaluation", "baseline", "check_facts", "evaluate", "known_facts"]

KNOWS_NONE = "the unedited model knows none of these facts: no score"
NOT_ROMES_PS = "EasyEdit's rephrase prompts are CounterFact's generation prompts: not ROME's paraphrase score"
_S_PARTS = ("ES", "PS", "NS")
_RECORD_COLUMNS = {
    "case_id": "str",
    "metric": "str",
    "value": "float64",
    "n_prompts": "int64",
    "n_dropped": "int64",
    "known": "bool",
}
_CASE_COLUMNS = {"case_id": "str", "subject": "str", "known": "bool"}
_PROMPT_TYPES = {
    "str": "str",
    "int": "int64",
    "float": "float64",
    "str | None": "str",
    "bool | None": "boolean",
}
_PROMPT_COLUMNS = {"case_id": "str"} | {
    one.name: _PROMPT_TYPES[str(one.type)] for one in dataclasses.fields(PromptScore)
}


@dataclass(frozen=True, repr=False, eq=False)
class Evaluation(Result):
    """What `evaluate` measured.

    records: case_id, metric, value (mean over the record's prompts; NaN where it has none), n_prompts,
    n_dropped (by Spec's filter), known. prompts: one row a prompt with everything the metrics are made of.
    cases: case_id, subject, known. Case ids are strings in the frames. notes: what a reader of any score must
    know.
    """

    kind: ClassVar[str] = "evaluation"
    records: pd.DataFrame
    prompts: pd.DataFrame
    cases: pd.DataFrame
    editor: str
    model: str
    families: tuple[str, ...]
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def n_total(self) -> int:
        """Facts given."""
        return len(self.cases)

    @property
    def n_known(self) -> int:
        """Facts that the unedited model answers: the n behind the scores."""
        return int(self.cases["known"].sum())

    def summary(self, *, over: Literal["known", "all"] = "known") -> pd.DataFrame:
        """One row a metric: metric, value, low, high (fractions), interval, n, n_prompts, n_dropped, n_nan,
        n_known, n_total, note.

        value: mean over the n records that have a prompt of that kind; S: harmonic mean of the values of ES,
        PS, NS. A NaN among the records makes the value NaN and is counted in n_nan. interval: Wilson where
        each record gives one success or failure (ES, Acc, ...), else a bootstrap over records, which has no
        width where all agree. over: the facts that the unedited model knows, or "all". With n_known = 0 every
        value is NaN and n is 0.
        Errors: `InputError` for another `over`.
        """
        if over not in ("known", "all"):
            raise InputError(f"over: expected 'known' or 'all', found {over!r}")
        records = self.records if over == "all" else self.records[self.records["known"]]
        names = [name for name, metric in METRICS.items() if metric.family in self.families]
        rows = {name: _summary_row(name, records[records["metric"] == name]) for name in names}
        if "probability" in self.families:
            rows["S"] = _harmonic_row(rows, records)
        table = pd.DataFrame(list(rows.values())).assign(n_known=self.n_known, n_total=self.n_total)
        return table.assign(note=[self._note(name) for name in rows])

    def plot(self, ax: Axes | None = None) -> Axes:
        """The summary as points with intervals; drawn from the stored numbers alone."""
        from reports.figures import forest

        table = self.summary()
        table["label"] = [f"{row.metric} (n {row.n})" for row in table.itertuples()]
        return forest(table, ax=ax, xlabel=f"{self.editor}, {self.n_known} of {self.n_total} facts known")

    def _note(self, metric: str) -> str:
        if self.n_known == 0:
            return KNOWS_NONE
        on_paraphrases = metric == "S" or METRICS[metric].role == "paraphrase"
        return NOT_ROMES_PS if NOT_ROMES_PS in self.notes and on_paraphrases else ""


def evaluate(
    model: HookedModel,
    editor: Editor,
    facts: Sequence[FactEdit],
    *,
    families: Sequence[str] = ("probability", "argmax"),
    batch_size: int = 32,
    progress: bool = True,
    run: RunFolder | None = None,
    unedited: Baseline | None = None,
) -> Evaluation:
    """Edit each fact alone by `editor`, score its prompts, undo, and gather the scores.

    families: "probability" (ES, EM, PS, PM, NS, NM, `_acc`, S), "argmax" (Acc, Gen, Spec), "doubt" (DI, DII).
    run: each case is written as it ends, as `<editor>-<case_id>`, and read instead of measured when it
    exists; the result is the same as without an interruption. unedited: `baseline(model, facts)`, where several
    editors are evaluated on the same facts. `batch_size` changes rounding only.
    Errors: `InputError` for no facts, an unknown family, two facts of one case_id, a target that encodes to
    nothing, a prompt longer than the context, or a case in `run` that was written with another model, editor,
    fact or family. Errors of the editor pass through; the model is then as it was.

    >>> import mechedit as me
    >>> model, facts = me.load_model("factworld"), me.factworld.edits(3)
    >>> scores = evaluate(model, me.editors.NoEdit(), facts, progress=False).summary().set_index("metric")["value"]
    >>> float(scores["Acc"]), float(scores["Spec"])
    (0.0, 1.0)
    """
    families = check_facts(model, facts, families=families)
    keys = [_case_key(editor, fact, run) for fact in facts]
    base = unedited or baseline(model, facts, batch_size=batch_size)
    known, bases = base.known, base.neighbourhoods
    cases = []
    todo = zip(facts, keys, known, bases, strict=True)
    for fact, key, knows, base in tqdm(todo, total=len(facts), desc=editor.name, disable=not progress):
        settings = _settings(model, editor, fact, families)
        scores = _finished(run, key, settings)
        if scores is None:
            scores = _edited_scores(model, editor, fact, families, base, batch_size) if any(known) else []
            if run is not None:
                run.write_case(key, _case(fact, knows, settings, scores))
        cases.append(scores)
    return _gather(model, editor, facts, families, known, cases)


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
        for name in ("target_new", "target_true"):
            try:
                model.continuation(question.prompt, getattr(fact, name))
            except InputError as error:
                where = (
                    f"facts: record {index} (case_id {fact.case_id}): {name} behind a {question.role} prompt"
                )
                raise InputError(f"{where}: {error}") from error


# --- the unedited model -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Baseline:
    """What `evaluate` asks of the unedited model: measured once, it serves every editor on the same facts.

    known: whether it answers each fact. neighbourhoods: for each fact p(new), p(true) by neighbourhood prompt.
    """

    known: list[bool]
    neighbourhoods: list[dict[str, tuple[float, float]]]


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
) -> Iterator[dict[str, tuple[float, float]]]:
    """For each fact p(new), p(true) of the unedited model by neighbourhood prompt; all facts in one go."""
    asked = [[q for q in questions_of(fact, ("argmax",)) if q.role == "neighborhood"] for fact in facts]
    scores = iter(measure(model, [q for questions in asked for q in questions], batch_size=batch_size))
    for questions in asked:
        own = [next(scores) for _ in questions]
        yield {score.prompt: (score.p_new, score.p_true) for score in own}


# --- one case ---------------------------------------------------------------------------------------


def _edited_scores(
    model: HookedModel,
    editor: Editor,
    fact: FactEdit,
    families: Sequence[str],
    base: Mapping[str, tuple[float, float]],
    batch_size: int,
) -> list[PromptScore]:
    with editor.apply(model, [fact]) as edited:
        scores = measure(edited, questions_of(fact, families), batch_size=batch_size)
    return [_with_base(score, base) if score.role == "neighborhood" else score for score in scores]


def _with_base(score: PromptScore, base: Mapping[str, tuple[float, float]]) -> PromptScore:
    new, true = base.get(score.prompt, (math.nan, math.nan))
    return dataclasses.replace(score, base_p_new=new, base_p_true=true)


def _case_key(editor: Editor, fact: FactEdit, run: RunFolder | None) -> str:
    key = f"{editor.name}-{fact.case_id}"
    return key if run is None else check_case_id(key)


def _settings(model: HookedModel, editor: Editor, fact: FactEdit, families: Sequence[str]) -> str:
    """sha256 of what a case's numbers depend on (not the batch size, which moves the last digits only)."""
    parts = [model.hash, str(model.dtype), _described(editor), sorted(families), dataclasses.asdict(fact)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _described(editor: Editor) -> dict[str, str]:
    """Every field that tells two editors apart, those that the repr hides too."""
    if not dataclasses.is_dataclass(editor):
        return {"name": editor.name}
    return {one.name: repr(getattr(editor, one.name)) for one in dataclasses.fields(editor) if one.compare}


def _finished(run: RunFolder | None, key: str, settings: str) -> list[PromptScore] | None:
    """The scores of a case that an earlier process has written, or None."""
    if run is None or key not in run.done():
        return None
    case = run.read_case(key)
    if case.get("settings") != settings:
        raise InputError(
            f"run: case {key!r} in {run.path} was measured with another model, editor, fact or family; "
            "choose another folder"
        )
    return [PromptScore(**score) for score in case["prompts"]]


def _case(fact: FactEdit, knows: bool, settings: str, scores: Sequence[PromptScore]) -> dict[str, Any]:
    return {
        "case_id": fact.case_id,
        "subject": fact.subject,
        "known": knows,
        "settings": settings,
        "prompts": [dataclasses.asdict(score) for score in scores],
    }


# --- tables -----------------------------------------------------------------------------------------


def _gather(
    model: HookedModel,
    editor: Editor,
    facts: Sequence[FactEdit],
    families: tuple[str, ...],
    known: Sequence[bool],
    scores: Sequence[Sequence[PromptScore]],
) -> Evaluation:
    ids = [str(fact.case_id) for fact in facts]
    records = [
        {"case_id": case, **row, "known": knows}
        for case, knows, own in zip(ids, known, scores, strict=True)
        for row in (record_values(own, families) if own else ())
    ]
    prompts = [
        {"case_id": case, **dataclasses.asdict(one)}
        for case, own in zip(ids, scores, strict=True)
        for one in own
    ]
    cases = [
        {"case_id": case, "subject": fact.subject, "known": knows}
        for case, fact, knows in zip(ids, facts, known, strict=True)
    ]
    flat = any(fact.source_schema == "easyedit" for fact in facts)
    return Evaluation(
        records=_frame(records, _RECORD_COLUMNS),
        prompts=_frame(prompts, _PROMPT_COLUMNS),
        cases=_frame(cases, _CASE_COLUMNS),
        editor=editor.name,
        model=model.name,
        families=families,
        notes=((KNOWS_NONE,) if not any(known) else ()) + ((NOT_ROMES_PS,) if flat else ()),
        provenance={
            "model": {
                "name": model.name,
                "source": model.source,
                "hash": model.hash,
                "dtype": str(model.dtype),
            },
            "editor": repr(editor) if dataclasses.is_dataclass(editor) else editor.name,
        },
    )


def _frame(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """A frame of fixed columns and types, also where there is no row."""
    return pd.DataFrame(rows, columns=list(columns)).astype(dict(columns))


def _summary_row(name: str, records: pd.DataFrame) -> dict[str, Any]:
    """value, interval and counts of one metric from its records."""
    scored = records[records["n_prompts"] > 0]
    values, n = scored["value"], len(scored)
    value = float(values.mean(skipna=False)) if n else math.nan
    one_each = METRICS[name].proportion and bool((scored["n_prompts"] == 1).all())
    if math.isnan(value):
        low = high = math.nan
    elif one_each:
        low, high = wilson(int(values.sum()), n)
    else:
        low, high = bootstrap_mean(values.to_numpy())
    return {
        "metric": name,
        "value": value,
        "low": low,
        "high": high,
        "interval": "wilson" if one_each else "bootstrap",
        "n": n,
        "n_prompts": int(scored["n_prompts"].sum()),
        "n_dropped": int(records["n_dropped"].sum()),
        "n_nan": int(values.isna().sum()),
    }


def _harmonic_row(rows: Mapping[str, dict[str, Any]], records: pd.DataFrame) -> dict[str, Any]:
    """S from the data-set level values of its parts; its n is the number of records that have all three."""
    parts = records[records["metric"].isin(_S_PARTS)]
    value = parts.pivot(index="case_id", columns="metric", values="value").reindex(columns=list(_S_PARTS))
    there = (
        parts.pivot(index="case_id", columns="metric", values="n_prompts").reindex(columns=list(_S_PARTS)) > 0
    )
    low, high = bootstrap_harmonic_mean(value.to_numpy(), there.to_numpy())
    return {
        "metric": "S",
        "value": harmonic_mean([rows[name]["value"] for name in _S_PARTS]),
        "low": low,
        "high": high,
        "interval": "bootstrap",
        "n": int(there.all(axis=1).sum()),
        "n_prompts": sum(rows[name]["n_prompts"] for name in _S_PARTS),
        "n_dropped": 0,
        "n_nan": int((value.isna() & there).any(axis=1).sum()),
    }
