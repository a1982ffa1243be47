"""What the bounds need to know of the vocabulary, once per model, on disk.

`vocabulary_ranges`: for a row r of W_O or W_out the smallest and the largest entry of `((r − mean r) ⊙ γ) W_U`. With
the frozen σ of a prompt, B r lies within range / σ. One product of all rows with the vocabulary, as much as full
enumeration of one prompt.

They do not depend on a prompt, and are kept as safetensors under a name that holds everything they depend on (schema,
dtype, whether the final norm centres, the hash of all weights), in `$MECHEDIT_CACHE`, else `~/.cache/mechedit`. Where
that folder cannot be written they are kept for the process only.
"""

from __future__ import annotations

import logging

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from mechedit.attribution.projection import Projection
from mechedit.attribution.ranking.certified import Ranges
from mechedit.models.cache import cache_folder
from mechedit.models.hooked import HookedModel
from mechedit.models.outlets import Gain
from reports.files import whole_file

__all__ = ["compute_ranges", "vocabulary_ranges"]

log = logging.getLogger(__name__)

SCHEMA_VERSION = 3
_IN_MEMORY = 4  # how many models' ranges stay in memory, the latest ones
_memory: dict[str, Ranges] = {}


def vocabulary_ranges(model: HookedModel) -> Ranges:
    """The model's `Ranges`: from memory, from disk, or computed and kept."""
    dtype = str(model.dtype).removeprefix("torch.")
    scales = (
        model.shape.logit_scale,
        model.attn_outlet(0).factor,
        model.mlp_outlet(0).factor,
    )  # no weights say them
    said = "" if scales == (1, 1, 1) else "-".join(f"{scale!r}" for scale in scales) + "-"
    name = f"ranges-{SCHEMA_VERSION}-{dtype}-{model.final_norm.kind}-{said}{model.hash}.safetensors"
    key = f"{name} {model.device}"
    if key not in _memory:
        _memory[key] = _from_disk(model, name)
        while len(_memory) > _IN_MEMORY:
            del _memory[next(iter(_memory))]
    return _memory[key]


def _from_disk(model: HookedModel, name: str) -> Ranges:
    file = cache_folder() / name
    if file.is_file():
        return Ranges(**load_file(file, device=str(model.device)))
    ranges = compute_ranges(model)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as temporary:
            save_file({key: value.cpu().contiguous() for key, value in vars(ranges).items()}, temporary)
    except OSError as error:
        log.warning("%s: cannot be kept (%s) and is computed anew each time", file, error.strerror)
    return ranges


@torch.no_grad()
def compute_ranges(model: HookedModel) -> Ranges:
    """The model's `Ranges`: one product of every row of W_O and W_out with the vocabulary, block by block."""
    norm = model.final_norm
    unscaled = Projection(model.W_U, norm.weight.double(), norm.kind == "layer", None, sigma=1.0)
    attn: list[Tensor] = []
    mlp: list[Tensor] = []
    # disable=None: the bar shows on a terminal only
    for layer in tqdm(range(model.shape.n_layers), desc="vocabulary ranges", disable=None, leave=False):
        attn.append(_rows(unscaled, model.W_O(layer).flatten(0, 1), model.attn_outlet(layer).frozen()))
        mlp.append(_rows(unscaled, model.W_out(layer), model.mlp_outlet(layer).frozen()))
    return Ranges(torch.stack(attn), torch.stack(mlp))


def _rows(projection: Projection, directions: Tensor, gain: Gain) -> Tensor:
    directions = directions.to(projection.W_U.device)
    height = projection.rows(bytes_each=2 * 4)
    ends = []
    for block in directions.split(height):
        u = projection.directions(gain(block))
        ends.append(torch.stack([u.amin(-1), u.amax(-1)], dim=-1))
    return torch.cat(ends)
