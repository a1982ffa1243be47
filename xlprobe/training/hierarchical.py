"""Hierarchical contrastive learning of two levels, sentences and words [HiCTL: Wei et al. 2021, arXiv 2007.15960].

Unit vectors z of the 2n sentences of n pairs, z⁺ the translation's, s(a, b) = a · b / τ, τ 0.1:

1. *Sentences* (`hard_contrastive`): `mean −log e^s(z, z⁺) / (e^s(z, z⁺) + Σ e^s(z, ẑ⁻))`. The negatives z⁻ are all
   other sentences of both languages. One that is farther from z than z⁺ is moved towards z, to ẑ⁻ = z + λ (z⁻ − z),
   with λ = (‖z − z⁺‖ / ‖z − z⁻‖)^(ζ p), p the batch's mean probability of the translation, ζ 0.9: the better the
   encoder, the harder the negatives, but none comes nearer than z⁺. λ is a constant for the gradient.
2. *Words* (`word_contrastive`): a sentence's vector against the input embeddings e of words,
   `mean −log e^s(z, e(w)) / (e^s(z, e(w)) + Σ e^s(z, e(v)))`, over the bag of the words w of *both* sides of the pair,
   so that no word alignment is needed; v are 512 words of the vocabulary drawn at random, those of the bag left out.
   Words are the tokenizer's, special tokens left out; each counts once.

The objective `hictl` is 1 + 2, and masked language modelling (`mlm`) where the encoder has a head for it;
`hictl_sentence` and `hictl_word` are 1 and 2 alone, to be weighted as any other.

From the paper by Wei et al. as the field remembers it are the two levels, the negatives, the interpolation and its
bound. Chosen here, for the text of neither paper could be read: cosine with τ 0.1; p of the batch at hand, so that a
step depends on nothing before it; each side's own vector as the query of the words, instead of the concatenated pair's;
words drawn uniformly, 512 a batch; equal weights. Layer and pooling are those of every objective here (two thirds up,
the mean); HiCTL's own vector is the first token's: `pooling="first"`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from reports.errors import InputError
from xlprobe.encoders.batches import Batch
from xlprobe.encoders.encoder import Encoder

__all__ = ["HICTL", "bag_loss", "hard_contrastive", "no_negatives", "word_contrastive"]

HICTL = ("hictl", "hictl_sentence", "hictl_word")
TEMPERATURE = 0.1
SLACK = 0.9  # ζ: how much of the way to the positive's distance a negative is moved at most
DRAWN = 512  # words of the vocabulary that are negatives of a batch


def no_negatives(n: int, same: Tensor | None, device: torch.device) -> Tensor:
    """Which of the 2n sentences of n pairs are no negatives of each other [2n, 2n]: itself, and the same pair again.

    Args:
        n: How many pairs.
        same: Which pairs are the same again [n, n], bool; None: none.
        device: Of the mask.

    >>> int(no_negatives(2, torch.ones(2, 2, dtype=torch.bool), torch.device("cpu")).sum())
    12
    """
    itself = torch.eye(2 * n, dtype=torch.bool, device=device)
    if same is None:
        return itself
    return itself | (same & ~torch.eye(n, dtype=torch.bool, device=same.device)).to(device).repeat(2, 2)


def hard_contrastive(
    x: Tensor, y: Tensor, *, temperature: float = TEMPERATURE, same: Tensor | None = None
) -> Tensor:
    """The loss of matched rows x, y [n, d], in nats, with negatives moved towards each query (formula 1 above).

    Args:
        x: Vectors of one side.
        y: Their partners.
        temperature: What products are divided by.
        same: Which rows are the same pair again [n, n], bool; such rows are no negatives of each other.

    >>> x, y = torch.eye(3), torch.eye(3) + 0.2
    >>> bool(hard_contrastive(x, y) < hard_contrastive(x, y.roll(1, 0)))
    True
    """
    z, n = normalize(torch.cat([x, y]), dim=1), len(x)
    cosines = _wide(z @ z.T)
    number = torch.arange(2 * n, device=z.device)
    partner = number.roll(n)
    left_out = no_negatives(n, same, z.device)
    with torch.no_grad():
        plain = (cosines / temperature).masked_fill(left_out, -torch.inf)
        certain = plain.softmax(1)[number, partner].mean()
        distances = (2 - 2 * cosines).clamp(min=0).sqrt()
        nearest = distances[number, partner][:, None]
        farther = distances > nearest
        ratio = torch.where(farther, nearest / distances.where(farther, 1.0), 1.0)
        share = ratio ** (SLACK * certain)
    # z · (z + λ (z⁻ − z)) of unit vectors; λ is 1 for the partner.
    scores = (1 - share * (1 - cosines)) / temperature
    return cross_entropy(scores.masked_fill(left_out, -torch.inf), partner)


def word_contrastive(
    queries: Tensor,
    words: Tensor,
    drawn: Tensor,
    *,
    bag: Tensor,
    known: Tensor,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """The loss of sentence vectors against words, in nats (formula 2 above): the mean over words, then over sentences.

    Args:
        queries: Sentence vectors [n, d].
        words: Embeddings of words that occur [k, d].
        drawn: Embeddings of words that were drawn [m, d].
        bag: Which words are a sentence's [n, k], bool.
        known: Which of the drawn words are in its bag [n, m], bool, and so no negatives.
        temperature: What cosines are divided by.

    Raises:
        InputError: A sentence without a word, or without a negative.

    >>> words = torch.eye(3)
    >>> bag, known = torch.tensor([[True, False, False]]), torch.zeros(1, 2, dtype=torch.bool)
    >>> loss = word_contrastive(words[:1], words, words[1:], bag=bag, known=known)
    >>> bool(loss < 1e-3)
    True
    """
    for name, there in (("a word", bag.any(1)), ("a drawn word outside its bag", (~known).any(1))):
        if not bool(there.all()):
            row = int((~there).nonzero()[0])
            raise InputError(
                f"pairs: objective hictl_word needs {name} for each sentence, found none for sentence {row}"
            )
    z = normalize(queries, dim=1)
    positive = _wide(z @ normalize(words, dim=1).T) / temperature
    negative = _wide(z @ normalize(drawn, dim=1).T) / temperature
    against = negative.masked_fill(known, -torch.inf).logsumexp(1, keepdim=True)
    losses = (torch.logaddexp(positive, against) - positive).where(bag, 0.0)
    return (losses.sum(1) / bag.sum(1)).mean()


def bag_loss(encoder: Encoder, batch: Batch, queries: Tensor) -> Tensor:
    """`word_contrastive` of a batch; the words are drawn from torch's global generator.

    Args:
        encoder: The encoder, whose input embeddings are the words.
        batch: The source sides of n pairs, then their target sides.
        queries: The vectors of its sentences [2n, d].

    Raises:
        InputError: Input embeddings of another width than the states, or a pair without a word.

    >>> from xlprobe.encoders.encoder import load_encoder
    >>> encoder = load_encoder("langworld", device="cpu")
    >>> batch = encoder.encode([["a", "river"], ["drei", "brel"]])
    >>> bag_loss(encoder, batch, torch.ones(2, encoder.d_model)).shape
    torch.Size([])
    """
    table: Any = encoder.model.get_input_embeddings()
    width = int(table.weight.shape[1])
    if width != queries.shape[1]:
        raise InputError(
            f"objective: hictl_word compares states with input embeddings of their width {queries.shape[1]}, found "
            f"{width} in {encoder.name}; take hictl_sentence"
        )
    special = torch.tensor(encoder.tokenizer.all_special_ids)
    drawn = torch.randperm(min(len(table.weight), len(encoder.tokenizer)))
    drawn = drawn[~torch.isin(drawn, special)][:DRAWN].to(queries.device)
    batch = batch.to(queries.device)
    wordy = batch.content & ~torch.isin(
        batch.input_ids, special.to(queries.device)
    )  # an unknown word is no word
    words = batch.input_ids[wordy].unique()
    either = torch.cat([words, drawn]).unique()
    rows = torch.arange(len(batch), device=queries.device)[:, None].expand_as(wordy)
    there = torch.zeros(len(batch), len(either), dtype=torch.bool, device=queries.device)
    there[rows[wordy], torch.searchsorted(either, batch.input_ids[wordy])] = True
    source, target = there.chunk(2)
    bags = (source | target).repeat(2, 1)
    bag, known = (bags[:, torch.searchsorted(either, ids)] for ids in (words, drawn))
    # Looked up by the module, so that the gradient of its weight is as sparse as that of its other use.
    embedded, sampled = table(torch.cat([words, drawn])).split([len(words), len(drawn)])
    return word_contrastive(queries, embedded, sampled, bag=bag, known=known)


def _wide(scores: Tensor) -> Tensor:
    """In float32 at least."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
