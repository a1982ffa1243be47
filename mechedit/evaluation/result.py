"""What `evaluate` measured: prompts reduced to records, records to a table with n and intervals.

A record's value is the mean over its prompts, a data set's the mean over its records. Metrics:
`mechedit.evaluation.metrics`, `mechedit.evaluation.fluency`. The families are not comparable with each other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pandas as pd
from matplotlib.axes import Axes

from mechedit.data.facts import FactEdit
from mechedit.editors.base import Editor
from mechedit.evaluation.elsewhere import Cost
from mechedit.evaluation.fluency import References, record_entropy
from mechedit.evaluation.measure import METRICS, PromptScore, record_values
from mechedit.evaluation.metrics import bootstrap_harmonic_mean, harmonic_mean
from mechedit.models.hooked import HookedModel
from reports.errors import InputError
from reports.forests import forest
from reports.intervals import bootstrap_mean, wilson
from reports.plot import Plot
from reports.results import Result

__all__ = [
    "KNOWS_NONE",
    "NOT_ROMES_PS",
    "OWN_ANSWERS",
    "CaseScores",
    "ELSEWHERE",
    "Evaluation",
    "Mode",
    "gather",
]

Mode = Literal["single", "sequential", "batch"]
KNOWS_NONE = "the unedited model knows none of these facts: no score"
NOT_ROMES_PS = "EasyEdit's rephrase prompts are CounterFact's generation prompts: not ROME's paraphrase score"
OWN_ANSWERS = "neighbours have answers of their own, not the edited fact's: not ROME's neighbourhood score"
GENERATION = ("GE", "RS")
ELSEWHERE = ("KL", "Top1")
_NO_SHARES = ("KL", "GE")  # on no scale with the others
_S_PARTS = ("ES", "PS", "NS")
_RECORD_COLUMNS = {
    "case_id": "str",
    "metric": "str",
    "value": "float64",
    "n_prompts": "int64",
    "n_dropped": "int64",
    "known": "bool",
}
_CASE_COLUMNS = {
    "case_id": "str",
    "subject": "str",
    "known": "bool",
    "prompt": "str",
    "old": "str",
    "new": "str",
}
_ELSEWHERE_COLUMNS = {
    "case_id": "str",
    "KL": "float64",
    "Top1": "float64",
    "n_prompts": "int64",
    "known": "bool",
}
_GENERATION_COLUMNS = {"case_id": "str", "index": "int64", "text": "str"}
_PROMPT_TYPES = {
    "str": "str",
    "int": "int64",
    "float": "float64",
    "str | None": "str",
    "bool | None": "boolean",
}
_PROMPT_COLUMNS = {"case_id": "str"} | {
    field.name: _PROMPT_TYPES[str(field.type)] for field in dataclasses.fields(PromptScore)
}


@dataclass(frozen=True)
class CaseScores:
    """What was measured of one fact.

    Attributes:
        fact: The fact.
        known: Whether the unedited model answers it.
        prompts: Its prompts, scored.
        texts: What the edited model writes behind its generation prompts.
        cost: What the edit costs on running text; None where that was not measured.
        demonstrations: How many IKE showed, and how many more did not fit the context; () where all fit.
    """

    fact: FactEdit
    known: bool
    prompts: Sequence[PromptScore] = ()
    texts: Sequence[str] = ()
    demonstrations: Sequence[int] = ()
    cost: Cost | None = None


@dataclass(frozen=True, repr=False, eq=False)
class Evaluation(Result):
    """What `evaluate` measured.

    Case ids are strings in the frames.

    Attributes:
        records: Columns case_id, metric, value (mean over the record's prompts; NaN where it has none), n_prompts,
            n_dropped (by Spec's filter), known.
        prompts: One row a prompt with everything that the metrics are made of (`PromptScore`).
        cases: Columns case_id, subject, known, prompt (the rewrite prompt), old, new; the last three not in results of
            earlier versions.
        generations: Columns case_id, index, text.
        editor: The editor's name.
        model: The model's name.
        families: The families of metrics that were scored.
        mode: Whether each fact was edited alone.
        notes: What a reader of any score must know.
        elsewhere: What each edit costs on running text: columns case_id, KL (nats per token), Top1, n_prompts
            (passages), known; no row where that was not measured, as in results of earlier versions.
    """

    kind: ClassVar[str] = "evaluation"
    records: pd.DataFrame
    prompts: pd.DataFrame
    cases: pd.DataFrame
    generations: pd.DataFrame
    editor: str
    model: str
    families: tuple[str, ...]
    mode: str = "single"
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    elsewhere: pd.DataFrame = dataclasses.field(default_factory=lambda: _frame([], _ELSEWHERE_COLUMNS))

    @property
    def n_total(self) -> int:
        """Facts given."""
        return len(self.cases)

    @property
    def n_known(self) -> int:
        """Facts that the unedited model answers: the n behind the scores."""
        return int(self.cases["known"].sum())

    def summary(self, *, over: Literal["known", "all"] = "known") -> pd.DataFrame:
        """One row a metric.

        Columns: metric, value, low, high (fractions; GE in bits), interval, n, n_prompts, n_dropped, n_nan, n_known,
        n_total, note. The value is the mean over the n records that have a prompt of that kind; S is the harmonic mean
        of the values of ES, PS, NS. A NaN among the records makes the value NaN and is counted in n_nan. The interval
        is Wilson's where each record gives one success or failure (ES, Acc, ...), else a bootstrap over records, which
        has no width where all agree. With n_known = 0 every value is NaN and n is 0. KL (nats per token) and Top1 are
        what an edit costs on running text (`mechedit.evaluation.elsewhere`), n_prompts there counts passages.

        Args:
            over: Which facts count: those that the unedited model knows, or "all".

        Raises:
            InputError: `over` is something else.
        """
        if over not in ("known", "all"):
            raise InputError(f"over: expected 'known' or 'all', found {over!r}")
        records = self.records if over == "all" else self.records[self.records["known"]]
        names = [name for name, metric in METRICS.items() if metric.family in self.families]
        names += [name for name in GENERATION if (records["metric"] == name).any()]
        rows = {name: _summary_row(name, records[records["metric"] == name]) for name in names}
        if "probability" in self.families:
            rows["S"] = _harmonic_row(rows, records)
        costs = self.elsewhere if over == "all" else self.elsewhere[self.elsewhere["known"]]
        for name in ELSEWHERE:
            rows[name] = _summary_row(name, costs.assign(value=costs[name], n_dropped=0))
        table = pd.DataFrame(list(rows.values())).assign(n_known=self.n_known, n_total=self.n_total)
        return table.assign(note=[self._note(name) for name in rows])

    def plot(self, ax: Axes | None = None) -> Plot:
        """The summary's shares as points with intervals, without KL (nats) and GE (bits); from the stored numbers."""
        table = self.summary()
        table = table[~table["metric"].isin(_NO_SHARES)]
        table["label"] = [f"{row.metric} (n {row.n})" for row in table.itertuples()]
        drawn = forest(table, ax=ax, xlabel=f"{self.n_known} of {self.n_total} facts known")
        return Plot(drawn, title=f"{self.editor} on {self.model}")

    def _note(self, metric: str) -> str:
        if self.n_known == 0:
            return KNOWS_NONE
        role = METRICS[metric].role if metric in METRICS else ""
        if NOT_ROMES_PS in self.notes and (metric == "S" or role == "paraphrase"):
            return NOT_ROMES_PS
        if OWN_ANSWERS in self.notes and (metric == "S" or role == "neighborhood"):
            return OWN_ANSWERS
        return ""


# --- tables -----------------------------------------------------------------------------------------


def gather(
    model: HookedModel,
    editor: Editor,
    cases: Sequence[CaseScores],
    used: Mapping[str, Any],
    *,
    families: tuple[str, ...],
    mode: Mode,
    references: References | None,
) -> Evaluation:
    """The `Evaluation` of what was measured of each fact; `used` are the editor's settings (`resolved`)."""
    ids = [str(case.fact.case_id) for case in cases]
    records = [
        {"case_id": name, **row, "known": case.known}
        for name, case in zip(ids, cases, strict=True)
        for row in _record(case, families, references)
    ]
    prompts = [
        {"case_id": name, **dataclasses.asdict(score)}
        for name, case in zip(ids, cases, strict=True)
        for score in case.prompts
    ]
    facts = [_about(case) for case in cases]
    texts = [
        {"case_id": name, "index": i, "text": text}
        for name, case in zip(ids, cases, strict=True)
        for i, text in enumerate(case.texts)
    ]
    return Evaluation(
        records=_frame(records, _RECORD_COLUMNS),
        prompts=_frame(prompts, _PROMPT_COLUMNS),
        cases=_frame(facts, _CASE_COLUMNS),
        generations=_frame(texts, _GENERATION_COLUMNS),
        elsewhere=_costs(cases),
        editor=editor.name,
        model=model.name,
        families=families,
        mode=mode,
        notes=_notes(cases, model, editor.name, used),
        provenance={
            "model": {
                "name": model.name,
                "source": model.source,
                "hash": model.hash,
                "dtype": str(model.dtype),
                **model.stored,
                **model.framing,
            },
            "editor": repr(editor) if dataclasses.is_dataclass(editor) else editor.name,
            "settings": dict(used),
            "space": sorted({case.fact.space for case in cases}),
        },
    )


def _about(case: CaseScores) -> dict[str, Any]:
    """A row of `Evaluation.cases`."""
    fact = case.fact
    about = {"case_id": str(fact.case_id), "subject": fact.subject, "known": case.known}
    return about | {"prompt": fact.rewrite_prompt, "old": fact.target_true, "new": fact.target_new}


def _costs(cases: Sequence[CaseScores]) -> pd.DataFrame:
    rows = [
        {
            "case_id": str(case.fact.case_id),
            "KL": case.cost.kl,
            "Top1": case.cost.top1,
            "n_prompts": case.cost.n,
            "known": case.known,
        }
        for case in cases
        if case.cost is not None
    ]
    return _frame(rows, _ELSEWHERE_COLUMNS)


def _notes(
    cases: Sequence[CaseScores], model: HookedModel, editor: str, settings: Mapping[str, Any]
) -> tuple[str, ...]:
    notes = [] if any(case.known for case in cases) else [KNOWS_NONE]
    notes += [NOT_ROMES_PS] if any(case.fact.source_schema == "easyedit" for case in cases) else []
    notes += [OWN_ANSWERS] if any(case.fact.neighborhood_answers for case in cases) else []
    notes += [f"{editor} is {settings['defaults']['about']}"] if "defaults" in settings else []
    notes += [f"{model.quantization} weights, dequantised"] if model.quantization else []
    if short := [case.demonstrations for case in cases if case.demonstrations]:
        shown, asked = sorted({n for n, _ in short}), max(n + left_out for n, left_out in short)
        notes.append(
            f"{' to '.join(map(str, dict.fromkeys((shown[0], shown[-1]))))} of {asked} demonstrations fit the model's "
            f"context, in {len(short)} of {len(cases)} facts"
        )
    return tuple(notes)


def _record(case: CaseScores, families: Sequence[str], references: References | None) -> list[dict[str, Any]]:
    """The values of one record; none where nothing was measured."""
    rows = record_values(case.prompts, families) if case.prompts else []
    if "generation" in families and case.texts:
        scores = {"GE": record_entropy(case.texts)}
        if references is not None:
            scores["RS"] = references.similarity(case.texts, case.fact.target_new)
        counts = {
            "GE": len(case.texts),
            "RS": 0 if math.isnan(scores.get("RS", math.nan)) else len(case.texts),
        }
        rows += [
            {"metric": name, "value": value, "n_prompts": counts[name], "n_dropped": 0}
            for name, value in scores.items()
        ]
    return rows


def _frame(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """A frame of fixed columns and types, also where there is no row."""
    return pd.DataFrame(rows, columns=list(columns)).astype(dict(columns))


def _summary_row(name: str, records: pd.DataFrame) -> dict[str, Any]:
    """value, interval and counts of one metric from its records."""
    scored = records[records["n_prompts"] > 0]
    values, n = scored["value"], len(scored)
    value = float(values.mean(skipna=False)) if n else math.nan
    one_each = name in METRICS and METRICS[name].proportion and bool((scored["n_prompts"] == 1).all())
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
