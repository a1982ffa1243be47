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

import pandas as pd
import torch
from torch import Tensor

from mechedit.attribution.passes import Pass, base_rows
from mechedit.attribution.projection import BLOCK_BYTES
from mechedit.attribution.ranking.neurons import attention_index
from mechedit.attribution.result import Attribution
from mechedit.attribution.terms import Kind, position_vectors, unit_vectors
from mechedit.attribution.units import UNITS, check_exact
from reports.errors import InputError

__all__ = ["frame_scores", "unit_scores", "with_units"]

#: Frames that hold a part of their units.
_PARTIAL = ("head_positions", "mlp_neurons", "attn_neurons")


def unit_scores(
    passes: Sequence[Pass], kind: Kind, layer: Tensor, index: Tensor, *, columns: int = 1
) -> Tensor:
    """Exact scores [n] (fp64, nats) of value neurons, added up over the passes.

    Args:
        passes: One for each token of the target that is scored.
        kind: Of all the neurons.
        layer: Their layers [n].
        index: Their places within the layer [n], as in `ranking.neurons.Ranked`.
        columns: How many units of a layer share a direction: 1 for "mlp", the number of source positions for "attn"
            (a pass with fewer adds nothing at those that it does not have).
    """
    scores = torch.zeros(len(layer), dtype=torch.float64)
    for forward in passes:
        parts = forward.sub_layers(kind)
        for rows in _blocks(len(layer), forward):
            vectors = unit_vectors(parts, layer[rows], index[rows], columns=columns)
            scores[rows] += forward.scores(vectors, base_rows(kind, layer[rows]))
    return scores


def frame_scores(passes: Sequence[Pass], unit: str, frame: pd.DataFrame) -> Tensor:
    """Exact scores [n] (fp64, nats) of the rows of a frame "head_positions", "mlp_neurons" or "attn_neurons"."""
    columns = {name: torch.from_numpy(frame[name].to_numpy(copy=True)) for name in UNITS[unit]}
    layer = columns["layer"]
    if unit == "mlp_neurons":
        return unit_scores(passes, "mlp", layer, columns["neuron"])
    head, pos = columns["head"], columns["pos"]
    if unit == "head_positions":
        scores = torch.zeros(len(frame), dtype=torch.float64)
        for forward in passes:
            for rows in _blocks(len(frame), forward):
                vectors = position_vectors(forward.terms, layer[rows], head[rows], pos[rows])
                scores[rows] += forward.scores(vectors, base_rows("attn", layer[rows]))
        return scores
    length, first = len(passes[-1].view.ids), passes[0].terms[0]
    width = len(first.attn.directions) // first.n_heads
    index = attention_index(head, columns["dim"], pos, width=width, length=length)
    return unit_scores(passes, "attn", layer, index, columns=length)


def with_units(attr: Attribution, passes: Sequence[Pass], also: Attribution) -> Attribution:
    """A result with a row for every unit that another one has a row for.

    Args:
        attr: The result.
        passes: Those that `attr` is the attribution of.
        also: The other result.

    Raises:
        InputError: The results are for different prompts, or one's scores are intervals.
    """
    check_exact({"attr": attr.certificate, "also": also.certificate})
    prompts = [result.ids[: result.prompt_length] for result in (attr, also)]
    if prompts[0] != prompts[1]:
        raise InputError(
            f"also: expected a result for the same prompt, found one for {len(prompts[1])} other tokens"
        )
    frames = {}
    for unit in _PARTIAL:
        frame, keys = getattr(attr, unit), list(UNITS[unit])
        units = getattr(also, unit)[keys]
        if "pos" in keys:  # a longer target has more positions: they are no units here
            units = units[units["pos"] < len(attr.ids)]
        missing = units[~pd.MultiIndex.from_frame(units).isin(pd.MultiIndex.from_frame(frame[keys]))]
        missing = missing.assign(score=frame_scores(passes, unit, missing).numpy())
        frames[unit] = _sorted(pd.concat([frame, missing]), unit, sign=attr.sign)
    return replace(attr, **frames)


def _blocks(n: int, forward: Pass) -> Sequence[Tensor]:
    """The indices of n vectors, as many at a time as the memory budget allows."""
    return torch.arange(n).split(max(1, BLOCK_BYTES // (8 * len(forward.projection.scale))))


def _sorted(frame: pd.DataFrame, unit: str, *, sign: str) -> pd.DataFrame:
    if unit == "head_positions":
        return frame.sort_values(list(UNITS[unit]), ignore_index=True)
    return frame.sort_values("score", ascending=sign == "suppress", kind="stable", ignore_index=True)
