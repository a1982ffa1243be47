"""The tables of a study from its runs: what changed, who agrees, which neurons.

All differences are success − failure with bootstrap intervals over facts (`mechedit.anatomy.success_contrast`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechedit.anatomy.failures import AS_SET
from mechedit.anatomy.features import POOLED, Runs, columns
from mechedit.anatomy.one_fact import OBJECTS
from mechedit.anatomy.success_contrast import Contrast, average, contrast, interval
from mechedit.attribution.terms import KINDS
from reports.intervals import bootstrap_mean, wilson

__all__ = [
    "LEAST",
    "contrasts",
    "delta_table",
    "head_table",
    "neuron_table",
    "outcome_table",
    "overlap_table",
]

#: Facts with each outcome without which there is no verdict.
LEAST = 8
ALL = "all"
UNEDITED = "unedited"
_SHOWN_NEURONS = 20


def contrasts(runs: Runs, *, seed: int = 0) -> dict[tuple[str, str], Contrast]:
    """By (editor or "pooled", setting): the contrast of the layer features, flattened [2 · (4 L + 1)].

    Settings: "all", and of one editor each with both outcomes on at least `LEAST` facts: nothing else differs there.
    "pooled" is the mean of the editors' own contrasts, over those with both outcomes on at least `LEAST` facts.
    """
    found = {}
    for editor in runs.editors:
        for label in [ALL, *dict.fromkeys(runs.index["setting"][runs.rows(editor)])]:
            one = _contrast(runs, runs.layers, runs.rows(editor, None if label == ALL else label), seed)
            if label == ALL or one.enough(LEAST):
                found[editor, label] = one
    found[POOLED, ALL] = _pooled(runs, runs.layers, seed)
    return found


def delta_table(runs: Runs, found: Mapping[tuple[str, str], Contrast]) -> pd.DataFrame:
    """What changed in every layer and module: one row each, for both objects, editors and settings.

    Columns: editor, setting, object, module, layer, success, success_low, success_high, failure, difference, low, high,
    n_success, n_failure. A module that no run of the editor has is left out.
    """
    keys = [(name, *place) for name in OBJECTS for place in columns(runs.n_layers)]
    parts = []
    for (editor, setting), one in found.items():
        low, high = interval(one.drawn)
        success_low, success_high = interval(one.drawn_success)
        part = pd.DataFrame(keys, columns=["object", "module", "layer"]).assign(
            success=one.success, success_low=success_low, success_high=success_high, failure=one.failure
        )
        part = part.assign(difference=one.difference, low=low, high=high)
        part = part.assign(n_success=one.n_success, n_failure=one.n_failure)
        part.insert(0, "editor", editor)
        part.insert(1, "setting", setting)
        used = np.abs(runs.layers[runs.rows(editor)]).max(axis=(0, 1), initial=0) > 1e-3
        modules = {module for (module, _), there in zip(columns(runs.n_layers), used, strict=True) if there}
        parts.append(part[part["module"].isin({"attn", "mlp", *modules})])
    return pd.concat(parts, ignore_index=True)


def head_table(runs: Runs, *, seed: int = 0) -> pd.DataFrame:
    """The same for every head, over all settings: editor, object, layer, head, success, failure, difference, low, high.

    Heads of one layer overlap: each is scored alone against the same base.
    """
    shape = runs.heads.shape[1:]
    place = np.indices(shape).reshape(3, -1)
    parts = []
    for editor in [*runs.editors, POOLED]:
        pooled = editor == POOLED
        one = (
            _pooled(runs, runs.heads, seed)
            if pooled
            else _contrast(runs, runs.heads, runs.rows(editor), seed)
        )
        low, high = interval(one.drawn)
        names = [OBJECTS[i] for i in place[0]]
        table = {"object": names, "layer": place[1], "head": place[2], "success": one.success}
        table |= {"failure": one.failure, "difference": one.difference, "low": low, "high": high}
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


def overlap_table(cases: Mapping[str, dict[str, Any]], *, kinds: Sequence[str] = KINDS) -> pd.DataFrame:
    """How many of the top k neurons of the new object two editors share, on facts where both succeed as set.

    Columns: a, b, kind, overlap (mean of |A ∩ B| / k), low, high (bootstrap over facts), null (A on one fact, B on the
    next: what any two edits share), n. "unedited" is the model before the edit.
    """
    tops = _tops_of(cases)
    rows = []
    for a, b in itertools.combinations([UNEDITED, *dict.fromkeys(name for name, _ in tops)], 2):
        for kind in kinds:
            pairs = [
                (_units(case, tops, a, kind, case_id), _units(case, tops, b, kind, case_id))
                for case_id, case in cases.items()
                if not case["skipped"]
            ]
            both = [(one, other) for one, other in pairs if one and other]
            shared = [len(one & other) / max(len(one), len(other)) for one, other in both]
            apart = [
                len(one & other) / max(len(one), len(other))
                for (one, _), (_, other) in zip(both, [*both[1:], *both[:1]], strict=True)
            ]
            low, high = bootstrap_mean(shared)
            null = float(np.mean(apart)) if len(both) > 1 else np.nan
            mean = float(np.mean(shared)) if shared else np.nan
            rows.append((a, b, kind, mean, low, high, null, len(both)))
    names = ["a", "b", "kind", "overlap", "low", "high", "null", "n"]
    return pd.DataFrame(rows, columns=names)


def neuron_table(cases: Mapping[str, dict[str, Any]], *, d_head: int) -> pd.DataFrame:
    """The neurons that come up most: editor, object, kind, layer, unit, before, after, delta (means, nats), n.

    new: in the edited model's top k for the new object; old: in the unedited model's top k for the old one, and what
    the edit made of them. Over the runs that succeeded as set; n: in how many of them. unit: "L5.17", or "L5.H2.3"
    (head, dim).
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


def _neuron_rows(run: dict[str, Any], d_head: int) -> Iterator[tuple[Any, ...]]:
    for name in OBJECTS:
        for kind in KINDS:
            for layer, unit, before, after in run["neurons"][name][kind]:
                label = f"L{layer}.{unit}" if kind == "mlp" else f"L{layer}.H{unit // d_head}.{unit % d_head}"
                yield run["editor"], name, kind, layer, label, before, after


def _by_editor(index: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    for editor, runs in index.groupby("editor", sort=False):
        for setting, group in runs.groupby("setting", sort=False):
            yield (str(editor), str(setting)), group


def _contrast(runs: Runs, features: np.ndarray, rows: np.ndarray, seed: int) -> Contrast:
    flat = features[rows].reshape(int(rows.sum()), -1)
    success, fact = (runs.index[name].to_numpy()[rows] for name in ("success", "fact"))
    return contrast(flat, success.astype(bool), fact.astype(int), n_facts=runs.n_facts, seed=seed)


def _pooled(runs: Runs, features: np.ndarray, seed: int) -> Contrast:
    """The mean of the editors that have enough of both outcomes; where none has, all runs together."""
    each = [_contrast(runs, features, runs.rows(editor), seed) for editor in runs.editors]
    ready = [one for one in each if one.enough(LEAST)]
    return average(ready) if ready else _contrast(runs, features, runs.rows(POOLED), seed)


def _tops_of(cases: Mapping[str, dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """By (editor, case id): the neurons of a run that succeeded as set."""
    return {
        (run["editor"], case_id): run["neurons"]["new"]
        for case_id, case in cases.items()
        for run in case["runs"]
        if run["success"] and run["setting"] == AS_SET
    }


def _units(
    case: dict[str, Any], tops: Mapping[tuple[str, str], dict[str, Any]], editor: str, kind: str, case_id: str
) -> set[tuple[int, int]]:
    found = case["before"]["top"]["new"] if editor == UNEDITED else tops.get((editor, case_id))
    return {(unit[0], unit[1]) for unit in found[kind]} if found else set()
