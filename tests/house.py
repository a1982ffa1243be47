"""The house, read off the source: which package, room and file imports which, and a picture of it.

`python -m tests.house docs/house.svg` (`make house`) draws the picture that `docs/architecture.md` shows. The rules of
`tests/test_house.py` stand on the same reading, so the picture cannot show another house than the tested one.
"""

from __future__ import annotations

import ast
import html
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What a package may import of the others: the arrow points down only, and the two methods never meet.
BELOW: dict[str, set[str]] = {
    "mechedit": {"experiments", "reports"},
    "xlprobe": {"experiments", "reports"},
    "experiments": {"reports"},
    "reports": set(),
}
IMPORTERS = {"importlib.import_module", "import_module", "__import__"}


@dataclass(frozen=True)
class Import:
    """One import of a module: where it stands, what it names, and what surrounds it."""

    line: int
    name: str
    in_function: bool
    for_types: bool


def sources(root: Path = ROOT) -> dict[str, str]:
    """Dotted module name to source text, of the four packages; a package's own file ends in `.__init__`."""
    files = (file for package in BELOW for file in sorted((root / package).rglob("*.py")))
    return {".".join(file.relative_to(root).with_suffix("").parts): file.read_text("utf-8") for file in files}


def imports(module: str, tree: ast.Module) -> list[Import]:
    """Every import of a module, wherever it stands, by absolute dotted name.

    `from a import b` counts as `a` and as `a.b`, since b may be a module.
    """
    found: list[Import] = []

    def visit(node: ast.AST, in_function: bool, for_types: bool) -> None:
        in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for name in _named(module, node):
            found.append(Import(getattr(node, "lineno", 0), name, in_function, for_types))
        for child in ast.iter_child_nodes(node):
            visit(child, in_function, for_types)

    visit(tree, False, False)
    return found


def _named(module: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parent = module.split(".")[: -node.level] if node.level else []
        base = ".".join([*parent, *([node.module] if node.module else [])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORTERS:
        yield from (str(word.value) for word in node.args[:1] if isinstance(word, ast.Constant))


def graph(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """Module to the modules of the house that it imports, in functions too; the two faces' lazy tables are left out."""
    names = {name.removesuffix(".__init__"): name for name in modules}
    arrows = {}
    for name, text in modules.items():
        face = name in {f"{package}.__init__" for package in BELOW}
        targets = set() if face else {one.name for one in imports(name, ast.parse(text))}
        arrows[name] = {names[target] for target in targets if target in names} - {name}
    return arrows


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """The sets of two or more nodes that reach each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def walk(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in arrows[node]:
            if target not in index:
                walk(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[-len(part) :]
            if len(part) > 1:
                found.append(sorted(part))

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        for node in arrows:
            if node not in index:
                walk(node)
    finally:
        sys.setrecursionlimit(limit)
    return found


def room(module: str) -> str:
    """The room that a module stands in: its package and the folder or file below; experiments and reports are one each.

    >>> room("mechedit.attribution.circuits.keys"), room("reports.page"), room("xlprobe.__init__")
    ('mechedit.attribution', 'reports', 'xlprobe')
    """
    package, _, rest = module.partition(".")
    first = rest.split(".")[0]
    return (
        package
        if package in ("experiments", "reports") or first in ("", "__init__")
        else f"{package}.{first}"
    )


def rooms(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """Room to the rooms that its modules import."""
    arrows: dict[str, set[str]] = {room(name): set() for name in modules}
    for name, targets in graph(modules).items():
        arrows[room(name)] |= {room(target) for target in targets} - {room(name)}
    return arrows


# ------------------------------------------------------------------------------------------ the picture

WIDTH, BOX, HEIGHT, STEP = 960, 156, 32, 66


def picture(modules: Mapping[str, str]) -> str:
    """The rooms as boxes on floors, an arrow to each room that one stands on directly."""
    arrows = {
        name: targets for name, targets in rooms(modules).items() if name not in ("mechedit", "xlprobe")
    }
    floor = _floors(arrows)
    place = _places(floor)
    top = max(floor.values())
    height = (top + 1) * STEP + 24
    spots = {name: (x, height - 24 - (floor[name] + 1) * STEP + 28) for name, x in place.items()}
    drawn = [
        _arrow(spots[name], spots[target]) for name in arrows for target in sorted(_direct(arrows, name))
    ]
    drawn += [_box(name, spots[name]) for name in arrows]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">\n'
        "<title>The rooms of the house, each above the rooms that it imports</title>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#8a94a6"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _floors(arrows: Mapping[str, set[str]]) -> dict[str, int]:
    """How many rooms a room stands on, one upon the other."""
    floor: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in floor:
            floor[name] = 1 + max((height(target) for target in arrows[name] if target in arrows), default=-1)
        return floor[name]

    for name in arrows:
        height(name)
    return floor


def _places(floor: Mapping[str, int]) -> dict[str, int]:
    """The left edge of each box: mechedit on the left, xlprobe on the right, what both stand on in the middle."""
    place = {}
    for package, left, right in (("mechedit", 0, 560), ("xlprobe", 560, 960), ("", 300, 660)):
        floors: dict[int, list[str]] = {}
        for name in sorted(floor):
            if name.rpartition(".")[0] == package:
                floors.setdefault(floor[name], []).append(name)
        for names in floors.values():
            gap = (right - left) / len(names)
            for i, name in enumerate(names):
                place[name] = round(left + gap * (i + 0.5) - BOX / 2)
    return place


def _direct(arrows: Mapping[str, set[str]], name: str) -> set[str]:
    """The rooms below that are not reached by way of another one: what the picture needs."""
    own = {target for target in arrows[name] if target in arrows}
    return {t for t in own if not any(t in _reached(arrows, other) for other in own - {t})}


def _reached(arrows: Mapping[str, set[str]], name: str) -> set[str]:
    reached: set[str] = set()
    waiting = [name]
    while waiting:
        fresh = {target for target in arrows[waiting.pop()] if target in arrows} - reached
        reached |= fresh
        waiting += fresh
    return reached


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    (x0, y0), (x1, y1) = (start[0] + BOX // 2, start[1] + HEIGHT), (end[0] + BOX // 2, end[1])
    middle = (y0 + y1) // 2
    return (
        f'<path d="M{x0} {y0} C{x0} {middle} {x1} {middle} {x1} {y1 - 2}" fill="none" stroke="#8a94a6" '
        'stroke-width="1.2" marker-end="url(#tip)"/>'
    )


def _box(name: str, spot: tuple[int, int]) -> str:
    fill = {"mechedit": "#e3ecfa", "xlprobe": "#e4f4e8"}.get(name.split(".")[0], "#f1f1f4")
    (x, y), middle = spot, spot[0] + BOX // 2
    return (
        f'<rect x="{x}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="6" fill="{fill}" stroke="#556"/>'
        f'<text x="{middle}" y="{y + 21}" text-anchor="middle" fill="#111">{html.escape(name)}</text>'
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(sources()), "utf-8")
