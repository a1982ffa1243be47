"""What a neuron's own vector promotes and demotes in the vocabulary, whatever the prompt.

Source: Geva et al., EMNLP 2022 (arXiv 2203.14680): an FFN value vector read through the unembedding. Here through the
same projection as every score (`projection.py`), the final norm's weight inside, but with σ = 1, for a neuron has no
forward pass of its own: `logits = ((v − mean v) ⊙ γ) W_U` (RMSNorm does not centre), v = W_out[i] or W_O[h, j].
"""

from __future__ import annotations

import pandas as pd
import torch

from mechedit.attribution.frames import tops
from mechedit.attribution.projection import Projection
from mechedit.attribution.tokens import token_strings
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

__all__ = ["vocabulary"]

_UNITS = (("layer", "neuron"), ("layer", "head", "dim"))


@torch.no_grad()
def vocabulary(model: HookedModel, neurons: pd.DataFrame, *, top: int = 10) -> pd.DataFrame:
    """The tokens whose logits each neuron raises and lowers most.

    `neurons`: a frame with the columns layer, neuron (FFN) or layer, head, dim (attention), as `Attribution` has them;
    other columns are ignored and each neuron is read once. Returns these columns and side ("promotes" | "demotes"),
    rank, token_id, token, logit: `top` tokens a side, the strongest first. logit: per unit of activation (attention: of
    A · V) and of 1 / σ. A neuron whose activation is negative adds the opposite: there what it demotes is what it
    writes (`Attribution.promotes` has the activation inside).
    Memory: temporaries stay below `projection.BLOCK_BYTES`. Errors: `InputError` for other columns, a neuron that the
    model does not have, top < 1. Wrong as an account of a neuron of an early layer, which later layers read and the
    unembedding hardly does.

    >>> import mechedit as me
    >>> model = me.load_model("factworld")
    >>> found = vocabulary(model, pd.DataFrame({"layer": [7], "neuron": [3]}), top=2)
    >>> found[["layer", "neuron", "side", "rank"]].to_numpy().tolist()
    [[7, 3, 'promotes', 0], [7, 3, 'promotes', 1], [7, 3, 'demotes', 0], [7, 3, 'demotes', 1]]
    """
    columns = next((list(names) for names in _UNITS if set(names) <= set(neurons)), None)
    if columns is None or neurons.empty or top < 1:
        raise InputError(
            "neurons, top: expected rows with layer, neuron or layer, head, dim and at least 1 token; found "
            f"{len(neurons)} rows with {', '.join(map(str, neurons.columns))} and {top}"
        )
    units = neurons[columns].drop_duplicates().astype(int)
    _check(model, units)
    vectors = torch.stack([_vector(model, *unit) for unit in units.itertuples(index=False, name=None)])
    norm = model.final_norm
    unscaled = Projection(model.W_U, norm.weight.double(), norm.kind == "layer", None, sigma=1.0)
    found = [
        side
        for block in vectors.split(unscaled.rows(bytes_each=2 * 8))
        for side in tops(unscaled.directions(block), count=top)
    ]
    parts = [
        pd.DataFrame(sides, columns=["side", "rank", "token_id", "logit"]).assign(**unit)
        for unit, sides in zip(units.to_dict("records"), found, strict=True)
    ]
    frame = pd.concat(parts, ignore_index=True)
    frame["token"] = list(token_strings(model.tokenizer, frame["token_id"].tolist()))
    return frame[[*columns, "side", "rank", "token_id", "token", "logit"]]


def _vector(model: HookedModel, layer: int, *place: int) -> torch.Tensor:
    return model.W_out(layer)[place] if len(place) == 1 else model.W_O(layer)[place]


def _check(model: HookedModel, units: pd.DataFrame) -> None:
    s = model.shape
    sizes = {"layer": s.n_layers, "neuron": s.d_mlp, "head": s.n_heads, "dim": s.d_head}
    for name in units:
        if not units[name].between(0, sizes[str(name)] - 1).all():
            raise InputError(
                f"neurons: {name}: expected 0 to {sizes[str(name)] - 1}, found {units[name].tolist()}"
            )
