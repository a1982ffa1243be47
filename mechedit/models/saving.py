"""An edited model as a checkpoint that plain `transformers` loads."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import save_torch_state_dict

from mechedit.models import weights
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

__all__ = ["new_folder", "save_pretrained"]


def save_pretrained(model: HookedModel, folder: str | Path) -> Path:
    """Writes the model as it is now; returns the folder. Errors: `InputError` where `folder` cannot take it."""
    state = {name: weight.detach() for name, weight in weights.checkpoint_weights(model.hf)}
    with new_folder(folder) as temporary:
        model.hf.config.save_pretrained(temporary)
        if model.hf.generation_config is not None:
            model.hf.generation_config.save_pretrained(temporary)
        model.tokenizer.save_pretrained(temporary)
        save_torch_state_dict(state, temporary, metadata={"format": "pt"})
    return Path(folder)


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
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
