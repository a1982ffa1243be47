"""Which layer and which role each parameter of an encoder has: one row a parameter, every parameter once.

Known are the names of the architectures in `xlprobe.encoders.architectures`: post-norm blocks (the BERT line,
DistilBERT, DeBERTa) and pre-norm ones (XLM-R XL, ModernBERT) with query, key, value, an output projection and a
two-matrix feed-forward network. ModernBERT keeps query, key and value in one matrix, which is a group of its own. The
norm behind the last block belongs to the last layer; DeBERTa's table of relative positions, with its norm, to the
embeddings. A name that fits no row of the table is an error, so no parameter can drop out of a sum over groups.
"""

from __future__ import annotations

import re

import pandas as pd
from torch import nn

from reports.errors import InputError

__all__ = ["GROUPS", "parameter_table"]

GROUPS = ("query", "key", "value", "output", "ffn_in", "ffn_out", "norms", "embeddings", "query_key_value")
_BLOCK = re.compile(r"(?:encoder\.layer|transformer\.layer|layers)\.(\d+)\.(.+)\.(?:weight|bias)")
_RELATIVE = "encoder.rel_embeddings.weight"
_ROLES = {
    # BERT, RoBERTa, XLM-R, CamemBERT
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "output",
    "attention.output.LayerNorm": "norms",
    "intermediate.dense": "ffn_in",
    "output.dense": "ffn_out",
    "output.LayerNorm": "norms",
    # XLM-R XL
    "attention.self_attn_layer_norm": "norms",
    "LayerNorm": "norms",
    # DistilBERT
    "attention.q_lin": "query",
    "attention.k_lin": "key",
    "attention.v_lin": "value",
    "attention.out_lin": "output",
    "sa_layer_norm": "norms",
    "ffn.lin1": "ffn_in",
    "ffn.lin2": "ffn_out",
    "output_layer_norm": "norms",
    # DeBERTa
    "attention.self.query_proj": "query",
    "attention.self.key_proj": "key",
    "attention.self.value_proj": "value",
    "attention.self.pos_query_proj": "query",
    "attention.self.pos_key_proj": "key",
    # ModernBERT
    "attn_norm": "norms",
    "attn.Wqkv": "query_key_value",
    "attn.Wo": "output",
    "mlp_norm": "norms",
    "mlp.Wi": "ffn_in",
    "mlp.Wo": "ffn_out",
}
_LAST_NORMS = ("encoder.LayerNorm", "final_norm")


def parameter_table(model: nn.Module) -> pd.DataFrame:
    """Frame name, layer, group, numel, in the order of `model.named_parameters()`.

    Layers count as hidden states do: 0 is the embeddings (with their own norm, group "embeddings"), block i is layer
    i + 1. Each group is one of `GROUPS`.

    Raises:
        InputError: The role of a parameter is unknown.
    """
    named = dict(model.named_parameters())
    last = max((int(match[1]) + 1 for name in named if (match := _BLOCK.fullmatch(name))), default=0)
    norms_positions = _RELATIVE in named
    rows = [
        (name, *_place(name, last, norms_positions), parameter.numel()) for name, parameter in named.items()
    ]
    return pd.DataFrame(rows, columns=["name", "layer", "group", "numel"])


def _place(name: str, last: int, norms_positions: bool) -> tuple[int, str]:
    """Layer and group of a parameter, among blocks up to layer `last`."""
    if name.startswith("embeddings.") or name == _RELATIVE:
        return 0, "embeddings"
    module = name.rpartition(".")[0]
    if module in _LAST_NORMS:
        return (0, "embeddings") if norms_positions else (last, "norms")
    match = _BLOCK.fullmatch(name)
    if match is None or match[2] not in _ROLES:
        raise InputError(
            f"model: parameter {name!r} has no role that is known here; expected an encoder of a known architecture: "
            "XLM-R, RoBERTa, CamemBERT, BERT, DistilBERT, XLM-R XL, ModernBERT, DeBERTa-v3"
        )
    return int(match[1]) + 1, _ROLES[match[2]]
