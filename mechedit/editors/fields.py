"""An editor's fields, as a command line or a recipe sets them: by name, with values as TOML holds them.

A value is held against the field's annotation. "none" stands for None, which TOML cannot say. Fields that hold what no
text says are given as what they are read from: paraphrases as a JSON file, IKE's pool as a file of facts and its
`embed` as a sentence encoder. What `select` learns, and the covariance (`mechedit covariance`), are no settings.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union

from experiments.config import checked, held
from mechedit.data.facts import load_facts
from mechedit.editors.base import Editor
from mechedit.editors.defaults import Tuned
from mechedit.editors.settings import plain
from mechedit.editors.steering.paraphrases import load_paraphrases
from mechedit.editors.steering.sentence_encoder import sentence_encoder
from mechedit.models.hooked import HookedModel
from reports.errors import InputError

__all__ = ["field_table", "settable", "with_fields"]

NOT_SET = ("name", "covariance", "covariances")
READ: Mapping[str, Callable[[str], Any]] = {
    "paraphrases": load_paraphrases,
    "pool": lambda path: tuple(load_facts(path)),
    "embed": sentence_encoder,
}
TAKES = {
    "paraphrases": "JSON file or table",
    "pool": "file of facts",
    "embed": "sentence-transformers folder or id",
}


def settable(editor: Editor) -> dict[str, Any]:
    """The annotations of the fields that can be set, by their names.

    >>> from mechedit.editors.registry import by_name
    >>> settable(by_name("ft"))["layer"]
    <class 'int'>
    """
    if not dataclasses.is_dataclass(editor):
        return {}
    hints = typing.get_type_hints(type(editor))
    fields = [field for field in dataclasses.fields(editor) if field.init and field.compare]
    return {field.name: hints[field.name] for field in fields if field.name not in NOT_SET}


def with_fields(editor: Editor, values: Mapping[str, Any]) -> Editor:
    """`editor` with these fields.

    Raises:
        InputError: A field that it does not have, a value of another type, or one that the editor refuses.

    >>> from mechedit.editors.registry import by_name
    >>> with_fields(by_name("memit"), {"layers": [4, 6]}).layers
    (4, 6)
    >>> with_fields(by_name("rome"), {"layer": "deep"})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    reports.errors.InputError: layer: expected int, found str 'deep'; fields of rome: layer (int), steps (int), ...
    """
    hints = settable(editor)
    listed = ", ".join(f"{name} ({takes(name, hint)})" for name, hint in hints.items()) or "none"
    new: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1, cutoff=0.5)
            meant = f", did you mean {near[0]!r}" if near else ""
            raise InputError(
                f"set: {editor.name} has no field {name!r} to set{meant}; fields of {editor.name}: {listed}"
            )
        try:
            new[name] = _value(editor, name, value, hints[name])
        except InputError as error:
            raise InputError(f"{error}; fields of {editor.name}: {listed}") from error
    return dataclasses.replace(editor, **new) if new else editor  # type: ignore[type-var]


def field_table(editor: Editor, model: HookedModel) -> list[dict[str, Any]]:
    """Each field that can be set, with its value on `model`: field, value (plain data), takes, about.

    >>> import mechedit as me
    >>> field_table(me.editors.FT(), me.load_model("factworld"))[0]
    {'field': 'layer', 'value': 4, 'takes': 'int', 'about': 'Whose W_out is trained.'}
    """
    ready: Any = editor.ready(model) if isinstance(editor, Tuned) else editor
    about = _about(type(editor))
    return [
        {
            "field": name,
            "value": plain(getattr(ready, name)),
            "takes": takes(name, hint),
            "about": about.get(name, ""),
        }
        for name, hint in settable(editor).items()
    ]


def takes(name: str, hint: Any) -> str:
    """What a field takes, in short.

    >>> takes("window", tuple[int, int] | Literal["auto"]), takes("rank", int | None)
    ('(int, int) or auto', 'int or none')
    """
    if name in TAKES:
        return TAKES[name]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(takes("", arg) for arg in args)
    if origin in (tuple, list, Sequence):
        return f"({', '.join('...' if arg is Ellipsis else takes('', arg) for arg in args)})"
    if origin in (dict, Mapping):
        return f"table of {takes('', args[1])}"
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _value(editor: Editor, name: str, value: Any, hint: Any) -> Any:
    if value in ("none", None) and (type(None) in typing.get_args(hint) or _default(editor, name) is None):
        return None
    if name in READ and isinstance(value, str):
        return READ[name](value)
    result = checked(held(value), hint, where=name)
    if type(result) is int and result < 0:
        raise InputError(f"{name}: expected at least 0, found {result}")
    if type(result) is float and not math.isfinite(result):
        raise InputError(f"{name}: expected a finite number, found {result}")
    return result


def _default(editor: Any, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(editor) if field.name == name)


def _about(kind: type) -> dict[str, str]:
    """What the docstrings of the class and its bases say of its attributes."""
    about: dict[str, str] = {}
    for cls in kind.__mro__:
        _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", "\n" + section.split("\n\n")[0]):
            name, colon, text = entry.strip().partition(": ")
            if colon:
                about.setdefault(name, " ".join(text.split()))
    return about
