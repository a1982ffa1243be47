"""Exact scores of given units, whatever their rank.

A ranking holds its k best units. To be subtracted from another, it needs the other's units too, and a unit that is no
row of a ranking does not score 0: it scores less than the last row. So

1. the units of the other result that this one has no row for are looked up;
2. each is scored as every unit is, `inc(base, v)` over the whole vocabulary (`scores.inc_rows`), in every pass;
3. they become rows: of neurons in the order of the score, of heads at source positions in the order of the place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from mechedit.attribution.passes import Pass
from mechedit.attribution.projection import BLOCK_BYTES
from mechedit.attribution.ranking.certified import PLACE, unit_vectors
from mechedit.attribution.result import Attribution
from mechedit.attribution.scores import inc_rows
from mechedit.attribution.terms import LayerTerms
from mechedit.attribution.units import UNITS
from reports.errors import InputError

__all__ = ["Kind", "frame_scores", "kept_vectors", "unit_scores", "with_units"]

Kind = Literal["mlp", "attn"]
#: Frames that hold a part of their units.
PARTIAL = ("head_positions", "mlp_neurons", "attn_neurons")


def unit_scores(
    passes: Sequence[Pass], kind: Kind, layer: Tensor, index: Tensor, *, columns: int = 1
) -> Tensor:
    """Exact scores [n] (fp64, nats) of value neurons, added up over the passes.

    `layer` and `index` [n] as in `neurons.Ranked`; `columns` of the coefficients a row: 1 for "mlp", the number of
    source positions for "attn" (a pass with fewer adds nothing at those it lacks).
    """
    found = torch.zeros(len(layer), dtype=torch.float64)
    for one in passes:
        parts = [getattr(term, kind) for term in one.terms]
        height = max(1, BLOCK_BYTES // (8 * parts[0].directions.shape[1]))
        for rows in torch.arange(len(layer)).split(height):
            vectors = unit_vectors(parts, layer[rows], index[rows], columns=columns)
            found[rows] += _inc(one, vectors, 2 * layer[rows] + PLACE[kind])
    return found


def frame_scores(passes: Sequence[Pass], unit: str, frame: pd.DataFrame) -> Tensor:
    """Exact scores [n] (fp64, nats) of the rows of a frame "head_positions", "mlp_neurons" or "attn_neurons"."""
    columns = {name: torch.from_numpy(frame[name].to_numpy(copy=True)) for name in UNITS[unit]}
    layer = columns["layer"]
    if unit == "mlp_neurons":
        return unit_scores(passes, "mlp", layer, columns["neuron"])
    if unit == "head_positions":
        found = torch.zeros(len(frame), dtype=torch.float64)
        for one in passes:
            vectors = kept_vectors(one.terms, layer, columns["head"], columns["pos"])
            found += _inc(one, vectors, 2 * layer + PLACE["attn"])
        return found
    length = len(passes[-1].view.ids)
    width = passes[0].terms[0].attn.directions.shape[0] // passes[0].terms[0].n_heads
    index = (columns["head"] * width + columns["dim"]) * length + columns["pos"]
    return unit_scores(passes, "attn", layer, index, columns=length)


def kept_vectors(terms: Sequence[LayerTerms], layer: Tensor, head: Tensor, pos: Tensor) -> Tensor:
    """[n, d_model]: what these heads add from these source positions; zero where there is no such position."""
    length = terms[0].attn.coefficients.shape[1]
    out = terms[0].attn.coefficients.new_zeros(len(layer), terms[0].attn.directions.shape[1])
    for i, j in torch.stack([layer, head], dim=1).unique(dim=0).tolist():
        mine = (layer == i) & (head == j) & (pos < length)
        out[mine.to(out.device)] = terms[i].positions(j)[pos[mine]].to(out)
    return out


def with_units(attr: Attribution, passes: Sequence[Pass], other: Attribution) -> Attribution:
    """`attr`, the attribution of `passes`, with a row for every unit that `other` has one for.

    Errors: `InputError` for another prompt, and for scores that are intervals.
    """
    for name, one in (("attr", attr), ("also", other)):
        if not one.certificate["exact"]:
            raise InputError(f"{name}: expected exact scores, found intervals; attribute with tolerance=0")
    prompts = [one.ids[: one.prompt_length] for one in (attr, other)]
    if prompts[0] != prompts[1]:
        raise InputError(
            f"also: expected a result for the same prompt, found one for {len(prompts[1])} other tokens"
        )
    frames = {}
    for unit in PARTIAL:
        own, keys = getattr(attr, unit), list(UNITS[unit])
        theirs = getattr(other, unit)[keys]
        if "pos" in keys:  # a longer target has more positions: they are no units here
            theirs = theirs[theirs["pos"] < len(attr.ids)]
        known = pd.MultiIndex.from_frame(own[keys])
        more = theirs[~pd.MultiIndex.from_frame(theirs).isin(known)]
        more = more.assign(score=frame_scores(passes, unit, more).numpy())
        frames[unit] = _sorted(pd.concat([own, more]), unit, sign=attr.sign)
    return replace(attr, **frames)


def _sorted(frame: pd.DataFrame, unit: str, *, sign: str) -> pd.DataFrame:
    if unit == "head_positions":
        return frame.sort_values(list(UNITS[unit]), ignore_index=True)
    return frame.sort_values("score", ascending=sign == "suppress", kind="stable", ignore_index=True)


def _inc(one: Pass, vectors: Tensor, base: Tensor) -> Tensor:
    if not len(vectors):
        return torch.zeros(0, dtype=torch.float64)
    log_p = one.acc.log_p.flatten(0, 1)
    scores = inc_rows(one.projection, vectors, base.to(vectors.device), log_p, target=one.target)
    return scores.cpu()
