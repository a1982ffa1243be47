"""Neuron-level knowledge attribution (NLKA): which parts of the network recall a fact.

Source: Yu & Ananiadou, "Neuron-Level Knowledge Attribution in Large Language Models", EMNLP 2024 (arXiv
2312.12141), section 3; written from its formulas.

1. One forward pass over the prompt; everything is read at its last position.
2. The target token is the first token of the *continuation*: the tokens of prompt + target after those of the
   prompt. Where that is a bare space (" 1945" is " |1|9|4|5" to some tokenizers), the tokens through the first one with
   text are scored, each in a pass of its own, and summed.
3. The projection B with the final norm inside and its scale frozen (`projection.py`).
4. Each unit's vector v and base (`terms.py`): `inc(base, v) = logp(t | base + v) − logp(t | base)`
   (`scores.py`).

| unit | base | v |
|---|---|---|
| attention layer l, FFN layer l | x_pre^l, x_mid^l | a^l, f^l |
| head (l, h), head at source position | x_pre^l | Σ_pos A[last, pos] · V[pos, h] · W_O[h], one term |
| FFN value neuron (l, i) | x_mid^l | m_i · W_out[i] |
| attention value neuron (l, h, j, pos) | x_pre^l | A[last, pos] · V[pos, h, j] · W_O[h, j] |

Where a norm or a factor stands between a sub-layer and the stream, v has passed it with the norm's scale frozen
(`mechedit.models.outlets`). In a parallel block, whose FFN reads x_pre^l, x_mid^l is x_pre^l + a^l by definition: the
order inside a block is attention, then FFN, so that layer scores sum to log p as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mechedit.attribution.circuits.query import N_VALUES
from mechedit.attribution.circuits.query_frames import query_frames
from mechedit.attribution.exact_scores import with_units
from mechedit.attribution.frames import (
    attn_frame,
    head_frame,
    head_vectors,
    neuron_frame,
    position_frame,
    promotes_frame,
    summed,
)
from mechedit.attribution.options import Method, Options
from mechedit.attribution.passes import Pass, TargetTokens, run_passes
from mechedit.attribution.projection import Biases
from mechedit.attribution.ranking.certified import certified_along
from mechedit.attribution.ranking.neurons import Ranking, Sign, exhaustive
from mechedit.attribution.ranking.suppress_bound import vocabulary_moments
from mechedit.attribution.result import Attribution
from mechedit.attribution.tokens import joined_tokens, token_strings
from mechedit.attribution.units import UNITS
from mechedit.data.joining import Space
from mechedit.models.hooked import HookedModel
from mechedit.models.prompts import Prompt, recorded

__all__ = ["TOLERANCE", "attribute", "attributed"]

#: Stated floating-point tolerance of a score, in nats: vocabulary projections are fp32 (fp64 for fp64 weights).
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


@torch.no_grad()
def attribute(
    model: HookedModel,
    prompt: Prompt,
    target: str,
    *,
    top_k: int | Literal["all"] = 300,
    sign: Sign = "promote",
    method: Method = "certified",
    biases: Biases = "keep",
    tokens: TargetTokens = "first",
    also: Attribution | None = None,
    space: Space = "auto",
) -> Attribution:
    """Scores every layer, head and neuron by what it adds to log p(target | prompt), in nats.

    `inc(base, v) = logp(t | base + v) − logp(t | base)`, `logp(t | z) = log_softmax(B z + c)[t]`, the final
    norm's scale σ frozen; bases and vectors as in the table above. t is the first token of the continuation.

    A hook's steering term is a row of its own in `layers` (module "steer", at the FFN "steer_mlp"). b_O and b_out are
    in the layer scores (a^l, f^l are what really is added) and in no head or neuron.

    Memory: temporaries over the vocabulary stay below `projection.BLOCK_BYTES` (64 MiB), the bases take
    8 · n_layers · d_vocab bytes and some passing copies. Products with the vocabulary: 2 · n_layers
    and about 1.1 k of each kind, or n_layers · (d_mlp + d_model) if "exhaustive". Scores are within `TOLERANCE` of
    fp64 whatever the model's type. Wrong as a causal claim: units are added alone under a frozen norm; ablate them.

    Args:
        model: The model, as it is now.
        prompt: What the target is predicted behind: a text, a list of messages (`mechedit.models.prompts`), or ids.
        target: The text whose first token, or all tokens, are scored.
        top_k: Rows of each neuron frame, or "all".
        sign: "promote" ranks the largest scores first, "suppress" the lowest.
        method: "certified" scores neurons in the order of a bound until none that is left can reach the top k,
            "exhaustive" scores all of them; the ranking is the same (`certificate`).
        biases: "keep" has the final norm's bias and b_U in every logit, so that logp is the model's own; "drop" leaves
            both out and takes no guard against tiny denominators of query neurons, as the reference does.
        tokens: "first" scores the first token of the continuation (with a bare space before it); "sum" adds the scores
            of all its tokens, each behind those before it (teacher-forced, a forward pass a token). Then log p is the
            sum, `ids` are those of the last pass, where query neurons are read, and `promotes` is read at the first.
        also: A result for the same prompt whose units are scored too, exactly, behind the top k, so that every row of
            a difference `a - b` is known.
        space: Whether a space goes before the target: "always", "never", or "auto" by both texts.

    Raises:
        InputError: An option is unknown or top_k < 1, the target is empty or changes the prompt's tokens, the forward
            pass is not finite, or `also` is for another prompt.

    >>> import mechedit as me
    >>> attr = me.attribute(me.load_model("factworld"), "The mother tongue of", " English", top_k=5)
    >>> abs(attr.completeness_gap) < 1e-3, len(attr.mlp_neurons)
    (True, 5)
    """
    options = Options(top_k=top_k, sign=sign, method=method, biases=biases, tokens=tokens)
    passes, target_ids = run_passes(model, prompt, target, tokens=tokens, biases=biases, space=space)
    attr = attributed(model, passes, target_ids, prompt=prompt, target=target, options=options, space=space)
    return attr if also is None else with_units(attr, passes, also)


@torch.no_grad()
def attributed(
    model: HookedModel,
    passes: Sequence[Pass],
    target_ids: tuple[int, ...],
    *,
    prompt: Prompt,
    target: str,
    options: Options,
    space: Space = "auto",
) -> Attribution:
    """`attribute` of passes that have been run, one for each token of the target that is scored.

    Args:
        model: The model that they are of.
        passes: In the order of the tokens.
        target_ids: Those of the whole target.
        prompt: As in `attribute`, for the provenance.
        target: Text.
        options: Those of `attribute`.
        space: Likewise.
    """
    ids = passes[-1].view.ids.tolist()
    return Attribution(
        ids=tuple(ids),
        tokens=token_strings(model.tokenizer, ids),
        target=target,
        target_id=target_ids[0],
        target_token=joined_tokens(model.tokenizer, target_ids[: len(passes)]),
        target_ids=target_ids,
        target_scored=options.tokens,
        biases=options.biases,
        sign=options.sign,
        method=options.method,
        scored_ids=target_ids[: len(passes)],
        provenance=model.provenance(
            data={"prompt": recorded(prompt), "target": target, "space": space}, seeds={}
        ),
        **_account(passes),
        **_scores(model, passes, options),
    )


def _account(passes: Sequence[Pass]) -> dict[str, Any]:
    """The fields that account for log p(target), summed over the passes; σ is the first one's."""
    names = ("logp", "embedding_logp", "prior_logp")
    total = {name: sum(getattr(forward.acc, name) for forward in passes) for name in names}
    layers = summed([forward.acc.layers for forward in passes], keys=UNITS["layers"])
    gap = total["logp"] - total["embedding_logp"] - float(layers["score"].sum())
    sigma = passes[0].projection.sigma
    return {**total, "layers": layers, "completeness_gap": gap, "sigma": sigma}


def _scores(model: HookedModel, passes: Sequence[Pass], options: Options) -> dict[str, Any]:
    """The fields of `Attribution` that hold heads and neurons, and the certificate."""
    k, sign = options.k, options.sign
    # All positions where all neurons are scored; and the positions of several passes can only be summed over all heads.
    all_heads = options.method == "exhaustive" or k is None or len(passes) > 1
    ranking, scored = _rank(model, passes, options)
    heads = head_frame(passes[0], scored)
    positions = [position_frame(forward, heads, all_heads=all_heads) for forward in passes]
    first, last = passes[0], passes[-1]
    mlp, attn = ranking.mlp.first(k), ranking.attn.first(k)
    queries, denominators = query_frames(model, passes, ranking, k=k, sign=sign)
    return {
        "heads": heads,
        "head_positions": summed(positions, keys=UNITS["head_positions"]),
        "mlp_neurons": neuron_frame(mlp),
        "attn_neurons": attn_frame(attn, length=len(last.view.ids), width=model.shape.d_head),
        **queries,
        "promotes": promotes_frame(model.tokenizer, first, mlp),
        "certificate": {
            "method": options.method,
            "exact": True,  # results that earlier versions saved may hold intervals
            "evaluated": sum(ranking.evaluated),
            "evaluated_by_kind": dict(zip(("mlp_neurons", "attn_neurons"), ranking.evaluated, strict=True)),
            "total": ranking.total,
            "blocks": "parallel: attention, then FFN" if model.shape.parallel else "sequential",
            "tolerance": TOLERANCE[first.projection.dtype],
            **denominators,
        },
    }


def _rank(model: HookedModel, passes: Sequence[Pass], options: Options) -> tuple[Ranking, Tensor]:
    """The best neurons, and the scores of all heads; all neurons are enumerated where all are to be shown.

    For then there is nothing to leave out.
    """
    # Query neurons read N_VALUES value neurons, however few are shown.
    k, sign = None if options.k is None else max(options.k, N_VALUES), options.sign
    heads = [head_vectors(forward) for forward in passes]
    if options.method == "exhaustive" or k is None:
        scores = [forward.scores(*of_pass) for forward, of_pass in zip(passes, heads, strict=True)]
        return exhaustive(passes, k=k, sign=sign), torch.stack(scores).sum(dim=0)
    moments = vocabulary_moments(model) if sign == "suppress" else None
    return certified_along(passes, heads, k=k, sign=sign, moments=moments)
