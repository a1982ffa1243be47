"""Contrasts that are exact for every unit they show: new target against old, edited model against unedited.

New against old. With σ frozen and the same base the softmax drops out:

    inc(new) − inc(old) = (B_new − B_old) · v

linear in v, so *all* neurons are ranked by a dot product each, and the shown ones are scored for both targets besides.

Edited against unedited. Each model is attributed with its own σ; the units that either ranks among its best are scored
in both, so that no row of the difference is missing a side.

Source of the scores: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from mechedit.attribution.exact_scores import Kind, frame_scores, kept_vectors
from mechedit.attribution.frames import POSITION_ROWS, head_frames
from mechedit.attribution.layers import account, contrast_scores
from mechedit.attribution.options import check_top_k
from mechedit.attribution.passes import Pass, run_pass
from mechedit.attribution.projection import Biases
from mechedit.attribution.ranking.certified import unit_vectors
from mechedit.attribution.result import AttributionContrast, Side
from mechedit.attribution.terms import product
from mechedit.attribution.tokens import token_strings
from mechedit.attribution.units import UNITS, joined
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

__all__ = ["contrast"]


@torch.no_grad()
def contrast(
    model: HookedModel,
    prompt: str,
    new: str,
    old: str,
    *,
    top_k: int | Literal["all"] = 300,
    biases: Biases = "keep",
) -> AttributionContrast:
    """What adds to the new target against the old one: `inc(new) − inc(old) = (B_new − B_old) · v` of every unit, nats.

    `score` is that product, linear and exact, the same with either `biases`; a and b are the scores for the new and the
    old target. Neuron frames hold the `top_k` of all neurons by |score|; `head_positions` those of the strongest heads.
    Both targets stand for the first token of their continuation. Cost: a forward pass, 4 · n_layers products with the
    vocabulary, and two for each head and each row that is shown.

    Errors: `InputError` as `attribute`, and where both targets start with the same token.

    >>> import mechedit as me
    >>> found = contrast(me.load_model("factworld"), "The mother tongue of", " English", " French", top_k=5)
    >>> len(found.mlp_neurons), abs(found.completeness_gap) < 1e-3
    (5, True)
    """
    check_top_k(top_k)
    ids, new_ids = model.continuation(prompt, new)
    _, old_ids = model.continuation(prompt, old)
    if new_ids[0] == old_ids[0]:
        raise InputError(f"old: expected another first token than new, found {old!r} and {new!r} start alike")
    view = model.residual_view(ids)
    one = run_pass(model, view, int(new_ids[0]), biases=biases)
    other_acc = account(one.projection, one.terms, target=int(old_ids[0]), x_final=view.resid_final)
    other = replace(one, acc=other_acc, target=int(old_ids[0]))
    direction = one.projection.column(one.target) - one.projection.column(other.target)
    heads, positions = _heads(one, direction)
    linear = {
        "layers": contrast_scores(one.projection, one.terms, new=one.target, old=other.target),
        "heads": heads,
        "head_positions": positions,
        "mlp_neurons": _neurons(one, "mlp", direction, top_k),
        "attn_neurons": _neurons(one, "attn", direction, top_k),
    }
    frames = {unit: _with_sides(frame, unit, one, other) for unit, frame in linear.items()}
    provenance = [
        model.provenance(data={"prompt": prompt, "target": target}, seeds={}) for target in (new, old)
    ]
    return AttributionContrast(
        a=_side(model, one, new),
        b=_side(model, other, old),
        ids=tuple(ids.tolist()),
        tokens=token_strings(model.tokenizer, ids.tolist()),
        biases=biases,
        target_scored="first",
        provenance=dict(zip("ab", provenance, strict=True)),
        **frames,
    )


def _heads(one: Pass, direction: Tensor) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`direction · v` of all heads, and the places of the strongest at each source position, `POSITION_ROWS` in all."""
    per_layer = [term.heads().double() @ direction for term in one.terms]
    scores = torch.stack([scores.cpu() for scores in per_layer])
    layer, head = torch.cartesian_prod(*(torch.arange(n) for n in scores.shape)).unbind(1)
    length = len(one.view.ids)
    many = min(max(1, POSITION_ROWS // length), scores.numel())
    chosen = scores.flatten().abs().topk(many).indices.sort().values.repeat_interleave(length)
    pos = torch.arange(length).repeat(many)
    vectors = kept_vectors(one.terms, layer[chosen], head[chosen], pos)
    places = {"layer": layer[chosen], "head": head[chosen], "pos": pos, "score": vectors.double() @ direction}
    return _frame({"layer": layer, "head": head, "score": scores.flatten()}), _frame(places)


def _neurons(one: Pass, kind: Kind, direction: Tensor, top_k: int | Literal["all"]) -> pd.DataFrame:
    """The `top_k` neurons of a kind by |direction · v|, of all; equal ones in the order of layer and index."""
    parts = [getattr(term, kind) for term in one.terms]
    size, columns = parts[0].coefficients.shape
    quick = [part.coefficients.double() * product(part.directions, direction[:, None]) for part in parts]
    every = torch.cat([scores.flatten().cpu() for scores in quick])
    k = None if top_k == "all" else top_k
    chosen = every.abs().sort(descending=True, stable=True).indices[:k]
    layer, index = chosen // (size * columns), chosen % (size * columns)
    height = 4096
    found = []
    for rows in torch.arange(len(chosen)).split(height):
        vectors = unit_vectors(parts, layer[rows], index[rows], columns=columns)
        found.append((vectors.double() @ direction).cpu())
    score = torch.cat(found)
    if kind == "mlp":
        return _frame({"layer": layer, "neuron": index, "score": score})
    unit, pos = index // columns, index % columns
    width = size // one.terms[0].n_heads
    return _frame({"layer": layer, "head": unit // width, "dim": unit % width, "pos": pos, "score": score})


def _with_sides(frame: pd.DataFrame, unit: str, one: Pass, other: Pass) -> pd.DataFrame:
    """A frame of linear scores with both sides' own between the unit and the score."""
    keys = list(UNITS[unit])
    if unit in ("layers", "heads"):
        a, b = (side.acc.layers if unit == "layers" else _head_scores(side) for side in (one, other))
        sides = joined(a, b, unit).drop(columns="score")
        return frame[keys].merge(sides, on=keys, validate="one_to_one").assign(score=frame["score"])
    new, old = (frame_scores([side], unit, frame).numpy() for side in (one, other))
    return frame[keys].assign(a=new, b=old, score=frame["score"])


def _head_scores(one: Pass) -> pd.DataFrame:
    return head_frames(one.projection, one.terms, one.acc.log_p, target=one.target, all_positions=False)[0]


def _frame(columns: dict[str, Tensor]) -> pd.DataFrame:
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})


def _side(model: HookedModel, one: Pass, target: str) -> Side:
    (token,) = token_strings(model.tokenizer, [one.target])
    gap = one.acc.logp - one.acc.embedding_logp - float(one.acc.layers["score"].sum())
    return Side(
        label=token,
        target=target,
        target_id=one.target,
        target_token=token,
        logp=one.acc.logp,
        embedding_logp=one.acc.embedding_logp,
        completeness_gap=gap,
        sigma=one.projection.sigma,
    )
