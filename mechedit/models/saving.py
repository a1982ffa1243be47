"""A model, edited or not, as a checkpoint folder that plain `transformers` loads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedModel

from mechedit.models import weights
from mechedit.models.active import active_edits
from mechedit.models.bridged import BridgedModel
from reports.errors import InputError
from reports.files import occupied, whole_folder

__all__ = ["new_folder", "save_plain", "save_pretrained"]


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
    with new_folder(folder) as temporary:
        _write(model.hf, temporary)
        model.tokenizer.save_pretrained(temporary)
        for name, text in (beside or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
    return Path(folder)


def save_plain(hf: PreTrainedModel, save_directory: str | Path, **options: object) -> None:
    """What `save_pretrained` of a hooked model's Hugging Face module does; `transformers`' own would write its hooks.

    Args:
        hf: The module.
        save_directory: The folder.
        options: None but those of their default.

    Raises:
        InputError: As `save_pretrained`; another option, or an edit in force that no weight holds.
    """
    if given := [name for name, value in options.items() if value]:
        raise InputError(
            f"save_pretrained: expected a folder alone of a hooked model, found {given[0]} too; save to a folder, "
            "which plain transformers loads"
        )
    if steered := [edit.text for edit in active_edits(hf) if not edit.in_weights]:
        raise InputError(
            f"save_pretrained: a checkpoint would lack the edit {steered[0]}, which changes no weight; keep it by "
            "EditBook.save"
        )
    with new_folder(save_directory) as temporary:
        _write(hf, temporary)


def _write(hf: PreTrainedModel, folder: Path) -> None:
    """Config and weights of a Hugging Face module, without the hooks in it."""
    state = {name: weight.detach() for name, weight in weights.checkpoint_weights(hf)}
    hf.config.save_pretrained(folder)
    if hf.generation_config is not None:
        hf.generation_config.save_pretrained(folder)
    save_torch_state_dict(state, folder, metadata={"format": "pt"})


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
    if not replace and occupied(wanted):
        raise InputError(f"folder: expected a new or an empty folder, found {wanted}; choose another")
    try:
        with whole_folder(wanted) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"folder: cannot write {wanted} ({error.strerror or error})") from error
