"""The run folder: nothing half-written, nothing mixed, and a killed run ends in the same bytes."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest

from experiments.case_ids import check_case_id
from experiments.runs import RunFolder, provenance
from reports.errors import InputError, IntegrityError
from reports.results import Result

CONFIG: dict[str, Any] = {"editor": {"name": "mega", "window": (5, 7)}, "limit": 20, "alpha": 1.0}


def facts(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "model": {"name": "tiny", "hash": "aa"},
        "data": {"hash": "bb"},
        "seeds": {"all": 0},
        "device": "cpu",
        "dtype": "float32",
        "attn_implementation": "eager",
    }
    return provenance(**(given | changes))


def start(folder: Path, config: dict[str, Any] = CONFIG, **changes: Any) -> RunFolder:
    return RunFolder.open(folder, config, provenance=facts(**changes))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which is there while somebody writes."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock")
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@dataclass(frozen=True, repr=False, eq=False)
class Table(Result):
    kind: ClassVar[str] = "table"
    rows: pd.DataFrame


def table() -> Table:
    return Table(pd.DataFrame({"case_id": ["1", "2"], "value": [0.5, math.nan]}))


def test_a_run_is_written_resumed_and_finished(tmp_path: Path) -> None:
    run = start(tmp_path / "r")
    assert run.config["editor"] == {"name": "mega", "window": [5, 7]}
    assert tomllib.loads((run.path / "config.toml").read_text()) == run.config
    assert run.provenance["model"]["hash"] == "aa"
    assert (run.done(), run.cases(), run.finished) == (set(), {}, False)

    for case in (10, 9, "a-1"):
        run.write_case(case, {"case": case})
    again = start(tmp_path / "r")
    assert again.done() == {"10", "9", "a-1"}
    assert list(again.cases()) == ["9", "10", "a-1"]
    assert again.read_case(10) == {"case": 10}

    saved = again.write_result(table(), "table")
    assert Table.load(saved).equals(table())
    again.finish({"n": 3, "score": math.nan})
    assert again.finished
    assert start(tmp_path / "r").finished


def test_the_manifest_lists_every_file_with_its_size_and_hash(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.write_case(1, {"score": 0.5})
    run.write_result(table(), "table")
    (tmp_path / "cases" / ".2.json.tmp").write_text('{"sco')
    run.finish({"n": 1})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    listed = {entry["path"]: entry for entry in manifest["files"]}
    on_disk = tree(tmp_path)
    assert listed.keys() == on_disk.keys() - {"manifest.json", "cases/.2.json.tmp"}
    for name, entry in listed.items():
        assert entry["size"] == len(on_disk[name])
        assert entry["sha256"] == hashlib.sha256(on_disk[name]).hexdigest()
    assert manifest["summary"] == {"n": 1}


def test_writing_after_the_end_withdraws_the_manifest(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.finish({})
    run.write_case(1, {})
    assert not run.finished
    run.finish({})
    run.write_result(table(), "table")
    assert not run.finished


def test_the_bytes_depend_on_the_content_alone(tmp_path: Path) -> None:
    for name, order in (("a", (1, 2)), ("b", (2, 1))):
        run = start(tmp_path / name)
        for case in order:
            run.write_case(case, {"score": case / 3, "prompt": "Ångström 🗼"})
        run.write_result(table(), "table")
        run.write_result(table(), "table")
        run.finish({"n": 2})
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    run = start(tmp_path)
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, math.inf, -math.inf, math.nan]
    run.write_case(1, {"values": values})
    assert repr(run.read_case(1)["values"]) == repr(values)


@pytest.mark.parametrize(
    ("config", "key", "says"),
    [
        (CONFIG | {"limit": 21}, "'limit'", "is 20 there and 21 now"),
        (
            CONFIG | {"editor": {"name": "mega", "window": (5, 8)}},
            "'editor.window'",
            "[5, 7] there and [5, 8] now",
        ),
        (CONFIG | {"seed": 1}, "'seed'", "is absent there and 1 now"),
        ({key: CONFIG[key] for key in ("editor", "limit")}, "'alpha'", "is 1.0 there and absent now"),
        (CONFIG | {"limit": True}, "'limit'", "is 20 there and True now"),
        ({"alpha": 2.0, "limit": 9, "editor": CONFIG["editor"]}, "'limit'", "is 20 there and 9 now"),
    ],
)
def test_another_config_is_refused_by_its_first_key(
    tmp_path: Path, config: dict[str, Any], key: str, says: str
) -> None:
    start(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InputError) as caught:
        start(tmp_path, config)
    assert key in str(caught.value)
    assert says in str(caught.value)
    assert tree(tmp_path) == before


def test_a_nan_in_the_config_equals_itself(tmp_path: Path) -> None:
    start(tmp_path, {"clamp": math.nan})
    start(tmp_path, {"clamp": math.nan})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model": {"name": "tiny", "hash": "other"}}, "'model.hash'"),
        ({"data": {"hash": "other"}}, "'data.hash'"),
        ({"seeds": {"all": 1}}, "'seeds.all'"),
        ({"dtype": "bfloat16"}, "'dtype'"),
    ],
)
def test_another_model_or_data_under_the_same_config_is_refused(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    start(tmp_path)
    with pytest.raises(InputError, match=key):
        start(tmp_path, **change)


def test_other_versions_are_said_but_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start(tmp_path)
    start(tmp_path)
    assert not caplog.records
    file = tmp_path / "provenance.json"
    old = json.loads(file.read_text())
    old["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(old))
    start(tmp_path)
    assert "other package versions" in caplog.text


def test_a_foreign_place_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"found 'notes.txt' and no config.toml"):
        start(tmp_path)
    with pytest.raises(InputError, match="found the file"):
        start(tmp_path / "notes.txt")
    assert tree(tmp_path) == {"notes.txt": b"mine"}

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.toml").write_text("not [ toml")
    with pytest.raises(InputError, match="that is no TOML"):
        start(tmp_path / "other")


def test_a_folder_with_cases_but_no_config_is_foreign(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "1.json").write_text("{}")
    with pytest.raises(InputError, match="'cases'"):
        start(tmp_path)


@pytest.mark.parametrize("config", [{"a": None}, {"a": {1: 2}}, {"a": {"b": [object()]}}, "text"])
def test_a_config_that_toml_cannot_hold_writes_nothing(tmp_path: Path, config: Any) -> None:
    with pytest.raises(InputError, match="config"):
        start(tmp_path / "r", config)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("case_id", ["", "..", "../x", "a/b", ".hidden", "a b", "x\n", "ä", "x" * 129, -1])
def test_an_id_that_is_no_file_name_is_refused(tmp_path: Path, case_id: int | str) -> None:
    run = start(tmp_path)
    with pytest.raises(InputError, match="case_id"):
        run.write_case(case_id, {})
    with pytest.raises(InputError, match="case_id"):
        check_case_id(case_id)
    assert run.done() == set()


def test_an_object_that_json_cannot_hold_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.write_case(1, {"ok": 1})
    run.finish({})
    before = tree(tmp_path)
    with pytest.raises(InputError, match="case 1"):
        run.write_case(1, {"bad": object()})
    with pytest.raises(InputError, match="summary"):
        run.finish({"bad": b"bytes"})
    assert tree(tmp_path) == before


def test_a_missing_or_damaged_case_says_so(tmp_path: Path) -> None:
    run = start(tmp_path)
    with pytest.raises(InputError, match=r"no .*7\.json"):
        run.read_case(7)
    (tmp_path / "cases" / "7.json").write_text('{"half": ')
    with pytest.raises(IntegrityError, match="not readable as JSON"):
        run.read_case(7)
    (tmp_path / "cases" / "7.json").write_text("[1]")
    with pytest.raises(IntegrityError, match="expected a JSON object"):
        run.read_case(7)


@pytest.mark.parametrize(
    "left", [[], [".config.toml.tmp"], ["config.toml"], ["config.toml", ".provenance.json.tmp"]], ids=str
)
def test_a_start_that_was_killed_is_started_again(tmp_path: Path, left: list[str]) -> None:
    start(tmp_path / "whole")
    (tmp_path / "torn" / "cases").mkdir(parents=True)
    for name in left:
        whole = tmp_path / "whole" / name
        (tmp_path / "torn" / name).write_bytes(whole.read_bytes() if whole.exists() else b"to")
    start(tmp_path / "torn")
    torn = {name: data for name, data in tree(tmp_path / "torn").items() if not name.endswith(".tmp")}
    assert torn == tree(tmp_path / "whole")


WORKER = """
import os, signal, sys
from experiments import runs
folder, die_at = sys.argv[1], int(sys.argv[2])
facts = dict(model={}, data={}, seeds={}, device="cpu", dtype="float32", attn_implementation="eager")
run = runs.RunFolder.open(folder, {"n": 8}, provenance=facts)
todo = [case for case in range(8) if str(case) not in run.done()]
sync = os.fsync
def killed(descriptor):
    if writing == die_at:
        os.ftruncate(descriptor, 100)
        os.kill(os.getpid(), signal.SIGKILL)
    sync(descriptor)
runs.os.fsync = killed
for writing in todo:
    run.write_case(writing, {"value": writing / 7, "text": "x" * 5000})
writing = None
run.finish({"n": 8})
"""


def work(folder: Path, die_at: int, root: Path) -> int:
    """Write eight cases in another process that is killed while it writes case `die_at`; its exit status."""
    command = [sys.executable, "-c", WORKER, str(folder), str(die_at)]
    return subprocess.run(command, cwd=root, check=False, timeout=60).returncode


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL: POSIX only")
def test_a_run_killed_while_writing_ends_in_the_same_bytes(tmp_path: Path, root: Path) -> None:
    assert work(tmp_path / "whole", -1, root) == 0
    folder = tmp_path / "killed"
    assert work(folder, 4, root) == -signal.SIGKILL
    killed = tree(folder)
    (torn,) = (data for name, data in killed.items() if name.startswith("cases/.4.json."))
    assert len(torn) == 100, "it did not die in the middle of a file"
    assert "manifest.json" not in killed
    finished = {name for name in killed if name.startswith("cases/") and not name.endswith(".tmp")}
    assert finished == {f"cases/{case}.json" for case in range(4)}
    assert work(folder, -1, root) == 0
    assert tree(folder) == tree(tmp_path / "whole")


def test_the_comparison_of_trees_can_fail(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        start(tmp_path / name).write_case(1, {"value": value})
    assert tree(tmp_path / "a") != tree(tmp_path / "b")


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True)


def test_provenance_names_commit_and_dirt_of_its_own_checkout_only(tmp_path: Path, root: Path) -> None:
    """A copy of the package inside a fresh repository: untracked, committed, changed."""
    for package in ("experiments", "reports"):
        (tmp_path / package).mkdir()
        for file in (root / package).glob("*.py"):
            (tmp_path / package / file.name).write_bytes(file.read_bytes())
    code = (
        "import json; from experiments.runs import provenance; "
        "facts = provenance(model={}, data={}, seeds={}, device='cpu', dtype='f', attn_implementation='e'); "
        "print(json.dumps(facts['git']))"
    )

    def ask() -> Any:
        command = [sys.executable, "-c", code]
        return json.loads(
            subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, text=True).stdout
        )

    git(tmp_path, "init")
    (tmp_path / "other.txt").write_text("x")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-m", "without the package")
    assert ask() is None
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-m", "with it")
    clean = ask()
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "other.txt").write_text("y")
    assert ask() == {"commit": clean["commit"], "dirty": True}


def test_provenance_holds_versions_and_no_time() -> None:
    first, second = facts(), facts()
    assert first == second
    assert first["versions"]["torch"].startswith("2.")
    assert first["seeds"] == {"all": 0}
