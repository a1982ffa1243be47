"""MEGA beside every other editor, its controls and its ablations, on the same facts: one run folder, one table.

Steps:

1. for each seed, facts to edit and others (about other subjects) to choose by; whatever an editor leaves open (window,
   alpha, gate) is chosen on the others;
2. every editor and control is evaluated on all facts, one at a time, each case a file, so that a stopped run goes on;
   every ablation of MEGA on the first `ablation_facts` of the first seed;
3. what follows from the edits (RippleEdits' axes) on `ripple_facts` of the first seed, where the data brings tests;
4. the seeds' records are pooled by editor; intervals are over records, and beside them each seed's own value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from experiments.recipe import recorded
from experiments.runs import RunFolder, continued
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.editors import MEGA, NAMES, Editor
from mechedit.editors.registry import select
from mechedit.editors.steering.selection import gate_roc
from mechedit.editors.steering.variants import ABLATIONS, CONTROLS, variant
from mechedit.evaluation.evaluate import Evaluation, baseline, evaluate
from mechedit.evaluation.result import ELSEWHERE
from mechedit.evaluation.ripple import RippleEvaluation, ripple
from mechedit.models.hooked import HookedModel
from mechedit.recipes.configurations import COMPARED, ComparisonConfig
from mechedit.recipes.editor_choice import named
from mechedit.recipes.splits import compared_facts, ripple_facts
from reports import page
from reports.answers import above
from reports.intervals import bootstrap_mean
from reports.results import Result

__all__ = ["EditorComparison", "run_comparison"]

#: By seed the facts that are measured, and those that choose.
Splits = dict[int, tuple[list[FactEdit], list[FactEdit]]]
FIVE = ("Acc", "Gen", "Spec", "DI", "DII")
CELLS = {
    "acc": "Acc",
    "gen": "Gen",
    "spec": "Spec",
    "di": "DI",
    "dii": "DII",
    "other": "Other",
    "es": "ES",
    "ps": "PS",
    "ns": "NS",
    "s": "S",
    "kl": "KL",
    "top1": "Top1",
}
LABELS = {
    "mega": "MEGA",
    "sake": "SAKE",
    "rome": "ROME",
    "memit": "MEMIT",
    "alphaedit": "AlphaEdit",
    "ft": "FT",
    "ft_l": "FT-L",
    "lora": "LoRA",
    "ike": "IKE",
    "no_edit": "No edit",
    **{name: label for name, (label, _) in {**CONTROLS, **ABLATIONS}.items()},
}


@dataclass(frozen=True, eq=False, repr=False)
class EditorComparison(Result):
    """What `run_comparison` measured.

    Attributes:
        table: Columns editor, part ("editor" or "ablation"), metric, value, low, high, n. Values are fractions; the
            metric "mean" is the mean of Acc, Gen, Spec, DI, DII over the records that have all five.
        seeds: Columns editor, seed, metric, value.
        ripple: Columns editor, family, metric, value, low, high, n, n_tests.
        choices: Columns seed, key, value: what was chosen on the selection.
        n_known: Facts that the unedited model answers, over all seeds.
        n_total: Facts given, over all seeds.
    """

    kind: ClassVar[str] = "comparison"
    table: pd.DataFrame
    seeds: pd.DataFrame
    ripple: pd.DataFrame
    choices: pd.DataFrame
    n_known: int
    n_total: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def wide(self, part: str = "editor") -> pd.DataFrame:
        """One row an editor, one column a metric, in the order of the run."""
        rows = self.table[self.table["part"] == part]
        wide = rows.pivot(index="editor", columns="metric", values="value").reindex(rows["editor"].unique())
        absent = {name: math.nan for name in ELSEWHERE if name not in wide}  # results of earlier versions
        return wide.assign(**absent)


def run_comparison(
    model: HookedModel, config: ComparisonConfig, out: str | Path, *, progress: bool = True
) -> EditorComparison:
    """Runs the comparison into the folder `out`, goes on with it, or extends it to a larger `limit`.

    Raises:
        InputError: `out` holds something else or a run with another configuration; and as `evaluate`.
    """
    config = continued(config, out)
    for name, fields in (config.set or {}).items():
        named(model, name, fields)  # refused before anything is measured or written
    splits = _splits(config)
    run = RunFolder.open(
        out,
        recorded("compare", config),
        provenance=model.provenance(data=_data(config, splits), seeds={"facts": list(config.seeds)}),
        first=lambda limit: _data(config, _splits(replace(config, limit=limit))),
    )
    study = _Study(model, config, run, progress)
    for seed, (facts, selection) in splits.items():
        study.measure(seed, facts, selection)
    study.ablate(*splits[config.seeds[0]])
    study.follow(splits[config.seeds[0]][0])
    result = study.result()
    run.write_result(result, "comparison")
    for name, evaluation in study.by_editor():
        run.write_result(evaluation, name)
    run.write_json("summary", _summary(config, model, result))
    page.build(run.path)
    run.finish({"n_known": result.n_known, "n_total": result.n_total})
    return result


def _splits(config: ComparisonConfig) -> Splits:
    return {seed: compared_facts(config, seed) for seed in config.seeds}


def _data(config: ComparisonConfig, splits: Splits) -> dict[str, Any]:
    """What the provenance says of the facts."""
    hashes = {f"facts_{seed}": facts_hash(facts) for seed, (facts, _) in splits.items()}
    return {"source": config.data or "the embedded world", **hashes}


class _Study:
    """The evaluations so far; each case is in the run folder already."""

    def __init__(self, model: HookedModel, config: ComparisonConfig, run: RunFolder, progress: bool) -> None:
        self.model, self.config, self.run, self.progress = model, config, run, progress
        self.editors: dict[int, list[Editor]] = {}
        self.evaluations: dict[tuple[str, str], list[tuple[int, Evaluation]]] = {}
        self.ripples: list[tuple[str, RippleEvaluation]] = []
        self.choices: list[dict[str, Any]] = []

    def measure(self, seed: int, facts: Sequence[FactEdit], selection: Sequence[FactEdit]) -> None:
        """Every editor and control on the facts of one seed."""
        mega = select(self._named("mega"), self.model, selection)
        assert isinstance(mega, MEGA)
        choice = {"window": mega.window, **mega.choice}
        self.choices += [{"seed": seed, "key": key, "value": str(value)} for key, value in choice.items()]
        self.editors[seed] = [self._editor(name, mega, seed, selection) for name in self.config.editors]
        unedited = baseline(self.model, facts, families=COMPARED, text=self.config.text)
        for editor in self.editors[seed]:
            self._evaluate("editor", seed, editor, facts, unedited)

    def ablate(self, facts: Sequence[FactEdit], selection: Sequence[FactEdit]) -> None:
        """MEGA's ablations on the first facts of the first seed, and the ROC of its gates."""
        seed = self.config.seeds[0]
        mega = next(e for e in self.editors[seed] if e.name == "mega")
        assert isinstance(mega, MEGA)
        facts = facts[: self.config.ablation_facts]
        unedited = baseline(self.model, facts, families=COMPARED, text=self.config.text)
        ready = [self._editor(name, mega, seed, selection) for name in self.config.ablations]
        for editor in (mega, *ready):
            self._evaluate("ablation", seed, editor, facts, unedited)
        gates = {e.gate: e for e in (mega, *ready) if isinstance(e, MEGA) and e.gate != "always"}
        if gates:
            self.run.write_result(gate_roc(list(gates.values()), self.model, facts), "gates")

    def follow(self, facts: Sequence[FactEdit]) -> None:
        """RippleEdits' axes, where the facts have tests."""
        tested = ripple_facts(self.config, facts)
        for editor in self.editors[self.config.seeds[0]] if tested else []:
            result = ripple(self.model, editor, tested, progress=self.progress, run=self.run)
            self.ripples.append((editor.name, result))

    def by_editor(self) -> Iterator[tuple[str, Evaluation]]:
        """Every editor and control with its evaluation, pooled over the seeds."""
        for (part, name), evaluations in self.evaluations.items():
            if part == "editor":
                yield name, _pooled([evaluation for _, evaluation in evaluations])

    def result(self) -> EditorComparison:
        """Everything, pooled over the seeds."""
        tables, by_seed = [], []
        for (part, name), evaluations in self.evaluations.items():
            pooled = _pooled([evaluation for _, evaluation in evaluations])
            tables.append(_scores(pooled).assign(editor=name, part=part))
            if part == "editor":
                by_seed += [
                    _scores(e)[["metric", "value"]].assign(editor=name, seed=s) for s, e in evaluations
                ]
        known = self.evaluations["editor", "mega"]
        ripples = [result.summary().assign(editor=name) for name, result in self.ripples]
        columns = ["editor", "family", "metric", "value", "low", "high", "n", "n_tests"]
        return EditorComparison(
            table=pd.concat(tables, ignore_index=True),
            seeds=pd.concat(by_seed, ignore_index=True),
            ripple=pd.concat(ripples, ignore_index=True)[columns]
            if ripples
            else pd.DataFrame(columns=columns),
            choices=pd.DataFrame(self.choices),
            n_known=sum(e.n_known for _, e in known),
            n_total=sum(e.n_total for _, e in known),
        )

    def _editor(self, name: str, mega: MEGA, seed: int, selection: Sequence[FactEdit]) -> Editor:
        if name == "mega":
            return mega
        n_layers = self.model.shape.n_layers
        editor = self._named(name) if name in NAMES else variant(mega, name, n_layers=n_layers, seed=seed)
        return select(editor, self.model, selection)

    def _named(self, name: str) -> Editor:
        return named(self.model, name, (self.config.set or {}).get(name, {}))

    def _evaluate(
        self, part: str, seed: int, editor: Editor, facts: Sequence[FactEdit], unedited: Any
    ) -> None:
        evaluation = evaluate(
            self.model,
            editor,
            facts,
            families=COMPARED,
            progress=self.progress,
            run=self.run,
            unedited=unedited,
        )
        self.evaluations.setdefault((part, editor.name), []).append((seed, evaluation))


# -- tables --------------------------------------------------------------------------------------------------


def _pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    frames = {
        name: pd.concat([getattr(e, name) for e in evaluations], ignore_index=True)
        for name in ("records", "prompts", "cases", "generations", "elsewhere")
    }
    return replace(evaluations[0], **frames)


def _scores(evaluation: Evaluation) -> pd.DataFrame:
    """metric, value, low, high, n of the metrics shown, and of the mean of five."""
    table = evaluation.summary()
    shown = table[table["metric"].isin(CELLS.values())][["metric", "value", "low", "high", "n"]]
    records = evaluation.records[evaluation.records["known"]]
    wide = records.pivot(index="case_id", columns="metric", values="value")
    whole = wide.reindex(columns=list(FIVE)).dropna().mean(axis=1).to_numpy()
    low, high = bootstrap_mean(whole)
    value = float(np.mean(whole)) if len(whole) else float("nan")
    mean = {"metric": "mean", "value": value, "low": low, "high": high, "n": len(whole)}
    return pd.concat([shown, pd.DataFrame([mean])], ignore_index=True)


def _summary(config: ComparisonConfig, model: HookedModel, result: EditorComparison) -> dict[str, Any]:
    others = {*config.editors} - {"mega", "no_edit", *CONTROLS}
    chosen = result.choices.set_index(["key", "seed"])["value"]
    windows = ", ".join(f"{chosen['window', seed]} (seed {seed})" for seed in config.seeds)
    return {
        "title": "MEGA and the other editors" if others else "MEGA and its controls",
        "subtitle": f"{config.limit} facts under each of {len(config.seeds)} seeds, one edit at a time",
        "model": f"{config.model} ({model.shape.architecture}, {model.shape.n_layers} layers)",
        "n": result.n_known,
        "window": None,
        "editors": _rows(result.table, "editor") + _rows(result.table, "ablation", skip="mega"),
        "verdicts": _verdicts(result),
        "notes": [
            f"The unedited model knows {result.n_known} of the {result.n_total} facts; scores are over those.",
            f"Chosen for each seed on {config.selection} facts about other subjects; windows: {windows}.",
            *_ablation_notes(config),
            "Mean is that of Acc, Gen, Spec, DI and DII, over the records that have all five.",
            "KL, in nats per token, and Top-1 compare the edited with the unedited model on running text.",
            "Spec counts a closed gate as success"
            + (": read the row without a gate beside it." if "mega_ungated" in config.editors else "."),
            "Other asks about the same subject under other relations, in words that nothing is fitted on: the share of "
            "prompts whose next token is the unedited model's.",
            *_ripple_notes(result.ripple),
        ],
        "not_done": [
            "Other settings of the weight editors than their tuned ones; edits one upon the other; a model of text."
        ],
    }


def _ablation_notes(config: ComparisonConfig) -> list[str]:
    if not config.ablations:
        return []
    n = min(config.ablation_facts, config.limit)
    return [f"The ablations, below the editors, are on {n} facts of the first seed."]


def _rows(table: pd.DataFrame, part: str, *, skip: str = "") -> list[dict[str, Any]]:
    names = {metric: key for key, metric in CELLS.items()} | {"mean": "mean"}
    rows = []
    for editor, scores in table[table["part"] == part].groupby("editor", sort=False):
        if editor == skip:
            continue
        cells = {
            names[row["metric"]]: {key: row[key] for key in ("value", "low", "high", "n")}
            for row in scores.to_dict("records")
        }
        rows.append({"name": editor, "label": LABELS[str(editor)], **cells})
    return rows


def _verdicts(result: EditorComparison) -> list[dict[str, str]]:
    means = result.table[(result.table["part"] == "editor") & (result.table["metric"] == "mean")].set_index(
        "editor"
    )
    mega = means.loc["mega"]
    controls = means.index.isin(CONTROLS) | (means.index == "no_edit")
    # The mean shift is MEGA with another map: it has a claim of its own.
    verdicts = [
        _verdict(claim, mega, peers.loc[peers["value"].idxmax()])
        for claim, peers in (
            ("MEGA stands above every other editor", means[~controls].drop(index=["mega"])),
            (
                "MEGA stands above each of its controls",
                means[controls].drop(index=["mean_shift"], errors="ignore"),
            ),
        )
        if len(peers)
    ]
    for name, claim in (
        ("random_window", "The window that the attribution names is worth more than a random one"),
        ("mean_shift", "The transport does more than the mean shift"),
        ("sake", "Attention outputs are a better place to steer than the final state (SAKE)"),
    ):
        if name in means.index:
            verdicts.append(_verdict(claim, mega, means.loc[name]))
    return verdicts


def _verdict(claim: str, mega: pd.Series, peer: pd.Series) -> dict[str, str]:
    """Whether MEGA stands above a peer."""
    answer = above((mega["low"], mega["high"]), (peer["low"], peer["high"]))
    values = [f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in (mega, peer)]
    evidence = f"mean of five: MEGA {values[0]}, {LABELS[str(peer.name)]} {values[1]}, n {int(mega['n'])}"
    return {"claim": claim, "answer": answer, "evidence": evidence}


def _ripple_notes(frame: pd.DataFrame) -> list[str]:
    """SAKE's reading of CI, CII, SA and RS, a line an editor."""
    notes = []
    for editor, axes in frame[frame["family"] == "sake"].groupby("editor", sort=False):
        values = [
            f"{row['metric']} {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}] (n {int(row['n_tests'])})"
            for row in axes.to_dict("records")
            if row["n_tests"]
        ]
        notes.append(
            f"What follows from the edit, {LABELS[str(editor)]}: {', '.join(values) or 'no test counts'}."
        )
    if notes:
        notes.append(
            "CI and CII ask for another relation than the edit's: a gate that asks what is asked leaves them be, and "
            "the row without a gate shows what the steering itself makes of them."
        )
    return notes
