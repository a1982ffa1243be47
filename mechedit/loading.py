"""From a name to a checkpoint in memory: find it, check it, load it once, wrap it.

A checkpoint is a folder in Hugging Face's layout: config.json, safetensors, tokenizer files. Steps:

1. find the folder: an embedded name, a local folder, else a model id of the Hugging Face hub;
2. refuse what can be refused before a weight is read: no tokenizer files, no safetensors, an architecture that
   TransformerLens does not know, weights larger than the free memory (read off the safetensors headers);
3. load the plain Hugging Face model, once, and take its logits on a few tokens as the reference;
4. hand it over to TransformerLens' `TransformerBridge`, which puts hooks into that very module tree: there is no
   second copy of the weights, and GPT-2's q, k and v are views of its fused projection.

Attention is loaded with Hugging Face's `eager` implementation, because the fused ones (sdpa, flash) never hold
the attention pattern, which attribution needs; it is also the order of operations that the bridge follows.

Two decisions about safety: weights are read from safetensors only (other formats are pickles and run code when
read), and code that a checkpoint brings along is never run (`trust_remote_code=False` throughout).
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import snapshot_download
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from reports.errors import InputError

__all__ = ["EMBEDDED", "Checkpoint", "load_checkpoint"]

logger = logging.getLogger(__name__)

ATTENTION = "eager"
EMBEDDED = {"factworld": "gpt2", "factworld-llama": "llama"}
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_FILES = ["*.safetensors", "*.json", "merges.txt", "*.model"]
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",), ("spiece.model",))
QUIET_BELOW = 2**30  # bytes; reading fewer takes about a second and needs no progress bar


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded and bridged model, and what the plain model said before it was bridged.

    `probe` [T] and `reference` [T, d_vocab]: token ids and the plain Hugging Face model's logits on them.
    """

    source: str
    bridge: TransformerBridge
    tokenizer: PreTrainedTokenizerBase
    probe: torch.Tensor
    reference: torch.Tensor


def load_checkpoint(name: str, *, device: str = "auto", dtype: str | torch.dtype = "float32") -> Checkpoint:
    """Find, check, load and bridge the model called `name`; every refusal is an `InputError` of one line."""
    target, precision = pick_device(device), pick_dtype(dtype)
    folder, source = find_folder(name)
    require_architecture(folder)
    n_bytes = weight_elements(weight_files(folder)) * precision.itemsize
    require_memory(n_bytes, device=target, dtype=precision, folder=folder)
    tokenizer = read_tokenizer(folder)
    with _progress_bar(shown=n_bytes >= QUIET_BELOW):
        hf = read_model(folder, dtype=precision)
    hf.eval().requires_grad_(False)
    torch.nn.Module.to(hf, target)
    probe, reference = probe_logits(hf)
    # The bridge re-wraps its tokenizer (BOS, padding token): it gets a copy, ours stays as the checkpoint has it.
    bridge = TransformerBridge.boot_transformers(
        str(folder), hf_model=hf, tokenizer=copy.deepcopy(tokenizer), device=target, dtype=precision
    )
    logger.info("loaded %s (%s, %s, %s)", source, type(hf).__name__, precision, target)
    return Checkpoint(source, bridge, tokenizer, probe, reference)


# ------------------------------------------------------------------------------------------ where and how


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; everything else is a torch device string."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device: expected auto, cpu or cuda, found {device!r}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device: {device!r} was asked for, but torch sees no CUDA device; use cpu or auto")
    return chosen


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """One of float32, float64, bfloat16, float16, by name or as torch's own."""
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    return chosen


def find_folder(name: str) -> tuple[Path, str]:
    """The checkpoint's folder, and its source as results state it: embedded:NAME, a path, or ID@REVISION.

    An embedded name comes first: a folder of the same name is reached as ./NAME.
    """
    if name in EMBEDDED:
        folder = Path(__file__).parent / "factworld" / "models" / EMBEDDED[name]
        if not (folder / "config.json").is_file():
            raise InputError(
                f"model: the embedded model {name!r} is not in this installation ({folder} has no config.json); "
                f"train it with: mechedit factworld train --arch {EMBEDDED[name]}"
            )
        return folder, f"embedded:{name}"
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve(), str(path.resolve())
    known = f"expected {', '.join(EMBEDDED)}, a local folder or a Hugging Face id"
    if path.exists():
        raise InputError(f"model: {known}, found the file {name!r}; give the folder that holds it")
    if not HUB_ID.fullmatch(name):
        raise InputError(f"model: {known}, found {name!r}: no such folder")
    try:
        found = Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=["*/*"]))
    except Exception as error:  # whatever the hub's client raises: no network, no such id, no access
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"model: {known}, found {name!r}: no such folder, and it cannot be fetched from the hub ({reason})"
        ) from error
    return found, f"{name}@{found.name}"


# ------------------------------------------------------------------------------------------ what is there


def require_architecture(folder: Path) -> None:
    """Refuse a folder without a config, and an architecture that the bridge does not know."""
    if not (folder / "config.json").is_file():
        raise InputError(f"model: {folder} has no config.json; it is no checkpoint in Hugging Face's layout")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"model: {folder / 'config.json'}: {_first_line(error)}") from error
    architecture = next(iter(config.architectures or []), "none named")
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise InputError(
            f"model: unknown architecture {architecture!r} in {folder / 'config.json'}; expected a decoder that "
            "TransformerLens can bridge, such as GPT2LMHeadModel or LlamaForCausalLM"
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the checkpoint; missing ones and other formats are refused."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(f"model: {index} is no index of safetensors files") from error
    files = [folder / name for name in sorted(names)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        hint = (
            f"{', '.join(pickles)} is a pickle and is not read: save the model again with save_pretrained"
            if pickles
            else "the weights are missing"
        )
        raise InputError(f"model: {folder} has no {', '.join(missing)}; {hint}")
    return files


def weight_elements(files: list[Path]) -> int:
    """Number of weights, off the headers of the safetensors files: no weight is read."""
    total = 0
    for file in files:
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if length > 100_000_000:  # the format's own limit
                    raise ValueError("no safetensors header")
                header = json.loads(stream.read(length))
            total += sum(math.prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"model: {file} is damaged: it has no safetensors header") from error
    return total


def require_memory(n_bytes: int, *, device: torch.device, dtype: torch.dtype, folder: Path) -> None:
    """Refuse weights that the free memory cannot hold, with both sizes: nothing has been loaded yet."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    if n_bytes > free:
        raise InputError(
            f"model: not enough memory: the weights of {folder} take {_size(n_bytes)} in "
            f"{str(dtype).removeprefix('torch.')}, {_size(free)} are free on {device}; "
            "use a smaller model, dtype='bfloat16' or another device"
        )


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer. A folder without tokenizer files would give an empty one and no error."""
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        wanted = " or ".join(" with ".join(names) for names in TOKENIZER_FILES)
        raise InputError(f"model: {folder} has no tokenizer files; expected {wanted}")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        raise InputError(
            f"model: the tokenizer files of {folder} cannot be read: {_first_line(error)}"
        ) from error
    return tokenizer


def read_model(folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """The plain Hugging Face model; a weight that is missing or of another shape is refused.

    Left alone, transformers draws missing weights at random and only logs it.
    """
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    try:
        model, report = load(
            folder,
            dtype=dtype,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise InputError(f"model: {folder} cannot be loaded: {_first_line(error)}") from error
    faults = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if faults:
        raise InputError(
            f"model: weights missing from {folder}: {len(faults)} that its config.json asks for, "
            f"the first {faults[0]}; the folder is incomplete or mixes two models"
        )
    if report["unexpected_keys"]:
        logger.warning(
            "%s: %d weights not part of the model were left out", folder, len(report["unexpected_keys"])
        )
    loaded: PreTrainedModel = model
    return loaded


# ------------------------------------------------------------------------------------------ helpers


@torch.no_grad()
def probe_logits(hf: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Six token ids spread over the vocabulary [6], and the logits of the plain model on them [6, d_vocab]."""
    embeddings = next(hf.get_input_embeddings().parameters())
    probe = torch.linspace(0, embeddings.shape[0] - 1, 6).long().to(embeddings.device)
    return probe, hf(probe[None], use_cache=False).logits[0]


@contextlib.contextmanager
def _progress_bar(*, shown: bool) -> Iterator[None]:
    """Silence transformers' progress bar for a small model; the setting is global, so put it back."""
    was_on = hf_logging.is_progress_bar_enabled()
    if was_on and not shown:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on and not shown:
            hf_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _size(n_bytes: float) -> str:
    """12.3 GB, or MB below one."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
