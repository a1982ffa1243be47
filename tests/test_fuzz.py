"""Every parser against files that went wrong: it reads one, or refuses it as any bad input, and writes nothing.

What must hold, and the parsers with their sound inputs: `tests/fuzzing.py`. The ordinary suite tries `FEW` accidents of
each parser, always the same, and every input of `tests/corpus`, which are those that have failed once.
`pytest -m fuzz --fuzz-seconds 60` goes on for that long with each parser, half of it guided by coverage where `atheris`
is installed (the extra `fuzz`), prints how many inputs it has tried, and puts what fails into the corpus.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, seed, settings

from reports.errors import LONGEST, InputError, MechEditError
from tests import fuzzing
from tests.fuzzing import PARSERS, Input, Parser, TooSlow, accidents, check, keep, kept, read_kept

FEW = 25  # accidents of each parser in the ordinary suite
ROOT = Path(__file__).resolve().parent.parent
GUIDED = importlib.util.find_spec("atheris") is not None


@pytest.mark.parametrize("name", PARSERS)
def test_the_sound_files_are_read(name: str, tmp_path: Path) -> None:
    parser = PARSERS[name]
    check(parser, tmp_path)
    parser.read(tmp_path)


@pytest.mark.parametrize("name", PARSERS)
def test_a_file_that_went_wrong_is_read_or_refused(name: str, tmp_path: Path) -> None:
    parser = PARSERS[name]

    @settings(max_examples=FEW)
    @given(accidents(parser))
    def tries(given: Input) -> None:
        check(parser, tmp_path, given)

    tries()


@pytest.mark.parametrize(("name", "file"), kept(), ids=lambda x: x.name if isinstance(x, Path) else x)
def test_what_failed_once_does_not_again(name: str, file: Path, tmp_path: Path) -> None:
    check(PARSERS[name], tmp_path, read_kept(file))


# -- as long as is asked -------------------------------------------------------------------------------------------

COUNTS: dict[str, int] = {}


@pytest.fixture(scope="module")
def total(request: pytest.FixtureRequest) -> Iterator[None]:
    """The last line: all inputs of all parsers."""
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        failed = request.session.testsfailed
        sys.stdout.write(
            f"\ntotal: {sum(COUNTS.values())} inputs of {len(COUNTS)} parsers, {failed} failures\n"
        )


@pytest.mark.fuzz
@pytest.mark.parametrize("name", PARSERS)
def test_for_as_long_as_is_asked(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: Any, total: None
) -> None:
    seconds = float(request.config.getoption("--fuzz-seconds"))
    drawn = _drawn(name, tmp_path, seconds / 2 if GUIDED else seconds)
    guided = _guided(name, seconds / 2) if GUIDED else 0
    COUNTS[name] = drawn + guided
    how = f"{drawn} drawn, {guided} guided by coverage" if GUIDED else f"{drawn} drawn; no atheris here"
    with capsys.disabled():
        sys.stdout.write(f"\n{name}: {drawn + guided} inputs, 0 failures ({how})\n")


def _drawn(name: str, folder: Path, seconds: float) -> int:
    """hypothesis: how many inputs; one that fails is made small and kept."""
    parser, tried, until, last = PARSERS[name], 0, time.monotonic() + seconds, list[Input]()

    def tries(given: Input) -> None:
        nonlocal tried
        tried += 1
        try:
            check(parser, folder, given)
        except BaseException:
            last[:] = [given]
            raise

    chance = int.from_bytes(os.urandom(4), "little")
    try:
        while time.monotonic() < until:
            chance += 1
            options = settings(max_examples=200, derandomize=False, database=None)
            seed(chance)(options(given(accidents(parser))(tries)))()
    except BaseException:
        if last:
            keep(name, last[0])
        raise
    return tried


def _guided(name: str, seconds: float) -> int:
    """atheris: how many inputs; one that fails is kept. What is interesting stays in runs/fuzz for the next time."""
    out = ROOT / "runs" / "fuzz" / name
    command = [sys.executable, "-m", "tests.fuzz_coverage", name, str(max(1, int(seconds))), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    for crash in [*out.glob("crash-*"), *out.glob("timeout-*"), *out.glob("oom-*")]:
        keep(name, unpack(PARSERS[name], crash.read_bytes()))
        crash.unlink()
    assert done.returncode == 0, "\n".join((done.stdout + done.stderr).splitlines()[-60:])
    (count,) = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    return int(count)


def pack(parser: Parser, given: Input) -> bytes:
    """An input as the bytes that the fuzzer changes: the number of the file, then what it holds."""
    return bytes([sorted(parser.files).index(given[0])]) + given[1]


def unpack(parser: Parser, data: bytes) -> Input:
    """The inverse, for any bytes."""
    names = sorted(parser.files)
    return names[data[0] % len(names)] if data else names[0], data[1:]


# -- the check itself ----------------------------------------------------------------------------------------------


class Unbounded(MechEditError):
    """An error that does not bound its text, as the project's do by their base class."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text


def refuse(text: str, kind: type[MechEditError]) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        raise kind(text)

    return read


def spin(folder: Path) -> object:
    while True:
        pass


FAULTS: dict[str, tuple[Callable[[Path], object], type[BaseException]]] = {
    "another error": (lambda folder: json.loads((folder / "a").read_bytes() + b"["), ValueError),
    "a file left": (lambda folder: (folder / "left").write_text("x"), AssertionError),
    "a file changed": (lambda folder: (folder / "a").write_text("x"), AssertionError),
    "half a character": (lambda folder: [{"a": ("\ud800",)}], UnicodeEncodeError),
    "too slow": (spin, TooSlow),
    "too large": (lambda folder: bytearray(2 * fuzzing.MEMORY), MemoryError),
    "two lines": (refuse("two\nlines", Unbounded), AssertionError),
    "a long line": (refuse("x" * (LONGEST + 1), Unbounded), AssertionError),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_check_sees_a_parser_with_this_fault(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzzing, "SECONDS", 0.2)
    read, error = FAULTS[name]
    with pytest.raises(error):
        check(Parser({"a": b"[]"}, read), tmp_path)


@pytest.mark.parametrize("text", ["two\nlines", "x" * (LONGEST + 1), "half a pair: \ud800"])
def test_the_projects_own_errors_are_one_line_whatever_is_in_them(text: str, tmp_path: Path) -> None:
    check(Parser({"a": b""}, refuse(text, InputError)), tmp_path)


@pytest.mark.parametrize("name", PARSERS)
def test_what_the_coverage_guided_fuzzer_changes_is_the_input(name: str) -> None:
    parser = PARSERS[name]
    assert [unpack(parser, pack(parser, own)) for own in parser.files.items()] == list(parser.files.items())
