"""How close two languages lie in an encoder, layer by layer, on held-out parallel text.

Steps: every sentence of both languages goes through the encoder once; per layer (0 the embeddings to L), each
sentence is the mean of its content tokens (special tokens left out) or its first token, each aligned word the mean of
its sub-words, or the first;
`xlprobe.probes.similarity` turns the matched vectors into matched, random and gap for each measure.

Read the gap, never `matched` alone: XLM-R's space is anisotropic. Held out means used neither for alignment nor for
the task: a distance on the alignment's own text says how well it was memorised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import pandas as pd
import torch
from torch import Tensor

from experiments.progress import LONG, bar
from reports.errors import InputError
from reports.missing import explained
from reports.plot import Plot
from reports.results import Result
from reports.xl_figures import distance_curves
from xlprobe.encoders.batches import Pooling, Sentence, pooled, require_pooling, word_means, words_of
from xlprobe.encoders.coverage import coverage, heed
from xlprobe.encoders.encoder import Encoder
from xlprobe.probes.similarity import METRICS, measure

__all__ = ["Distances", "Parallel", "distances"]


class Parallel(Protocol):
    """Parallel text: `source[i]` and `target[i]` have one meaning, and so have the pairs of words `links[i]`."""

    @property
    def source(self) -> Sequence[Sentence]:
        """The sentences of one language, as texts or word lists."""

    @property
    def target(self) -> Sequence[Sentence]:
        """The same sentences in the other language."""

    @property
    def links(self) -> Sequence[Sequence[tuple[int, int]]] | None:
        """Word alignments (source word, target word), or None."""


@dataclass(frozen=True, repr=False, eq=False)
class Distances(Result):
    """The measures of two languages on every layer.

    A smaller distance is a *negative* gap of "euclidean", and a positive one of all other measures.

    Attributes:
        layers: Frame layer, level ("sentence" | "token"), metric, matched, random, gap = matched − random, low and high
            (its 95 % interval over n pairs, `xlprobe.probes.similarity.measure`), n, and missing (why a value is nan).
        encoder: Name of the encoder.
        n_cut: The number of measured pairs of which a side is longer than the encoder and was cut off (None: an earlier
            version did not count them).
        n_left_out: The number of pairs that were not measured: beyond the sample, or with a side of which the tokenizer
            leaves nothing.
        pooling: What stood for a sentence and a word.
    """

    kind: ClassVar[str] = "distances"

    layers: pd.DataFrame
    encoder: str
    n_cut: int | None = 0
    provenance: dict[str, Any] = field(default_factory=dict)
    n_left_out: int | None = None
    pooling: str = "mean"

    def __post_init__(self) -> None:
        if self.n_left_out is None:  # saved by an earlier version, which called these n_cut
            object.__setattr__(self, "n_left_out", self.n_cut)
            object.__setattr__(self, "n_cut", None)

    def value(self, metric: str, *, layer: int, level: str = "sentence", column: str = "matched") -> float:
        """One number of the frame.

        Raises:
            InputError: The frame has no such row.
        """
        rows = self.layers.query("metric == @metric and layer == @layer and level == @level")
        if rows.empty:
            raise InputError(f"metric: no row {metric!r}, layer {layer}, level {level!r} in these distances")
        return float(rows[column].iloc[0])

    def plot(self, level: str = "sentence") -> Plot:
        """Draw the gap against the layer, a panel for each measure."""
        rows = self.layers[self.layers["level"] == level].assign(stage=self.encoder)
        return Plot(
            distance_curves(rows), title=f"{self.encoder}: translations apart from others, by {level}"
        )


def distances(
    encoder: Encoder,
    parallel: Parallel,
    *,
    metrics: Sequence[str] = METRICS,
    layers: Sequence[int] | None = None,
    pooling: Pooling = "mean",
    batch_size: int = 64,
    max_pairs: int = 2000,
    seed: int = 0,
    progress: bool = True,
    provenance: dict[str, Any] | None = None,
) -> Distances:
    """The measures `metrics` on every layer, by sentence and, where there are links, by word.

    Word links that are not one-to-one are left out, and so are those between identical strings (names, digits,
    punctuation), which are close in any encoder. Retrieval gets harder as n grows: compare encoders on the same n.

    Args:
        encoder: The encoder.
        parallel: Held-out text.
        metrics: Some of `xlprobe.probes.similarity.METRICS`.
        layers: The layers that are measured (0: the embeddings); by default all.
        pooling: A sentence is the "mean" of its tokens or its "first" token; a word that of its sub-words.
        batch_size: Sentences that go through the encoder at once.
        max_pairs: Of more pairs (or links) than these a seeded sample is taken.
        seed: Decides the sample, the intervals and the permutations.
        progress: Show a progress bar.
        provenance: What the result is to say of its origin.

    Raises:
        InputError: Sides of unequal length, fewer than 4 pairs, fewer than 4 usable links, a layer that the encoder
            lacks, or another pooling.

    >>> from types import SimpleNamespace
    >>> from xlprobe.encoders.encoder import load_encoder
    >>> texts = ["the cat sleeps", "a dog runs", "we see it", "two birds sing", "no one knows"]
    >>> same = SimpleNamespace(source=texts, target=texts, links=None)
    >>> found = distances(load_encoder("langworld", device="cpu"), same, progress=False)
    >>> found.value("weak_retrieval", layer=0)
    1.0
    """
    require_pooling(pooling)
    shown = _layers(encoder, layers)
    there = _checked(encoder, parallel)
    keep = [there[i] for i in _sample(len(there), max_pairs, seed)]
    source, target = ([side[i] for i in keep] for side in (parallel.source, parallel.target))
    links = None if parallel.links is None else [_usable(parallel, i) for i in keep]
    sides = ((source, _words(links, 0)), (target, _words(links, 1)))
    with bar("distances: states", 2 * len(keep), progress=progress, delay=LONG, unit="sentence") as states:
        left, right = (_vectors(encoder, *side, shown, pooling, batch_size, states) for side in sides)
    levels = _levels(left, right, links, max_pairs, seed)
    return Distances(
        _rows(levels, metrics, seed, shown, progress),
        encoder.name,
        n_cut=_cut(encoder, source, target),
        provenance=provenance or {},
        n_left_out=len(parallel.source) - len(keep),
        pooling=pooling,
    )


def _levels(
    left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], links: Any, max_pairs: int, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """The matched vectors of both sides, by sentence and, with links, by word."""
    levels = {"sentence": (left[0], right[0])}
    if links is not None:
        levels["token"] = _both_there(left[1], right[1], max_pairs, seed)
        if (n := levels["token"][0].shape[1]) < 4:
            raise InputError(f"links: expected at least 4 one-to-one links of unlike words, found {n}")
    return levels


def _layers(encoder: Encoder, layers: Sequence[int] | None) -> list[int]:
    known = range(encoder.n_layers + 1)
    if layers is None:
        return list(known)
    strange: list[object] = [layer for layer in layers if layer not in known]
    if strange or not layers:
        found = strange[0] if strange else "none"
        raise InputError(f"layers: expected some of 0 to {encoder.n_layers}, found {found}")
    return sorted(set(layers))


def _rows(
    levels: Mapping[str, tuple[Tensor, Tensor]],
    metrics: Sequence[str],
    seed: int,
    layers: Sequence[int],
    progress: bool,
) -> pd.DataFrame:
    """The frame `layers`, of the vectors [len(layers), n, d] of both sides."""
    rows = []
    total = len(levels) * len(layers)
    with bar("distances: measures", total, progress=progress, delay=LONG, unit="layer") as measured:
        for level, sides in levels.items():
            for layer, x, y in zip(layers, *sides, strict=True):
                for metric, gap in measure(x, y, metrics=metrics, seed=seed).items():
                    row = {"layer": layer, "level": level, "metric": metric, "matched": gap.matched}
                    row |= {"random": gap.random, "gap": gap.gap, "low": gap.low, "high": gap.high}
                    rows.append(row | {"n": gap.n})
                measured.update()
    flat = "the vectors of a side are all the same"
    return explained(pd.DataFrame(rows), dict.fromkeys(("matched", "random", "gap", "low", "high"), flat))


def _cut(encoder: Encoder, source: Sequence[Sentence], target: Sequence[Sentence]) -> int:
    """The number of pairs with a side that is cut off, which the log says too."""
    seen = heed(encoder, [*source, *target], "parallel")
    return len({number % len(source) for number in seen.cut})


@torch.no_grad()
def _vectors(
    encoder: Encoder,
    sentences: Sequence[Sentence],
    words: Sequence[Sequence[int]] | None,
    layers: Sequence[int],
    pooling: Pooling,
    batch_size: int,
    seen: Any,
) -> tuple[Tensor, Tensor]:
    """Vectors of the sentences [len(layers), n, d] and of `words`, sentence by sentence [len(layers), m, d]."""
    batch = encoder.encode(sentences)
    whole: list[Tensor] = [torch.empty(0)] * len(sentences)
    taken: list[Tensor] = [torch.empty(0)] * len(sentences)
    for rows, part in batch.chunks(batch_size):
        states = encoder.states(part)[list(layers)].float().cpu()
        vectors = pooled(states, part, pooling)
        by_word = word_means(states, words_of(part, pooling).cpu()) if words is not None else states
        for i, row in enumerate(rows.tolist()):
            whole[row] = vectors[:, i]
            if words is not None:
                taken[row] = _taken(by_word[:, i], words[row])
        seen.update(len(rows))
    return torch.stack(whole, 1), torch.cat(taken, 1) if words is not None else torch.empty(0)


def _taken(by_word: Tensor, words: Sequence[int]) -> Tensor:
    """[L + 1, len(words), d] of [L + 1, W, d], nan for words beyond W: they were cut off."""
    index = torch.tensor(list(words), dtype=torch.int64)
    known = index.clamp(max=by_word.shape[1] - 1)
    return by_word[:, known].masked_fill((index != known)[:, None], torch.nan)


def _both_there(left: Tensor, right: Tensor, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """The aligned words that neither side cut off, at most `most` of them."""
    both = (left[0].isfinite() & right[0].isfinite()).all(-1)
    left, right = left[:, both], right[:, both]
    keep = _sample(left.shape[1], most, seed)
    return left[:, keep], right[:, keep]


def _usable(parallel: Parallel, i: int) -> list[tuple[int, int]]:
    """The one-to-one links of sentence i between words that are not the same string."""
    assert parallel.links is not None
    links = [(int(a), int(b)) for a, b in parallel.links[i]]
    source, target = _split(parallel.source[i]), _split(parallel.target[i])
    firsts, seconds = [a for a, _ in links], [b for _, b in links]
    return [
        (a, b)
        for a, b in links
        if firsts.count(a) == 1 and seconds.count(b) == 1 and source[a].lower() != target[b].lower()
    ]


def _split(sentence: Sentence) -> Sequence[str]:
    return sentence.split() if isinstance(sentence, str) else sentence


def _words(links: Sequence[Sequence[tuple[int, int]]] | None, side: int) -> list[list[int]] | None:
    return None if links is None else [[link[side] for link in pairs] for pairs in links]


def _sample(n: int, most: int, seed: int) -> list[int]:
    if n <= most:
        return list(range(n))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:most].tolist())


def _checked(encoder: Encoder, parallel: Parallel) -> list[int]:
    """The numbers of the pairs of which the tokenizer leaves something on both sides."""
    n, m = len(parallel.source), len(parallel.target)
    if n != m:
        raise InputError(f"parallel: expected as many target as source sentences, found {m} and {n}")
    if n < 4:
        raise InputError(f"parallel: expected at least 4 pairs, found {n}")
    if parallel.links is not None and len(parallel.links) != n:
        raise InputError(f"parallel: expected links for each of {n} pairs, found {len(parallel.links)}")
    empty = {number % n for number in coverage(encoder, [*parallel.source, *parallel.target]).empty}
    if n - len(empty) < 4:
        raise InputError(
            f"parallel: expected at least 4 pairs with tokens on both sides, found {n - len(empty)}"
        )
    return [i for i in range(n) if i not in empty]
