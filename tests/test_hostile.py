"""Files from elsewhere that mean harm: names that lead out of their folder, links, markup in a recipe.

Bytes that went wrong: `tests/test_fuzz.py`; weights that are pickles and code that a checkpoint brings:
`tests/test_loading.py`; markup in prompts, subjects, tokens and labels: `tests/test_reports_page.py` and its like.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from experiments import recipe
from experiments.runs import RunFolder
from experiments.weight_files import weight_files
from mechedit.editors import EditBook, WeightChange
from reports import batch, overview
from reports.errors import InputError, IntegrityError, MechEditError
from tests import reports_example as example
from tests.fuzzing import KNOWN, MODEL, PARSERS, held
from tests.test_reports_batch import write
from tests.test_reports_page import Outline

BAD = "".join(example.HOSTILE)
OUTSIDE = ("../out", "/etc/passwd", "a/../../out", "..", "x/y", "a\x00b")


def lay(name: str, folder: Path) -> Path:
    """The sound files of a parser."""
    for file, data in PARSERS[name].files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    return folder


@contextmanager
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Every path that is opened or looked at by pathlib meanwhile."""
    seen: list[Path] = []

    def watch(old: Callable[..., Any]) -> Callable[..., Any]:
        def watched(self: Path, *given: Any, **more: Any) -> Any:
            seen.append(self)
            return old(self, *given, **more)

        return watched

    with monkeypatch.context() as patch:
        for name in ("open", "stat"):
            patch.setattr(Path, name, watch(getattr(Path, name)))
        yield seen


def swapped(value: Any, old: Any, new: Any) -> Any:
    """Plain data with one value, or key, for another, wherever it stands."""
    if isinstance(value, dict):
        return {swapped(k, old, new): swapped(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [swapped(item, old, new) for item in value]
    return new if value == old else value


READERS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "weight-change": ("change.json", "h.0.weight", lambda folder: WeightChange.load(folder, MODEL)),
    "edit-book": ("edits.json", "0", EditBook.load),
    "run": ("manifest.json", "cases/1.json", overview.state),
    "checkpoint": ("model.safetensors.index.json", "model-1.safetensors", weight_files),
}


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("name", READERS)
def test_a_name_in_a_file_leads_out_of_no_folder(
    name: str, outside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the name is a name (of a tensor, of a weight) and no path is made of it, or it is refused."""
    file, old, read = READERS[name]
    folder = lay(name, tmp_path / "inside")
    (tmp_path / "out").write_text("secret", encoding="utf-8")
    record = json.loads((folder / file).read_text(encoding="utf-8"))
    changed = swapped(record, old, outside)
    assert changed != record
    (folder / file).write_text(json.dumps(changed), encoding="utf-8")
    with opened(monkeypatch) as seen:
        try:
            found = read(folder)
            assert name != "run" or found[0] == "damaged"  # type: ignore[index]
        except MechEditError:
            pass
    assert [path for path in seen if not Path(os.path.normpath(path)).is_relative_to(folder)] == []


def test_the_check_sees_a_reader_that_follows_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(monkeypatch) as seen:
        (tmp_path / "inside" / "../out").exists()
    assert Path(os.path.normpath(seen[0])) == tmp_path / "out"


def test_a_shard_outside_the_checkpoint_is_refused_in_words(tmp_path: Path) -> None:
    folder = lay("checkpoint", tmp_path / "model")
    index = {"weight_map": {"w": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(InputError, match="no file of its folder"):
        weight_files(folder)


@pytest.mark.parametrize("axis", ["../out", "a/b", "/etc", "..", "."])
def test_a_matrix_makes_its_folders_below_the_run(axis: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    text = 'experiment = "small"\n[matrix]\n'
    file.write_text(f'{text}model = ["{axis}", "b"]\n', encoding="utf-8")
    for cell in recipe.read(file, KNOWN):
        assert (tmp_path / "runs" / cell.folder).resolve().parent == tmp_path / "runs"
    file.write_text(f'{text}"{axis}" = [1, 2]\n', encoding="utf-8")
    with pytest.raises(InputError):
        recipe.read(file, KNOWN)


@pytest.mark.parametrize("name", ["cases", "results", ".lock"])
def test_nothing_is_written_or_swept_behind_a_link(name: str, tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    opening: dict[str, Any] = {"provenance": {"seeds": {"all": 0}}}
    RunFolder.open(run, {"a": 1}, **opening).write_case(1, {"x": 1})
    elsewhere.mkdir()
    (elsewhere / ".mine.tmp").write_text("keep", encoding="utf-8")
    target = run / name
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    target.symlink_to(elsewhere if name != ".lock" else elsewhere / ".mine.tmp")
    with pytest.raises(InputError, match="leads elsewhere"):
        RunFolder.open(run, {"a": 1}, **opening)
    assert {Path(file).name: data for file, data in held(elsewhere).items()} == {".mine.tmp": b"keep"}


def test_saving_over_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    book = EditBook.load(lay("edit-book", tmp_path / "book"))
    elsewhere = lay("edit-book", tmp_path / "elsewhere")
    before = held(elsewhere)
    (tmp_path / "link").symlink_to(elsewhere)
    with pytest.raises(InputError, match="found the link"):
        book.save(tmp_path / "link")
    assert held(elsewhere) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book", "elsewhere", "link"]


def test_markup_in_keys_and_values_of_a_recipe_and_in_a_files_name_is_text(tmp_path: Path) -> None:
    run = write(tmp_path / "a<script>b", acc=3)
    hostile = {"experiment": "<script>x()</script>", "<img src=x onerror=y()>": "</pre><script>z()</script>"}
    shutil.rmtree(run)
    folder = RunFolder.open(run, hostile, provenance={"data": {"<b>file</b>.json": BAD}, "seeds": {"<i>": 0}})
    editors = [{"name": "mega", "label": "MEGA", "acc": example.proportion(3)}]
    folder.write_json("summary", {"title": "A run", "model": "m", "n": 40, "editors": editors})
    folder.write_json("x", {"a": 1})
    folder.finish({})
    pages = [
        overview.render(run),
        batch.build([run.parent], tmp_path / "all.html", progress=False).index.read_text(),
    ]
    for page in pages:
        tags = [(tag, dict(attributes)) for tag, attributes in Outline(page).tags]
        assert not [tag for tag, _ in tags if tag in ("img", "b", "i")]
        assert not [a for _, attributes in tags for a in attributes if a.startswith("on")]
        assert "x()</script>" not in page
        assert "z()</script>" not in page
    assert "&lt;script&gt;z()" in pages[0]


def test_a_damaged_book_says_so_in_one_line(tmp_path: Path) -> None:
    folder = lay("edit-book", tmp_path / "book")
    (folder / "edits.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json")
    with pytest.raises(IntegrityError, match="not readable as a book") as caught:
        EditBook.load(folder)
    assert "\n" not in str(caught.value)
