"""The files of an encoder's checkpoint: what is refused before a weight is read, the tokenizer, the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from experiments import checkpoints
from experiments.weight_files import HUB_ID, in_cache, weight_elements, weight_files
from reports.errors import InputError, first_line
from xlprobe.encoders.architectures import ARCHITECTURES, head_prefixes, require_encoder, take_head

__all__ = ["EMBEDDED", "check_encoder", "read_model", "read_tokenizer", "require_architecture"]

EMBEDDED = {"langworld": Path(__file__).parent.parent / "langworld" / "model"}


def check_encoder(name: str, *, device: str = "auto", dtype: str | torch.dtype = "float32") -> bool:
    """Refuse what `load_encoder` would refuse before it reads a weight; whether the checkpoint has an LM head.

    Nothing is fetched: of an id whose files are not on this machine nothing is known, and an LM head is assumed.

    Raises:
        InputError: As `load_encoder`.

    >>> check_encoder("langworld", device="cpu")
    True
    """
    target, precision = checkpoints.pick_device(device), checkpoints.pick_dtype(dtype)
    folder = None
    if name not in EMBEDDED and not Path(name).expanduser().exists() and HUB_ID.fullmatch(name):
        folder = in_cache(name)
        if folder is None:
            return True
    folder = folder or checkpoints.find_folder(name, embedded=EMBEDDED, argument="encoder")[0]
    require_architecture(folder)
    files = weight_files(folder, argument="encoder")
    n_bytes = weight_elements(files, argument="encoder") * precision.itemsize
    checkpoints.require_memory(n_bytes, device=target, dtype=precision, folder=folder, argument="encoder")
    read_tokenizer(folder)
    heads = ("lm_predictions.", *(f"{name}." for name in ARCHITECTURES[_model_type(folder)].heads))
    return any(name.startswith(heads) for name in _weight_names(folder))


def require_architecture(folder: Path) -> None:
    """Refuse a folder without a config, and an architecture that is not known here."""
    if not (folder / "config.json").is_file():
        raise InputError(
            f"encoder: {folder} has no config.json; it is no checkpoint in Hugging Face's layout"
        )
    file = folder / "config.json"
    try:
        settings = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, OSError, TypeError) as error:
        raise InputError(f"encoder: {file}: {first_line(error)}") from error
    require_encoder(settings, where=str(file))
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
        raise InputError(f"encoder: {file}: {first_line(error)}") from error


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer; a byte-level one puts a space before the first word, so that words may come as a list."""
    options = {"add_prefix_space": True} if ARCHITECTURES[_model_type(folder)].byte_level else {}
    tokenizer = checkpoints.read_tokenizer(folder, argument="encoder", **options)
    if not tokenizer.is_fast:
        raise InputError(
            f"encoder: {folder} has no fast tokenizer, which knows the word of each token; expected tokenizer.json"
        )
    for token in ("mask_token_id", "pad_token_id"):
        if getattr(tokenizer, token) is None:
            raise InputError(f"encoder: the tokenizer of {folder} has no {token.removesuffix('_id')}")
    return tokenizer


def _model_type(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type"))


def read_model(
    folder: Path, *, dtype: torch.dtype, attention: str
) -> tuple[PreTrainedModel, nn.Module | None]:
    """The base model and its LM head (None where the checkpoint has none).

    Left alone, transformers draws missing weights at random and only logs it.

    Raises:
        InputError: The folder cannot be loaded, or a weight of the base model is missing.
    """
    load: Callable[..., Any] = AutoModelForMaskedLM.from_pretrained
    kind = ARCHITECTURES[_model_type(folder)]
    if attention == "sdpa" and attention not in kind.attentions:
        attention = kind.attentions[0]
    options = {"legacy": False} if _newer_head(folder) else {}
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # its report of missing weights: ours follows
    try:
        whole, report = load(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raise InputError(f"encoder: {folder} cannot be loaded: {first_line(error)}") from error
    finally:
        hf_logging.set_verbosity(level)
    faults = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    heads = tuple(f"{name}." for name in head_prefixes(whole))
    of_encoder = [name for name in faults if not name.startswith(heads)]
    if of_encoder:
        raise InputError(
            f"encoder: weights missing from {folder}: {len(of_encoder)} that its config.json asks for, "
            f"the first {of_encoder[0]}; the folder is incomplete or mixes two models"
        )
    return whole.base_model, None if faults else take_head(whole)


def _newer_head(folder: Path) -> bool:
    """Whether the weights hold DeBERTa's newer head, which transformers reads only where the config says so."""
    if _model_type(folder) != "deberta-v2":
        return False
    return any(name.startswith("lm_predictions.") for name in _weight_names(folder))


def _weight_names(folder: Path) -> list[str]:
    """The names of the weights in the checkpoint's files."""
    names: list[str] = []
    for file in weight_files(folder, argument="encoder"):
        with safe_open(file, framework="pt") as weights:
            names += weights.keys()
    return names
