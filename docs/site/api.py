"""The API's pages: one for each room, with a table of its public names and the docstring of each.

A name is public where a module's `__all__` has it. Steps of `pages`:

1. every module of the four packages is imported and read, command lines left out (`commands` has those);
2. an object is documented once, under its shortest public name (a package's face, then a room's, then its module);
   other tables link there;
3. a page is a folder of modules: the folder's own docstring, its table, then module by module.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from docs.site.docstrings import inline

__all__ = ["PACKAGES", "Name", "names", "pages", "short_names", "summary"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mechedit", "xlprobe", "experiments", "reports")


@dataclass(frozen=True)
class Name:
    """A public name.

    Attributes:
        module: Whose `__all__` has it.
        name: The name.
        kind: "class", "function" or "data".
        origin: Where it is defined, as module and name.
        value: The object.
    """

    module: str
    name: str
    kind: str
    origin: str
    value: Any

    @property
    def full(self) -> str:
        """Module and name."""
        return f"{self.module}.{self.name}"


def _modules() -> list[str]:
    """Every module of the packages but those of command lines, folders before what they hold."""
    found = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if "cli" not in parts and parts[-1] != "__main__":
                found.append(".".join(parts).removesuffix(".__init__"))
    return sorted(found)


@cache
def names() -> tuple[Name, ...]:
    """All public names, each once for each `__all__` that has it."""
    return tuple(name for module in _modules() for name in _of(module))


def _of(module: str) -> Iterator[Name]:
    held = importlib.import_module(module)
    for name in getattr(held, "__all__", ()):
        value = getattr(held, name)
        if isinstance(value, ModuleType):
            continue
        kind = "class" if inspect.isclass(value) else "function" if inspect.isroutine(value) else "data"
        origin = _definition(module, name) if kind == "data" else f"{value.__module__}.{value.__qualname__}"
        yield Name(module, name, kind, origin, value)


@cache
def _tree(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text("utf-8"))


def _definition(module: str, name: str) -> str:
    """Where a constant is written, behind whatever imports it passed through."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(node.module, alias.name)
    return f"{module}.{name}"


@cache
def homes() -> Mapping[str, Name]:
    """Where each object is documented, by its origin: the shortest name that is no module's."""
    modules = set(_modules())
    best: dict[str, Name] = {}
    for name in names():
        if name.full in modules:
            continue
        before = best.get(name.origin)
        if before is None or name.full.count(".") < before.full.count("."):
            best[name.origin] = name
    return best


@cache
def short_names() -> Mapping[str, str]:
    """What a docstring's `name` links to: names that mean one object wherever they stand, and dotted ones."""
    by_name: dict[str, set[str]] = defaultdict(set)
    for home in homes().values():
        if home.kind != "data":
            by_name[home.name].add(home.full)
    links = {name: full.pop() for name, full in by_name.items() if len(full) == 1}
    for home in homes().values():
        links |= {home.full: home.full, home.origin: home.full}
    return links


def summary(value: Any) -> str:
    """The first sentence of a docstring."""
    text = inspect.getdoc(value) or ""
    return " ".join(text.split("\n\n")[0].split())


def _folder(module: str) -> str:
    """The page that a module stands on: its own folder."""
    return module if ROOT.joinpath(*module.split(".")).is_dir() else module.rpartition(".")[0]


def pages() -> dict[str, str]:
    """The pages by their names: one for each room, and `index`."""
    rooms: dict[str, list[str]] = defaultdict(list)
    for module in _modules():
        rooms[_folder(module)].append(module)
    return {room: _page(room, modules) for room, modules in rooms.items()} | {"index": _index(list(rooms))}


def _index(rooms: list[str]) -> str:
    lines = [
        "API",
        "===",
        "",
        "Every public name, by package and room. What most people need is in the first two.",
        "",
    ]
    for package in PACKAGES:
        held = [room for room in rooms if room.split(".")[0] == package]
        lines += [
            ".. toctree::",
            "   :maxdepth: 1",
            f"   :caption: {package}",
            "",
            *("   " + room for room in held),
            "",
        ]
    return "\n".join(lines)


def _page(room: str, modules: list[str]) -> str:
    here = {module: [name for name in names() if name.module == module] for module in modules}
    lines = [room, "=" * len(room), "", f".. automodule:: {room}", "   :no-members:", ""]
    lines += _table([name for held in here.values() for name in held])
    for module in modules:
        own = [name for name in here[module] if homes().get(name.origin) == name]
        if module != room:
            if not here[module]:
                continue
            lines += ["", module, "-" * len(module), "", f".. automodule:: {module}", "   :no-members:", ""]
        for name in own:
            lines += _directive(name)
    return "\n".join(lines) + "\n"


def _directive(name: Name) -> list[str]:
    option = {"class": ["   :members:", "   :show-inheritance:"], "data": ["   :no-value:"]}
    return ["", f".. auto{name.kind}:: {name.full}", *option.get(name.kind, [])]


def _table(held: list[Name]) -> list[str]:
    """Functions and classes with their first sentence, each once; constants stand further down."""
    seen: set[str] = set()
    rows: list[str] = []
    for name in held:
        if name.kind == "data" or name.origin in seen or name.origin not in homes():
            continue
        seen.add(name.origin)
        said = inline(summary(name.value), short_names().get)
        rows += [f"   * - :py:obj:`{name.name} <{homes()[name.origin].full}>`", f"     - {said}"]
    if not rows:
        return []
    return [".. list-table::", "   :widths: 30 70", "   :class: names", "", *rows, ""]
