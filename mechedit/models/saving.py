"""A model, edited or not, as a checkpoint folder that plain `transformers` loads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import save_torch_state_dict

from mechedit.models import weights
from mechedit.models.bridged import BridgedModel
from reports.errors import InputError
from reports.files import whole_folder

__all__ = ["new_folder", "save_pretrained"]


def save_pretrained(
    model: BridgedModel, folder: str | Path, *, beside: Mapping[str, str] | None = None
) -> Path:
    """Write the model as it is now: config, safetensors, tokenizer files; returns the folder.

    Args:
        model: The model.
        folder: New, or empty.
        beside: Texts by file name that lie in the folder too.

    Raises:
        InputError: `folder` holds files, or cannot be written.
    """
    state = {name: weight.detach() for name, weight in weights.checkpoint_weights(model.hf)}
    with new_folder(folder) as temporary:
        model.hf.config.save_pretrained(temporary)
        if model.hf.generation_config is not None:
            model.hf.generation_config.save_pretrained(temporary)
        model.tokenizer.save_pretrained(temporary)
        save_torch_state_dict(state, temporary, metadata={"format": "pt"})
        for name, text in (beside or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
    return Path(folder)


@contextlib.contextmanager
def new_folder(folder: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that gets the wanted name when the block ends well, and vanishes when it does not.

    Args:
        folder: The wanted one.
        replace: Takes the place of what is there; without it, only that of an empty folder.

    Raises:
        InputError: `folder` cannot be written, or is not empty and not to be replaced.
    """
    wanted = Path(folder)
    if not replace and wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
        raise InputError(f"folder: expected a new or an empty folder, found {wanted}; choose another")
    try:
        with whole_folder(wanted) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"folder: cannot write {wanted} ({error.strerror or error})") from error
