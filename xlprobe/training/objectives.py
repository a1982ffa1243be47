"""Alignment objectives as losses of one batch of translation pairs: pure functions of an encoder and a batch.

| name | loss | source |
|---|---|---|
| `mlm` | masked language modelling on both sides' text, apart: the control | Xhelili et al. 2024 |
| `sentence` | contrastive over the 2B mean-pooled states, the translation is the positive | Liu & Niehues 2025 |
| `token` | contrastive over the states of aligned words of both sides, behind a projection | Wu & Dredze 2020 |
| `tlm` | masked language modelling on the pair as one text, in random order | Pan et al. 2021 |
| `hictl` | `hictl_sentence` + `hictl_word` + `mlm` (where there is a head): see `hierarchical` | Wei et al. 2021 |

Contrastive: `½ mean −log softmax(z_i · z_j / τ)` over all other vectors of *both* languages, self masked, cosine,
τ 0.1, in a layer two thirds up (XLM-R base: 8 of 12) unless another is chosen. Both sides go through the encoder in
one batch, so a gradient probe holds no half gradient of the first side while it waits for the second.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from reports.errors import InputError
from xlprobe.encoders.batches import Batch, word_means, words_of
from xlprobe.encoders.encoder import Encoder
from xlprobe.training.cached_contrast import Vectors, in_parts, probe_layer, sentence_vectors
from xlprobe.training.hierarchical import HICTL, bag_loss, hard_contrastive, no_negatives
from xlprobe.training.pretrain import IGNORE, mask_tokens, mlm_loss

__all__ = ["OBJECTIVES", "Pair", "contrastive", "linked_words", "objective_loss", "probe_layer"]

OBJECTIVES = ("mlm", "sentence", "token", "tlm")
#: source words, target words, one-to-one links (source word, target word)
Pair = tuple[Sequence[str], Sequence[str], Sequence[tuple[int, int]]]
TEMPERATURE = 0.1
PLAIN = Vectors()


def contrastive(
    x: Tensor, y: Tensor, *, temperature: float = TEMPERATURE, same: Tensor | None = None
) -> Tensor:
    """The loss of matched rows x, y [n, d], in nats: each of the 2n vectors finds its partner among the other 2n − 1.

    Args:
        x: Vectors of one side.
        y: Their partners.
        temperature: What cosines are divided by.
        same: Which rows are the same pair again [n, n], bool; such rows are no negatives of each other.

    >>> x = torch.eye(3)
    >>> bool(contrastive(x, x) < contrastive(x, x.roll(1, 0)))
    True
    """
    z, n = normalize(torch.cat([x, y]), dim=1), len(x)
    scores = (z @ z.T / temperature).masked_fill(no_negatives(n, same, z.device), -torch.inf)
    partner = torch.cat([torch.arange(n, 2 * n), torch.arange(n)]).to(z.device)
    return cross_entropy(scores.float(), partner)


def objective_loss(
    encoder: Encoder,
    objective: str,
    pairs: Sequence[Pair],
    *,
    head: nn.Module | None = None,
    vectors: Vectors = PLAIN,
) -> Tensor:
    """The loss of one batch of pairs; masks and orders come from torch's global generator.

    Args:
        encoder: The encoder.
        objective: One of `OBJECTIVES` or `HICTL`.
        pairs: The batch.
        head: The projection of `token`.
        vectors: Layer, pooling, and how many sentences go through the encoder at once.

    Raises:
        InputError: Another objective, or `token` on pairs with fewer than 2 linked words.
    """
    sides = [list(pair[0]) for pair in pairs] + [list(pair[1]) for pair in pairs]
    if objective == "mlm":
        return _masked(encoder, sides, vectors.micro)
    if objective == "tlm":
        swap = (torch.rand(len(pairs)) < 0.5).tolist()
        whole = [[*b, *a] if swapped else [*a, *b] for (a, b, _), swapped in zip(pairs, swap, strict=True)]
        return _masked(encoder, whole, vectors.micro)
    if objective not in (*OBJECTIVES, *HICTL):
        raise InputError(
            f"objective: expected one of {', '.join((*OBJECTIVES, *HICTL))}, found {objective!r}"
        )
    batch = encoder.encode(sides).to(encoder.device)
    if objective in HICTL:
        loss = _hierarchical(encoder, objective, pairs, batch, vectors)
        masked = objective == "hictl" and encoder.lm_head is not None
        return loss + _masked(encoder, sides, vectors.micro) if masked else loss
    if objective == "sentence":
        means = sentence_vectors(encoder, batch, vectors)
        return contrastive(means[: len(pairs)], means[len(pairs) :], same=_same_sentences(pairs))
    x, y, places = linked_vectors(encoder, batch, pairs, vectors)
    if len(x) < 2:
        raise InputError(f"pairs: objective token needs at least 2 linked words in a batch, found {len(x)}")
    same = _same([((tuple(pairs[i][0]), a), (tuple(pairs[i][1]), b)) for i, a, b in places])
    x, y = (head(side) if head is not None else side for side in (x, y))
    return contrastive(x, y, same=same)


def _hierarchical(
    encoder: Encoder, objective: str, pairs: Sequence[Pair], batch: Batch, vectors: Vectors
) -> Tensor:
    """The contrastive levels of `hictl`, or one of them."""
    z, n = sentence_vectors(encoder, batch, vectors), len(pairs)
    losses = []
    if objective != "hictl_word":
        losses.append(hard_contrastive(z[:n], z[n:], same=_same_sentences(pairs)))
    if objective != "hictl_sentence":
        losses.append(bag_loss(encoder, batch, z))
    return torch.stack(losses).sum()


def _same_sentences(pairs: Sequence[Pair]) -> Tensor | None:
    """`_same` of whole sentences."""
    return _same([(tuple(pair[0]), tuple(pair[1])) for pair in pairs])


def _same(keys: Sequence[tuple[Hashable, Hashable]]) -> Tensor | None:
    """Which rows share a side with which [n, n], bool; None where every row is alone.

    A sentence (or the word at one place of it) that occurs again, on either side, is no wrong answer to itself.
    """
    number: dict[Hashable, int] = {}
    sides = torch.tensor([[number.setdefault(side, len(number)) for side in pair] for pair in keys])
    a, b = sides.T
    if len(number) == len(keys) + int((a != b).sum()):
        return None
    same: Tensor = (a[:, None] == a) | (b[:, None] == b) | (a[:, None] == b) | (b[:, None] == a)
    return same


def linked_vectors(
    encoder: Encoder, batch: Batch, pairs: Sequence[Pair], vectors: Vectors = PLAIN
) -> tuple[Tensor, Tensor, list[tuple[int, int, int]]]:
    """As `linked_words`, of the encoder's own states, in parts where `vectors` says so."""
    layer, n = vectors.at(encoder), len(pairs)
    words = words_of(batch, vectors.pooling)
    batch = Batch(batch.input_ids, batch.attention_mask, words)
    if not vectors.micro or vectors.micro >= len(batch):
        return linked_words(encoder.state(batch, layer), batch, pairs)
    width = int(words.max()) + 1
    places = [(i, a, b) for i, pair in enumerate(pairs) for a, b in pair[2] if max(a, b) < width]
    at = torch.tensor(places, dtype=torch.int64, device=words.device).view(len(places), 3)
    wanted = torch.zeros(2 * n, width, dtype=torch.bool, device=words.device)
    wanted[at[:, 0], at[:, 1]] = wanted[at[:, 0] + n, at[:, 2]] = True

    def of(part: Batch, rows: Tensor) -> Tensor:
        means = word_means(encoder.state(part, layer), part.word_ids)
        means = nn.functional.pad(means, (0, 0, 0, width - means.shape[1]), value=torch.nan)
        return means[wanted[rows]]

    taken = torch.cat(in_parts(of, batch, vectors.micro))
    number = wanted.flatten().cumsum(0).view(2 * n, width) - 1
    x, y = taken[number[at[:, 0], at[:, 1]]], taken[number[at[:, 0] + n, at[:, 2]]]
    known = (x.isfinite() & y.isfinite()).all(1)
    return x[known], y[known], [(i, a, b) for i, a, b in at[known].tolist()]


def linked_words(
    states: Tensor, batch: Batch, pairs: Sequence[Pair]
) -> tuple[Tensor, Tensor, list[tuple[int, int, int]]]:
    """Source and target vectors [m, d] of all linked words but those without a token, and (pair, word, word) of each.

    Args:
        states: One layer's states [2B, T, d].
        batch: The source sides of `pairs`, then their target sides.
        pairs: The pairs with their links.
    """
    means, n = word_means(states, batch.word_ids), len(pairs)
    links = [(i, i + n, a, b) for i, pair in enumerate(pairs) for a, b in pair[2]]
    rows = torch.tensor(links, dtype=torch.int64, device=states.device).view(len(links), 4)
    rows = rows[(rows[:, 2:] < means.shape[1]).all(1)]
    x, y = means[rows[:, 0], rows[:, 2]], means[rows[:, 1], rows[:, 3]]
    known = (x.isfinite() & y.isfinite()).all(1)
    places = [(i, a, b) for i, _, a, b in rows[known].tolist()]
    return x[known], y[known], places


def _masked(encoder: Encoder, sentences: list[list[str]], micro: int) -> Tensor:
    masked, labels = mask_tokens(encoder.encode(sentences).to(encoder.device), encoder.tokenizer)
    if not micro or micro >= len(masked):
        return mlm_loss(encoder, masked, labels)

    def of(part: Batch, rows: Tensor) -> Tensor:
        chosen = labels[rows, : part.input_ids.shape[1]]
        n = (chosen != IGNORE).sum()
        return mlm_loss(encoder, part, chosen) * n if n else labels.new_zeros((), dtype=torch.float32)

    total = torch.stack(in_parts(of, masked, micro)).sum()
    return total / (labels != IGNORE).sum()
