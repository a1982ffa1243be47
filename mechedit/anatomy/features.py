"""Cases as arrays: one row a run, one column a layer and module, or a head, for each object.

A feature is after − before, in nats. Before and after have each their own frozen σ, so a difference holds what the edit
wrote and what it did to the scale of the final norm. Modules: attn, mlp, the steering terms of a hook on each (steer,
steer_mlp) and, in one column at the end, what no sub-layer wrote (rest: an edit of the final state). For each object
they sum to the change of its log-probability less that of the embedding's share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from experiments.cases import Case
from mechedit.anatomy.one_fact import OBJECTS

__all__ = ["MODULES", "POOLED", "Runs", "gather"]

MODULES = ("attn", "mlp", "steer", "steer_mlp")
POOLED = "pooled"


@dataclass(frozen=True, eq=False)
class Runs:
    """All R runs of a split.

    Attributes:
        index: Frame editor, setting, case_id, fact (0, 1, ...), success, strict, gained (Δ log p of the new object,
            nats), lost (of the old).
        layers: [R, 2, 4 L + 1]: object; module by layer, then rest.
        heads: [R, 2, L, H]: object, layer, head.
        n_facts: Facts that were not left out.
    """

    index: pd.DataFrame
    layers: np.ndarray
    heads: np.ndarray
    n_facts: int

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return int(self.heads.shape[2])

    @cached_property
    def editors(self) -> list[str]:
        """The editors' names, in the order in which they were run."""
        return list(dict.fromkeys(self.index["editor"]))

    def rows(self, editor: str, setting: str | None = None) -> np.ndarray:
        """Which runs are of this editor ("pooled": of all) and setting (None: any)."""
        chosen = np.ones(len(self.index), dtype=bool)
        if editor != POOLED:
            chosen &= (self.index["editor"] == editor).to_numpy()
        if setting is not None:
            chosen &= (self.index["setting"] == setting).to_numpy()
        return chosen


def gather(cases: Mapping[str, Case], *, n_layers: int, n_heads: int) -> Runs:
    """The runs of the cases (by case id) that were not left out."""
    index, layers, heads = [], [], []
    kept = {name: case for name, case in cases.items() if not case["skipped"]}
    for fact, (case_id, case) in enumerate(kept.items()):
        before = case["before"]
        for run in case["runs"]:
            after = run["after"]
            change = {name: after["logp"][name] - before["logp"][name] for name in OBJECTS}
            names = {key: run[key] for key in ("editor", "setting", "success", "strict")}
            index.append(
                {**names, "case_id": case_id, "fact": fact, "gained": change["new"], "lost": change["old"]}
            )
            layers.append(_vectors(after, n_layers) - _vectors(before, n_layers))
            heads.append([np.subtract(after["heads"][name], before["heads"][name]) for name in OBJECTS])
    columns = ["editor", "setting", "case_id", "fact", "success", "strict", "gained", "lost"]
    width = len(MODULES) * n_layers + 1
    return Runs(
        pd.DataFrame(index, columns=columns).astype({"fact": int, "success": bool, "strict": bool}),
        np.array(layers, dtype=float).reshape(len(index), len(OBJECTS), width),
        np.array(heads, dtype=float).reshape(len(index), len(OBJECTS), n_layers, n_heads),
        len(kept),
    )


def columns(n_layers: int) -> list[tuple[str, int]]:
    """(module, layer) of each column of `Runs.layers`.

    >>> columns(1)
    [('attn', 0), ('mlp', 0), ('steer', 0), ('steer_mlp', 0), ('rest', 1)]
    """
    return [(module, layer) for module in MODULES for layer in range(n_layers)] + [("rest", n_layers)]


def _vectors(state: dict[str, Any], n_layers: int) -> np.ndarray:
    """A state's scores for both objects [2, 4 L + 1]; a module that is not there wrote nothing."""
    place = {key: i for i, key in enumerate(columns(n_layers))}
    vectors = np.zeros((len(OBJECTS), len(place)))
    for row, name in enumerate(OBJECTS):
        table: dict[str, Sequence[Any]] = state["layers"][name]
        for layer, module, score in zip(table["layer"], table["module"], table["score"], strict=True):
            vectors[row, place[module, layer]] = score
        vectors[row, -1] = state["rest"][name]
    return vectors
