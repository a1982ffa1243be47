"""The tables of a study from its runs: what changed, which editors share neurons, which neurons.

All differences are success − failure with bootstrap intervals over facts (`mechedit.anatomy.success_contrast`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.cases import Case
from mechedit.anatomy.failures import AS_SET
from mechedit.anatomy.features import POOLED, Runs, columns
from mechedit.anatomy.one_fact import OBJECTS
from mechedit.anatomy.success_contrast import SuccessContrast, average, interval, success_contrast
from mechedit.attribution.terms import KINDS
from reports.intervals import bootstrap_mean, wilson

__all__ = [
    "LEAST",
    "delta_table",
    "head_table",
    "neuron_table",
    "outcome_table",
    "overlap_table",
    "success_contrasts",
]

#: The least number of facts with each outcome by which a claim is judged.
LEAST = 8
ALL = "all"
UNEDITED = "unedited"
_SHOWN_NEURONS = 20


def success_contrasts(runs: Runs, *, seed: int = 0) -> dict[tuple[str, str], SuccessContrast]:
    """By (editor or "pooled", setting): the contrast of the layer features, flattened [2 · (4 L + 1)].

    Settings: "all", and each setting of an editor with both outcomes on at least `LEAST` facts, whose runs differ in
    nothing else. "pooled" is the mean of the editors' contrasts, over those with both outcomes on at least `LEAST`
    facts.
    """
    contrasts = {}
    for editor in runs.editors:
        for setting in [ALL, *dict.fromkeys(runs.index["setting"][runs.rows(editor)])]:
            rows = runs.rows(editor, None if setting == ALL else setting)
            contrast = _contrast(runs, runs.layers, rows, seed)
            if setting == ALL or contrast.enough(LEAST):
                contrasts[editor, setting] = contrast
    contrasts[POOLED, ALL] = _pooled(runs, runs.layers, seed)
    return contrasts


def delta_table(runs: Runs, contrasts: Mapping[tuple[str, str], SuccessContrast]) -> pd.DataFrame:
    """What changed in every layer and module: one row each, for both objects, all editors and settings.

    Columns: editor, setting, object, module, layer, success, success_low, success_high, failure, difference, low, high,
    n_success, n_failure. A module that no run of the editor has is left out.
    """
    keys = [(name, *place) for name in OBJECTS for place in columns(runs.n_layers)]
    parts = []
    for (editor, setting), contrast in contrasts.items():
        low, high = interval(contrast.drawn)
        success_low, success_high = interval(contrast.drawn_success)
        part = pd.DataFrame(keys, columns=["object", "module", "layer"]).assign(
            success=contrast.success,
            success_low=success_low,
            success_high=success_high,
            failure=contrast.failure,
            difference=contrast.difference,
            low=low,
            high=high,
            n_success=contrast.n_success,
            n_failure=contrast.n_failure,
        )
        part.insert(0, "editor", editor)
        part.insert(1, "setting", setting)
        used = np.abs(runs.layers[runs.rows(editor)]).max(axis=(0, 1), initial=0) > 1e-3
        modules = {
            module for (module, _), changed in zip(columns(runs.n_layers), used, strict=True) if changed
        }
        parts.append(part[part["module"].isin({"attn", "mlp", *modules})])
    return pd.concat(parts, ignore_index=True)


def head_table(runs: Runs, *, seed: int = 0) -> pd.DataFrame:
    """What changed in every head, over all settings.

    Columns: object, layer, head, success, failure, difference, low, high, editor. Heads of one layer overlap: each is
    scored alone against the same base.
    """
    shape = runs.heads.shape[1:]
    place = np.indices(shape).reshape(3, -1)
    parts = []
    for editor in [*runs.editors, POOLED]:
        if editor == POOLED:
            contrast = _pooled(runs, runs.heads, seed)
        else:
            contrast = _contrast(runs, runs.heads, runs.rows(editor), seed)
        low, high = interval(contrast.drawn)
        names = [OBJECTS[i] for i in place[0]]
        table = {"object": names, "layer": place[1], "head": place[2], "success": contrast.success}
        table |= {"failure": contrast.failure, "difference": contrast.difference, "low": low, "high": high}
        parts.append(pd.DataFrame(table).assign(editor=editor))
    return pd.concat(parts, ignore_index=True)


def outcome_table(runs: Runs) -> pd.DataFrame:
    """How often each editor succeeded, under each setting: Wilson intervals, mean change of both log-probabilities."""
    rows = []
    for (editor, setting), group in _by_editor(runs.index):
        n, success = len(group), int(group["success"].sum())
        low, high = wilson(success, n)
        rows.append(
            {
                "editor": editor,
                "setting": setting,
                "n": n,
                "n_success": success,
                "n_strict": int(group["strict"].sum()),
                "success": success / n,
                "low": low,
                "high": high,
                "gained": float(group["gained"].mean()),
                "lost": float(group["lost"].mean()),
            }
        )
    return pd.DataFrame(rows)


def overlap_table(cases: Mapping[str, Case]) -> pd.DataFrame:
    """How many of the top k neurons of the new object two editors share, on facts where both succeed as set.

    Columns: a, b, kind, overlap (mean of |A ∩ B| / k), low, high (bootstrap over facts), null (A on one fact, B on the
    next: what any two edits share), n. "unedited" is the model before the edit.
    """
    tops = _tops_of(cases)
    rows = []
    for a, b in itertools.combinations([UNEDITED, *dict.fromkeys(name for name, _ in tops)], 2):
        for kind in KINDS:
            pairs = [
                (_units(case, tops, a, kind, case_id), _units(case, tops, b, kind, case_id))
                for case_id, case in cases.items()
                if not case["skipped"]
            ]
            both = [(units_a, units_b) for units_a, units_b in pairs if units_a and units_b]
            shared = [_overlap(units_a, units_b) for units_a, units_b in both]
            apart = [
                _overlap(units_a, units_b)
                for (units_a, _), (_, units_b) in zip(both, [*both[1:], *both[:1]], strict=True)
            ]
            low, high = bootstrap_mean(shared)
            null = float(np.mean(apart)) if len(both) > 1 else np.nan
            mean = float(np.mean(shared)) if shared else np.nan
            rows.append((a, b, kind, mean, low, high, null, len(both)))
    names = ["a", "b", "kind", "overlap", "low", "high", "null", "n"]
    return pd.DataFrame(rows, columns=names)


def neuron_table(cases: Mapping[str, Case], *, d_head: int) -> pd.DataFrame:
    """The neurons that occur most often, over the runs that succeeded as set.

    Columns: editor, object ("new": in the edited model's top k for the new object; "old": in the unedited model's top
    k for the old one, with what the edit made of them), kind, layer, unit ("L5.17", or "L5.H2.3": head, dim), before,
    after, delta (means, nats), n (in how many of the runs).
    """
    rows = []
    for case in cases.values():
        for run in case["runs"]:
            if run["success"] and run["setting"] == AS_SET:
                rows += list(_neuron_rows(run, d_head))
    names = ["editor", "object", "kind", "layer", "unit", "before", "after"]
    frame = pd.DataFrame(rows, columns=names).assign(delta=lambda f: f["after"] - f["before"])
    groups = frame.groupby(["editor", "object", "kind", "layer", "unit"], sort=False)
    table = groups.agg(
        before=("before", "mean"), after=("after", "mean"), delta=("delta", "mean"), n=("delta", "size")
    )
    table = table.reset_index()
    order = (table["n"] * table["delta"].abs()).sort_values(ascending=False, kind="stable").index
    best = table.loc[order].groupby(["editor", "object", "kind"], sort=False).head(_SHOWN_NEURONS)
    return best.sort_values(["editor", "object", "kind"], kind="stable").reset_index(drop=True)


def _neuron_rows(run: Case, d_head: int) -> Iterator[tuple[Any, ...]]:
    for name in OBJECTS:
        for kind in KINDS:
            for layer, unit, before, after in run["neurons"][name][kind]:
                label = f"L{layer}.{unit}" if kind == "mlp" else f"L{layer}.H{unit // d_head}.{unit % d_head}"
                yield run["editor"], name, kind, layer, label, before, after


def _by_editor(index: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    for editor, runs in index.groupby("editor", sort=False):
        for setting, group in runs.groupby("setting", sort=False):
            yield (str(editor), str(setting)), group


def _contrast(runs: Runs, features: np.ndarray, rows: np.ndarray, seed: int) -> SuccessContrast:
    flat = features[rows].reshape(int(rows.sum()), -1)
    success, fact = (runs.index[name].to_numpy()[rows] for name in ("success", "fact"))
    return success_contrast(flat, success.astype(bool), fact.astype(int), n_facts=runs.n_facts, seed=seed)


def _pooled(runs: Runs, features: np.ndarray, seed: int) -> SuccessContrast:
    """The mean of the editors that have enough of both outcomes; where none has, all runs together."""
    contrasts = [_contrast(runs, features, runs.rows(editor), seed) for editor in runs.editors]
    ready = [contrast for contrast in contrasts if contrast.enough(LEAST)]
    return average(ready) if ready else _contrast(runs, features, runs.rows(POOLED), seed)


def _overlap(a: set[tuple[int, int]], b: set[tuple[int, int]]) -> float:
    """|A ∩ B| / k."""
    return len(a & b) / max(len(a), len(b))


def _tops_of(cases: Mapping[str, Case]) -> dict[tuple[str, str], dict[str, Any]]:
    """By (editor, case id): the neurons of a run that succeeded as set."""
    return {
        (run["editor"], case_id): run["neurons"]["new"]
        for case_id, case in cases.items()
        for run in case["runs"]
        if run["success"] and run["setting"] == AS_SET
    }


def _units(
    case: Case, tops: Mapping[tuple[str, str], dict[str, Any]], editor: str, kind: str, case_id: str
) -> set[tuple[int, int]]:
    top = case["before"]["top"]["new"] if editor == UNEDITED else tops.get((editor, case_id))
    return {(unit[0], unit[1]) for unit in top[kind]} if top else set()
