"""The query side of a result: frames of query neurons and query layers, from one pass's terms and value neurons.

A target of several tokens has several passes, each with its own activations. Value neurons' scores are sums over
the passes, but what switches them on is read in the last one alone: the certificate says so (`pass`, `passes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechedit.attribution.circuits.edges import Edges
from mechedit.attribution.circuits.keys import Keys, attention_keys, mlp_keys
from mechedit.attribution.circuits.query import (
    N_VALUES,
    key_account,
    key_weights,
    layer_reads,
    query_layers,
)
from mechedit.attribution.circuits.writers import QueryNeurons, read_neurons
from mechedit.attribution.frames import neuron_frame
from mechedit.attribution.passes import Pass
from mechedit.attribution.ranking.neurons import Ranked, Ranking, Sign
from mechedit.models.hooked import HookedModel

__all__ = ["query_frames"]


def query_frames(
    model: HookedModel, passes: Sequence[Pass], ranking: Ranking, *, k: int | None, sign: Sign
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The query side of `Attribution`.

    Args:
        model: The model, as it is now.
        passes: One for each token of the target that is scored.
        ranking: Its first `N_VALUES` neurons of each kind are the value neurons.
        k: Rows of the neuron frames; None: all.
        sign: Whether the largest or the lowest scores are the best.

    Returns:
        The frames query_neurons, mlp_query_neurons, query_layers, mlp_query_layers and reads, and the certificate's
        entries query, mlp_query and reads.
    """
    last = passes[-1]
    guarded = last.projection.biases == "keep"  # "drop" reproduces the reference: raw keys, no guard
    attn, mlp = ranking.attn.first(N_VALUES), ranking.mlp.first(N_VALUES)
    keys = _keys(model, last, attn, mlp, centre=guarded)
    weights, run = key_weights(keys, guard=guarded), (model, last.view, last.terms)
    centred = keys if guarded else _keys(model, last, attn, mlp, centre=True)
    queries, below = QueryNeurons(keys, weights), Edges(attn, mlp, centred)
    read_neurons(*run, [queries, *below.readings])
    neurons, mlp_neurons = queries.best(k, sign)
    edges, total = below.frame(*run)
    sources = layer_reads(*run, keys)
    layers = pd.DataFrame(query_layers(sources, weights), columns=["layer", "module", "attn", "mlp"])
    frames = {
        "query_neurons": neuron_frame(neurons),
        "mlp_query_neurons": neuron_frame(mlp_neurons),
        **{
            name: layers[["layer", "module", kind]].rename(columns={kind: "score"})
            for name, kind in (("query_layers", "attn"), ("mlp_query_layers", "mlp"))
        },
        "reads": edges,
    }
    read = {"pass": len(passes) - 1, "passes": len(passes)}
    account = {
        name: key_account(keys, of, guard=guarded) | read
        for name, of in (("query", ~keys.mid), ("mlp_query", keys.mid))
    }
    return frames, account | {"reads": total}


def _keys(model: HookedModel, last: Pass, attn: Ranked, mlp: Ranked, *, centre: bool) -> Keys:
    first = attention_keys(model, last.view, attn, centre=centre)
    return first.join(mlp_keys(model, last.view, mlp, centre=centre))
