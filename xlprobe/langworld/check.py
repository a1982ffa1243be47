"""What the embedded encoder knows: masked words by language, and how far apart the languages lie unaligned."""

from __future__ import annotations

import pandas as pd
import torch

from reports.intervals import wilson
from reports.missing import explained
from xlprobe.encoders.batches import Batch
from xlprobe.encoders.encoder import Encoder
from xlprobe.langworld.lexicon import LANGUAGES
from xlprobe.langworld.train import monolingual
from xlprobe.langworld.world import bitext
from xlprobe.training.alignment import retrieval
from xlprobe.training.loop import derive
from xlprobe.training.pretrain import IGNORE, mask_tokens

__all__ = ["FLOOR", "check"]

FLOOR = 0.3  # masked-token accuracy that a shipped encoder must reach in each language


@torch.no_grad()
def check(encoder: Encoder, *, n: int = 300, seed: int = 1) -> pd.DataFrame:
    """Frame with one row a language; sentences are drawn with another seed than the training's.

    Its columns: language, mlm_accuracy, low, high (Wilson), n, most_frequent (accuracy of always guessing the commonest
    token), retrieval (weak, against the source, of `n` held-out pairs; nan for the source), floor, ok, missing.
    """
    rows = []
    for language in LANGUAGES:
        batch = encoder.encode(monolingual(language, n, seed=0, draw_seed=derive(seed, "check")))
        right, total, guess = _masked_accuracy(encoder, batch, seed=derive(seed, language))
        low, high = wilson(right, total)
        source = language == "source"
        found_back = float("nan") if source else retrieval(encoder, bitext(language, n, "held_out"))
        share = right / total
        rows.append((language, share, low, high, total, guess, found_back, FLOOR, share >= FLOOR))
    columns = ["language", "mlm_accuracy", "low", "high", "n", "most_frequent", "retrieval", "floor", "ok"]
    return explained(
        pd.DataFrame(rows, columns=columns), {"retrieval": "the source is not compared with itself"}
    )


def _masked_accuracy(encoder: Encoder, batch: Batch, *, seed: int) -> tuple[int, int, float]:
    """How many masked tokens are right, how many there are, and the share of the commonest among them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        masked, labels = mask_tokens(batch, encoder.tokenizer)
    targets, guesses = [], []
    for rows, part in masked.chunks(128):
        wanted = labels[rows, : part.input_ids.shape[1]]
        states = encoder.forward(part)[wanted != IGNORE]
        assert encoder.lm_head is not None
        guesses.append(encoder.lm_head(states).argmax(-1).cpu())
        targets.append(wanted[wanted != IGNORE])
    tokens = torch.cat(targets)
    return (
        int((torch.cat(guesses) == tokens).sum()),
        len(tokens),
        float(tokens.bincount().max() / len(tokens)),
    )
