"""Files and folders that are whole or not there at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reports.errors import InputError
from reports.files import TEMPORARY, whole_file, whole_folder, write


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_text_and_bytes_are_written_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    assert write(target, "ä\n") == target
    assert target.read_bytes() == "ä\n".encode()
    assert write(target, b"two").read_bytes() == b"two"
    assert names(target.parent) == ["a.txt"]


def test_while_it_is_written_the_old_file_stays_and_the_new_one_is_hidden(tmp_path: Path) -> None:
    target = write(tmp_path / "a.txt", "old")
    with whole_file(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert TEMPORARY.fullmatch(temporary.name)
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    target, folder = write(tmp_path / "a.txt", "old"), tmp_path / "folder"
    write(folder / "b.txt", "old")

    def half(file: Path) -> None:
        file.write_text("half")
        raise error

    with pytest.raises(error), whole_file(target) as temporary:
        half(temporary)
    with pytest.raises(error), whole_folder(folder) as temporary:
        half(temporary / "b.txt")
    assert (target.read_text(), (folder / "b.txt").read_text()) == ("old", "old")
    assert names(tmp_path) == ["a.txt", "folder"]


def test_a_missing_folder_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "no" / "a.txt") as temporary:
        temporary.write_text("half")


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "above" / "folder"
    for name in ("one", "two"):
        with whole_folder(target) as temporary:
            write(temporary / name, "text")
        assert names(target) == [name]
    assert names(target.parent) == ["folder"]


def test_where_the_second_rename_fails_the_old_folder_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = tmp_path / "folder", Path.replace
    write(target / "a.txt", "old")

    def failing(source: Path, place: Path) -> Path:
        if source.suffix == ".tmp" and place == target:
            raise PermissionError("no")
        return rename(source, place)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(PermissionError), whole_folder(target) as temporary:
        (temporary / "a.txt").write_text("new")
    assert (target / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["folder"]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="links: POSIX only")
def test_a_link_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(InputError, match="found the link"), whole_folder(tmp_path / "link"):
        pass
    assert names(tmp_path) == ["link", "there"]
