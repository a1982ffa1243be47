"""A run folder as the demo writes one, made of smooth made-up numbers, for the tests of the page.

The shapes are those of a real run on a small model (8 layers, 8 heads, 40 edits); the values come from closed
formulas, so a test can say what a page must show.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from reports.intervals import wilson
from reports.text import visible

LAYERS, HEADS, N = 8, 8, 40
HOSTILE = (
    "<script>alert(1)</script>",
    '"\' onload="x',
    "\u202eabc",
    "a\u200bb",
    "🙂",
    "</style>",
    "$x$",
    "\n",
    "שלום",
    "{{ 7 * 7 }}",
)
EDITORS = (
    ("mega", "MEGA", (39, 38, 37)),
    ("mean_shift", "mean shift, same sites", (38, 37, 36)),
    ("gate_only", "gate alone", (0, 0, 40)),
    ("random_window", "random window", (2, 1, 38)),
    ("no_edit", "no edit", (0, 0, 40)),
)


def proportion(successes: int, n: int = N) -> dict[str, Any]:
    low, high = wilson(successes, n)
    return {"value": successes / n, "low": low, "high": high, "n": n}


def summary() -> dict[str, Any]:
    editors = []
    for name, label, counts in EDITORS:
        acc, gen, spec = (proportion(count) for count in counts)
        editor = {"name": name, "label": label, "acc": acc, "gen": gen, "spec": spec}
        editor["mean"] = proportion(round(sum(counts) / 3))
        editor |= {
            key: proportion(min(N, count + 1)) for key, count in zip(("es", "ps", "ns"), counts, strict=True)
        }
        editors.append(editor | {"s": proportion(min(counts))})
    claims = [
        {"claim": "MEGA's mean is at least 0.90", "answer": "yes", "evidence": "0.95 over n = 40"},
        {"claim": "MEGA is not below the mean shift", "answer": "yes", "evidence": "0.95 against 0.93"},
    ]
    return {
        "title": "Forty counterfactual edits of an embedded world",
        "subtitle": "Attributed before and after, edited by steering attention, measured beside controls",
        "model": "factworld",
        "n": N,
        "editors": editors,
        "notes": [
            "Prompts for the transport, the window and the gate were taken from edits that are not scored."
        ],
        "window": [5, 7],
        "not_done": [
            "Fluency and consistency of longer generations.",
            "Any model that was not trained on this world.",
        ],
        "verdicts": claims,
    }


def contrast() -> pd.DataFrame:
    rows = []
    for layer in range(LAYERS):
        for module in ("attn", "mlp"):
            for thing, sign in (("new", 1.0), ("old", -1.0)):
                for stage in ("before", "after"):
                    base = (
                        0.25 * math.sin(1.3 * layer + len(module))
                        + (0.6 if thing == "old" else 0.1) * layer / 7
                    )
                    rise = (
                        sign * 4.0 / (1 + math.exp(-2.2 * (layer - 5.4))) if module == "attn" else 0.15 * sign
                    )
                    score = base + (rise if stage == "after" else 0.0)
                    rows.append((layer, module, thing, stage, score, score - 0.3, score + 0.3, N))
    return pd.DataFrame(rows, columns=["layer", "module", "object", "stage", "score", "low", "high", "n"])


def heads() -> pd.DataFrame:
    rows = [
        (layer, head, 1.9 * math.exp(-((layer - 6) ** 2) / 3) * math.cos(2.1 * head + layer))
        for layer in range(LAYERS)
        for head in range(HEADS)
    ]
    return pd.DataFrame(rows, columns=["layer", "head", "score"])


def windows() -> pd.DataFrame:
    rows = [
        (first, last, 3.0 * math.exp(-((first - 5) ** 2 + (last - 7) ** 2) / 5) - 0.05 * (last - first))
        for first in range(LAYERS)
        for last in range(first, LAYERS)
    ]
    return pd.DataFrame(rows, columns=["first", "last", "score"])


def neurons() -> pd.DataFrame:
    cities = (" Paris", " Lyon", " Berlin", " Oslo", " Riga")
    rows = []
    for i in range(48):
        token = HOSTILE[i % len(HOSTILE)] if i % 3 == 0 else cities[i % 5]
        module = "mlp" if i % 4 else "attn"
        unit = (
            f"L{7 - i % 4} mlp {37 * i % 512}"
            if module == "mlp"
            else f"L{7 - i % 4} H{i % 8} d{i % 16} @{i % 6}"
        )
        score = (0.62 - 0.011 * i) * (-1 if i % 5 == 4 else 1)
        promoted, demoted = (
            [visible(t, spaces=True) for t in tokens]
            for tokens in ((token, cities[(i + 1) % 5]), (cities[(i + 2) % 5],))
        )
        rows.append((7 - i % 4, module, unit, score, " ".join(promoted), " ".join(demoted)))
    return pd.DataFrame(rows, columns=["layer", "module", "unit", "score", "promotes", "demotes"])


def circuit(units: int = 24) -> dict[str, Any]:
    tokens = ["The", " mother", " tongue", " of", " Dan", "ielle", " Darr", "ieux", " is"]
    nodes: list[dict[str, Any]] = [
        {"id": f"t{i}", "kind": "token", "layer": -1, "pos": i, "label": token, "score": 0.0, "promotes": []}
        for i, token in enumerate(tokens)
    ]
    edges = []
    for i in range(units):
        kind = ("head", "mlp", "neuron")[i % 3]
        layer, score = 3 + i % 5, (0.9 - 0.03 * i) * (-1 if i % 7 == 6 else 1)
        label = {"head": f"H{i % 8}", "mlp": "MLP", "neuron": f"n {41 * i % 512}"}[kind]
        node = {"id": f"u{i}", "kind": kind, "layer": layer, "pos": None, "label": f"L{layer} {label}"}
        nodes.append(node | {"score": score, "promotes": [" English", HOSTILE[i % len(HOSTILE)]]})
        if kind == "head":
            edges += [
                {"source": f"t{(i + j) % 9}", "target": f"u{i}", "score": score / (2 + j)} for j in range(2)
            ]
        edges.append({"source": f"u{i}", "target": "target", "score": score})
        below = [j for j in range(i) if 3 + j % 5 < layer][-2:]
        edges += [{"source": f"u{j}", "target": f"u{i}", "score": 0.3 * score} for j in below]
    nodes.append({"id": "target", "kind": "target", "layer": 8, "pos": 8, "label": " English", "score": 4.2})
    prompt = "".join(tokens)
    about = {"schema_version": 2, "target": " English", "prompt": prompt, "share": 0.71}
    return about | {"nodes": nodes, "edges": edges, "tokens": tokens}


def looks(
    tokens: int = 9, heads: Sequence[tuple[int, int]] = ((6, 0), (3, 5), (7, 2))
) -> dict[str, pd.DataFrame]:
    """The frames of `reports.attention` for so many tokens."""
    patterns, heat = [], []
    for i, (layer, head) in enumerate(heads):
        for query in range(tokens):
            raw = [math.exp(math.cos(1.7 * key + layer + 0.3 * query * i)) for key in range(query + 1)]
            raw += [0.0] * (tokens - query - 1)
            patterns += [(layer, head, query, key, weight / sum(raw)) for key, weight in enumerate(raw)]
        heat += [(layer, head, pos, 0.9 * math.sin(1.1 * pos + 2 * i) / (1 + i)) for pos in range(tokens)]
    return {
        "attention": pd.DataFrame(patterns, columns=["layer", "head", "query", "key", "weight"]),
        "token_heat": pd.DataFrame(heat, columns=["layer", "head", "pos", "score"]),
    }


def write_run(folder: Path) -> Path:
    """Write the whole example run to `folder`, which is made."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary()), encoding="utf-8")
    (folder / "circuit.json").write_text(json.dumps(circuit()), encoding="utf-8")
    for name, frame in (
        ("contrast", contrast()),
        ("heads", heads()),
        ("window", windows()),
        ("neurons", neurons()),
        *looks().items(),
    ):
        frame.to_parquet(folder / f"{name}.parquet")
    facts = {
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "seeds": {"data": 0, "edit": 1},
        "device": "cpu",
    }
    facts["model"] = {"name": "factworld", "sha256": "9f" * 32}
    (folder / "provenance.json").write_text(json.dumps(facts), encoding="utf-8")
    config = 'editor = "mega"\nwindow = "auto"\nlimit = 40\n\n[model]\nname = "factworld"\n'
    (folder / "config.toml").write_text(config, encoding="utf-8")
    return folder
