"""Which layer and which role each parameter of an encoder has: one row a parameter, every parameter once.

The names are those of the BERT line (BERT, RoBERTa, CamemBERT, XLM-R, Glot500): post-norm blocks with query, key,
value, an output projection and a two-matrix feed-forward network. A name that fits no row of the table is an error,
so no parameter can drop out of a sum over groups.
"""

from __future__ import annotations

import re

import pandas as pd
from torch import nn

from reports.errors import InputError

__all__ = ["GROUPS", "parameter_table"]

GROUPS = ("query", "key", "value", "output", "ffn_in", "ffn_out", "norms", "embeddings")
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")
_ROLES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "output",
    "attention.output.LayerNorm": "norms",
    "intermediate.dense": "ffn_in",
    "output.dense": "ffn_out",
    "output.LayerNorm": "norms",
}


def parameter_table(model: nn.Module) -> pd.DataFrame:
    """Frame name, layer, group, numel, in the order of `model.named_parameters()`.

    Layers count as hidden states do: 0 is the embeddings (with their own norm, group "embeddings"), block i is layer
    i + 1. Each group is one of `GROUPS`.

    Raises:
        InputError: The role of a parameter is unknown.
    """
    rows = [(name, *_place(name), parameter.numel()) for name, parameter in model.named_parameters()]
    return pd.DataFrame(rows, columns=["name", "layer", "group", "numel"])


def _place(name: str) -> tuple[int, str]:
    if name.startswith("embeddings."):
        return 0, "embeddings"
    match = _BLOCK.fullmatch(name)
    if match is None or match[2] not in _ROLES:
        raise InputError(
            f"model: parameter {name!r} has no role that is known here; expected an encoder of the BERT line: "
            "XLM-R, RoBERTa, CamemBERT, BERT"
        )
    return int(match[1]) + 1, _ROLES[match[2]]
