"""The sections of a page about an anatomy study: claims and answers, outcomes, what changed where, who agrees.

As in `reports.sections`, every number is written out here and the template only says where it stands. The frames are
those of the study as it was saved (`results/anatomy` in the run folder): nothing here knows a model.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from markupsafe import Markup

from reports import sections
from reports.anatomy_figures import difference_panels, editor_grid, overlap_heatmap, success_forest
from reports.inline import fragment
from reports.text import visible

__all__ = ["FRAMES", "study"]

FRAMES = ("delta", "heads", "outcomes", "claims", "agreement", "overlap", "neurons", "windows")
_MODULES = {
    "attn": "attention",
    "mlp": "FFN",
    "steer": "steering term",
    "steer_mlp": "steering term at the FFN",
}
_MODULES |= {"rest": "what no sub-layer wrote"}
_POOLED = "pooled"


def study(frames: dict[str, pd.DataFrame], window: tuple[int, int] | None) -> dict[str, Any]:
    """Returns everything that the template of a study shows.

    Args:
        frames: The frames of the saved study, by the names in `FRAMES`.
        window: First and last of the layers that the study chose.
    """
    whole = frames["delta"][frames["delta"]["setting"] == "all"]
    return {
        "claims": _claims(frames["claims"]),
        "forest": _success(frames["claims"]),
        "outcomes": _outcomes(frames["outcomes"]),
        "pooled": _pooled(whole, window),
        "editors": _editors(whole, window),
        "within": _within(frames["delta"]),
        "heads": _heads(frames["heads"]),
        "windows": _windows(frames["windows"], window),
        "agreement": _pairs(frames["agreement"]),
        "overlap": _overlap(frames["overlap"]),
        "neurons": _neurons(frames["neurons"]),
    }


def _claims(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One entry a claim, with its answers by editor, the pooled one first."""
    entries = []
    for claim, group in frame.groupby("claim", sort=False):
        ordered = pd.concat([group[group["editor"] == _POOLED], group[group["editor"] != _POOLED]])
        answers = [
            {
                "editor": visible(str(r["editor"])),
                "answer": visible(str(r["answer"])),
                "kind": {"holds": "yes", "does not hold": "no"}.get(str(r["answer"]), "open"),
                "evidence": visible(str(r["evidence"])),
                "n": f"{int(r['n_success'])} / {int(r['n_failure'])}"
                if r["n_success"] or r["n_failure"]
                else "",
            }
            for r in ordered.to_dict("records")
        ]
        entries.append({"claim": visible(str(claim)), "answers": answers})
    return entries


def _success(frame: pd.DataFrame) -> dict[str, Any] | None:
    """The forest of the claims that are differences in nats."""
    effects = frame[frame["key"].isin(["promotes", "suppress"])]
    if effects.empty or effects["value"].isna().all():
        return None
    clear = effects[(effects["low"] > 0) | (effects["high"] < 0)]
    sentence = (
        f"{len(clear)} of {len(effects)} intervals lie on one side of 0 (filled points). "
        "Each panel has its own scale."
    )
    title = "Success less failure, editor by editor"
    axes = success_forest(effects)[0]
    return {
        "svg": Markup(fragment(axes, prefix="success", title=title, description=sentence)),
        "said": sentence,
    }


def _outcomes(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "editor": visible(str(r["editor"])),
            "setting": visible(str(r["setting"])),
            "n": int(r["n"]),
            "success": int(r["n_success"]),
            "strict": int(r["n_strict"]),
            "share": f"{100 * r['success']:.0f}",
            "interval": f"{100 * r['low']:.0f} – {100 * r['high']:.0f}",
            "gained": sections.number(float(r["gained"]), 2),
            "lost": sections.number(float(r["lost"]), 2),
        }
        for r in frame.to_dict("records")
    ]


def _pooled(frame: pd.DataFrame, window: tuple[int, int] | None) -> dict[str, Any] | None:
    """The figure of all editors together, its largest values in words, and its table."""
    chosen = frame[frame["editor"] == _POOLED]
    if chosen["difference"].isna().all():
        return None
    sentence = " ".join(_largest(chosen[chosen["object"] == name], name) for name in ("new", "old"))
    axes = difference_panels(chosen, window=window)[0]
    title = "What edits that succeed change more than edits that fail, by layer"
    rows = [
        {
            "object": str(r["object"]),
            "module": _MODULES[str(r["module"])],
            "layer": int(r["layer"]),
            "cells": [
                sections.number(float(r[key])) for key in ("success", "failure", "difference", "low", "high")
            ],
        }
        for r in chosen.to_dict("records")
    ]
    first = chosen.iloc[0]
    return {
        "svg": Markup(fragment(axes, prefix="pooled", title=title, description=sentence)),
        "said": sentence,
        "rows": rows,
        "n": (int(first["n_success"]), int(first["n_failure"])),
    }


def _largest(frame: pd.DataFrame, name: str) -> str:
    if frame["difference"].isna().all():
        return ""
    top = frame.loc[frame["difference"].abs().idxmax()]
    interval = f"[{sections.number(float(top['low']), 2)}, {sections.number(float(top['high']), 2)}]"
    where = f"{_MODULES[str(top['module'])]} of layer {int(top['layer'])}"
    return f"Largest for the {name} object: {where}, {sections.number(float(top['difference']), 2)} nats {interval}."


def _editors(frame: pd.DataFrame, window: tuple[int, int] | None) -> dict[str, Any] | None:
    """The figure of the editors that have both outcomes, and the names of those that have not."""
    single = frame[frame["editor"] != _POOLED]
    defined = single.groupby("editor", sort=False)["difference"].transform(lambda s: s.notna().any())
    shown, missing = single[defined], list(dict.fromkeys(single.loc[~defined, "editor"]))
    if shown.empty:
        return None
    sentence = "Each row has its own scale." + (
        f" Not shown, for want of one outcome: {', '.join(visible(str(name)) for name in missing)}."
        if missing
        else ""
    )
    title = "Success − failure by layer, for each editor"
    axes = editor_grid(shown, window=window)[0]
    return {
        "svg": Markup(fragment(axes, prefix="editors", title=title, description=sentence)),
        "said": sentence,
    }


def _within(delta: pd.DataFrame) -> list[dict[str, Any]]:
    """Where one setting has both outcomes: sums over layers, so that nothing but the outcome differs."""
    rows = []
    chosen = delta[(delta["setting"] != "all") & delta["module"].isin(["attn", "mlp"])]
    for (editor, setting), group in chosen.groupby(["editor", "setting"], sort=False):
        sums = group.groupby(["object", "module"])["difference"].sum()
        cells = [
            sections.number(float(sums.get((name, module), math.nan)), 2)
            for name in ("new", "old")
            for module in ("attn", "mlp")
        ]
        first = group.iloc[0]
        counts = f"{int(first['n_success'])} / {int(first['n_failure'])}"
        rows.append(
            {"editor": visible(str(editor)), "setting": visible(str(setting)), "cells": cells, "n": counts}
        )
    return rows


def _heads(frame: pd.DataFrame) -> list[dict[str, Any]] | None:
    pooled = frame[frame["editor"] == _POOLED].rename(columns={"difference": "score"})
    if pooled.empty or pooled["score"].isna().all():
        return None
    return sections.heads(pooled[["object", "layer", "head", "score"]])


def _windows(frame: pd.DataFrame, window: tuple[int, int] | None) -> dict[str, Any] | None:
    """The candidates by their score on the selection split, and how the chosen one does on the evaluated facts."""
    shown = sections.windows(frame[["first", "last", "score"]], window)
    if shown is None or window is None:
        return None
    chosen = frame[(frame["first"] == window[0]) & (frame["last"] == window[1])].iloc[0]
    size = window[1] - window[0]
    alike = frame[(frame["last"] - frame["first"]) == size]
    rank = int((alike["evaluated"] > chosen["evaluated"]).sum()) + 1
    held = (
        f"On the evaluated facts, which did not choose it, the window scores "
        f"{sections.number(float(chosen['evaluated']))}: rank {rank} of the {len(alike)} windows of {size + 1} layers."
    )
    return {**shown, "held": held}


def _pairs(frame: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "a": visible(str(r["a"])),
            "b": visible(str(r["b"])),
            "value": sections.number(float(r["correlation"]), 2),
            "interval": f"{sections.number(float(r['low']), 2)} – {sections.number(float(r['high']), 2)}",
            "null": sections.number(float(r["null"]), 2),
        }
        for r in frame.to_dict("records")
    ]


def _overlap(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A heat map for each kind of neuron, with what two edits share by chance in words."""
    maps = []
    for kind, group in frame.dropna(subset=["overlap"]).groupby("kind", sort=False):
        label = "MLP neurons" if kind == "mlp" else "attention neurons"
        null, n = group["null"].dropna(), sorted({int(value) for value in group["n"]})
        sentence = (
            f"{label}: shared on the same fact, in per cent. Between two different facts the same editors share "
            f"{100 * null.min():.0f} to {100 * null.max():.0f} per cent; n {n[0]} to {n[-1]} facts."
            if len(null)
            else f"{label}: too few facts for a null."
        )
        axes = overlap_heatmap(group)
        svg = fragment(
            axes, prefix=f"overlap{kind}", title=f"Shared top neurons: {label}", description=sentence
        )
        maps.append({"svg": Markup(svg), "said": sentence, "caption": label})
    return maps


def _neurons(frame: pd.DataFrame, rows: int = 8) -> list[dict[str, Any]]:
    """For each editor and object the neurons that come up most."""
    tables = []
    ordered = frame.loc[(frame["n"] * frame["delta"].abs()).sort_values(ascending=False, kind="stable").index]
    for (editor, name), group in ordered.groupby(["editor", "object"], sort=False):
        body = [
            {
                "unit": visible(str(r["unit"])),
                "module": _MODULES[str(r["kind"])],
                "n": int(r["n"]),
                "cells": [sections.number(float(r[key])) for key in ("before", "after", "delta")],
            }
            for r in group.head(rows).to_dict("records")
        ]
        tables.append({"editor": visible(str(editor)), "object": str(name), "rows": body})
    return sorted(tables, key=lambda table: (table["editor"], table["object"]))
