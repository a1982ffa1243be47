"""What the bounds need to know of the vocabulary, once per model, on disk.

`vocabulary_ranges`: for a row r of W_O or W_out the smallest and the largest entry of `((r − mean r) ⊙ γ) W_U`. With
the frozen σ of a prompt, B r lies within range / σ. One product of all rows with the vocabulary, as much as full
enumeration of one prompt. `vocabulary_spread`: mean, Gram matrix and largest norm of W_U's columns, as much as d_model
products with the vocabulary.

Neither depends on a prompt. They are kept as safetensors under a name that holds everything they depend on (schema,
dtype, whether the final norm centres, the hash of all weights), in `$MECHEDIT_CACHE`, else `~/.cache/mechedit`. Where
that folder cannot be written they are kept for the process only.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from mechedit.attribution.projection import BLOCK_BYTES, Projection
from mechedit.attribution.ranking.certified import Ranges
from mechedit.attribution.ranking.intervals import Spread
from mechedit.models.cache import cache_folder
from mechedit.models.hooked import HookedModel

__all__ = ["compute_ranges", "compute_spread", "vocabulary_ranges", "vocabulary_spread"]

log = logging.getLogger(__name__)

SCHEMA_VERSION = 3
_IN_MEMORY = 4  # files whose tensors stay in memory, the latest ones
_memory: dict[str, dict[str, Tensor]] = {}


def vocabulary_ranges(model: HookedModel) -> Ranges:
    """The model's `Ranges`: from memory, from disk, or computed and kept."""
    return Ranges(**_kept(model, "ranges", lambda: vars(compute_ranges(model))))


def vocabulary_spread(model: HookedModel) -> Spread:
    """The model's `Spread`: from memory, from disk, or computed and kept."""
    return Spread(**_kept(model, "spread", lambda: vars(compute_spread(model.W_U))))


def _kept(model: HookedModel, what: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    dtype = str(model.dtype).removeprefix("torch.")
    name = f"{what}-{SCHEMA_VERSION}-{dtype}-{model.final_norm.kind}-{model.hash}.safetensors"
    key = f"{name} {model.device}"
    if key not in _memory:
        _memory[key] = _from_disk(name, str(model.device), compute)
        while len(_memory) > _IN_MEMORY:
            del _memory[next(iter(_memory))]
    return _memory[key]


def _from_disk(name: str, device: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    file = cache_folder() / name
    if file.is_file():
        return load_file(file, device=device)
    found = compute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{name}.{os.getpid()}.tmp")
        save_file({key: value.cpu().contiguous() for key, value in found.items()}, temporary)
        temporary.replace(file)
    except OSError as error:
        log.warning("%s: cannot be kept (%s) and is computed anew each time", file, error.strerror)
    return found


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
    directions = directions.to(projection.W_U.device)
    height = projection.rows(bytes_each=2 * 4)
    found = []
    for block in directions.split(height):
        u = projection.directions(block)
        found.append(torch.stack([u.amin(-1), u.amax(-1)], dim=-1))
    return torch.cat(found)


@torch.no_grad()
def compute_spread(W_U: Tensor) -> Spread:
    """Two passes over W_U's columns; sums in fp64.

    >>> spread = compute_spread(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
    >>> spread.mean.tolist(), spread.gram.tolist(), spread.reach.tolist()
    ([2.0, 0.0], [[2.0, 0.0], [0.0, 0.0]], [1.0])
    """
    dtype = torch.promote_types(W_U.dtype, torch.float32)
    blocks = W_U.split(max(1, BLOCK_BYTES // (8 * W_U.shape[0])), dim=1)
    mean = torch.stack([block.double().sum(dim=1) for block in blocks]).sum(dim=0) / W_U.shape[1]
    gram = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=W_U.device)
    reach = torch.zeros(1, dtype=torch.float64, device=W_U.device)
    for block in blocks:
        centred = block.to(dtype) - mean[:, None].to(dtype)
        gram += centred @ centred.T
        reach = torch.maximum(reach, centred.norm(dim=0).amax().double())
    return Spread(mean, gram, reach)
