"""Does a special token in front of a text help this model? Perplexity of a neutral text, behind each of them.

Some checkpoints were trained with a token in front of every document, and their tokenizer does not put it there: they
know less, or read nonsense, without it. The text's tokens but the first one (which nothing predicts where nothing is
in front) are scored as the model is loaded and behind each special token; what is compared is the mean −log p.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from mechedit.models.bridged import BridgedModel
from mechedit.models.prompts import special_ids
from reports.diagnosis import Check

__all__ = ["NEUTRAL", "WORTH", "best_prefix", "perplexities"]

NEUTRAL = (
    "The river runs through three towns before it reaches the sea. In spring, when the snow in the mountains melts, "
    "it carries more water than in the other seasons, and the fields beside it are often under water for a few days. "
    "People who live there have built their houses on higher ground. There is an old bridge of stone in the first town "
    "and a newer one of steel in the second. Boats still use the lower part of the river to bring wood and grain to "
    "the harbour."
)
#: Special tokens that are tried, the named ones first.
TRIED = 8
#: Nats a token from which a token in front is worth while, and from which a model is lost without it.
WORTH, LOST = 0.02, 1.0


@torch.no_grad()
def perplexities(model: BridgedModel, text: str = NEUTRAL) -> dict[str, float]:
    """Perplexity of a text's tokens but the first: "" as the model is loaded, and behind each special token.

    Args:
        model: The model.
        text: As much of it is read as the context takes.
    """
    loaded = model.plain_ids(text)[: (model.n_ctx or 10**9) - 1]
    n = len(loaded) - len(model._prefix) - 1
    own = loaded[
        len(model._prefix) - len(model._own_prefix) :
    ]  # without what `load_model` was told to put in front
    named = dict.fromkeys((*model.tokenizer.all_special_ids, *sorted(special_ids(model.tokenizer))))
    tried = [token for token in named if token < model.shape.d_vocab and loaded[0] != token][:TRIED]
    rows = {"": loaded} | {
        str(model.tokenizer.convert_ids_to_tokens(token)): torch.cat([loaded.new_tensor([token]), own])
        for token in tried
    }
    return {name: math.exp(_mean_nll(model, ids, n)) for name, ids in rows.items()}


def best_prefix(model: BridgedModel, notes: list[str]) -> Iterator[Check]:
    """Whether a special token in front would help; a note says so where it does.

    It fails only where the model is lost without it, by `LOST` nats a token. A text that the model reads no better than
    by guessing, whatever stands in front, says nothing.

    Args:
        model: The model, as it is loaded.
        notes: Of the diagnosis; an advice is added.
    """
    measured = perplexities(model)
    as_loaded = measured.pop("")
    best = min(measured, key=measured.__getitem__, default="")
    reads = bool(best) and measured[best] < model.shape.d_vocab
    gain = math.log(as_loaded / measured[best]) if reads else 0.0
    shown = ", ".join(f"{name} {value:.4g}" for name, value in measured.items()) or "there is none"
    advice = f"load_model(..., prefix={best!r}), --prefix '{best}'"
    if gain >= WORTH:
        notes.append(
            f"a special token in front helps: {best} lowers the perplexity of a neutral text from {as_loaded:.4g} to "
            f"{measured[best]:.4g}; {advice}"
        )
    verdict = (
        f"{best} helps"
        if gain >= WORTH
        else "none helps"
        if reads or not best
        else "it reads the text by guessing"
    )
    yield Check(
        "special token in front",
        gain,
        LOST,
        f"nats a token gained at most: {verdict}; perplexity of a neutral text {as_loaded:.4g} as loaded, behind a "
        f"special token: {shown}",
        f"the model is lost without it: {advice}",
        n=len(measured),
    )


def _mean_nll(model: BridgedModel, ids: torch.Tensor, n: int) -> float:
    """Mean −log p of the last n tokens, nats."""
    logits = model.run(*model.pad([ids]))[0][0, -n - 1 : -1]
    log_p = logits.double().log_softmax(-1).gather(-1, ids[-n:, None])
    return -float(log_p.mean())
