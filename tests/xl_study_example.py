"""A study's tables of smooth made-up numbers, for the tests of the figures and the page."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from xlprobe.transfer.result import Study, table_of

PAIRS = ("source-words", "source-order", "source-suffix", "source-half")
OBJECTIVES = ("mlm", "sentence", "token", "tlm", "shuffled")
TASKS = ("pos", "topic")
GROUPS = ("query", "key", "value", "output", "ffn_in", "ffn_out", "norms")
LAYERS = 4


def study(hostile: str = "") -> Study:
    """The study; `hostile` is put into the name of a pair."""
    pairs = (PAIRS[0] + hostile, *PAIRS[1:])
    names = [(p, o, t) for p in pairs for o in OBJECTIVES for t in TASKS]
    effects = pd.DataFrame(
        [
            {
                "pair": p,
                "objective": o,
                "task": t,
                "delta_score": 0.08 * math.sin(1.7 * i),
                "low": 0.08 * math.sin(1.7 * i) - 0.03,
                "high": 0.08 * math.sin(1.7 * i) + 0.03,
                "score": 0.6,
                "baseline": 0.55,
                "seed_sd": 0.01,
                "n": 200,
                "seeds": 2,
            }
            for i, (p, o, t) in enumerate(names)
        ]
    )
    scores = effects[["pair", "objective", "task", "score", "baseline", "n"]].assign(seed=0)
    gradients = pd.DataFrame([row for i, name in enumerate(names) for row in _gradients(i, *name)])
    steps = pd.DataFrame({"relative_step": [1e-3], "predicted": [0.1], "measured": [0.1], "symmetric": [0.1]})
    return table_of(
        layer=3,
        laboratory="made up",
        seeds=2,
        scores=scores,
        effects=effects,
        distances=pd.DataFrame(_distances(pairs)),
        gradients=gradients,
        first_order=steps,
        provenance={"seeds": {"0": 0}},
    )


def _distances(pairs: tuple[str, ...]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for i, pair in enumerate(pairs):
        for j, objective in enumerate(("none", *OBJECTIVES)):
            for metric in ("cosine", "weak_retrieval", "strong_retrieval", "cka"):
                for layer in range(LAYERS + 1):
                    gap = (
                        0.1
                        + 0.06 * layer * (1 if objective in ("sentence", "token") else 0.2)
                        + 0.02 * i
                        - 0.01 * j
                    )
                    rows.append(
                        {
                            "pair": pair,
                            "objective": objective,
                            "stage": "pretrained" if objective == "none" else "aligned",
                            "seed": 0,
                            "layer": layer,
                            "level": "sentence",
                            "metric": metric,
                            "matched": gap + 0.01,
                            "random": 0.01,
                            "gap": gap,
                            "low": gap - 0.03,
                            "high": gap + 0.03,
                            "n": 150,
                        }
                    )
    return rows


def _gradients(i: int, pair: str, objective: str, task: str) -> list[dict[str, Any]]:
    if objective == "shuffled":
        return []
    scopes: list[tuple[str, int, str]] = [("encoder", -1, "all"), ("cell", 0, "embeddings")]
    scopes += [("layer", layer, "all") for layer in range(LAYERS + 1)]
    scopes += [("cell", layer, group) for layer in range(1, LAYERS + 1) for group in GROUPS]
    rows: list[dict[str, Any]] = []
    for k, (scope, layer, group) in enumerate(scopes):
        cosine = 0.3 * math.sin(i + 0.5 * k)
        row = {
            "pair": pair,
            "objective": objective,
            "task": task,
            "scope": scope,
            "layer": layer,
            "group": group,
        }
        yardsticks = {"task_halves": 0.9, "align_halves": 0.8, "source_target": 0.5, "shuffled": 0.02}
        more = {"align_shuffled": 0.3, "random_sd": 0.002, "task_batches": 4.0, "align_batches": 7.0}
        rows.append(
            {
                **row,
                "numel": 100,
                "cosine": cosine,
                "low": cosine - 0.05,
                "high": cosine + 0.05,
                "corrected": 1.1 * cosine,
                "ratio": 1.5 + 0.1 * i,
                "n_task": 8,
                "n_align": 8,
                **yardsticks,
                **more,
            }
        )
    return rows
