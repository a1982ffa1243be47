"""What may happen to a run: interrupted, a full or read-only disk, torn files, an old schema, two processes at once.

Every child is a real process. Kills: `tests/test_kills.py`.
"""

from __future__ import annotations

import functools
import gc
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.runs import RunFolder
from reports.errors import InputError, IntegrityError, MechEditError
from tests.killing import ended, forked, until, whole
from tests.test_runs import start, table, tree

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork: POSIX only")

# -- Ctrl-C ----------------------------------------------------------------------------------------------------


def slow_cases(folder: Path) -> None:
    from experiments.progress import track

    run = start(folder)
    for case in track(range(40), label="slow", progress=False):
        if run.find_case(case) is None:
            run.write_case(case, {"half": 1})
            time.sleep(0.05)
            run.write_case(case, {"whole": case})


def command(program: str, folder: Path) -> int:
    """A command of the program that walks slow cases, with the signals and the last words of the real one."""
    import importlib

    cli = importlib.import_module(f"{program}.cli")
    vars(importlib.import_module("experiments.cli.report"))["make"] = lambda *_: slow_cases(folder)
    status: int = cli.main(["report", str(folder), "--out", str(folder)])
    return status


@pytest.mark.parametrize("program", ["mechedit", "xlprobe"])
def test_an_interrupt_ends_after_the_case_and_says_how_to_go_on(program: str, tmp_path: Path) -> None:
    folder, said = tmp_path / "run", tmp_path / "said"
    child = forked(functools.partial(command, program, folder), errors=said)
    until(folder / "cases" / "3.json", child)
    os.kill(child, signal.SIGINT)
    assert ended(child) == 130
    cases = RunFolder(folder, {}).cases()
    assert 4 <= len(cases) < 40
    assert all(case == {"whole": int(name)} for name, case in cases.items())
    text = said.read_text()
    assert "stopping after the current case" in text
    assert f"{len(cases)} of 40 done in 'slow', all saved; to go on: {program} report {folder}" in text
    slow_cases(folder)
    assert len(RunFolder(folder, {}).done()) == 40


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    from experiments.progress import interruptible, track

    def work() -> int:
        with interruptible():
            for _ in track([1], label="long", progress=False):
                (tmp_path / "began").touch()
                time.sleep(60)
        return 0

    child = forked(work, errors=tmp_path / "said")
    until(tmp_path / "began", child)
    for _ in range(2):
        os.kill(child, signal.SIGINT)
        time.sleep(0.1)
    assert ended(child) == 70


# -- the disk --------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the write fails in the middle, as there."""
    run = start(tmp_path / "run")
    run.write_case(1, {"text": "short"})
    before = tree(run.path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(MechEditError, match=r"cannot write .*2\.json .*what is finished is kept"):
            run.write_case(2, {"text": "x" * 100_000})
        with pytest.raises(MechEditError, match="make room"):
            run.write_frame("big", table().rows.assign(text=os.urandom(40_000).hex()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(run.path) == before
    run.write_case(2, {"text": "x" * 100_000})
    assert start(run.path).done() == {"1", "2"}


def fill(run: RunFolder) -> None:
    for case in range(100):
        run.write_case(case, {"text": "x" * 20_000})


def test_a_full_file_system_keeps_what_is_finished(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system of its own: only root may mount one")
    try:
        on_a_full_disk(disk / "run")
    finally:
        gc.collect()  # the error's frames hold the run, and the run its lock
        subprocess.run(["umount", str(disk)], check=True)


def on_a_full_disk(folder: Path) -> None:
    run = start(folder)
    with pytest.raises(MechEditError, match="No space left"):
        fill(run)
    done = run.done()
    assert 3 < len(done) < 14
    assert start(folder).cases().keys() == done
    (folder / "cases" / "0.json").unlink()
    run.write_case(99, {"text": "room again"})


def test_a_read_only_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()

    def work() -> int:
        if os.getuid() == 0:
            os.setuid(65534)  # root writes everywhere
        try:
            start(folder)
        except MechEditError as error:
            sys.stderr.write(str(error))
            return 1
        return 0

    for above in (tmp_path, *list(tmp_path.parents)[:3]):  # one more where tests share a machine
        above.chmod(0o755)
    folder.chmod(0o555)
    (tmp_path / "said").touch()
    child = forked(work, errors=tmp_path / "said")
    assert ended(child) == 1
    assert "Permission denied" in (tmp_path / "said").read_text()
    assert whole(folder) == {}


# -- torn, old, shared -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [b"", b'{"half": ', b"\x00" * 40, b"[1]", b"\xff\xfe"])
def test_a_torn_case_is_said_and_done_again(
    tmp_path: Path, left: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    run = start(tmp_path)
    for case in (1, 2):
        run.write_case(case, {"case": case})
    file = tmp_path / "cases" / "1.json"
    file.write_bytes(left)
    assert (run.find_case(1), run.find_case(2), run.find_case(3)) == (None, {"case": 2}, None)
    assert "it is done again" in caplog.text
    assert str(file) in caplog.text
    assert file.read_bytes() == left, "it stays until the new one is whole"


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.write_case(1, {})
    before = tree(tmp_path)
    (tmp_path / "cases" / ".2.json.tmp").write_text("{")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / ".table.abc.tmp").mkdir()
    (tmp_path / "results" / ".table.abc.tmp" / "rows.parquet").write_text("half")
    (tmp_path / ".report.html.xyz.tmp").write_text("<")
    start(tmp_path)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("version", [1, 3, "two"])
def test_another_schema_version_is_refused_and_nothing_is_lost(tmp_path: Path, version: int | str) -> None:
    import json

    start(tmp_path).write_case(1, {"ok": 1})
    file = tmp_path / "provenance.json"
    old = json.loads(file.read_text())
    file.write_text(json.dumps(old | {"schema_version": version}))
    before = tree(tmp_path)
    with pytest.raises(IntegrityError, match=rf"schema version {version}, this project writes 2"):
        start(tmp_path)
    assert tree(tmp_path) == before


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def hold() -> int:
        run = start(folder)
        run.write_case(1, {})
        time.sleep(60)
        return len(run.done())

    child = forked(hold)
    until(folder / "cases" / "1.json", child)
    before = tree(folder)
    with pytest.raises(InputError, match=rf"process {child} is writing to the run"):
        start(folder)
    assert tree(folder) == before
    os.kill(child, signal.SIGKILL)
    ended(child)
    assert start(folder).done() == {"1"}, "a killed holder leaves no lock"


def test_the_lock_falls_with_the_last_user(tmp_path: Path) -> None:
    one, two = start(tmp_path), start(tmp_path)
    del one
    assert (tmp_path / ".lock").exists()
    del two
    assert not (tmp_path / ".lock").exists()
