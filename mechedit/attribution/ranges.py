"""The range of every value direction over the vocabulary, once per model, on disk.

For a row r of W_O or W_out: the smallest and the largest entry of `((r − mean r) ⊙ γ) W_U`. It does not depend on a
prompt: with the frozen σ of a prompt, B r lies within range / σ. One product of all rows with the vocabulary, as
much as full enumeration of one prompt; kept as safetensors under a name that holds everything it depends on (the
weights' hash, the dtype, the schema), in `$MECHEDIT_CACHE`, else `~/.cache/mechedit`. Where that folder cannot be
written the ranges are kept for the process only.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from mechedit.attribution.certified import Ranges
from mechedit.attribution.projection import Projection

if TYPE_CHECKING:
    from mechedit.model import HookedModel

__all__ = ["cache_folder", "vocabulary_ranges"]

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1


def cache_folder() -> Path:
    """`$MECHEDIT_CACHE`, else `~/.cache/mechedit`."""
    return Path(os.environ.get("MECHEDIT_CACHE") or Path.home() / ".cache" / "mechedit")


def vocabulary_ranges(model: HookedModel) -> Ranges:
    """The model's `Ranges`: from memory, from disk, or computed and kept."""
    return _ranges(model, model.hash)


@lru_cache(maxsize=4)
def _ranges(model: HookedModel, digest: str) -> Ranges:
    name = f"ranges-{SCHEMA_VERSION}-{str(model.dtype).removeprefix('torch.')}-{digest}.safetensors"
    file = cache_folder() / name
    if file.is_file():
        found = load_file(file, device=str(model.device))
        return Ranges(found["attn"], found["mlp"])
    ranges = compute_ranges(model)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{name}.{os.getpid()}.tmp")
        save_file({"attn": ranges.attn.cpu(), "mlp": ranges.mlp.cpu()}, temporary)
        temporary.replace(file)
    except OSError as error:
        log.warning(
            "%s: cannot keep the vocabulary ranges (%s); they are computed anew", file, error.strerror
        )
    return ranges


@torch.no_grad()
def compute_ranges(model: HookedModel) -> Ranges:
    """One product of every row of W_O and W_out with the vocabulary, in blocks within the memory budget."""
    norm = model.final_norm
    unscaled = Projection(model.W_U, norm.weight.double(), norm.kind == "layer", None, sigma=1.0)
    attn: list[Tensor] = []
    mlp: list[Tensor] = []
    # disable=None: the bar shows on a terminal only
    for layer in tqdm(range(model.shape.n_layers), desc="vocabulary ranges", disable=None, leave=False):
        attn.append(_rows(unscaled, model.W_O(layer).flatten(0, 1)))
        mlp.append(_rows(unscaled, model.W_out(layer)))
    return Ranges(torch.stack(attn), torch.stack(mlp))


def _rows(projection: Projection, directions: Tensor) -> Tensor:
    height = projection.rows(bytes_each=2 * 4)
    found = []
    for block in directions.split(height):
        u = projection.directions(block)
        found.append(torch.stack([u.amin(-1), u.amax(-1)], dim=-1))
    return torch.cat(found)
