"""An editor's settings as it applies them to a model, with all that it reads, as plain data.

Two editors with the same settings make the same edit of the same fact. So they stand in the provenance of a run, and in
what a case's numbers depend on: what the model decides (layer, steps), texts that it writes itself, the covariance and
its text, an encoder's weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mechedit.data.facts import FactEdit, facts_hash
from mechedit.editors.base import Editor, Reads
from mechedit.editors.defaults import Tuned, untuned
from mechedit.models.hooked import HookedModel

__all__ = ["plain", "resolved"]


def resolved(editor: Editor, model: HookedModel) -> dict[str, Any]:
    """Every setting that `editor` takes on `model`, and what it reads there (`Reads`), as plain data.

    What stands under a key "about" is for the reader and makes no other edit (`experiments.settings`).

    Args:
        editor: The editor, with what it chooses chosen.
        model: Unedited.

    Raises:
        InputError: As `apply`, for settings that the model does not have.

    >>> import mechedit as me
    >>> settings = resolved(me.editors.ROME(), me.load_model("factworld"))
    >>> settings["layer"], settings["clamp"], settings["covariance"]["layer"]
    (0, 20.0, 0)
    """
    if not dataclasses.is_dataclass(editor):
        return {"name": editor.name}
    ready: Any = editor.ready(model) if isinstance(editor, Tuned) else editor
    read = ready.reads(model) if isinstance(ready, Reads) else {}
    fields = [field.name for field in dataclasses.fields(ready) if field.compare and field.name not in read]
    note = untuned(editor, model)
    read = read | ({"defaults": {"about": note}} if note else {})
    return {"name": editor.name} | {name: plain(getattr(ready, name)) for name in fields} | read


def plain(value: Any) -> Any:
    """A field's value as JSON holds it; tensors and facts by their hash, functions by their name.

    >>> plain({7: (1, 2)}), plain(len)
    ({'7': [1, 2]}, 'builtins.len')
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, torch.Tensor):
        held = value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        return {"shape": list(value.shape), "sha256": hashlib.sha256(held).hexdigest()}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        facts = [item for item in value if isinstance(item, FactEdit)]
        if facts and len(facts) == len(value):
            return {"facts": len(facts), "sha256": facts_hash(facts)}
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(value):
        kind = type(value)
        return f"{getattr(value, '__module__', kind.__module__)}.{getattr(value, '__qualname__', kind.__qualname__)}"
    return (
        {name: plain(item) for name, item in vars(value).items()}
        if hasattr(value, "__dict__")
        else repr(value)
    )
