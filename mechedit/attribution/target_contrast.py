"""A new target against an old one, exact for every unit that is shown.

With σ frozen and the same base the softmax drops out:

    inc(new) − inc(old) = (B_new − B_old) · v

linear in v, so *all* neurons are ranked by a dot product each, and the shown ones are scored for both targets besides.
Targets that begin alike (" New| York", " New| Delhi") are told apart by the first token that differs, behind those that
they share.

Source of the scores: Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141), section 3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, overload

import pandas as pd
import torch
from torch import Tensor

from mechedit.attribution.aligned import Align, subtract_aligned
from mechedit.attribution.exact_scores import frame_scores
from mechedit.attribution.frames import attn_frame, head_frame, head_places, neuron_frame
from mechedit.attribution.layers import account, contrast_scores
from mechedit.attribution.options import check_top_k
from mechedit.attribution.passes import Pass, check_forced, run_pass
from mechedit.attribution.projection import Biases
from mechedit.attribution.ranking.neurons import Ranked
from mechedit.attribution.result import Attribution, AttributionContrast, Side
from mechedit.attribution.terms import Kind, position_vectors, unit_vectors
from mechedit.attribution.tokens import token_strings
from mechedit.attribution.units import UNITS, joined
from mechedit.data.joining import Space
from mechedit.models.deciding import divergence
from mechedit.models.hooked import HookedModel
from mechedit.models.prompts import Prompt, recorded
from reports.errors import InputError

__all__ = ["contrast"]

_ROWS = 4096  # vectors that are made at a time


@overload
def contrast(
    model: HookedModel,
    prompt: Prompt,
    new: str,
    old: str,
    *,
    top_k: int | Literal["all"] = 300,
    biases: Biases = "keep",
    space: Space = "auto",
) -> AttributionContrast: ...
@overload
def contrast(model: Attribution, prompt: Attribution, *, align: Align) -> AttributionContrast: ...
@torch.no_grad()
def contrast(
    model: HookedModel | Attribution,
    prompt: Prompt | Attribution,
    new: str | None = None,
    old: str | None = None,
    *,
    top_k: int | Literal["all"] = 300,
    biases: Biases = "keep",
    space: Space = "auto",
    align: Align | None = None,
) -> AttributionContrast:
    """What adds to the new target against the old one: `inc(new) − inc(old) = (B_new − B_old) · v` of every unit, nats.

    Or, as `contrast(a, b, align=...)`, the difference of two attributions in which more than one thing differs: other
    prompts, targets or models (`mechedit.attribution.aligned`).

    `score` is that product, linear and exact, the same with either `biases`; a and b are the scores for the new and the
    old target. Neuron frames hold the `top_k` of all neurons by |score|; `head_positions` those of the strongest heads.
    Cost: a forward pass, 4 · n_layers products with the vocabulary, and two for each head and each row that is shown.

    Args:
        model: The model, as it is now; or the attribution a.
        prompt: What the targets are predicted behind; or the attribution b.
        new: The target of side a; the first token of its continuation that is not old's is scored.
        old: The target of side b, likewise.
        top_k: Rows of each neuron frame, or "all".
        biases: As in `attribute`.
        space: As in `attribute`.
        align: Of two attributions: what stands beside what, the i-th token beside the i-th ("position"), or layers,
            heads and MLP neurons whatever tokens they are at ("units").

    Raises:
        InputError: As `attribute`, and where one target is the beginning of the other; attributions that have no
            counterparts, or are given without `align`.

    >>> import mechedit as me
    >>> model = me.load_model("factworld")
    >>> difference = contrast(model, "The mother tongue of", " English", " French", top_k=5)
    >>> len(difference.mlp_neurons), abs(difference.completeness_gap) < 1e-3
    (5, True)
    >>> a, b = (me.attribute(model, f"{name} works as a", " teacher") for name in ("Anna Novak", "Lukas Novak"))
    >>> print(contrast(a, b, align="units").a.label)
    'teacher' after 'Anna Novak works as a'
    """
    if isinstance(model, Attribution) or isinstance(prompt, Attribution):
        return _of_two(model, prompt, align, extra=(new, old))
    if new is None or old is None or align is not None:
        raise InputError(
            "contrast: expected a model, a prompt and two targets, or two attributions and align"
        )
    return _of_targets(model, prompt, new, old, top_k=top_k, biases=biases, space=space)


def _of_targets(
    model: HookedModel,
    prompt: Prompt,
    new: str,
    old: str,
    *,
    top_k: int | Literal["all"],
    biases: Biases,
    space: Space,
) -> AttributionContrast:
    check_top_k(top_k)
    new_pass, old_pass = _two_sides(model, prompt, new, old, biases=biases, space=space)
    ids = new_pass.view.ids
    data = {"prompt": recorded(prompt), "space": space}
    a, b = (model.provenance(data={**data, "target": target}, seeds={}) for target in (new, old))
    return AttributionContrast(
        a=_side(model, new_pass, new),
        b=_side(model, old_pass, old),
        ids=tuple(ids.tolist()),
        tokens=token_strings(model.tokenizer, ids.tolist()),
        biases=biases,
        target_scored="first",
        provenance={"a": a, "b": b},
        **_frames(new_pass, old_pass, top_k),
    )


def _of_two(
    a: Any, b: Any, align: Align | None, *, extra: tuple[str | None, str | None]
) -> AttributionContrast:
    if not (isinstance(a, Attribution) and isinstance(b, Attribution)) or extra != (None, None):
        raise InputError(
            "contrast: expected a model, a prompt and two targets, or two attributions and align"
        )
    if align is None:
        raise InputError(
            "align: expected 'position' or 'units' to compare different prompts or models; of results that differ in "
            "the edit or the target alone, a - b is the difference"
        )
    return subtract_aligned(a, b, align=align)


def _two_sides(
    model: HookedModel, prompt: Prompt, new: str, old: str, *, biases: Biases, space: Space
) -> tuple[Pass, Pass]:
    """One forward pass, accounted for the first token in which the targets differ, of either."""
    ids, new_ids = model.continuation(prompt, new, space=space)
    _, old_ids = model.continuation(prompt, old, space=space)
    shared = divergence(new_ids.tolist(), old_ids.tolist()) - 1
    if shared == min(len(new_ids), len(old_ids)):
        raise InputError(
            f"old: expected another object than new, found that {old!r} and {new!r} start alike to the end of one"
        )
    view = model.residual_view(torch.cat([ids, new_ids[:shared]]))
    new_pass = run_pass(model, view, int(new_ids[shared]), biases=biases)
    if shared:
        check_forced(model, ids, new_ids[: shared + 1].tolist(), new_pass.acc.logp)
    old_token = int(old_ids[shared])
    old_account = account(new_pass.projection, new_pass.terms, target=old_token, x_final=view.resid_final)
    return new_pass, replace(new_pass, acc=old_account, target=old_token)


def _frames(new: Pass, old: Pass, top_k: int | Literal["all"]) -> dict[str, pd.DataFrame]:
    """The frames of the contrast, from two accounts of one forward pass."""
    direction = new.projection.column(new.target) - new.projection.column(old.target)
    heads, positions = _heads(new, direction)
    linear = {
        "layers": contrast_scores(new.projection, new.terms, new=new.target, old=old.target),
        "heads": heads,
        "head_positions": positions,
        "mlp_neurons": _neurons(new, "mlp", direction, top_k),
        "attn_neurons": _neurons(new, "attn", direction, top_k),
    }
    return {unit: _with_sides(frame, unit, new, old) for unit, frame in linear.items()}


def _heads(forward: Pass, direction: Tensor) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`direction · v` of all heads, and of the strongest at each source position."""
    scores = torch.stack([(term.heads().double() @ direction).cpu() for term in forward.terms])
    layer, head = torch.cartesian_prod(*map(torch.arange, scores.shape)).unbind(1)
    heads = {"layer": layer.numpy(), "head": head.numpy(), "score": scores.flatten().numpy()}
    places = head_places(scores, length=len(forward.view.ids))
    columns = (torch.from_numpy(places[name].to_numpy(copy=True)) for name in places)
    vectors = position_vectors(forward.terms, *columns)
    return pd.DataFrame(heads), places.assign(score=(vectors.double() @ direction).cpu().numpy())


def _neurons(forward: Pass, kind: Kind, direction: Tensor, top_k: int | Literal["all"]) -> pd.DataFrame:
    """The `top_k` neurons of a kind by |direction · v|, of all; equal ones in the order of layer and index."""
    parts = forward.sub_layers(kind)
    rounded = [part.coefficients.double() * part.product(direction[:, None]) for part in parts]
    layers = [Ranked.of_layer(i, scores.flatten().abs().cpu()) for i, scores in enumerate(rounded)]
    best = Ranked.best(layers, k=None if top_k == "all" else top_k, sign="promote")
    n_rows, columns = parts[0].coefficients.shape
    scores = []
    for rows in torch.arange(len(best.score)).split(_ROWS):
        vectors = unit_vectors(parts, best.layer[rows], best.index[rows], columns=columns)
        scores.append((vectors.double() @ direction).cpu())
    ranked = replace(best, score=torch.cat(scores))
    if kind == "mlp":
        return neuron_frame(ranked)
    return attn_frame(ranked, length=columns, width=n_rows // forward.terms[0].n_heads)


def _with_sides(frame: pd.DataFrame, unit: str, new: Pass, old: Pass) -> pd.DataFrame:
    """A frame of linear scores, with the scores of either side between the unit and the score."""
    keys = list(UNITS[unit])
    if unit in ("layers", "heads"):
        a, b = (side.acc.layers if unit == "layers" else head_frame(side) for side in (new, old))
        sides = joined(a, b, unit).drop(columns="score")
        return frame[keys].merge(sides, on=keys, validate="one_to_one").assign(score=frame["score"])
    new_scores, old_scores = (frame_scores([side], unit, frame).numpy() for side in (new, old))
    return frame[keys].assign(a=new_scores, b=old_scores, score=frame["score"])


def _side(model: HookedModel, forward: Pass, target: str) -> Side:
    (token,) = token_strings(model.tokenizer, [forward.target])
    return Side(
        label=token,
        target=target,
        target_id=forward.target,
        target_token=token,
        logp=forward.acc.logp,
        embedding_logp=forward.acc.embedding_logp,
        completeness_gap=forward.acc.gap,
        sigma=forward.projection.sigma,
    )
