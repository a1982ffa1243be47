"""`anatomy`: attribution after an edit, where it succeeds against where it fails, for any editors.

Steps:

1. Every fact is measured under every editor, as set and made to fail on purpose (`one_fact`, `failures`); a finished
   fact is a case of the run folder, so that a stopped study can be continued.
2. Δ = after − before of every layer, module and head, for the new and the old object; success against failure, for each
   editor and pooled (`tables`).
3. The window is the run of layers whose attention tells success from failure best, for the new object, pooled over the
   editors, on a *selection* split that nothing else reads; its score on the evaluated facts stands beside it.
4. The paper's claims are tested on the numbers (`claims`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
from matplotlib.axes import Axes

from experiments.case_ids import check_case_id
from experiments.cases import Case, every_case, settings_digest
from experiments.runs import RunFolder
from experiments.settings import fingerprint
from mechedit.anatomy.claims import agreement_table, claim_table
from mechedit.anatomy.failures import AS_SET, weakened
from mechedit.anatomy.features import POOLED, Runs, gather
from mechedit.anatomy.one_fact import Setting, measure_fact, settings_for
from mechedit.anatomy.tables import (
    ALL,
    delta_table,
    head_table,
    neuron_table,
    outcome_table,
    overlap_table,
    success_contrasts,
)
from mechedit.attribution.window import best_window, window_scores
from mechedit.data.case_keys import anatomy_key
from mechedit.data.facts import FactEdit, facts_hash
from mechedit.data.records import fact_fields
from mechedit.editors import Editor
from mechedit.editors.settings import resolved
from mechedit.models.deciding import read_anew
from mechedit.models.hooked import HookedModel
from reports.anatomy_figures import difference_curve
from reports.errors import InputError
from reports.plot import Plot
from reports.results import Result

__all__ = ["AnatomyStudy", "anatomy"]

#: The least number of facts of the selection split with each outcome by which a window is chosen.
WINDOW_LEAST = 2


@dataclass(frozen=True, repr=False, eq=False)
class AnatomyStudy(Result):
    """The result of `anatomy`. Scores in nats; intervals are 95 %, over facts.

    Attributes:
        delta: What changed in every layer and module (`tables.delta_table`).
        heads: What changed in every head (`tables.head_table`).
        outcomes: How often each editor succeeded, by setting (`tables.outcome_table`).
        claims: What holds of the paper's claims (`claims.claim_table`).
        agreement: How alike editors are (`claims.agreement_table`).
        overlap: How many of the top neurons two editors share (`tables.overlap_table`).
        neurons: The neurons that occur most often (`tables.neuron_table`).
        windows: first, last, score (on the selection split), evaluated (the same on the evaluated facts).
        window: (first, last), None where the selection split has too few of one outcome.
        n: Evaluated facts.
        skipped: Why facts were left out, and how many.
        model: Its name.
        provenance: Model, data, seeds, versions.
    """

    kind: ClassVar[str] = "anatomy"
    delta: pd.DataFrame
    heads: pd.DataFrame
    outcomes: pd.DataFrame
    claims: pd.DataFrame
    agreement: pd.DataFrame
    overlap: pd.DataFrame
    neurons: pd.DataFrame
    windows: pd.DataFrame
    window: tuple[int, int] | None
    n: int
    skipped: dict[str, int]
    model: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def plot(self, ax: Axes | None = None, *, editor: str = POOLED) -> Plot:
        """Success − failure by layer, attention and FFN, of the new object; drawn from the stored numbers alone.

        Args:
            ax: Where to draw; None: a new figure.
            editor: Of which editor, or "pooled".

        Raises:
            InputError: The study has no such editor.
        """
        chosen = self.delta[(self.delta["editor"] == editor) & (self.delta["setting"] == ALL)]
        if chosen.empty:
            raise InputError(
                f"editor: expected one of {', '.join(self.delta['editor'].unique())}, found {editor!r}"
            )
        drawn = difference_curve(chosen[chosen["object"] == "new"], ax, window=self.window)
        return Plot(drawn, title=f"Edits that succeed less those that fail: {editor}, {self.model}")


def anatomy(
    model: HookedModel,
    facts: Sequence[FactEdit],
    *,
    editors: Sequence[Editor],
    selection: Sequence[FactEdit] = (),
    made_to_fail: bool = True,
    stand_ins: Sequence[FactEdit] = (),
    top_k: int = 20,
    seed: int = 0,
    run: RunFolder | None = None,
    progress: bool = True,
) -> AnatomyStudy:
    """Contrast successful with failed edits of `facts`, layer by layer, for each of the `editors` and pooled.

    Success: the greedy next token starts the new object on the rewrite prompt. Cost: one forward pass a fact, one a
    run, and the edits themselves; a fact has 2 · len(editors) runs.

    Args:
        model: Unedited.
        facts: With different case_ids.
        editors: With different names.
        selection: Facts about other subjects, by which the window is chosen; without any there is no window.
        made_to_fail: Whether each editor, besides as set, also runs in one of the ways of `failures.weakened`, in turn;
            otherwise an editor that never fails has nothing to contrast.
        stand_ins: Facts whose subjects stand in for each other where an editor is made to fail; none: `facts`.
        top_k: Neurons of each kind that are ranked (certified exact).
        seed: Of the bootstrap.
        run: Keeps each finished fact as a case, so that a stopped study can be continued.
        progress: Whether a bar is shown.

    Raises:
        InputError: There are no facts or editors, two editors share a name or two facts a case_id, a subject is in both
            splits, a target encodes to nothing, or a case in `run` was measured otherwise.

    >>> import mechedit as me
    >>> model, facts = me.load_model("factworld"), me.factworld.edits(3)
    >>> study = anatomy(model, facts, editors=[me.editors.FT()], progress=False)
    >>> study.outcomes[["setting", "n"]].to_dict("list")
    {'setting': ['as set', 'one step', 'fewer steps', 'wrong layer'], 'n': [3, 1, 1, 1]}
    """
    _check(model, facts, selection, editors)
    ways = [weakened(editor, model, stand_ins or facts) if made_to_fail else {} for editor in editors]
    splits: dict[str, dict[str, Case]] = {}
    for split, chosen in (("selection", selection), ("fact", facts)):
        cases = _measured(model, split, chosen, editors, ways, top_k=top_k, run=run, progress=progress)
        splits[split] = {str(fact.case_id): case for fact, case in zip(chosen, cases, strict=True)}
    return _study(model, facts, splits["fact"], splits["selection"], seed=seed)


def _measured(
    model: HookedModel,
    split: str,
    facts: Sequence[FactEdit],
    editors: Sequence[Editor],
    ways: Sequence[dict[str, Editor]],
    *,
    top_k: int,
    run: RunFolder | None,
    progress: bool,
) -> list[Case]:
    """Every fact under every editor."""
    settings = [settings_for(editors, ways, i) for i in range(len(facts))]
    keys = [check_case_id(anatomy_key(split, fact)) for fact in facts]
    made_with = _settled(model, keys, settings, run)
    digests = [
        _digest(model, fact, list(marks.items()), top_k) for fact, marks in zip(facts, made_with, strict=True)
    ]

    def make(i: int) -> Case:
        measured = measure_fact(model, facts[i], settings[i], top_k=top_k)
        return {"settings": digests[i], "made_with": made_with[i], **measured}

    return every_case(run, keys, make, settings=digests, label=f"anatomy: {split}s", progress=progress)


def _settled(
    model: HookedModel, keys: Sequence[str], settings: Sequence[Sequence[Setting]], run: RunFolder | None
) -> list[dict[str, str]]:
    """For each fact the fingerprint of what each of its editors is set to and reads, which the run records."""
    used = {_called(setting): setting.editor for of_fact in settings for setting in of_fact}
    resolutions = {name: resolved(editor, model) for name, editor in used.items()}
    if run is not None:
        for name, resolution in resolutions.items():
            run.settle(name, resolution, cases=keys)
    marks = {name: fingerprint(resolution) for name, resolution in resolutions.items()}
    return [{_called(setting): marks[_called(setting)] for setting in of_fact} for of_fact in settings]


def _called(setting: Setting) -> str:
    return setting.name if setting.label == AS_SET else f"{setting.name}, {setting.label}"


def _study(
    model: HookedModel,
    facts: Sequence[FactEdit],
    cases: dict[str, Case],
    selection: dict[str, Case],
    *,
    seed: int,
) -> AnatomyStudy:
    shape = model.shape
    runs = gather(cases, n_layers=shape.n_layers, n_heads=shape.n_heads)
    skipped = [case["skipped"] for case in cases.values() if case["skipped"]]
    if not runs.n_facts:
        raise InputError(
            f"facts: expected some that can be edited, found that of all {len(facts)} {skipped[0]}"
        )
    contrasts = success_contrasts(runs, seed=seed)
    agreement = agreement_table(contrasts, n_layers=shape.n_layers, seed=seed)
    windows, window = _windows(
        gather(selection, n_layers=shape.n_layers, n_heads=shape.n_heads), runs, shape.n_layers, seed
    )
    return AnatomyStudy(
        delta=delta_table(runs, contrasts),
        heads=head_table(runs, seed=seed),
        outcomes=outcome_table(runs),
        claims=claim_table(contrasts, agreement, n_layers=shape.n_layers),
        agreement=agreement,
        overlap=overlap_table(cases),
        neurons=neuron_table(cases, d_head=shape.d_head),
        windows=windows,
        window=window,
        n=runs.n_facts,
        skipped={reason: skipped.count(reason) for reason in dict.fromkeys(skipped)},
        model=model.name,
        provenance=model.provenance(data={"facts": facts_hash(facts)}, seeds={"bootstrap": seed}),
    )


def _windows(
    selection: Runs, runs: Runs, n_layers: int, seed: int
) -> tuple[pd.DataFrame, tuple[int, int] | None]:
    """Every window's score on the selection split and on the evaluated facts, and the best of the former."""
    none = pd.DataFrame(columns=["first", "last", "score", "evaluated"]), None
    if not selection.n_facts:
        return none
    chosen_by, evaluated = (success_contrasts(part, seed=seed)[POOLED, ALL] for part in (selection, runs))
    if not chosen_by.enough(WINDOW_LEAST):
        return none
    # The first features are attention's, of the new object.
    by, of = chosen_by.difference[:n_layers], evaluated.difference[:n_layers]
    return window_scores(by).assign(evaluated=window_scores(of)["score"]), best_window(by)


def _check(
    model: HookedModel, facts: Sequence[FactEdit], selection: Sequence[FactEdit], editors: Sequence[Editor]
) -> None:
    if not facts or not editors:
        raise InputError(
            f"facts, editors: expected at least one of each, found {len(facts)} and {len(editors)}"
        )
    names = [editor.name for editor in editors]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"editors: {twice[0]!r} occurs twice; give each its own name")
    for split, chosen in (("facts", facts), ("selection", selection)):
        ids = [str(fact.case_id) for fact in chosen]
        for index, fact in enumerate(chosen):
            if ids.index(str(fact.case_id)) != index:
                raise InputError(
                    f"{split}: record {index}: case_id {fact.case_id!r} occurs twice; give each its own"
                )
            for prompt in (fact.rewrite_prompt, *fact.paraphrase_prompts):
                model.continuation(prompt, fact.target_new, space=fact.space)
            model.continuation(fact.rewrite_prompt, fact.target_true, space=fact.space)
    if shared := {fact.subject for fact in facts} & {fact.subject for fact in selection}:
        raise InputError(
            f"selection: expected other subjects than those of facts, found {sorted(shared)[0]!r} in both"
        )


def _digest(model: HookedModel, fact: FactEdit, editors: Sequence[tuple[Any, ...]], top_k: int) -> str:
    """sha256 of what a case's numbers depend on."""
    framing = [model.framing] if model.framing else []
    new, old = fact.target_new, fact.target_true
    prompts = (fact.rewrite_prompt, *fact.paraphrase_prompts)
    anew = read_anew(model, ((prompt, new, old) for prompt in prompts), space=fact.space)
    return settings_digest(
        model.hash, str(model.dtype), fact_fields(fact), list(editors), top_k, *anew, *framing
    )
