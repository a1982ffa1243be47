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

from mechedit.attribution.projection import BLOCK_BYTES, Projection
from mechedit.attribution.ranking.neurons import Ranked
from mechedit.attribution.scores import inc_rows
from mechedit.attribution.terms import LayerTerms
from mechedit.attribution.tokens import token_strings

__all__ = ["PROMOTES_ROWS", "attn_frame", "head_frames", "neuron_frame", "promotes_frame", "summed", "tops"]

#: For how many of the strongest FFN neurons the vocabulary is read (`Attribution.promotes`), and how many
#: tokens a side.
PROMOTES_ROWS, PROMOTES_TOKENS = 40, 5
#: How many rows heads at source positions take in a certified result: each is a product with the vocabulary.
POSITION_ROWS = 50


def head_frames(
    projection: Projection, terms: Sequence[LayerTerms], log_p: Tensor, *, target: int, all_positions: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Frames of all heads, and of heads at each source position: of all of them, or of the strongest by |score|,
    as many as make up `POSITION_ROWS` rows (at least one)."""
    whole = torch.stack([term.heads() for term in terms])
    n_layers, n_heads, d_model = whole.shape
    length, before = terms[0].attn.coefficients.shape[1], log_p[:, 0]
    base = torch.arange(n_layers, device=whole.device).repeat_interleave(n_heads)
    heads = inc_rows(projection, whole.flatten(0, 1), base, before, target=target).view(n_layers, n_heads)
    many = n_layers * n_heads if all_positions else max(1, POSITION_ROWS // length)
    chosen = heads.flatten().abs().topk(min(many, heads.numel())).indices.sort().values
    layer, head = chosen // n_heads, chosen % n_heads
    found = []
    for some in chosen.split(max(1, BLOCK_BYTES // (8 * length * d_model))):
        pairs = list(zip((some // n_heads).tolist(), (some % n_heads).tolist(), strict=True))
        vectors = torch.cat([terms[i].positions(j) for i, j in pairs])
        base = (some // n_heads).repeat_interleave(length)
        found.append(inc_rows(projection, vectors, base, before, target=target))
    positions = torch.cat(found)
    index = {"layer": layer, "head": head}
    table = {name: values.repeat_interleave(length).cpu().numpy() for name, values in index.items()}
    table |= {"pos": torch.arange(length).repeat(len(chosen)).numpy(), "score": positions.cpu().numpy()}
    return _heads(heads), pd.DataFrame(table)


def _heads(scores: Tensor) -> pd.DataFrame:
    """Scores [n_layers, n_heads] as a frame layer, head, score."""
    layer, head = (
        axis.flatten().numpy() for axis in torch.meshgrid(*map(torch.arange, scores.shape), indexing="ij")
    )
    return pd.DataFrame({"layer": layer, "head": head, "score": scores.flatten().cpu().numpy()})


def summed(frames: Sequence[pd.DataFrame], *, keys: Sequence[str]) -> pd.DataFrame:
    """The frames of several passes added up by their keys, in the order of the first appearance."""
    if len(frames) == 1:
        return frames[0]
    return pd.concat(frames).groupby(list(keys), sort=False, as_index=False)["score"].sum()


def neuron_frame(ranked: Ranked) -> pd.DataFrame:
    """Frame layer, neuron, score of a ranking, in its order."""
    columns = {"layer": ranked.layer, "neuron": ranked.index, "score": ranked.score}
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})


def attn_frame(ranked: Ranked, *, length: int, width: int) -> pd.DataFrame:
    """Frame layer, head, dim, pos, score; `length` is the prompt's, in tokens, `width` is d_head."""
    index = ranked.index.cpu().numpy()
    unit, pos = divmod(index, length)
    head, dim = divmod(unit, width)
    layer, score = ranked.layer.cpu().numpy(), ranked.score.cpu().numpy()
    return pd.DataFrame({"layer": layer, "head": head, "dim": dim, "pos": pos, "score": score})


def promotes_frame(
    tokenizer: Any, projection: Projection, terms: Sequence[LayerTerms], ranked: Ranked
) -> pd.DataFrame:
    """What each of the best FFN neurons adds most to, and takes most from: layer, neuron, side, rank,
    token_id, token, logit. Five tokens a side for the `PROMOTES_ROWS` of largest |score|, in the order of the
    ranking."""
    strongest = ranked.score.abs().sort(descending=True, stable=True).indices[:PROMOTES_ROWS].sort().values
    layers, neurons = ranked.layer[strongest].tolist(), ranked.index[strongest].tolist()
    rows: list[tuple[int, int, str, int, int, float]] = []
    height = projection.rows(bytes_each=2 * 4)
    for start in range(0, len(layers), height):
        block = list(zip(layers[start : start + height], neurons[start : start + height], strict=True))
        mlps = [terms[layer].mlp for layer, _ in block]
        parts = zip(mlps, block, strict=True)
        vectors = [
            mlp.coefficients[i, 0] * mlp.directions[i].to(mlp.coefficients.dtype) for mlp, (_, i) in parts
        ]
        found = tops(projection.directions(torch.stack(vectors)))
        rows += [(*unit, *top) for unit, own in zip(block, found, strict=True) for top in own]
    names = ("layer", "neuron", "side", "rank", "token_id", "logit")
    frame = pd.DataFrame(rows, columns=list(names))
    frame.insert(5, "token", list(token_strings(tokenizer, frame["token_id"].tolist())))
    return frame


def tops(added: Tensor, *, count: int = PROMOTES_TOKENS) -> list[list[tuple[str, int, int, float]]]:
    """For each row [d_vocab] of logits: side, rank, token_id, logit of its `count` largest and smallest entries."""
    found: list[list[tuple[str, int, int, float]]] = [[] for _ in added]
    for side, largest in (("promotes", True), ("demotes", False)):
        best = added.topk(min(count, added.shape[1]), dim=1, largest=largest)
        for top, ids, logits in zip(found, best.indices.tolist(), best.values.tolist(), strict=True):
            top += [(side, rank, i, x) for rank, (i, x) in enumerate(zip(ids, logits, strict=True))]
    return found
