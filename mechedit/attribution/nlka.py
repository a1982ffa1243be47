"""Neuron-level knowledge attribution (NLKA): which parts of the network recall a fact.

Source: Yu & Ananiadou, "Neuron-Level Knowledge Attribution in Large Language Models", EMNLP 2024 (arXiv
2312.12141), section 3; written from its formulas.

1. One forward pass over the prompt; everything is read at its last position.
2. The target token is the first token of the *continuation*: the tokens of prompt + target after those of the
   prompt.
3. The projection B with the final norm inside and its scale frozen (`projection.py`).
4. Each unit's vector v and base (`terms.py`): `inc(base, v) = logp(t | base + v) − logp(t | base)`
   (`scores.py`).

| unit | base | v |
|---|---|---|
| attention layer l, FFN layer l | x_pre^l, x_mid^l | a^l, f^l |
| head (l, h), head at source position | x_pre^l | Σ_pos A[last, pos] · V[pos, h] · W_O[h], one term |
| FFN value neuron (l, i) | x_mid^l | m_i · W_out[i] |
| attention value neuron (l, h, j, pos) | x_pre^l | A[last, pos] · V[pos, h, j] · W_O[h, j] |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from mechedit.attribution.certified import certified
from mechedit.attribution.frames import attn_frame, head_frames, neuron_frame, promotes_frame
from mechedit.attribution.layers import account, contrast_scores
from mechedit.attribution.neurons import Ranking, Sign, exhaustive
from mechedit.attribution.projection import Biases, Projection
from mechedit.attribution.query import N_VALUES, query_neurons
from mechedit.attribution.ranges import vocabulary_ranges
from mechedit.attribution.result import Attribution
from mechedit.attribution.terms import LayerTerms, layer_terms
from mechedit.attribution.tokens import token_strings
from reports.errors import InputError

if TYPE_CHECKING:
    from mechedit.model import HookedModel, ResidualView

__all__ = ["Method", "TOLERANCE", "attribute", "contrast"]

Method = Literal["exhaustive", "certified"]

#: Stated floating-point tolerance of a score, in nats: vocabulary projections are fp32, bases and sums fp64.
TOLERANCE = 1e-4


@torch.no_grad()
def attribute(
    model: HookedModel,
    prompt: str,
    target: str,
    *,
    top_k: int | Literal["all"] = 300,
    sign: Sign = "promote",
    method: Method = "certified",
    biases: Biases = "keep",
) -> Attribution:
    """Score every layer, head and neuron by what it adds to log p(target | prompt), in nats.

    `inc(base, v) = logp(t | base + v) − logp(t | base)`, `logp(t | z) = log_softmax(B z + c)[t]`, the final
    norm's scale σ frozen; bases and vectors as in the table above. t is the first token of the continuation.

    `method`: "certified" scores neurons in the order of a bound until none that is left can reach the top k,
    "exhaustive" all of them; the ranking is the same (`certificate`). `top_k`: rows of each neuron frame, or "all".
    `sign`: "promote" ranks the largest scores first, "suppress" the lowest. `biases`: "keep" has the final norm's
    bias and b_U in every logit, so that logp is the model's own; "drop" leaves both out and takes no guard against
    tiny denominators of query neurons, as the reference does. In both, b_O and b_out are in the layer scores (a^l,
    f^l are what really is added) and in no head or neuron. A hook's steering term is a row of its own in `layers`
    (module "steer", at the FFN "steer_mlp").

    Memory: temporaries over the vocabulary stay below `projection.BLOCK_BYTES` (64 MiB), the bases take
    16 · n_layers · d_vocab bytes. Products with the vocabulary: 2 · n_layers and about 1.1 k of each kind, or
    n_layers · (d_mlp + d_model) if "exhaustive". Scores are within `TOLERANCE` of fp64 whatever the model's type.

    Errors: `InputError` for an unknown option, top_k < 1, a target that is empty or changes the prompt's tokens, or
    a forward pass that is not finite. Wrong as a causal claim: units are added alone under a frozen norm; ablate them.

    >>> import mechedit as me
    >>> attr = me.attribute(me.load_model("factworld"), "The mother tongue of", " English", top_k=5)
    >>> abs(attr.completeness_gap) < 1e-3, len(attr.mlp_neurons)
    (True, 5)
    """
    _check(top_k=top_k, sign=sign, method=method, biases=biases)
    k = None if top_k == "all" else top_k
    view, target_ids = _run(model, prompt, target)
    projection = _projection(model, view, biases=biases)
    final = view.resid_final.double()
    logp, prior = projection.target_logps(torch.stack([final, final * 0]), target_ids[0]).tolist()
    if not math.isfinite(logp):
        raise InputError(f"model: expected a finite forward pass, found log p {logp}; try dtype='float32'")
    return Attribution(
        ids=tuple(view.ids.tolist()),
        tokens=token_strings(model.tokenizer, view.ids.tolist()),
        target=target,
        target_id=target_ids[0],
        target_token=token_strings(model.tokenizer, target_ids[:1])[0],
        target_ids=target_ids,
        logp=logp,
        prior_logp=prior,
        sigma=projection.sigma,
        biases=biases,
        sign=sign,
        method=method,
        provenance=model.provenance(data={"prompt": prompt, "target": target}, seeds={}),
        **_scores(model, view, projection, target=target_ids[0], logp=logp, k=k, sign=sign, method=method),
    )


@torch.no_grad()
def contrast(model: HookedModel, prompt: str, new: str, old: str) -> pd.DataFrame:
    """What each sub-layer adds to the new target against the old one: frame layer, module, score (nats).

    `inc(new) − inc(old) = (B_new − B_old) · v` at the same base and frozen σ: linear and exact, no softmax,
    the same with either `biases`. Both targets stand for the first token of their continuation.
    Errors: `InputError` as `attribute`, and where both targets start with the same token.

    >>> import mechedit as me
    >>> contrast(me.load_model("factworld"), "The mother tongue of", " English", " French").columns.tolist()
    ['layer', 'module', 'score']
    """
    view, new_ids = _run(model, prompt, new)
    _, old_ids = model.continuation(prompt, old)
    if new_ids[0] == int(old_ids[0]):
        raise InputError(f"old: expected another first token than new, found {old!r} and {new!r} start alike")
    projection = _projection(model, view, biases="drop")
    terms = list(layer_terms(model, view))
    return contrast_scores(projection, terms, new=new_ids[0], old=int(old_ids[0]))


def _check(*, top_k: object, sign: str, method: str, biases: str) -> None:
    if top_k != "all" and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise InputError(f"top_k: expected an integer of at least 1 or 'all', found {top_k!r}")
    for name, value, known in (
        ("sign", sign, get_args(Sign)),
        ("method", method, get_args(Method)),
        ("biases", biases, get_args(Biases)),
    ):
        if value not in known:
            raise InputError(f"{name}: expected one of {', '.join(known)}, found {value!r}")


def _run(model: HookedModel, prompt: str, target: str) -> tuple[ResidualView, tuple[int, ...]]:
    prompt_ids, target_ids = model.continuation(prompt, target)
    return model.residual_view(prompt_ids), tuple(target_ids.tolist())


def _projection(model: HookedModel, view: ResidualView, *, biases: Biases) -> Projection:
    return Projection.freeze(model.final_norm, model.W_U, model.b_U, x_final=view.resid_final, biases=biases)


def _scores(
    model: HookedModel,
    view: ResidualView,
    projection: Projection,
    *,
    target: int,
    logp: float,
    k: int | None,
    sign: Sign,
    method: Method,
) -> dict[str, Any]:
    """The fields of `Attribution` that hold scores, k neurons of a kind (None: all)."""
    terms = list(layer_terms(model, view))
    acc = account(projection, terms, target=target)
    heads, head_positions = head_frames(
        projection, terms, acc.log_p, target=target, all_positions=method == "exhaustive" or k is None
    )
    kept = None if k is None else max(k, N_VALUES)  # query neurons read N_VALUES, however few are shown
    ranking = _rank(model, projection, terms, acc.log_p, target=target, k=kept, sign=sign, method=method)
    guard = projection.biases == "keep"
    query, denominators = query_neurons(model, view, terms, ranking.attn, k=k, sign=sign, guard=guard)
    by_kind = dict(zip(("mlp_neurons", "attn_neurons"), ranking.evaluated, strict=True))
    counts = {
        "method": method,
        "exact": True,
        "evaluated": sum(ranking.evaluated),
        "evaluated_by_kind": by_kind,
        "total": ranking.total,
    }
    return {
        "embedding_logp": acc.embedding_logp,
        "completeness_gap": logp - acc.embedding_logp - float(acc.layers["score"].sum()),
        "layers": acc.layers,
        "heads": heads,
        "head_positions": head_positions,
        "mlp_neurons": neuron_frame(ranking.mlp.first(k)),
        "attn_neurons": attn_frame(ranking.attn.first(k), length=len(view.ids), width=model.shape.d_head),
        "query_neurons": neuron_frame(query),
        "promotes": promotes_frame(model.tokenizer, projection, terms, ranking.mlp.first(k)),
        "certificate": {**counts, "tolerance": TOLERANCE, "query": denominators},
    }


def _rank(
    model: HookedModel,
    projection: Projection,
    terms: Sequence[LayerTerms],
    log_p: Tensor,
    *,
    target: int,
    k: int | None,
    sign: Sign,
    method: Method,
) -> Ranking:
    """All neurons are enumerated where all are asked for: then there is nothing to leave out."""
    if method == "exhaustive" or k is None:
        return exhaustive(projection, terms, log_p, target=target, k=k, sign=sign)
    ranges = vocabulary_ranges(model) if sign == "suppress" else None
    return certified(projection, terms, log_p, target=target, k=k, sign=sign, ranges=ranges)
