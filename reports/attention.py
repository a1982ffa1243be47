"""Where the heads of a circuit look: the files of a run, checked, and the section of its page.

`attention.parquet`: layer, head, query, key, weight, the whole pattern of each head. `token_heat.parquet`: layer, head,
pos, score (nats), each head's score divided among the tokens. The tokens are those of `circuit.json`.

The table needs no script. Whole patterns and the coloured text are drawn by CircuitsVis (MIT), from the installed
package, inlined (`reports.html`); its Python side is not used: that gives every element a random id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reports.circuit_labels import number, sign
from reports.colours import LIGHT
from reports.errors import IntegrityError
from reports.explorer import data_block
from reports.reading import read_frame
from reports.text import clip, visible

__all__ = ["SCRIPTS", "Looks", "attention", "read"]

#: What the page has to run, in this order (`reports.html.render`).
SCRIPTS = ("circuitsvis.js", "attention.js")
MAX_TOKENS = 48  # shown; those before them are one row of the table
_ROUNDING = 0.02  # of a row's sum: bfloat16 keeps 8 bits of a weight
_PART = 0.45  # of its sign's colour, for the largest |score|: the text on it keeps a contrast of 4.5 : 1


@dataclass(frozen=True, eq=False)
class Looks:
    """The attention patterns of some heads, and what each token adds to their scores.

    Attributes:
        heads: (layer, head) of each.
        patterns: Attention weights [n, T, T].
        heat: Each head's score divided among the tokens, in nats [n, T].
        tokens: The T tokens.
    """

    heads: tuple[tuple[int, int], ...]
    patterns: NDArray[np.float64]
    heat: NDArray[np.float64]
    tokens: tuple[str, ...]


def read(folder: Path, tokens: Sequence[str]) -> Looks | None:
    """Reads both files of the run in `folder`; None where it has neither, or they name no head.

    Args:
        folder: The run folder.
        tokens: The tokens of its circuit.

    Raises:
        IntegrityError: One file is there without the other, or a file holds no attention of a causal model on these
            tokens: a column, a head or a place is missing or comes twice, a value is not finite, a weight is outside
                0..1
            or on a later token, or a row does not sum to 1.
    """
    names = ("attention", "token_heat")
    frames = {name: read_frame(folder, name) for name in names}
    if all(frame is None for frame in frames.values()):
        return None
    for name in names:
        if frames[name] is None:
            raise IntegrityError(f"{folder}: expected {name}.parquet beside the other of {names}, found none")
    heat_file, file = folder / "token_heat.parquet", folder / "attention.parquet"
    heads, heat = _values(frames["token_heat"], heat_file, ("pos",), "score", len(tokens))
    pattern_heads, patterns = _values(frames["attention"], file, ("query", "key"), "weight", len(tokens))
    if set(heads) != set(pattern_heads):
        raise IntegrityError(f"{file}: expected the heads of {heat_file.name} {heads}, found {pattern_heads}")
    if not heads:
        return None
    patterns = patterns[[pattern_heads.index(head) for head in heads]]
    _check(patterns, file)
    return Looks(tuple(heads), patterns, heat, tuple(tokens))


def _values(
    frame: pd.DataFrame | None, file: Path, axes: tuple[str, ...], value: str, length: int
) -> tuple[list[tuple[int, int]], NDArray[np.float64]]:
    """The heads of a frame in its order, and its values [heads, length, ...] by the places `axes`."""
    assert frame is not None
    columns = ["layer", "head", *axes]
    if missing := [name for name in (*columns, value) if name not in frame]:
        raise IntegrityError(f"{file}: expected a column {missing[0]!r}, found {', '.join(map(str, frame))}")
    if not all(pd.api.types.is_integer_dtype(frame[name]) for name in columns):
        raise IntegrityError(f"{file}: expected integers in {', '.join(columns)}")
    owner, named = pd.factorize(pd.MultiIndex.from_frame(frame[["layer", "head"]]))
    heads = [(int(layer), int(head)) for layer, head in named]
    shape = (len(heads), *(length for _ in axes))
    places = (owner, *(frame[name].to_numpy() for name in axes))
    inside = all(((place >= 0) & (place < length)).all() for place in places[1:])
    flat = np.ravel_multi_index(places, shape) if inside and heads else np.zeros(0, dtype=int)
    if len(flat) != len(frame) or len(np.unique(flat)) != math.prod(shape):
        of = " × ".join([str(length)] * len(axes))
        raise IntegrityError(
            f"{file}: expected {of} rows a head, one for each {' and '.join(axes)} of the circuit's {length} tokens, "
            f"found {len(frame)} rows of {len(heads)} heads that are not these"
        )
    values = np.zeros(math.prod(shape))
    values[flat] = pd.to_numeric(frame[value], errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(values).all():
        raise IntegrityError(
            f"{file}: expected finite numbers in {value!r}, found {values[~np.isfinite(values)][0]}"
        )
    return heads, values.reshape(shape)


def _check(patterns: NDArray[np.float64], file: Path) -> None:
    """Refuses patterns that are no softmax over the tokens so far."""
    if patterns.min() < 0 or patterns.max() > 1 + _ROUNDING:
        wrong = patterns.min() if patterns.min() < 0 else patterns.max()
        raise IntegrityError(f"{file}: expected weights from 0 to 1, found {wrong:.4g}")
    if np.triu(patterns, 1).any():
        raise IntegrityError(
            f"{file}: expected no weight on a later token, found {np.triu(patterns, 1).max():.4g}"
        )
    sums = patterns.sum(axis=2)
    if abs(sums - 1).max() > _ROUNDING:
        raise IntegrityError(
            f"{file}: expected each query's weights to sum to 1, found {sums.flat[abs(sums - 1).argmax()]:.4g}"
        )


def attention(looks: Looks) -> dict[str, Any]:
    """Returns the section: `head`, `rows` and `sums` of the table, the sentence `said`, `block` for the script.

    Of more than `MAX_TOKENS` tokens the last are shown and those before them as one row, so that the sums hold.
    """
    heads = [f"L{layer} H{head}" for layer, head in looks.heads]
    tokens = [visible(token, spaces=True) for token in looks.tokens]
    before = max(0, len(tokens) - MAX_TOKENS)
    heat = np.vstack([looks.heat.sum(axis=0), looks.heat])  # all heads, then each
    weights = looks.patterns[:, -1]
    shown = heat[:, before:]
    largest = float(abs(shown).max()) or 1.0
    rows = [
        {
            "pos": before + i,
            "token": clip(tokens[before + i], 24),
            "cells": _cells(shown[:, i], weights[:, before + i], largest),
        }
        for i in range(len(tokens) - before)
    ]
    folded = _cells(heat[:, :before].sum(axis=1), weights[:, :before].sum(axis=1), None)
    strongest = int(abs(heat[0]).argmax())
    data = {
        "tokens": tokens[before:],
        "heads": heads,
        "patterns": np.round(looks.patterns[:, before:, before:], 3).tolist(),
        "heat": np.round(shown[0], 3).tolist(),
        "part": _PART,
        "pos": LIGHT["pos"],
        "neg": LIGHT["neg"],
    }
    return {
        "head": ["all", *heads],
        "rows": rows,
        "folded": {"n": before, "cells": folded} if before else None,
        "sums": [number(score) for score in heat.sum(axis=1)],
        "n_heads": len(heads),
        "n_tokens": len(tokens),
        "first": before,
        "said": f"Largest: {tokens[strongest]} (position {strongest}), {number(heat[0, strongest])} nats.",
        "block": data_block("attention-data", data),
    }


def _cells(
    scores: NDArray[np.float64], weights: NDArray[np.float64], largest: float | None
) -> list[dict[str, str]]:
    """A row of the table, whose first score is of all heads and has no weight; without `largest` it is not coloured."""
    return [
        {
            "score": number(round(score, 3) + 0.0),  # no −0.000
            "weight": weight,
            "sign": sign(score) if largest and abs(score) >= 0.0005 else "zero",
            "heat": f"{100 * _PART * abs(score) / largest:.0f}" if largest else "0",
        }
        for score, weight in zip(scores.tolist(), ["", *(f"{w:.2f}" for w in weights)], strict=True)
    ]
