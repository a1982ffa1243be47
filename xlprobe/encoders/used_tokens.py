"""An encoder with the tokens of some text alone: the same states on this text, at a fraction of the memory.

Of a multilingual encoder's parameters most are input embeddings (81 % of multilingual-e5-small, 69 % of XLM-R base),
of which a study's text uses a tenth; AdamW moves through all of them in every step. Steps [Abdaoui et al. 2020, "Load
What You Need"]:

1. The tokens that the text is split into, and all special ones, keep their order and get new numbers.
2. Every weight that has a row a token keeps these rows; the Unigram tokenizer keeps their pieces. A piece that the best
   split does not use cannot be missed by it, so this text is split as before, which is checked.

Other text is split into smaller pieces, or unknown ones. What draws tokens from the vocabulary (masks of `mlm`, the
words of `hictl_word`) draws from the smaller one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from experiments.weight_files import weight_files
from reports.errors import InputError
from reports.files import occupied
from xlprobe.encoders.batches import Sentence
from xlprobe.encoders.encoder import load_encoder

__all__ = ["keep_used_tokens"]

BESIDE = ("tokenizer_config.json", "special_tokens_map.json")


def keep_used_tokens(
    encoder: str | os.PathLike[str], sentences: Sequence[Sentence], out: str | os.PathLike[str]
) -> int:
    """Write into `out` the checkpoint of the folder `encoder` with the tokens of `sentences`; how many there are.

    Args:
        encoder: A folder with a Unigram tokenizer (XLM-R's kind) in tokenizer.json.
        sentences: All text that the smaller encoder will see.
        out: A new or an empty folder.

    Raises:
        InputError: No sentences, another kind of tokenizer, an occupied folder, or text that is split otherwise.
    """
    folder, target = Path(encoder), Path(out)
    file = folder / "tokenizer.json"
    if not sentences:
        raise InputError("sentences: expected the text that the encoder will see, found none")
    if not file.is_file():
        raise InputError(f"encoder: expected a folder with tokenizer.json, found none in {folder}")
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    if (kind := tokenizer["model"].get("type")) != "Unigram":
        raise InputError(
            f"encoder: only the pieces of a Unigram tokenizer can be left out, found {kind} in {file}"
        )
    if occupied(target):
        raise InputError(f"out: expected a new or an empty folder, found files in {target}; choose another")
    whole = load_encoder(folder, device="cpu")
    ids = whole.encode(sentences).input_ids
    special = {int(token["id"]) for token in tokenizer["added_tokens"]}
    kept = sorted(special | set(ids.unique().tolist()))
    target.mkdir(parents=True, exist_ok=True)
    for name in BESIDE:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    text = json.dumps(_tokenizer(tokenizer, kept), ensure_ascii=False)
    (target / "tokenizer.json").write_text(text, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    save_file(_weights(folder, int(config["vocab_size"]), kept), target / "model.safetensors")
    config["vocab_size"] = len(kept)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    again = load_encoder(target, device="cpu").encode(sentences).input_ids
    if again.shape != ids.shape or not torch.equal(torch.tensor(kept)[again], ids):
        raise InputError(
            f"encoder: the tokenizer of {folder} splits the text otherwise without its other pieces"
        )
    return len(kept)


def _tokenizer(tokenizer: dict[str, Any], kept: list[int]) -> dict[str, Any]:
    """The tokenizer with the kept pieces, renumbered wherever a number stands."""
    new = {old: number for number, old in enumerate(kept)}
    pieces = tokenizer["model"]["vocab"]
    model = tokenizer["model"] | {
        "vocab": [pieces[i] for i in kept],
        "unk_id": new[tokenizer["model"]["unk_id"]],
    }
    added = [token | {"id": new[token["id"]]} for token in tokenizer["added_tokens"]]
    small = tokenizer | {"model": model, "added_tokens": added}
    processor = tokenizer.get("post_processor")
    if processor and "special_tokens" in processor:
        named = {
            name: token | {"ids": [new[i] for i in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
        small["post_processor"] = processor | {"special_tokens": named}
    return small


def _weights(folder: Path, vocabulary: int, kept: list[int]) -> dict[str, Tensor]:
    """The weights; those with a row a token with the kept rows."""
    rows, weights = torch.tensor(kept), {}
    for file in weight_files(folder, argument="encoder"):
        with safe_open(file, framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118 (safe_open has no other way)
                weight = saved.get_tensor(name)
                of_tokens = weight.dim() and len(weight) == vocabulary
                weights[name] = weight[rows].contiguous() if of_tokens else weight
    return weights
