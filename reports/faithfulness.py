"""The section of a faithfulness study: whose neurons lower log p of the answer most when they are taken out.

As in `reports.sections`, every number is written out here. The frames are those of the study as it was saved
(`results/faithfulness` in the run folder): nothing here knows a model.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from markupsafe import Markup

from reports import sections
from reports.ablation_figures import ablation_panels
from reports.inline import fragment
from reports.text import visible

__all__ = ["FRAMES", "faithfulness"]

FRAMES = ("curve", "differences")
_KINDS = {"mlp": "FFN neurons", "attn": "attention value neurons"}
_PANELS = {"mlp": "FFN", "attn": "attention"}
_METHODS = {
    "nlka": "NLKA",
    "dla": "direct logit attribution",
    "attribution_patching": "gradient × activation",
    "activation": "activation magnitude",
    "random": "random, same layers",
}


def faithfulness(frames: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Returns the curves of each model, the verdicts and the tables.

    Args:
        frames: The frames of the saved study, by the names in `FRAMES`.
    """
    curve, differences = frames["curve"], frames["differences"]
    models = []
    for index, (model, rows) in enumerate(curve.groupby("model", sort=False)):
        against = differences[differences["model"] == model]
        models.append(
            {
                "name": visible(str(model)),
                "n": int(rows["n"].iloc[0]),
                "figure": _figure(rows, f"faith{index}", str(model)),
                "verdicts": [
                    _verdict(kind, peer, group)
                    for (kind, peer), group in against.groupby(["kind", "peer"], sort=False)
                ],
                "tables": [_table(kind, group) for kind, group in rows.groupby("kind", sort=False)],
            }
        )
    return {"models": models}


def _figure(curve: pd.DataFrame, prefix: str, model: str) -> dict[str, Any]:
    shown = curve.assign(panel=curve["kind"].map(_KINDS), line=curve["method"].map(_name))
    lowest = curve.loc[curve.groupby("kind", sort=False)["delta"].idxmin()]
    sentence = " ".join(
        f"Lowest for {_KINDS[row['kind']]}: {_name(row['method'])}, k = {row['k']}, "
        f"{sections.number(float(row['delta']), 2)} nats."
        for row in lowest.to_dict("records")
    )
    title = f"Change of log p of the answer by the number of neurons ablated: {visible(model)}"
    axes = ablation_panels(shown)[0]
    return {"svg": Markup(fragment(axes, prefix=prefix, title=title, description=sentence)), "said": sentence}


def _verdict(kind: str, peer: str, group: pd.DataFrame) -> dict[str, Any]:
    """Who is better at which k, and by how much."""
    won = [int(k) for k in group.loc[group["better"] == "nlka", "k"]]
    lost = [int(k) for k in group.loc[group["better"] == peer, "k"]]
    answer, css = ("differs by k", "open") if won else ("beats NLKA", "no")
    if not lost:
        answer, css = ("NLKA is better", "yes") if won else ("no difference", "open")
    where = [f"{name}: k = {', '.join(map(str, ks))}" for name, ks in (("NLKA", won), ("peer", lost)) if ks]
    return {
        "kind": _PANELS[kind],
        "peer": _name(peer),
        "answer": answer,
        "css": css,
        "where": "; ".join(where),
        "cells": [
            {
                "k": int(row["k"]),
                "value": sections.number(float(row["delta"])),
                "interval": _interval(row),
            }
            for row in group.sort_values("k").to_dict("records")
        ],
    }


def _table(kind: str, group: pd.DataFrame) -> dict[str, Any]:
    ks = [int(k) for k in group["k"].unique()]
    rows = []
    for method, points in group.groupby("method", sort=False):
        cells = points.set_index("k").loc[ks].to_dict("records")
        rows.append(
            {
                "method": _name(method),
                "cells": [
                    {"value": sections.number(float(cell["delta"])), "interval": _interval(cell)}
                    for cell in cells
                ],
            }
        )
    return {"kind": _KINDS[kind], "ks": ks, "rows": rows}


def _interval(row: dict[str, Any]) -> str:
    return f"{sections.number(float(row['low']))} to {sections.number(float(row['high']))}"


def _name(method: Any) -> str:
    return _METHODS.get(str(method), visible(str(method)))
