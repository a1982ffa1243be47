"""The files of a checkpoint in Hugging Face's layout: find the folder, check what lies in it, before a weight is read.

A checkpoint is a folder of config.json, safetensors and tokenizer files. What can be refused here is refused by an
`InputError` of one line that begins with the caller's argument: no such folder, no tokenizer files (they would give
an empty tokenizer and no error), other weights than safetensors (pickles, which run code when read), a damaged
header, more weights than memory. Code that a checkpoint brings along is never run (`trust_remote_code=False`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from experiments.memory import free_bytes, size
from experiments.weight_files import HUB_FILES, HUB_ID, in_cache, is_gguf
from reports.errors import InputError, first_line

__all__ = [
    "digest",
    "find_folder",
    "pick_device",
    "pick_dtype",
    "progress_bar",
    "read_tokenizer",
    "require_memory",
    "second_load",
    "source_folder",
    "tokenizer_digest",
]

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
TOKENIZER_FILES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("sentencepiece.bpe.model",),
    ("tokenizer.model",),
    ("spiece.model",),
)


def pick_device(device: str) -> torch.device:
    """Returns the torch device that `device` names; `auto` is CUDA where there is one, else the CPU.

    Raises:
        InputError: There is no such device.
    """
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
    """Returns float32, float64, bfloat16 or float16, given by name or as torch's own.

    Raises:
        InputError: Another dtype.
    """
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    return chosen


def find_folder(
    name: str, *, embedded: Mapping[str, Path], argument: str = "model", gguf: bool = False
) -> tuple[Path, str]:
    """Finds the checkpoint's folder, and its source as results state it: embedded:NAME, a path, or ID@REVISION.

    Args:
        name: An embedded name, which comes first (a folder of the same name is reached as ./NAME), a folder, or the id
            of a model on the Hugging Face hub.
        embedded: Folder by embedded name.
        argument: The caller's argument, which begins an error's message.
        gguf: Whether a GGUF file is one, too.

    Raises:
        InputError: There is no such checkpoint.
    """
    if name in embedded:
        folder = embedded[name]
        if not (folder / "config.json").is_file():
            raise InputError(
                f"{argument}: the embedded {name!r} is not in this installation ({folder} has no config.json)"
            )
        return folder, f"embedded:{name}"
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve(), str(path.resolve())
    known = f"expected {', '.join(embedded)}, a local folder{', a GGUF file' * gguf} or a Hugging Face id"
    if path.exists() and gguf and is_gguf(path):
        return path.resolve(), str(path.resolve())
    if path.exists():
        raise InputError(f"{argument}: {known}, found the file {name!r}; give the folder that holds it")
    if not HUB_ID.fullmatch(name):
        raise InputError(f"{argument}: {known}, found {name!r}: no such folder")
    try:
        fetched = Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=["*/*"]))
    except Exception as error:  # whatever the hub's client raises: no network, no such id, no access
        reason = first_line(error)
        raise InputError(
            f"{argument}: {known}, found {name!r}: no such folder, and it cannot be fetched from the hub ({reason})"
        ) from error
    return fetched, f"{name}@{fetched.name}"


def require_memory(
    n_bytes: int,
    *,
    device: torch.device | Sequence[torch.device],
    dtype: torch.dtype,
    folder: Path,
    argument: str = "model",
) -> None:
    """Refuses weights that the free memory of a device, or of several together, cannot hold; nothing is loaded yet.

    Raises:
        InputError: With both sizes.
    """
    devices = [device] if isinstance(device, torch.device) else device
    free = sum(map(free_bytes, devices))
    if n_bytes > free:
        raise InputError(
            f"{argument}: not enough memory: the weights of {folder} take {size(n_bytes)} in "
            f"{str(dtype).removeprefix('torch.')}, {size(free)} are free on "
            f"{', '.join(map(str, devices))}; "
            "use a smaller model, dtype='bfloat16' or another device"
        )


def source_folder(source: str, *, embedded: Mapping[str, Path]) -> Path | None:
    """Returns the folder or GGUF file that a source of `find_folder` (or bridge:NAME) names; None where it is not here.

    >>> source_folder("embedded:tiny", embedded={"tiny": Path("models/tiny")}).name
    'tiny'
    >>> source_folder("bridge:no such", embedded={}) is None
    True
    """
    name = source.removeprefix("bridge:")
    if name.startswith(("embedded:", "installed:")):
        return embedded.get(name.partition(":")[2])
    if Path(name).is_dir() or (Path(name).is_file() and is_gguf(Path(name))):
        return Path(name)
    model, at, revision = name.rpartition("@")
    return in_cache(model, revision) if at else None


def second_load(
    source: str, *, embedded: Mapping[str, Path], n_bytes: int, device: torch.device, loader: str
) -> tuple[Path | None, str]:
    """Returns the folder from which a loaded checkpoint can be loaded once more beside itself; or None, and why not.

    Args:
        source: As results state it (`find_folder`).
        embedded: Folder by embedded name.
        n_bytes: What its weights take.
        device: Where they are to be loaded.
        loader: The function that a user would give the folder to.
    """
    folder, free = source_folder(source, embedded=embedded), free_bytes(device)
    if folder is None:
        return (
            None,
            f"no second load: {source} names no checkpoint on this machine (give {loader} its folder)",
        )
    if n_bytes > free:
        return None, f"no second load: it takes {size(n_bytes)}, {size(free)} are free on {device}"
    return folder, ""


def read_tokenizer(folder: Path, *, argument: str = "model", **options: bool) -> PreTrainedTokenizerBase:
    """Reads the checkpoint's tokenizer.

    Raises:
        InputError: The folder has no tokenizer files (they would give an empty tokenizer and no error), or they cannot
            be read.
    """
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        wanted = " or ".join(" with ".join(names) for names in TOKENIZER_FILES)
        raise InputError(f"{argument}: {folder} has no tokenizer files; expected {wanted}")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, **options
        )
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        reason = first_line(error)
        raise InputError(f"{argument}: the tokenizer files of {folder} cannot be read: {reason}") from error
    return tokenizer


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Returns the sha256, as hex, over name, dtype, shape and bytes of each weight, in the order of the names.

    >>> a, b = torch.zeros(2), torch.ones(2)
    >>> digest({"a": a, "b": b}) == digest({"b": b, "a": a}) != digest({"a": b, "b": a})
    True
    """
    total = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name].detach().cpu().contiguous()
        total.update(f"{name} {weight.dtype} {list(weight.shape)}\n".encode())
        total.update(weight.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


@functools.lru_cache(maxsize=4)
def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the sha256, as hex, of what decides a text's ids: vocabulary, merges, normaliser, special tokens.

    Padding and truncation, which a use of the tokenizer sets, are left out.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:  # in plain Python: its vocabulary
        text = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:
        parts = json.loads(core.to_str())
        text = json.dumps({key: parts[key] for key in sorted(parts) if key not in ("padding", "truncation")})
    return hashlib.sha256(f"{text} {tokenizer.special_tokens_map}".encode()).hexdigest()


@contextlib.contextmanager
def progress_bar(*, shown: bool) -> Iterator[None]:
    """Silences transformers' progress bar for a small model; the setting is global and put back afterwards."""
    was_on = hf_logging.is_progress_bar_enabled()
    if was_on and not shown:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on and not shown:
            hf_logging.enable_progress_bar()
