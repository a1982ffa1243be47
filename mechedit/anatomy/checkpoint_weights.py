"""Which weights of a checkpoint on disk differ from a model's, and the model with those weights instead.

Steps, one matrix at a time, so that beside the model no second one is ever in memory:

1. the checkpoint's config has to say the same as the model's, and each of its weights has to have the shape of the
   model's weight of that name;
2. both sides are rounded to the coarser of their two dtypes: what is equal then is the same weight, stored otherwise;
3. of what differs, Δ = W' − W: its norm ‖Δ‖, from the eigenvalues of Δᵀ Δ (of the smaller side, fp64) its singular
   values, and its rank, the number of those above what rounding alone adds: eps · rms(W') · (√rows + √columns).
"""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.checkpoints import find_folder
from experiments.progress import counted
from experiments.weight_files import weight_files
from mechedit.editors.base import derive
from mechedit.models.embedded import FOLDERS
from mechedit.models.hooked import HookedModel
from mechedit.models.refusals import read_config
from mechedit.models.weights import checkpoint_weights
from reports.errors import InputError, first_line

__all__ = ["WEIGHT_COLUMNS", "StoredWeights", "changed_weights", "find_weights", "under_weights"]

WEIGHT_COLUMNS = ("weight", "layer", "module", "rows", "columns", "rank", "norm", "share", "largest")
_BLOCK = 4096  # rows that are subtracted at a time
_RESOLVED = 1e-6  # singular values below this share of the largest are lost in the eigenvalues of Δᵀ Δ
#: Of a config, what decides no logit.
_IDLE = ("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "tokenizer_class")


@dataclass(frozen=True)
class StoredWeights:
    """The weights of a checkpoint folder by the model's names for them.

    Attributes:
        folder: The folder.
        source: As results state it.
        places: For each weight of the model its file, and its name there.
        left_out: Names in the files that are no weight of the model (masks, say).
    """

    folder: Path
    source: str
    places: Mapping[str, tuple[Path, str]]
    left_out: tuple[str, ...]

    @property
    def dtypes(self) -> set[str]:
        """The dtypes of the weights, as the files' headers say: "BF16" and the like."""
        found = set()
        for file in {file for file, _ in self.places.values()}:
            with safe_open(file, framework="pt") as tensors:
                names = [stored for place, stored in self.places.values() if place == file]
                found |= {str(tensors.get_slice(name).get_dtype()) for name in names}
        return found

    def read(self, name: str) -> Tensor:
        """One weight, on the CPU, in the dtype of the file."""
        file, stored = self.places[name]
        with safe_open(file, framework="pt") as tensors:
            weight: Tensor = tensors.get_tensor(stored)
        return weight


def find_weights(model: HookedModel, edited: str | Path) -> StoredWeights:
    """The weights of the checkpoint `edited`, which has to be one of the same model.

    Args:
        model: The model that it is held against.
        edited: A folder, or a Hugging Face id.

    Raises:
        InputError: There is no such checkpoint, it is an adapter that is not merged, a file is damaged, its config
            differs from the model's, or a weight is missing or of another shape.
    """
    if (Path(edited) / "adapter_config.json").is_file() and not (Path(edited) / "config.json").is_file():
        raise InputError(
            f"edited: expected a whole checkpoint, found an adapter in {edited}; merge it, save the model"
        )
    if (Path(edited) / "change.json").is_file():
        raise InputError(f"edited: {edited} is a change of weights; mechedit attribute --edited reads it")
    folder, source = find_folder(str(edited), embedded=FOLDERS, argument="edited")
    _check_config(model, folder)
    named = dict(checkpoint_weights(model.hf))
    places: dict[str, tuple[Path, str]] = {}
    left_out = []
    for file in weight_files(folder, argument="edited"):
        with _readable(file), safe_open(file, framework="pt") as tensors:
            for stored in tensors.keys():  # noqa: SIM118 (no mapping)
                name = _name_in(model, named, stored)
                shape = tuple(tensors.get_slice(stored).get_shape())
                if name is None:
                    left_out.append(stored)
                elif shape != tuple(named[name].shape):
                    raise InputError(
                        f"edited: expected {tuple(named[name].shape)} for {name!r}, as in {model.name}, found {shape}"
                    )
                else:
                    places.setdefault(name, (file, stored))
    if missing := [name for name in named if name not in places]:
        raise InputError(
            f"edited: {folder} lacks {len(missing)} weights of {model.name}, the first {missing[0]!r}"
        )
    return StoredWeights(folder, source, places, tuple(left_out))


def changed_weights(model: HookedModel, stored: StoredWeights) -> pd.DataFrame:
    """One row for each weight that differs, in the model's order.

    Columns: weight (its name), layer (−1: none), module (the rest of the name), rows, columns, rank (of Δ), norm
    (‖Δ‖, Frobenius), share (‖Δ‖ / ‖W‖), largest (singular value of Δ).
    """
    rows = []
    for name, weight in counted(list(checkpoint_weights(model.hf)), "weights", unit="weight"):
        there = stored.read(name)
        coarse = max((weight.dtype, there.dtype), key=lambda dtype: torch.finfo(dtype).eps)
        if not torch.equal(weight.detach().cpu().to(coarse), there.to(coarse)):
            rows.append((name, *_placed(name), *_difference(weight.detach(), there, coarse)))
    return pd.DataFrame(rows, columns=list(WEIGHT_COLUMNS))


@contextlib.contextmanager
def under_weights(model: HookedModel, stored: StoredWeights, names: Sequence[str]) -> Iterator[HookedModel]:
    """`model` with the weights `names` as they are stored, for the length of the block; then bit for bit as before.

    What is replaced waits on the disk, so that memory holds one model and one matrix.
    """
    named = {name: weight.detach() for name, weight in checkpoint_weights(model.hf)}
    with tempfile.TemporaryDirectory(prefix="mechedit-") as folder:
        kept: dict[str, Path] = {}
        try:
            for name in names:
                file = Path(folder) / f"{len(kept)}.safetensors"
                save_file({"weight": named[name].cpu().contiguous()}, file)
                kept[name] = file
                named[name].copy_(stored.read(name))
            yield derive(HookedModel, model)
        finally:
            for name, file in kept.items():
                named[name].copy_(load_file(file)["weight"])


# --- one matrix -------------------------------------------------------------------------------------


def _difference(
    weight: Tensor, there: Tensor, coarse: torch.dtype
) -> tuple[int, int, int, float, float, float]:
    """rows, columns, rank, norm, share and largest singular value of there − weight."""
    before, after = (
        side.reshape(len(side), -1) if side.dim() > 1 else side[None] for side in (weight, there)
    )
    rows, columns = before.shape
    if rows < columns:
        before, after = before.mT, after.mT
    gram = torch.zeros(before.shape[1], before.shape[1], dtype=torch.float64)
    sizes = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(before), _BLOCK):
        old, new = (side[start : start + _BLOCK].cpu().to(coarse).double() for side in (before, after))
        gram += (new - old).mT @ (new - old)
        sizes += torch.stack([old.square().sum(), new.square().sum()])
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    largest, norm = float(values[-1]), math.sqrt(float(gram.trace()))
    rms = math.sqrt(float(sizes[1]) / (rows * columns))
    noise = torch.finfo(coarse).eps * rms * (math.sqrt(rows) + math.sqrt(columns))
    rank = int((values > max(noise, _RESOLVED * largest)).sum())
    share = norm / math.sqrt(float(sizes[0])) if sizes[0] > 0 else math.inf
    return rows, columns, rank, norm, share, largest


def _placed(name: str) -> tuple[int, str]:
    """The layer in a weight's name (−1: none), and what stands behind it.

    >>> _placed("model.layers.5.mlp.down_proj.weight"), _placed("lm_head.weight")
    ((5, 'mlp.down_proj.weight'), (-1, 'lm_head.weight'))
    """
    match = re.search(r"(?:^|\.)(\d+)\.(.+)$", name)
    return (int(match[1]), match[2]) if match else (-1, name)


# --- the checkpoint ---------------------------------------------------------------------------------


def _check_config(model: HookedModel, folder: Path) -> None:
    """Refuses another architecture, and a property under which the same weights compute something else."""
    config, own = read_config(folder), model.hf.config
    if type(config) is not type(own):
        raise InputError(
            f"edited: expected a {own.model_type} model as {model.name}, found {config.model_type}"
        )
    known: dict[str, Any] = type(own)().to_dict()
    there, here = config.to_dict(), own.to_dict()
    for key in known:
        if key in _IDLE or key.startswith("_") or key.endswith("token_id"):
            continue
        if there.get(key) != here.get(key):
            raise InputError(
                f"edited: expected the config of {model.name}, found {key} {there.get(key)!r} in {folder} where it has "
                f"{here.get(key)!r}"
            )


def _name_in(model: HookedModel, named: Mapping[str, Any], stored: str) -> str | None:
    """The model's name for a weight of a file, which may leave out or add the body's; None where it has none."""
    body = f"{model.hf.base_model_prefix}."
    for name in (stored, body + stored, stored.removeprefix(body)):
        if name in named:
            return name
    return None


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise InputError(f"edited: {file} is damaged: {first_line(error)}") from error
