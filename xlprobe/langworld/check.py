"""What the embedded encoder knows: masked words by language, and how far apart the languages lie unaligned."""

from __future__ import annotations

import pandas as pd
import torch

from reports.intervals import wilson
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
    """Frame: language, mlm_accuracy, low, high (Wilson), n, most_frequent (accuracy of always guessing the commonest
    token), retrieval (weak, against the source, of `n` held-out pairs; nan for the source), floor, ok.

    Sentences are drawn with another seed than the training's.
    """
    rows = []
    for language in LANGUAGES:
        batch = encoder.encode(monolingual(language, n, seed=0, draw_seed=derive(seed, "check")))
        right, total, guess = _masked_accuracy(encoder, batch, seed=derive(seed, language))
        low, high = wilson(right, total)
        far = float("nan") if language == "source" else retrieval(encoder, bitext(language, n, "held_out"))
        share = right / total
        rows.append((language, share, low, high, total, guess, far, FLOOR, share >= FLOOR))
    columns = ["language", "mlm_accuracy", "low", "high", "n", "most_frequent", "retrieval", "floor", "ok"]
    return pd.DataFrame(rows, columns=columns)


def _masked_accuracy(encoder: Encoder, batch: Batch, *, seed: int) -> tuple[int, int, float]:
    """(right, asked, share of the commonest token among those asked)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        masked, labels = mask_tokens(batch, encoder.tokenizer)
    asked, said = [], []
    for rows, part in masked.chunks(128):
        own = labels[rows, : part.input_ids.shape[1]]
        states = encoder.forward(part)[own != IGNORE]
        assert encoder.lm_head is not None
        said.append(encoder.lm_head(states).argmax(-1).cpu())
        asked.append(own[own != IGNORE])
    true = torch.cat(asked)
    return int((torch.cat(said) == true).sum()), len(true), float(true.bincount().max() / len(true))
