"""Train the embedded encoder: monolingual text of all five languages, no parallel signal."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from xlprobe.langworld.grammar import draw, realise
from xlprobe.langworld.lexicon import LANGUAGES, TOPICS
from xlprobe.training.loop import Training
from xlprobe.training.pretrain import Shape, pretrain

__all__ = ["SHAPE", "TRAINING", "monolingual", "train_langworld"]

SHAPE = Shape(vocabulary=1200, d_model=64, n_layers=4, n_heads=4, d_ffn=256)
TRAINING = Training(steps=3000, batch=96, lr=4e-3, warmup=200, decay=0.6, weight_decay=0.01)
SENTENCES = 30_000  # of each language


def monolingual(language: str, n: int, *, seed: int = 0, draw_seed: int | None = None) -> list[str]:
    """`n` sentences of one language; every language has sentences of its own, none is a translation by design.

    `seed` decides the words of the languages, `draw_seed` (default: the same) which sentences are drawn.

    >>> monolingual("source", 1) != monolingual("words", 1)
    True
    """
    rng = random.Random(f"{seed if draw_seed is None else draw_seed}:text:{language}")
    topics = tuple(TOPICS)
    return [
        " ".join(word.form for word in realise(draw(rng.choice(topics), rng), language, seed=seed))
        for _ in range(n)
    ]


def train_langworld(
    folder: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    sentences: int = SENTENCES,
    progress: bool = True,
) -> Path:
    """Train (or go on training) in `folder`; the folder of the finished checkpoint, `folder/model`."""
    texts = [text for language in LANGUAGES for text in monolingual(language, sentences, seed=seed)]
    training = replace(TRAINING, steps=steps or TRAINING.steps, seed=seed)
    return pretrain(texts, folder, shape=SHAPE, training=training, name="langworld", progress=progress)
