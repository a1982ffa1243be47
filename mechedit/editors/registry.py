"""The editors by name: what `--editor` and `--editors` of the command line choose from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mechedit.data.facts import FactEdit
from mechedit.editors.base import Editor, NoEdit
from mechedit.editors.ike import IKE
from mechedit.editors.steering.mega import MEGA
from mechedit.editors.steering.sake import SAKE
from mechedit.editors.weights.ft import FT, FTL
from mechedit.editors.weights.lora import LoRA
from mechedit.editors.weights.memit import MEMIT, AlphaEdit
from mechedit.editors.weights.rome import ROME
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

__all__ = ["NAMES", "by_name", "select"]

_EDITORS: Mapping[str, Callable[..., Editor]] = {
    "ft": FT,
    "ft_l": FTL,
    "lora": LoRA,
    "rome": ROME,
    "memit": MEMIT,
    "alphaedit": AlphaEdit,
    "ike": IKE,
    "sake": SAKE,
    "mega": MEGA,
    "no_edit": NoEdit,
}
NAMES = tuple(_EDITORS)


def by_name(name: str, **settings: Any) -> Editor:
    """The editor called `name`, with `settings` as its fields; what it leaves open is chosen by the model.

    MEGA and SAKE choose gates and the like on facts that are never evaluated, see `select`.

    Raises:
        InputError: An unknown name, or an unknown setting.

    >>> by_name("rome", layer=5).name
    'rome'
    >>> by_name("roma")
    Traceback (most recent call last):
        ...
    reports.errors.InputError: editor: expected one of ft, ft_l, lora, rome, ..., found 'roma'
    """
    if name not in _EDITORS:
        raise InputError(f"editor: expected one of {', '.join(NAMES)}, found {name!r}")
    try:
        return _EDITORS[name](**settings)
    except TypeError as error:
        raise InputError(f"editor: {name} has no such setting ({error})") from error


def select(editor: Editor, model: HookedModel, facts: Sequence[FactEdit]) -> Editor:
    """`editor` with what it leaves open chosen on `facts`, which are never evaluated.

    MEGA and SAKE choose (`needs_selection`); every other editor is returned as it is.

    >>> import mechedit as me
    >>> rome = by_name("rome", layer=5)
    >>> select(rome, me.load_model("factworld"), me.factworld.edits(1)) is rome
    True
    """
    if isinstance(editor, MEGA | SAKE) and editor.needs_selection:
        return editor.select(model, facts)
    return editor
