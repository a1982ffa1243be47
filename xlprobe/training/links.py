"""Word links from an encoder itself (mutual argmax, as SimAlign), and which links can be trained on.

Word i and word j are linked where each is the other's nearest by cosine, in the layer where alignment is made
[Jalili Sabet et al. 2020, "argmax"]. This is wrong where a word has several partners: at most one is found.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from experiments.progress import LONG, bar
from reports.errors import InputError
from xlprobe.data.corpora import Bitext, Links
from xlprobe.encoders.batches import word_means, words_of
from xlprobe.encoders.coverage import heed
from xlprobe.encoders.encoder import Encoder
from xlprobe.training.cached_contrast import Vectors
from xlprobe.training.objectives import PLAIN

__all__ = ["argmax_links", "mutual_argmax", "require_words", "usable_links"]

LONGEST_MEAN = 8  # letters of a word; segmented Thai has about 4, Khmer 5, Chinese and Japanese 2
#: Thai, Lao, Tibetan, Burmese, Khmer; kana; Han with its extensions
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff"
    "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def mutual_argmax(x: Tensor, y: Tensor) -> Links:
    """The (i, j) of rows x [n, d], y [m, d] that are each other's nearest by cosine; a row with a nan has no link.

    >>> mutual_argmax(torch.eye(3)[:2], torch.eye(3)[[1, 2]])
    ((1, 0),)
    """
    scores = normalize(x, dim=1) @ normalize(y, dim=1).T
    scores = scores.nan_to_num(nan=-torch.inf)
    best, back = scores.argmax(1), scores.argmax(0)
    return tuple((i, int(j)) for i, j in enumerate(best.tolist()) if int(back[j]) == i and scores[i, j] > 0)


@torch.no_grad()
def argmax_links(
    encoder: Encoder,
    bitext: Bitext,
    *,
    vectors: Vectors = PLAIN,
    batch_size: int = 64,
    progress: bool = False,
) -> Bitext:
    """The bitext with the encoder's own links, found on the `vectors` that are aligned."""
    heed(encoder, [*bitext.source, *bitext.target], "links")
    links: list[Links] = []
    with bar("word links", len(bitext), progress=progress, delay=LONG, unit="pair") as shown:
        for start in range(0, len(bitext), batch_size):
            part = bitext[start : start + batch_size]
            sides = [_vectors(encoder, side, vectors) for side in (part.source, part.target)]
            links += [mutual_argmax(x, y) for x, y in zip(*sides, strict=True)]
            shown.update(len(part))
    return Bitext(bitext.source, bitext.target, tuple(links))


def require_words(bitext: Bitext) -> None:
    """Refuse text whose "words" are whole sentences, because its language is written without spaces.

    Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan are looked at: a side counts as unsegmented where most of
    its sentences in such a script are one run of three letters or more, or where a run has on average more letters than
    words of these languages have.

    Raises:
        InputError: A side is unsegmented.

    >>> require_words(Bitext((("I", "am", "here"),), (("私は", "ここに", "います"),)))
    >>> require_words(Bitext((("I", "am", "here"),), (("私はここにいます。",),)))
    Traceback (most recent call last):
        ...
    reports.errors.InputError: bitext: the target side is written without spaces ('私はここにいます。'), ...
    """
    for name, side in (("source", bitext.source), ("target", bitext.target)):
        spoken = [[word for word in words if any(map(str.isalnum, word))] for words in side]
        runs = [list(map(_letters, words)) for words in spoken if any(map(_letters, words))]
        if len(runs) <= len(side) / 2:
            continue
        whole = sum(len(run) == 1 and run[0] >= 3 for run in runs)
        mean = sum(map(sum, runs)) / sum(map(len, runs))
        if whole > len(runs) / 2 or mean > LONGEST_MEAN:
            example = max((word for words in side for word in words), key=_letters)
            raise InputError(
                f"bitext: the {name} side is written without spaces ({example[:20]!r}), and objectives of words "
                "(token, l2) would take sentences for words; put spaces between its words, or align by sentence, mlm "
                "or tlm"
            )


def _letters(word: str) -> int:
    """How many characters of the word belong to a script without spaces."""
    return len(_UNSPACED.findall(word))


def usable_links(bitext: Bitext) -> tuple[Links, ...]:
    """One-to-one links between words that are not the same string: a copy teaches nothing.

    >>> usable_links(Bitext((("a", "Rome", "x"),), (("b", "Rome", "c"),), (((0, 0), (1, 1), (2, 0), (2, 2)),)))
    ((),)
    """
    kept = []
    for source, target, links in zip(bitext.source, bitext.target, bitext.links or (), strict=True):
        firsts, seconds = [i for i, _ in links], [j for _, j in links]
        kept.append(
            tuple(
                (i, j)
                for i, j in links
                if firsts.count(i) == seconds.count(j) == 1 and source[i].casefold() != target[j].casefold()
            )
        )
    return tuple(kept)


def _vectors(encoder: Encoder, sentences: Sequence[Sequence[str]], vectors: Vectors) -> list[Tensor]:
    batch = encoder.encode(sentences).to(encoder.device)
    states = encoder.state(batch, vectors.at(encoder)).float()
    means = word_means(states, words_of(batch, vectors.pooling))
    return [vectors[: len(words)] for vectors, words in zip(means, sentences, strict=True)]
