"""The weight files of a checkpoint folder, and what they take: read off headers, so that a plan needs no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from experiments.gguf_header import read_header
from reports.errors import InputError
from reports.parsing import parse

__all__ = ["in_cache", "is_gguf", "local_bytes", "weight_elements", "weight_files"]


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_ITEM_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
HUB_FILES = ["*.safetensors", "*.json", "merges.txt", "vocab.txt", "*.model"]


def weight_files(folder: Path, *, argument: str = "model") -> list[Path]:
    """Lists the safetensors files of the checkpoint.

    Raises:
        InputError: A file is missing, the index is damaged, or the weights have another format.
    """
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        try:
            names = set(parse(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{argument}: {index} is no index of safetensors files") from error
        if strange := [name for name in names if not _is_file_name(name)]:
            raise InputError(
                f"{argument}: {index} names {strange[0]!r}, which is no file of its folder; the weights of a model lie "
                "in the model's own folder"
            )
    files = [folder / name for name in sorted(names)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        hint = (
            f"{', '.join(pickles)} is a pickle and is not read: save the model again with save_pretrained"
            if pickles
            else "the weights are missing"
        )
        raise InputError(f"{argument}: {folder} has no {', '.join(missing)}; {hint}")
    return files


def is_gguf(path: Path) -> bool:
    """Whether the file `path` is a GGUF file, by its name or by how it begins."""
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as stream:
        return stream.read(4) == b"GGUF"


def _is_file_name(name: object) -> bool:
    """Whether `name` may name a file of a folder, on the usual file systems."""
    return isinstance(name, str) and Path(name).name == name != ".." and len(name.encode()) < 256


def weight_elements(files: list[Path], *, argument: str = "model") -> int:
    """Counts the weights, off the headers of the safetensors files: no weight is read.

    Raises:
        InputError: A header is damaged.
    """
    total = 0
    for file in files:
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if length > 100_000_000:  # the format's own limit
                    raise ValueError("no safetensors header")
                header = parse(stream.read(length))
            total += sum(math.prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{argument}: {file} is damaged: it has no safetensors header") from error
    return total


def local_bytes(name: str, *, embedded: Mapping[str, Path], dtype: str) -> int | None:
    """Returns the bytes of the weights in `dtype`, off this machine's files; None where they are not here.

    Nothing is fetched.
    """
    if dtype not in _ITEM_BYTES:
        raise InputError(f"dtype: expected one of {', '.join(_ITEM_BYTES)}, found {dtype!r}")
    folder = embedded.get(name) or Path(name).expanduser()
    if folder.is_file() and is_gguf(folder):
        return read_header(folder).n_elements * _ITEM_BYTES[dtype]
    if not folder.is_dir():
        cached = in_cache(name)
        if cached is None:
            return None
        folder = cached
    return weight_elements(weight_files(folder)) * _ITEM_BYTES[dtype]


def in_cache(name: str, revision: str | None = None) -> Path | None:
    """Returns the folder of a Hugging Face id in this machine's cache; None where it is not there.

    Nothing is fetched.
    """
    from huggingface_hub import snapshot_download  # slow to import, and a local folder needs none of it

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, local_files_only=True)
        )
    except Exception:  # whatever the hub's client raises for what is not in its cache
        return None
