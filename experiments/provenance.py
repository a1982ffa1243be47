"""What a number depends on besides the configuration: enough to get it again, and to see why it is another.

Models, tokenizers and data by hash, seeds by generator, device, dtype, attention implementation, threads, versions, git
commit. `experiments.again` holds a run against a second one that was made from this.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["provenance", "versions"]

_PACKAGES = (
    "mechedit",
    "torch",
    "transformers",
    "transformer-lens",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "pyarrow",
    "peft",
    "accelerate",
    "torchjd",
)


def provenance(
    *,
    model: dict[str, Any],
    data: dict[str, Any],
    seeds: dict[str, Any],
    device: str,
    dtype: str,
    attn_implementation: str,
) -> dict[str, Any]:
    """Returns what a number depends on besides the configuration, for `RunFolder.open` and for a result.

    Added here: the device's name, torch's threads (sums are split among them), versions of the packages, Python,
    platform, and the git commit with a `dirty` flag when the code runs from a checkout (else None). There is no time
    stamp, so that the same run twice gives the same bytes.

    Args:
        model: Source and hash of the model.
        data: Source and hash of the data.
        seeds: The seed of each generator.
        device: The torch device.
        dtype: The dtype of the weights.
        attn_implementation: The attention implementation.
    """
    import torch  # here: pages and tables are read without torch

    return {
        "model": model,
        "data": data,
        "seeds": seeds,
        "device": device,
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "device_name": _device_name(device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **versions()},
        "platform": platform.platform(),
        "git": _git(Path(__file__).resolve().parent),
    }


def _device_name(device: str) -> str:
    """The graphics card's, or the processor's kind."""
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


@functools.cache  # part of every result; the running versions are those imported
def versions() -> dict[str, str]:
    """Returns the versions of the installed packages on which numbers depend."""
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


@functools.cache
def _git(folder: Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that *tracks* this file.

    An installed copy inside another repository must not report that repository's commit.
    """
    try:
        if _ask_git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
            return None
        commit = _ask_git(folder, "rev-parse", "HEAD")
        changes = _ask_git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if commit is None else {"commit": commit, "dirty": bool(changes)}


def _ask_git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    return done.stdout.strip() if done.returncode == 0 else None
