"""Scores as tidy frames, one row a unit, with the columns that name it.

`promotes_frame` reads an FFN neuron in the vocabulary: the single tokens whose logits its contribution m_i ·
W_out[i] moves most, through the same projection B as every score (the logit lens of a value vector; Geva et
al., EMNLP 2022, arXiv 2203.14680).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mechedit.attribution.exact_scores import frame_scores
from mechedit.attribution.passes import Pass, base_rows
from mechedit.attribution.ranking.neurons import Ranked
from mechedit.attribution.tokens import token_strings

__all__ = [
    "attn_frame",
    "head_frame",
    "head_places",
    "head_vectors",
    "neuron_frame",
    "position_frame",
    "promotes_frame",
    "strongest_tokens",
    "summed",
]

#: For how many of the strongest FFN neurons the vocabulary is read (`Attribution.promotes`), and how many
#: tokens a side.
PROMOTES_ROWS, PROMOTES_TOKENS = 40, 5
#: How many rows heads at source positions take in a certified result: each is a product with the vocabulary.
POSITION_ROWS = 50


def head_vectors(forward: Pass) -> tuple[Tensor, Tensor]:
    """What each head adds [n_layers · n_heads, d_model], in the order of the place, and the rows of the bases."""
    vectors = torch.stack([term.heads() for term in forward.terms])
    layer = torch.arange(len(vectors)).repeat_interleave(vectors.shape[1])
    return vectors.flatten(0, 1), base_rows("attn", layer).to(vectors.device)


def head_frame(forward: Pass, scores: Tensor | None = None) -> pd.DataFrame:
    """Frame layer, head, score of all heads, in the order of the place.

    Args:
        forward: The pass.
        scores: Those of `head_vectors`; None: they are computed.
    """
    scores = forward.scores(*head_vectors(forward)) if scores is None else scores
    n_layers = len(forward.terms)
    layer, head = torch.cartesian_prod(torch.arange(n_layers), torch.arange(len(scores) // n_layers)).unbind(
        1
    )
    return pd.DataFrame({"layer": layer.numpy(), "head": head.numpy(), "score": scores.numpy()})


def position_frame(forward: Pass, heads: pd.DataFrame, *, all_heads: bool) -> pd.DataFrame:
    """Frame layer, head, pos, score of heads at source positions.

    Args:
        forward: The pass.
        heads: Its `head_frame`.
        all_heads: All heads, or those that `head_places` chooses.
    """
    scores = torch.from_numpy(heads["score"].to_numpy(copy=True)).unflatten(0, (len(forward.terms), -1))
    length = forward.terms[0].attn.coefficients.shape[1]
    frame = head_places(scores, length=length, all_heads=all_heads)
    return frame.assign(score=frame_scores([forward], "head_positions", frame).numpy())


def head_places(scores: Tensor, *, length: int, all_heads: bool = False) -> pd.DataFrame:
    """Frame layer, head, pos: the strongest heads by |score|, at each source position.

    Args:
        scores: Those of all heads [n_layers, n_heads].
        length: How many source positions there are.
        all_heads: All heads, or as many (at least one) as make up `POSITION_ROWS` rows.
    """
    count = scores.numel() if all_heads else min(max(1, POSITION_ROWS // length), scores.numel())
    chosen = scores.flatten().abs().topk(count).indices.sort().values.cpu().repeat_interleave(length)
    layer, head = chosen // scores.shape[1], chosen % scores.shape[1]
    pos = torch.arange(length).repeat(count)
    return pd.DataFrame({"layer": layer.numpy(), "head": head.numpy(), "pos": pos.numpy()})


def summed(frames: Sequence[pd.DataFrame], *, keys: Sequence[str]) -> pd.DataFrame:
    """The frames of several passes added up by their keys, in the order of the first appearance."""
    if len(frames) == 1:
        return frames[0]
    return pd.concat(frames).groupby(list(keys), sort=False, as_index=False)["score"].sum()


def neuron_frame(ranked: Ranked) -> pd.DataFrame:
    """Frame layer, neuron, score of a ranking of FFN neurons, in its order."""
    columns = {"layer": ranked.layer, "neuron": ranked.index, "score": ranked.score}
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})


def attn_frame(ranked: Ranked, *, length: int, width: int) -> pd.DataFrame:
    """Frame layer, head, dim, pos, score of a ranking of attention neurons, in its order.

    Args:
        ranked: The ranking.
        length: How many source positions there are.
        width: d_head.
    """
    head, dim, pos = ranked.places(width=width, length=length)
    columns = {"layer": ranked.layer, "head": head, "dim": dim, "pos": pos, "score": ranked.score}
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})


def promotes_frame(tokenizer: Any, forward: Pass, ranked: Ranked) -> pd.DataFrame:
    """What each of the best FFN neurons adds most to, and takes most from.

    Frame layer, neuron, side, rank, token_id, token, logit: `PROMOTES_TOKENS` tokens a side for the `PROMOTES_ROWS`
    neurons of largest |score|, in the order of the ranking.
    """
    strongest = ranked.score.abs().sort(descending=True, stable=True).indices[:PROMOTES_ROWS].sort().values
    units = list(zip(ranked.layer[strongest].tolist(), ranked.index[strongest].tolist(), strict=True))
    rows: list[tuple[int, int, str, int, int, float]] = []
    height = forward.projection.rows(bytes_each=2 * 4)
    for start in range(0, len(units), height):
        block = units[start : start + height]
        mlps = [forward.terms[layer].mlp for layer, _ in block]
        vectors = [
            mlp.gain(mlp.coefficients[i, 0] * mlp.directions[i].to(mlp.coefficients))
            for mlp, (_, i) in zip(mlps, block, strict=True)
        ]
        tokens = strongest_tokens(forward.projection.directions(torch.stack(vectors)))
        rows += [(*unit, *token) for unit, tops in zip(block, tokens, strict=True) for token in tops]
    frame = pd.DataFrame(rows, columns=["layer", "neuron", "side", "rank", "token_id", "logit"])
    frame.insert(5, "token", list(token_strings(tokenizer, frame["token_id"].tolist())))
    return frame


def strongest_tokens(
    logits: Tensor, *, count: int = PROMOTES_TOKENS
) -> list[list[tuple[str, int, int, float]]]:
    """For each row of logits [n, d_vocab]: side, rank, token_id, logit of its `count` largest and smallest entries."""
    tops: list[list[tuple[str, int, int, float]]] = [[] for _ in logits]
    for side, largest in (("promotes", True), ("demotes", False)):
        best = logits.topk(min(count, logits.shape[1]), dim=1, largest=largest)
        for top, ids, values in zip(tops, best.indices.tolist(), best.values.tolist(), strict=True):
            top += [(side, rank, i, x) for rank, (i, x) in enumerate(zip(ids, values, strict=True))]
    return tops
