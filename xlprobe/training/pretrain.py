"""Pre-train a small encoder of XLM-R's architecture on texts by masked language modelling, from nothing.

1. A unigram tokenizer of XLM-R's kind is trained on all texts.
2. Each text is one row. Of its tokens, special ones left out, 15 % are to be predicted; of these 80 % become
   `<mask>`, 10 % a random token, 10 % stay [Devlin et al., NAACL 2019, section 3.1].
3. Only the chosen tokens meet the vocabulary. There is no parallel signal: rows of all languages are drawn alike.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaTokenizer

from experiments.cases import settings_digest
from reports.errors import InputError
from xlprobe.encoders.batches import Batch
from xlprobe.encoders.encoder import Encoder
from xlprobe.training.identity import RECORD, claim, environment
from xlprobe.training.loop import Training, derive, train

__all__ = ["Shape", "build_encoder", "mask_tokens", "mlm_loss", "pretrain", "train_tokenizer"]

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
IGNORE = -100


@dataclass(frozen=True)
class Shape:
    """The size of a small encoder of XLM-R's architecture.

    Attributes:
        vocabulary: Word pieces, at most.
        d_model: Width of the stream.
        n_layers: Blocks.
        n_heads: Attention heads of a block.
        d_ffn: Neurons of a block.
        positions: Longest input, in word pieces.
        dropout: Share of activations that training drops.
    """

    vocabulary: int = 1200
    d_model: int = 96
    n_layers: int = 4
    n_heads: int = 4
    d_ffn: int = 384
    positions: int = 128
    dropout: float = 0.0


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """XLM-R's kind of tokenizer (unigram over words that begin with ▁), trained on `texts`.

    By SentencePiece, as XLM-R's own, in one thread: the same texts give the same pieces, ids and scores, without which
    a seed would say nothing. (The trainer of `tokenizers` goes by the order of a hash table, another in every process.)

    Raises:
        InputError: `vocabulary` is too small for the characters of `texts`.
    """
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocabulary,
            hard_vocab_limit=False,
            control_symbols=["<pad>", "<mask>"],
            normalization_rule_name="identity",
            character_coverage=1.0,
            max_sentence_length=2**30,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(
            f"vocabulary: expected room for the characters of the texts, found {vocabulary} ({error})"
        ) from error
    core = SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(core.id_to_piece(i), core.get_score(i)) for i in range(len(core))]
    text = [(piece, score) for piece, score in pieces if piece not in SPECIAL]
    return XLMRobertaTokenizer(vocab=[*((name, 0.0) for name in SPECIAL), *text])


def build_encoder(shape: Shape, tokenizer: PreTrainedTokenizerBase, *, seed: int, name: str) -> Encoder:
    """A fresh encoder with its LM head, tied to the embeddings."""
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.d_model,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        intermediate_size=shape.d_ffn,
        max_position_embeddings=shape.positions + 2,
        type_vocab_size=1,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        whole = XLMRobertaForMaskedLM(config)
    return Encoder(whole.roberta, tokenizer, name=name, source="fresh", lm_head=whole.lm_head)


def mask_tokens(
    batch: Batch, tokenizer: PreTrainedTokenizerBase, *, share: float = 0.15
) -> tuple[Batch, Tensor]:
    """The masked batch and its labels [B, T], `IGNORE` where nothing is to be predicted, by torch's global generator.

    A batch in which chance chose no token has one chosen, so that its loss is never 0 / 0.
    """
    content = batch.content
    chosen = (torch.rand(content.shape) < share).to(content.device) & content
    if not chosen.any():
        chosen.view(-1)[content.flatten().nonzero()[0]] = True
    labels = batch.input_ids.masked_fill(~chosen, IGNORE)
    kind = torch.rand(content.shape).to(content.device)
    noise = torch.randint(len(tokenizer), content.shape).to(content.device)
    ids = torch.where(chosen & (kind < 0.8), tokenizer.mask_token_id, batch.input_ids)
    ids = torch.where(chosen & (kind >= 0.9), noise, ids)
    return Batch(ids, batch.attention_mask, batch.word_ids), labels


def mlm_loss(encoder: Encoder, masked: Batch, labels: Tensor) -> Tensor:
    """Mean cross entropy, in nats, of the tokens that have a label.

    Raises:
        InputError: The encoder has no LM head.
    """
    if encoder.lm_head is None:
        raise InputError(
            f"encoder: {encoder.name} has no LM head, which masked language modelling needs; load a checkpoint of a "
            "masked language model"
        )
    chosen = labels != IGNORE
    logits = encoder.lm_head(encoder.forward(masked)[chosen])
    return nn.functional.cross_entropy(logits.float(), labels[chosen])


class _MaskedLM(nn.Module):
    """The loss of the texts `rows`."""

    def __init__(self, encoder: Encoder, batch: Batch) -> None:
        super().__init__()
        self.model, self.lm_head = encoder.model, encoder.lm_head
        self.encoder, self.batch = encoder, batch

    def forward(self, rows: Tensor) -> Tensor:
        masked, labels = mask_tokens(self.batch[rows].to(self.encoder.device), self.encoder.tokenizer)
        return mlm_loss(self.encoder, masked, labels)


def pretrain(
    texts: Sequence[str],
    folder: str | Path,
    *,
    shape: Shape,
    training: Training,
    name: str,
    progress: bool = True,
) -> Path:
    """Train (or go on training) in `folder`; the folder of the finished checkpoint, `folder/model`.

    Where this very training has ended in `folder`, its checkpoint is given again.

    Args:
        texts: One row each.
        folder: For checkpoints and the finished model.
        shape: Size of the encoder.
        training: How it is trained.
        name: Name of the encoder.
        progress: Show a progress bar.

    Raises:
        InputError: `folder` holds another training, or a model that does not say how it was trained.
    """
    folder = Path(folder)
    final = folder / "model"
    if final.exists() and not (folder / RECORD).is_file():
        raise InputError(
            f"out: {final} holds a finished model that does not say how it was trained; name another folder or remove "
            "it"
        )
    plan = {"name": name, "shape": asdict(shape), "training": asdict(training), **environment()}
    claim(folder, plan | {"texts": len(texts), "text": settings_digest(list(texts))})
    if final.exists():
        return final
    tokenizer = train_tokenizer(texts, shape.vocabulary)
    encoder = build_encoder(shape, tokenizer, seed=training.seed, name=name)
    batch = encoder.encode(list(texts))
    train(
        _MaskedLM(encoder, batch),
        training,
        n_items=len(batch),
        lengths=batch.lengths,
        device=encoder.device,
        folder=folder,
        claimed=True,
        label=name,
        progress=progress,
    )
    return encoder.save(final)
