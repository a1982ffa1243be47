"""The sources that Sphinx reads: `python -m docs.site.stage FOLDER`.

The pages of `docs/` and their pictures, CONTRIBUTING.md and CHANGELOG.md, the notebooks, and the pages that are made of
the code. Sphinx runs on that folder, so that nothing generated lies among what is written by hand.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from docs.site import api, commands, errors, recipes, schemas

__all__ = ["generated", "stage", "with_all_results"]

ROOT = Path(__file__).resolve().parents[2]
COPIED = (".md", ".rst", ".png", ".svg", ".py")
NOT_COPIED = ("site", "static", "conf.py", "pictures.py")


def stage(target: Path) -> None:
    """Lays out the sources in `target`, which is emptied first."""
    shutil.rmtree(target, ignore_errors=True)
    for file in sorted((ROOT / "docs").rglob("*")):
        inside = file.relative_to(ROOT / "docs")
        if file.is_file() and file.suffix in COPIED and inside.parts[0] not in NOT_COPIED:
            _put(target / inside, file.read_bytes())
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text("utf-8")
        _put(target / name, re.sub(r"\]\(docs/", "](", text).encode())
    for file in sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb")):
        _put(target / "notebooks" / file.name, file.read_bytes())
    for name, text in generated():
        _put(target / name, text.encode())
    results = target / "results" / "index.md"
    results.write_text(with_all_results(results.read_text("utf-8"), target), "utf-8")


def with_all_results(text: str, source: Path) -> str:
    """The list of results with every page of `docs/` that no other list names: a new one is linked as it comes."""
    named = (source / "index.md").read_text("utf-8") + text
    pages = [page.stem for page in sorted(source.glob("*.md")) if page.stem != "index"]
    missing = [page for page in pages if not re.search(rf"^(\.\./)?{re.escape(page)}$", named, re.M)]
    return text.replace("../benchmarks", "\n".join([*(f"../{page}" for page in missing), "../benchmarks"]), 1)


def generated() -> Iterator[tuple[str, str]]:
    """The pages that are made of the code: path and text."""
    for name, text in api.pages().items():
        yield f"reference/api/{name}.rst", text
    for name, text in commands.pages().items():
        yield f"reference/commands/{name}.md", text
    for name, module in {"recipes": recipes, "schemas": schemas, "errors": errors}.items():
        yield f"reference/{name}.md", module.page()


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


if __name__ == "__main__":
    stage(Path(sys.argv[1]))
