"""Tiny random encoders of real architectures, saved as real checkpoint folders, for the tests of xlprobe.

XLM-R (and XLM-R XL, DeBERTa) with a unigram tokenizer, RoBERTa (and ModernBERT) with a byte-level BPE, BERT (and
DistilBERT) with WordPiece; every parameter is random, norms and biases too (see `tests.tiny.randomise`).
"""

from __future__ import annotations

import atexit
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from tokenizers import (
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2Tokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaTokenizer,
    XLMRobertaXLConfig,
    XLMRobertaXLForMaskedLM,
)

from tests.tiny import SENTENCES

if TYPE_CHECKING:
    from xlprobe.encoders.encoder import Encoder

Arch = Literal["xlm-roberta", "roberta", "bert", "distilbert", "xlm-roberta-xl", "modernbert", "deberta-v2"]
ARCHS: tuple[Arch, ...] = get_args(Arch)
VOCABULARY = 300
TEXTS = [
    *SENTENCES,
    "Die Muttersprache von Anna Keller ist Deutsch.",
    "Марта живёт в Берлине и говорит по-русски.",
]


def build_tokenizer(arch: Arch) -> PreTrainedTokenizerBase:
    """The architecture's own kind of tokenizer, trained on a few sentences."""
    if arch in ("xlm-roberta", "xlm-roberta-xl"):
        return XLMRobertaTokenizer(vocab=_unigram_vocabulary())
    if arch == "deberta-v2":
        special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
        vocabulary = [(name, 0.0) for name in special] + _unigram_vocabulary()[5:]
        return DebertaV2Tokenizer(vocab=vocabulary, unk_id=3)
    if arch in ("roberta", "modernbert"):
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        core.train_from_iterator(
            TEXTS * 4,
            trainers.BpeTrainer(
                vocab_size=VOCABULARY + 100,
                special_tokens=special,
                initial_alphabet=alphabet,
                show_progress=False,
            ),
        )
        saved = _model_of(core)
        merges: Any = [tuple(m) for m in saved["merges"]]  # what it takes, whatever its annotation says
        if arch == "modernbert":
            return _modernbert_tokenizer(core)
        return RobertaTokenizer(vocab=saved["vocab"], merges=merges)
    return BertTokenizer(vocab=_wordpiece_vocabulary())


def _modernbert_tokenizer(core: Tokenizer) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer as ModernBERT's: of no class of its own, with [CLS] and [SEP]."""
    first, last = (core.token_to_id(name) for name in ("<s>", "</s>"))
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", first), ("</s>", last)]
    )
    names = {
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def _model_of(core: Tokenizer) -> dict[str, Any]:
    import json

    model: dict[str, Any] = json.loads(core.to_str())["model"]
    return model


def _unigram_vocabulary() -> list[tuple[str, float]]:
    """Special pieces, then the commonest beginnings and insides of words with log frequencies, equal ones by name."""
    counts = _pieces([f"▁{word}" for text in TEXTS for word in text.split()])
    total = sum(counts.values())
    scored = sorted(
        ((piece, math.log(n / total)) for piece, n in counts.items()), key=lambda x: (-x[1], x[0])
    )
    return [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")] + scored


def _wordpiece_vocabulary() -> dict[str, int]:
    """Special pieces, then the commonest beginnings of words, and insides behind ##, by name."""
    normal, split = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = [word for text in TEXTS for word, _ in split.pre_tokenize_str(normal.normalize_str(text))]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(_pieces(words, inside="##"))]
    return {piece: i for i, piece in enumerate(pieces)}


def _pieces(words: Sequence[str], inside: str = "") -> dict[str, int]:
    """Counts of the letters of `words` and of the longer pieces that cover most, as many as a vocabulary holds.

    Counted here, because the library's trainers break ties by a hash table: other ids in every process, and with them
    another outcome of whatever a test measures.
    """
    counts = Counter(
        ((inside if i else "") + w[i:j], j - i)
        for w in words
        for i in range(len(w))
        for j in range(i + 1, min(i + 6, len(w)) + 1)
    )
    kept = {piece: n for (piece, size), n in counts.items() if size == 1}
    longer = sorted((-n * size, piece, n) for (piece, size), n in counts.items() if size > 1)
    return kept | {piece: n for _, piece, n in longer[: VOCABULARY - len(kept) - 5]}


def random_hf(
    arch: Arch, *, vocabulary: int, n_layers: int, d_model: int, **settings: Any
) -> PreTrainedModel:
    """A fresh masked language model, every parameter random (torch's global generator)."""
    from tests.tiny import randomise

    shared: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * d_model,
        "max_position_embeddings": 66,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    shared |= settings
    model: PreTrainedModel
    if arch == "bert":
        model = BertForMaskedLM(BertConfig(**{"pad_token_id": 0, **shared}))
    elif arch == "distilbert":
        renamed = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
        renamed |= {"intermediate_size": "hidden_dim", "hidden_dropout_prob": "dropout"}
        renamed |= {"attention_probs_dropout_prob": "attention_dropout"}
        named = {renamed.get(key, key): value for key, value in shared.items()}
        model = DistilBertForMaskedLM(DistilBertConfig(**{"pad_token_id": 0, **named}))
    elif arch == "roberta":
        model = RobertaForMaskedLM(RobertaConfig(type_vocab_size=1, layer_norm_eps=1e-5, **shared))
    elif arch == "xlm-roberta-xl":
        model = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(type_vocab_size=1, layer_norm_eps=1e-5, **shared))
    elif arch == "modernbert":
        special = {
            "cls_token_id": 0,
            "pad_token_id": 1,
            "sep_token_id": 2,
            "bos_token_id": 0,
            "eos_token_id": 2,
        }
        windows = {"local_attention": 6, "global_attn_every_n_layers": 2}
        model = ModernBertForMaskedLM(ModernBertConfig(**{**special, **windows, **shared}))
    elif arch == "deberta-v2":
        relative = {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"}
        relative |= {"share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
        sizes = {"type_vocab_size": 0, "pad_token_id": 0}
        model = DebertaV2ForMaskedLM(DebertaV2Config(**{**relative, **sizes, **shared}))
    else:
        model = XLMRobertaForMaskedLM(XLMRobertaConfig(type_vocab_size=1, layer_norm_eps=1e-5, **shared))
    randomise(model)
    return model.eval()


def build(arch: Arch, folder: str | Path, *, n_layers: int = 3, d_model: int = 32, seed: int = 0) -> Path:
    """Save a random masked language model of `arch` with its tokenizer into `folder`; the folder, as a Path.

    The same arguments give the same weights; the caller's random state is left as it was.
    """
    folder = Path(folder)
    tokenizer = build_tokenizer(arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = random_hf(arch, vocabulary=len(tokenizer), n_layers=n_layers, d_model=d_model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def tiny_folder(arch: Arch) -> Path:
    """The folder of `build(arch, ...)` with default sizes, built once a process and removed at its end."""
    root = Path(tempfile.mkdtemp(prefix="xlprobe-tiny-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return build(arch, root / arch)


@cache
def tiny_encoder(arch: Arch = "xlm-roberta") -> Encoder:
    """`load_encoder` of `tiny_folder(arch)` in fp32 on the CPU, once a process: leave it as you found it."""
    from xlprobe.encoders.encoder import load_encoder

    return load_encoder(tiny_folder(arch), device="cpu")
