"""Keeping an edit: the edited model as a checkpoint, or the change alone.

- `save_pretrained(edited, folder)`: config, tokenizer and safetensors, with the checkpoint's own names, which plain
  `transformers` loads; the logits are the edited model's.
- `save_change(change, folder)`: `change.safetensors` (low rank where the change is) and `change.json` (editor, facts,
  the hash of the model it was made for). `load_change` refuses any other model: a rank-one update of W means nothing
  for another W.

Both write to a folder of a temporary name beside the wanted one and rename it; a folder that is not empty is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechedit.data.facts import FactEdit
from mechedit.editors.weights.weight_edit import LowRank, Replaced, WeightChange
from mechedit.models import weights
from reports.errors import InputError, first_line
from reports.parsing import parse

if TYPE_CHECKING:
    from mechedit.models.hooked import HookedModel

__all__ = ["load_change", "save_change", "save_pretrained"]

SCHEMA_VERSION = 1
# What is edited; the prompts that test a fact stay with whoever measures it.
EDIT_FIELDS = ("subject", "prompt", "target_true", "target_new", "case_id", "relation")


def save_pretrained(model: HookedModel, folder: str | Path) -> Path:
    """Writes the model as it is now; returns the folder. Errors: `InputError` where `folder` cannot take it."""
    state = {name: weight.detach() for name, weight in weights.checkpoint_weights(model.hf)}
    with _new_folder(folder) as temporary:
        model.hf.config.save_pretrained(temporary)
        if model.hf.generation_config is not None:
            model.hf.generation_config.save_pretrained(temporary)
        model.tokenizer.save_pretrained(temporary)
        save_torch_state_dict(state, temporary, metadata={"format": "pt"})
    return Path(folder)


def save_change(change: WeightChange, folder: str | Path) -> Path:
    """Writes the change alone; returns the folder. Errors: `InputError` where `folder` cannot take it."""
    tensors: dict[str, Tensor] = {}
    parts: list[dict[str, str]] = []
    for name, own in change.parts.items():
        for part in own:
            key = str(len(parts))
            parts.append({"weight": name, "kind": "low_rank" if isinstance(part, LowRank) else "replaced"})
            for field in dataclasses.fields(part):
                tensors[f"{key}.{field.name}"] = getattr(part, field.name).cpu().contiguous().clone()
    described = {
        "kind": "weight_change",
        "schema_version": SCHEMA_VERSION,
        "editor": change.editor,
        "model_hash": change.model_hash,
        "facts": [{name: getattr(fact, name) for name in EDIT_FIELDS} for fact in change.facts],
        "parts": parts,
    }
    with _new_folder(folder) as temporary:
        save_file(tensors, temporary / "change.safetensors")
        (temporary / "change.json").write_text(
            json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return Path(folder)


def load_change(folder: str | Path, model: HookedModel) -> WeightChange:
    """Reads what `save_change` wrote, for the very model that it was made for.

    Errors: `InputError` for a folder without a change, a damaged one, another schema, or another model.
    """
    file = Path(folder) / "change.json"
    try:
        described: dict[str, Any] = parse(file.read_text(encoding="utf-8"))
        if described["kind"] != "weight_change" or described["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema {described['kind']} {described['schema_version']}")
        if described["model_hash"] != model.hash:
            raise InputError(
                f"change: {file} was made for a model of hash {described['model_hash'][:12]}, {model.name} has "
                f"{model.hash[:12]}; load that model, as it was before the edit"
            )
        tensors = load_file(Path(folder) / "change.safetensors", device=str(model.device))
        parts: dict[str, tuple[LowRank | Replaced, ...]] = {}
        for i, one in enumerate(described["parts"]):
            kind: type[LowRank] | type[Replaced] = LowRank if one["kind"] == "low_rank" else Replaced
            part = kind(**{f.name: tensors[f"{i}.{f.name}"] for f in dataclasses.fields(kind)})
            parts[one["weight"]] = (*parts.get(one["weight"], ()), part)
        facts = tuple(FactEdit(**fact) for fact in described["facts"])
        return WeightChange(described["editor"], facts, described["model_hash"], parts)
    except FileNotFoundError as error:
        raise InputError(f"change: expected change.json and change.safetensors in {folder}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = first_line(error)
        raise InputError(f"change: {file} is no weight change that this version reads ({reason})") from error


@contextlib.contextmanager
def _new_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that gets the wanted name when the block ends well, and vanishes when it does not."""
    wanted = Path(folder)
    if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
        raise InputError(f"folder: expected a new or an empty folder, found {wanted}; choose another")
    temporary = wanted.with_name(f".{wanted.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if wanted.exists():
            wanted.rmdir()
        temporary.replace(wanted)
    except OSError as error:
        raise InputError(f"folder: cannot write {wanted} ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
