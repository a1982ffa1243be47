"""A package's face that costs nothing: its public names are a table, and each is loaded when it is first asked for.

Of the standard library alone, so that importing a face loads neither torch nor anything else that takes seconds.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

__all__ = ["lazy"]


def lazy(
    package: str, names: Mapping[str, Sequence[str]], *, rooms: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package (PEP 562) whose names are loaded on first use.

    A function called like the module that holds it (`mechedit.anatomy`, `mechedit.diagnose`) stays the function:
    Python binds a submodule to its package once it is imported, and `me.anatomy(...)` would call a module.

    Args:
        package: The package's `__name__`, in the midst of being imported.
        names: Module to the public names that it holds.
        rooms: Folders that are reached as attributes too, without an import of their own.

    Returns:
        `__getattr__`, which raises `AttributeError` for any other name, and `__dir__`.

    >>> find, _ = lazy("experiments", {"experiments.face": ("lazy",)})
    >>> find("lazy") is lazy
    True
    """
    home = {name: module for module, held in names.items() for name in held}
    face = sys.modules[package]

    class Face(type(face)):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            if not (name in home and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

    def find(name: str) -> Any:
        if name in rooms:
            return importlib.import_module(f"{package}.{name}")
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        _load_bars()
        value = getattr(importlib.import_module(home[name]), name)
        setattr(face, name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(face), *home, *rooms})

    face.__class__ = Face
    return find, listed


def _load_bars() -> None:
    """Loads tqdm, which warns at its first import in a notebook without ipywidgets: its bars are text there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        importlib.import_module("tqdm.auto")
