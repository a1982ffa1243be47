"""The encoders of transformers that are known here: where their layers lie, their LM head, their longest sequence.

| model type | examples | layers | last layer |
|---|---|---|---|
| `xlm-roberta`, `roberta`, `camembert`, `bert` | XLM-R, Glot500, mBERT | `encoder.layer` | the last block |
| `distilbert` | DistilmBERT | `transformer.layer` | the last block |
| `deberta-v2` | mDeBERTa-v3 | `encoder.layer` | the last block |
| `xlm-roberta-xl` | XLM-R XL and XXL | `encoder.layer` | `encoder.LayerNorm` behind the last block |
| `modernbert` | ModernBERT, mmBERT | `layers` | `final_norm` behind the last block |

The blocks of the last two norm their input, so what transformers calls the last hidden state is the output of a norm.
The head of masked language modelling is one module (`take_head`, `put_head`), also where transformers has it in parts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from reports.errors import InputError

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "head_prefixes",
    "layer_modules",
    "longest",
    "padding_row",
    "put_head",
    "require_encoder",
    "take_head",
]

SPARE = ("cls", "sep", "mask", "unk")  # special tokens that stand in sentences


@dataclass(frozen=True)
class Architecture:
    """Where the parts of a model of one type are.

    Attributes:
        blocks: Dotted name of the list of blocks.
        last: Dotted name of the norm whose output is the last layer; empty where that is the last block's.
        heads: The children of the masked language model that are its head, in order.
        attentions: The implementations of attention that transformers has for it; the first is taken for "sdpa" where
            there is no "sdpa".
        byte_level: Whether its tokenizer works on bytes, so that the first word needs a space before it.
    """

    blocks: str = "encoder.layer"
    last: str = ""
    heads: tuple[str, ...] = ("lm_head",)
    attentions: tuple[str, ...] = ("eager", "sdpa")
    byte_level: bool = False


ARCHITECTURES: dict[str, Architecture] = {
    "xlm-roberta": Architecture(),
    "roberta": Architecture(byte_level=True),
    "camembert": Architecture(),
    "bert": Architecture(heads=("cls",)),
    "distilbert": Architecture(
        blocks="transformer.layer",
        heads=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    ),
    "xlm-roberta-xl": Architecture(last="encoder.LayerNorm"),
    "modernbert": Architecture(
        blocks="layers", last="final_norm", heads=("head", "decoder"), byte_level=True
    ),
    "deberta-v2": Architecture(heads=("cls",), attentions=("eager",)),
}


class _SharedHead(nn.Module):
    """DeBERTa's newer head, which takes the embeddings that it shares as an argument."""

    def __init__(self, predictions: nn.Module, embeddings: nn.Module) -> None:
        super().__init__()
        self.predictions, self.embeddings = predictions, embeddings

    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self.predictions(states, self.embeddings)
        return logits


def require_encoder(config: Mapping[str, Any], *, where: str) -> None:
    """Refuse what is not one of `ARCHITECTURES`, or is a decoder of their kind.

    Raises:
        InputError: In one line, with what was expected.

    >>> require_encoder({"model_type": "gpt2"}, where="config.json")
    Traceback (most recent call last):
        ...
    reports.errors.InputError: encoder: unknown architecture 'gpt2' in config.json; expected one of xlm-roberta, ...
    """
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise InputError(
            f"encoder: unknown architecture {model_type!r} in {where}; expected one of {', '.join(ARCHITECTURES)}"
        )
    for key in ("is_decoder", "add_cross_attention"):
        if config.get(key):
            raise InputError(
                f"encoder: {where} has {key} = true; expected an encoder, whose tokens see both sides of the text"
            )
    if model_type == "deberta-v2" and config.get("conv_kernel_size", 0):
        raise InputError(
            f"encoder: {where} asks for a convolution beside the first block (conv_kernel_size); expected DeBERTa-v3's "
            "shape, which has none"
        )


def layer_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules whose outputs are layers 1 to L, in the order in which they run."""
    kind = ARCHITECTURES[model.config.model_type]
    blocks = list(_blocks(model, kind.blocks))
    return [*blocks[:-1], model.get_submodule(kind.last)] if kind.last else blocks


def _blocks(model: nn.Module, name: str) -> Sequence[nn.Module]:
    for part in name.split("."):
        model = getattr(model, part)
    blocks: Any = model
    return list(blocks)


def longest(model: PreTrainedModel) -> int:
    """The longest sequence in tokens: RoBERTa's positions begin behind its padding id, the others' at 0."""
    embeddings: Any = model.embeddings
    positions = getattr(embeddings, "position_embeddings", None)
    first: int | None = getattr(positions, "padding_idx", None)
    return int(model.config.max_position_embeddings) - (0 if first is None else first + 1)


def padding_row(model: PreTrainedModel, tokenizer: Any) -> str:
    """What to say of an embedding that is `padding_idx` and a real token too: it is never trained; else nothing."""
    row = getattr(model.get_input_embeddings(), "padding_idx", None)
    if row is None:
        return ""
    inside = {getattr(tokenizer, f"{name}_token_id"): f"the {name} token of its sentences" for name in SPARE}
    use = inside.get(row) or ("" if row == tokenizer.pad_token_id else "a token of its texts")
    if not use or row >= len(tokenizer):
        return ""
    return (
        f"token {tokenizer.convert_ids_to_tokens(int(row))!r} (id {row}) is the row padding_idx of the embeddings and "
        f"{use} (the tokenizer pads with id {tokenizer.pad_token_id}): its embedding gets no gradient"
    )


# ------------------------------------------------------------------------------------------ the LM head


def head_prefixes(whole: PreTrainedModel) -> tuple[str, ...]:
    """The names of the masked language model's children that are its head."""
    kind = ARCHITECTURES[whole.config.model_type]
    return ("lm_predictions",) if hasattr(whole, "lm_predictions") else kind.heads


def take_head(whole: Any) -> nn.Module:
    """The head of a masked language model as one module: states [..., d] to logits [..., vocabulary]."""
    names = head_prefixes(whole)
    parts: list[nn.Module] = [getattr(whole, name) for name in names]
    if names == ("lm_predictions",):
        return _SharedHead(parts[0], whole.base_model.get_input_embeddings())
    return parts[0] if len(parts) == 1 else nn.Sequential(OrderedDict(zip(names, parts, strict=True)))


def put_head(whole: PreTrainedModel, head: nn.Module) -> None:
    """Give a masked language model the head that `take_head` took from another of its type."""
    names = head_prefixes(whole)
    if isinstance(head, _SharedHead):
        whole.lm_predictions = head.predictions
    elif len(names) == 1:
        setattr(whole, names[0], head)
    else:
        for name in names:
            setattr(whole, name, getattr(head, name))
