"""What a neuron's own vector promotes and demotes in the vocabulary, whatever the prompt.

Source: Geva et al., EMNLP 2022 (arXiv 2203.14680): an FFN value vector read through the unembedding. Here through the
same projection as every score (`projection.py`), the final norm's weight inside, but with σ = 1, for a neuron has no
forward pass of its own: `logits = ((v − mean v) ⊙ γ) W_U` (RMSNorm does not centre), v = W_out[i] or W_O[h, j].
"""

from __future__ import annotations

import pandas as pd
import torch

from mechedit.attribution.frames import strongest_tokens
from mechedit.attribution.projection import Projection
from mechedit.attribution.tokens import token_strings
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

__all__ = ["vocabulary"]

_UNITS = (("layer", "neuron"), ("layer", "head", "dim"))


@torch.no_grad()
def vocabulary(model: HookedModel, neurons: pd.DataFrame, *, top: int = 10) -> pd.DataFrame:
    """The tokens whose logits each neuron raises and lowers most.

    A neuron whose activation is negative adds the opposite: what it writes is then what it demotes here
    (`Attribution.promotes` has the activation inside). Memory: temporaries stay below `projection.BLOCK_BYTES`. Wrong
    as an account of a neuron of an early layer, which later layers read and the unembedding hardly does.

    Args:
        model: The model, as it is now.
        neurons: A frame with the columns layer, neuron (FFN) or layer, head, dim (attention), as `Attribution` has
            them; other columns are ignored and each neuron is read once.
        top: Tokens a side.

    Returns:
        These columns and side ("promotes" | "demotes"), rank, token_id, token, logit, the strongest tokens first. The
        logit is per unit of activation (attention: of A · V) and of 1 / σ.

    Raises:
        InputError: The columns are others, the model does not have a neuron, or top < 1.

    >>> import mechedit as me
    >>> model = me.load_model("factworld")
    >>> tokens = vocabulary(model, pd.DataFrame({"layer": [7], "neuron": [3]}), top=2)
    >>> tokens[["layer", "neuron", "side", "rank"]].to_numpy().tolist()
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
    strongest = [
        rows
        for block in vectors.split(unscaled.rows(bytes_each=2 * 8))
        for rows in strongest_tokens(unscaled.directions(block), count=top)
    ]
    parts = [
        pd.DataFrame(rows, columns=["side", "rank", "token_id", "logit"]).assign(**unit)
        for unit, rows in zip(units.to_dict("records"), strongest, strict=True)
    ]
    frame = pd.concat(parts, ignore_index=True)
    frame["token"] = list(token_strings(model.tokenizer, frame["token_id"].tolist()))
    return frame[[*columns, "side", "rank", "token_id", "token", "logit"]]


def _vector(model: HookedModel, layer: int, *place: int) -> torch.Tensor:
    if len(place) == 1:
        return model.mlp_outlet(layer).frozen()(model.W_out(layer)[place].to(model.device))
    return model.attn_outlet(layer).frozen()(model.W_O(layer)[place].to(model.device))


def _check(model: HookedModel, units: pd.DataFrame) -> None:
    shape = model.shape
    sizes = {"layer": shape.n_layers, "neuron": shape.d_mlp, "head": shape.n_heads, "dim": shape.d_head}
    for name in units:
        last = sizes[str(name)] - 1
        if not units[name].between(0, last).all():
            raise InputError(f"neurons: {name}: expected 0 to {last}, found {units[name].tolist()}")
