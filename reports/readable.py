"""A result in words: tables with tokens as text, the sentence that says what a score is, and what a notebook shows."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from reports.text import clip, visible

__all__ = [
    "DIFFERENCE_MEANS",
    "METRICS_MEAN",
    "SCORE_MEANS",
    "WORDS_MEAN",
    "account_line",
    "metric_words",
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
#: What the metrics of an edit are, by those that one sentence explains.
METRICS_MEAN = {
    (
        "Acc",
        "Gen",
        "Spec",
    ): "the edited model goes on with the new object on the fact's prompt (Acc) and on paraphrases "
    "of it (Gen), and answers about other subjects stay as they were (Spec).",
    (
        "DI",
        "DII",
    ): "it still does where its answer is doubted (DI), and where the old object is offered as well (DII).",
    ("Other",): "the next token behind prompts about the same subject under other relations stays as it was.",
    (
        "ES",
        "PS",
        "NS",
        "S",
    ): "the new object is likelier than the old one on the prompt (ES) and on paraphrases (PS), "
    "the old one than the new on neighbours (NS); S is their harmonic mean; EM, PM, NM say by how much, _acc whether "
    "greedy decoding writes it.",
    (
        "Rel_tok",
        "Gen_tok",
        "Loc_tok",
    ): "the share of an answer's tokens that are as wanted (Rel_tok, Gen_tok), or as "
    "they were (Loc_tok); _all: whether all of them are.",
    (
        "KL",
        "Top1",
    ): "the edited beside the unedited model on running text: nats per token, and the share of passages with "
    "the same likeliest token.",
}
#: The order in which a notebook shows frames: what recalls the fact first, sixty layers last.
_ORDER = ("heads", "mlp_neurons", "attn_neurons", "head_positions")
_TOKENS = 3  # that a neuron is said to promote


def metric_words(names: Collection[str]) -> dict[str, str]:
    """What the metrics called `names` are: by their names, joined, a sentence.

    >>> list(metric_words(["Acc", "KL"]))
    ['Acc, Gen, Spec', 'KL, Top1']
    """
    return {", ".join(key): text for key, text in METRICS_MEAN.items() if set(key).intersection(names)}


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
