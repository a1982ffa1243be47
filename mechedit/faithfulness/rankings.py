"""Five ways to rank the value neurons of one prompt for one target, over the same units.

Units: FFN neurons (l, i) at the last position, attention value neurons (l, h, j, pos), as NLKA has them. With c the
neuron's coefficient (m_i; A[h, last, pos] · V[pos, h, j]) and v its row of W_out or W_O:

| method | score | source |
|---|---|---|
| nlka | logp(t | base + c v) − logp(t | base), certified | Yu & Ananiadou, EMNLP 2024 (arXiv 2312.12141) |
| dla | (B c v)[t], the final norm's scale frozen | direct logit attribution, linear in v |
| attribution_patching | c · ∂ log p(t) / ∂c | gradient × activation (arXiv 2310.10348), by TransformerLens |
| activation | |c| | magnitude, blind to the target |
| random | as many of each layer as NLKA's, drawn anew for each k | the null |

The gradients are TransformerLens' (`tools.analysis.attribution_patching`). Its own direct attribution knows neither a
norm behind a sub-layer nor raw weights of the final norm, so that one is a dot product here (`SubLayer.product`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

from mechedit.attribution import Attribution, attribute
from mechedit.attribution.projection import Projection
from mechedit.attribution.terms import LayerTerms, layer_terms
from mechedit.data.joining import Space
from mechedit.faithfulness.intervention import Neurons, top_neurons
from mechedit.models.hooked import HookedModel
from mechedit.models.hooking import in_block, post, resid_pre

__all__ = ["METHODS", "NeuronScores", "peer_scores", "rank"]

METHODS = ("nlka", "dla", "attribution_patching", "activation", "random")


@dataclass(frozen=True, eq=False)
class NeuronScores:
    """A method's score of every neuron.

    Attributes:
        mlp: FFN neurons [L, d_mlp].
        attn: Attention value neurons [L, n_heads, d_head, T].
    """

    mlp: Tensor
    attn: Tensor


def rank(
    model: HookedModel, prompt: str, target: str, *, k: int, space: Space = "auto"
) -> dict[str, Neurons]:
    """The k best neurons of each kind, best first, of every method but "random".

    Raises:
        InputError: As `attribute`.

    >>> import mechedit as me
    >>> ranked = rank(me.load_model("factworld"), "The mother tongue of", " English", k=3)
    >>> list(ranked), len(ranked["dla"].mlp), len(ranked["dla"].attn)
    (['nlka', 'dla', 'attribution_patching', 'activation'], 3, 3)
    """
    attr = attribute(model, prompt, target, top_k=k, space=space)
    peers = {name: _largest(scores, k) for name, scores in peer_scores(model, attr).items()}
    return {"nlka": top_neurons(attr, k), **peers}


def peer_scores(model: HookedModel, attr: Attribution) -> dict[str, NeuronScores]:
    """The scores of "dla", "attribution_patching" and "activation" at the prompt and target of `attr`."""
    ids = torch.tensor(attr.ids, device=model.device)
    with torch.no_grad():
        view = model.residual_view(ids)
        terms = list(layer_terms(model, view))
        projection = Projection.freeze(
            model.final_norm, model.W_U, model.b_U, x_final=view.resid_final, biases="drop"
        )
    c = _coefficients(terms)
    token = attr.target_ids[attr.n_scored - 1]  # the last one scored, behind `ids`
    gradient = _gradients(model, ids, token)
    return {
        "dla": _direct(terms, projection.column(token), c),
        "attribution_patching": NeuronScores(c.mlp * gradient.mlp, c.attn * gradient.attn),
        "activation": NeuronScores(c.mlp.abs(), c.attn.abs()),
    }


def _coefficients(terms: list[LayerTerms]) -> NeuronScores:
    attn = torch.stack([term.attn.coefficients for term in terms])
    return NeuronScores(
        mlp=torch.stack([term.mlp.coefficients[:, 0] for term in terms]),
        attn=attn.unflatten(1, (terms[0].n_heads, -1)),
    )


@torch.no_grad()
def _direct(terms: list[LayerTerms], direction: Tensor, c: NeuronScores) -> NeuronScores:
    """C · v · B_t of every neuron, direction = B_t [d_model]."""
    mlp, attn = (
        torch.stack([getattr(term, kind).product(direction[:, None])[:, 0] for term in terms])
        for kind in ("mlp", "attn")
    )
    return NeuronScores(mlp.to(c.mlp) * c.mlp, attn.view(c.attn.shape[:3]).to(c.attn)[..., None] * c.attn)


def _gradients(model: HookedModel, ids: Tensor, target: int) -> NeuronScores:
    """∂ log p(t) / ∂m [L, d_mlp] and ∂ log p(t) / ∂z [L, n_heads, d_head, 1] at the last position."""
    layers = range(model.shape.n_layers)
    names = [name for layer in layers for name in (post(layer), in_block(layer, "attn.hook_z"))]
    with torch.enable_grad(), model.hooks([("hook_embed", _leaf)]):  # no weight requires a gradient
        recorded = cache_activation_and_gradient(
            model.bridge,
            ids[None],
            lambda logits: logits[0, -1].log_softmax(dim=-1)[target],
            names_filter=[resid_pre(0), *names],  # the first point may come without a gradient
        )
    last = [cast(Tensor, recorded.gradients[name])[0, -1].to(ids.device) for name in names]
    mlp, attn = torch.stack(last[::2]), torch.stack(last[1::2])
    return NeuronScores(mlp, attn[..., None])


def _leaf(embedded: Tensor, hook: object) -> Tensor:
    return embedded.detach().requires_grad_()


def _largest(scores: NeuronScores, k: int) -> Neurons:
    """The k largest of each kind; equal ones in the order of layer and index."""
    return Neurons(_places(scores.mlp, k), _places(scores.attn, k))  # type: ignore[arg-type]


def _places(values: Tensor, k: int) -> list[tuple[int, ...]]:
    order = values.flatten().sort(descending=True, stable=True).indices[:k]
    axes = torch.unravel_index(order, values.shape)
    return list(zip(*(axis.tolist() for axis in axes), strict=True))
