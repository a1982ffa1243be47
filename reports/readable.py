"""A result in words: tables with tokens as text, the sentence that says what a score is, and what a notebook shows."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd

from reports.text import clip, visible

__all__ = [
    "DIFFERENCE_MEANS",
    "SCORE_MEANS",
    "WORDS_MEAN",
    "account_line",
    "notebook_html",
    "prompt_text",
    "readable",
]

#: What the numbers beneath are.
SCORE_MEANS = (
    "score: nats that the unit alone adds to log p of the target, above what stood before its sub-layer; below 0 it "
    "takes away. Layers sum up; heads and neurons of one layer overlap."
)
WORDS_MEAN = (
    "reads: the token that most of a head's score comes through, where its positions were scored; promotes, demotes: "
    "the tokens that a neuron's vector moves up and down most; · is a space."
)
DIFFERENCE_MEANS = (
    "score: a − b, in nats: what the unit adds to log p of the one side less what it adds to that of the other; NaN: "
    "not known on one side."
)
#: The order in which a notebook shows frames: what recalls the fact first, sixty layers last.
_ORDER = ("heads", "mlp_neurons", "attn_neurons", "head_positions")
_TOKENS = 3  # that a neuron is said to promote


def readable(
    frame: pd.DataFrame,
    tokens: Sequence[str],
    *,
    promotes: pd.DataFrame | None = None,
    positions: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Rows of a result's frame with what they mean in words.

    Args:
        frame: Heads, neurons or layers, with their scores.
        tokens: Those of the prompt: each `pos` gets its `token`; () where two prompts were aligned, which have others.
        promotes: The result's, for FFN neurons: the tokens that each moves up and down most.
        positions: The result's `head_positions`, for heads: the token that most of a head's score comes from.
    """
    shown = frame.copy()
    if "pos" in shown and tokens:
        shown.insert(
            list(shown).index("pos") + 1, "token", [visible(tokens[pos], spaces=True) for pos in shown["pos"]]
        )
    if positions is not None and tokens and positions["score"].notna().any():
        positions = positions.dropna(subset="score")
        strongest = positions.loc[positions.groupby(["layer", "head"])["score"].idxmax()]
        read = {
            (row.layer, row.head): visible(tokens[row.pos], spaces=True) for row in strongest.itertuples()
        }
        shown["reads"] = [read.get(key, "") for key in zip(shown["layer"], shown["head"], strict=True)]
    if promotes is not None:
        for side in ("promotes", "demotes"):
            moved = promotes[(promotes["side"] == side) & (promotes["rank"] < _TOKENS)]
            words = {
                key: " ".join(clip(visible(token, spaces=True), 16) for token in rows["token"])
                for key, rows in moved.groupby(["layer", "neuron"])
            }
            shown[side] = [words.get(key, "") for key in zip(shown["layer"], shown["neuron"], strict=True)]
    return shown


def prompt_text(tokens: Sequence[str], n: int | None = None) -> str:
    """The first n tokens as one visible text."""
    return "".join(visible(token) for token in tokens[:n])


def account_line(attr: Any) -> str:
    """How the log-probability of an attribution adds up, in one line."""
    return (
        f"log p {attr.logp:.4f} = embedding {attr.embedding_logp:.4f} + layers {attr.layers['score'].sum():.4f} "
        f"+ gap {attr.completeness_gap:.1e} nats"
    )


def notebook_html(
    title: str, lines: Sequence[str], tables: dict[str, pd.DataFrame], *, total: dict[str, int]
) -> str:
    """Title and lines (HTML), then each table under its name; those that are read last are folded away.

    Args:
        title: Markup.
        lines: Likewise.
        tables: By the name of their frame.
        total: How many rows each frame has.
    """
    parts = [f"<p><strong>Attribution</strong> of {title}</p>", *(f"<p>{line}</p>" for line in lines)]
    folded: list[str] = []
    names: list[str] = []
    for name in sorted(tables, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER)):
        table = tables[name]
        if table.empty:
            continue
        names += [] if name in _ORDER else [html.escape(name)]
        head = f"<p><strong>{html.escape(name)}</strong> ({len(table)} of {total[name]} rows)</p>"
        text = head + table.to_html(escape=True, border=0, index=False)
        (parts if name in _ORDER else folded).append(text)
    if folded:
        parts.append(f"<details><summary>{', '.join(names)}</summary>{''.join(folded)}</details>")
    return f"<div>{''.join(parts)}</div>"
