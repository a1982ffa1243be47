"""Every parser against files that went wrong: it reads one, or refuses it as any bad input, and writes nothing.

Files are sound ones with some accidents: bytes flipped or cut out, lines dropped, doubled or joined, JSON values of
other types, huge numbers, deep nesting, bytes that are no UTF-8. The ordinary suite tries `FEW` of each parser, always
the same; `pytest -m fuzz --fuzz-seconds 60` goes on for that long with each, and prints how many it has tried.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import mechedit as me
from experiments import recipe
from experiments.recipe import Experiment, Plan
from experiments.runs import RunFolder
from mechedit.cli.pairs import read_pairs
from mechedit.paraphrases import load_paraphrases
from reports import graph
from reports.errors import MechEditError
from tests import reports_example as example
from tests.test_facts import FLAT, ORIGINAL
from xlprobe.corpora import load_bitext, load_conllu, load_links, load_sib200

FEW = 60  # examples of each parser in the ordinary suite

CONLLU = """# sent_id = a1
1-2\tdel\t_\t_\t_\t_\t_\t_\t_\t_
1\tde\tde\tADP\tE\t_\t2\tcase\t_\t_
2\tel\tel\tDET\tD\t_\t0\troot\t_\t_
2.1\tx\tx\tX\t_\t_\t_\t_\t_\t_

# sent_id = a2
1\tHola\thola\tINTJ\tI\t_\t0\troot\t_\t_

"""
RECIPE = """experiment = "small"
limit = 3
names = ["a", "b"]
[matrix]
seed = [0, 1]
"""


@dataclass(frozen=True)
class Small:
    limit: int = 1
    seed: int = 0
    names: tuple[str, ...] = field(default=())


def read_recipe(path: Path) -> object:
    known = {"small": Experiment("small", Small, lambda config: Plan((), 0), lambda config, out, shown: {})}
    return recipe.read(path, known)


def read_case(path: Path) -> object:
    return RunFolder(path.parent.parent, {}).read_case(path.stem)


@dataclass(frozen=True)
class Parser:
    """A file's name, its sound content, and what reads it."""

    file: str
    sound: str
    read: Callable[[Path], object]


PARSERS = {
    "CoNLL-U": Parser("a.conllu", CONLLU, load_conllu),
    "SIB-200": Parser(
        "a.tsv", "index_id\tcategory\ttext\n1\ttravel\tA dog .\n2\tsports\tA bird .\n", load_sib200
    ),
    "bitext, TSV": Parser("a.tsv", "A dog .\tEin Hund .\nA bird .\tEin Vogel .\n", load_bitext),
    "Pharaoh links": Parser("a.links", "0-0 1-2 2-1\n\n0-0\n", load_links),
    "CounterFact": Parser("a.json", json.dumps([ORIGINAL]), me.load_facts),
    "EasyEdit": Parser("a.json", json.dumps([FLAT]), me.load_facts),
    "paraphrases": Parser(
        "a.json", json.dumps({"The mother tongue of {} is": ["{} speaks"]}), load_paraphrases
    ),
    "pairs": Parser(
        "a.json", json.dumps([{"prompt": "A", "target": "B"}]), lambda path: read_pairs(str(path))
    ),
    "recipe": Parser("a.toml", RECIPE, read_recipe),
    "circuit": Parser("a.json", json.dumps(example.circuit(3)), graph.read),
    "case of a run": Parser(
        "cases/a.json", json.dumps({"a": {"$float": "nan"}, "b": [1, 2.5, None]}), read_case
    ),
}


@st.composite
def accidents(draw: st.DrawFn, sound: str) -> bytes:
    """The sound content after one to four accidents."""
    data = sound.encode()
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("flip", "cut", "insert", "line", "value", "nest", "end")))
        at = draw(st.integers(0, max(0, len(data) - 1)))
        if kind == "flip" and data:
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + draw(st.integers(0, 40)) :]
        elif kind == "insert":
            data = data[:at] + draw(st.sampled_from(INSERTED)) + data[at:]
        elif kind == "line":
            lines = data.split(b"\n")
            i = draw(st.integers(0, len(lines) - 1))
            lines[i : i + 1] = draw(
                st.sampled_from(([], [lines[i]] * 2, [lines[i], b""], [b"\t".join(lines[i : i + 2])]))
            )
            data = b"\n".join(lines)
        elif kind == "value":
            old = draw(st.sampled_from((b'"', b"1", b"[", b"{", b":", b",", b"\t", b"-", b"_")))
            data = data.replace(old, draw(st.sampled_from(VALUES)), draw(st.integers(1, 3)))
        elif kind == "nest":
            data = data[:at] + b"[" * draw(st.sampled_from((2, 50, 5_000))) + data[at:]
        else:
            data = data[:at]
    return data


INSERTED = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\xed\xa0\x80",
    b"\t" * 9,
    b"x" * 10_000,
    b"\\ud800",
    b"<script>",
)
VALUES = (b"null", b"1e999", b"NaN", b"-0", b"9" * 5000, b"[]", b"{}", b'""', b"true", b"\\u0000", b"")


def check(parser: Parser, folder: Path, data: bytes) -> None:
    """Reads, or refuses as the project refuses; the folder stays as it is."""
    file = folder / parser.file
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    before = sorted(folder.rglob("*"))
    with contextlib.suppress(MechEditError):  # any other error is a fault of the parser
        parser.read(file)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", PARSERS)
def test_the_sound_file_is_read(name: str, tmp_path: Path) -> None:
    parser = PARSERS[name]
    file = tmp_path / parser.file
    file.parent.mkdir(exist_ok=True)
    file.write_text(parser.sound, encoding="utf-8")
    parser.read(file)


@pytest.mark.parametrize("name", PARSERS)
def test_a_file_that_went_wrong_is_read_or_refused(name: str, tmp_path: Path) -> None:
    parser = PARSERS[name]

    @settings(max_examples=FEW)
    @given(accidents(parser.sound))
    def tries(data: bytes) -> None:
        check(parser, tmp_path, data)

    tries()


@pytest.mark.fuzz
@pytest.mark.parametrize("name", PARSERS)
def test_for_as_long_as_is_asked(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: Any
) -> None:
    parser, tried, until = PARSERS[name], 0, time.monotonic() + request.config.getoption("--fuzz-seconds")

    def tries(data: bytes) -> None:
        nonlocal tried
        tried += 1
        check(parser, tmp_path, data)

    chance = 0
    while time.monotonic() < until:
        chance += 1
        bound = settings(max_examples=200, derandomize=False, database=None)(
            given(accidents(parser.sound))(tries)
        )
        seed(chance)(bound)()
    with capsys.disabled():
        print(f"\n{name}: {tried} inputs, 0 failures")  # noqa: T201 (the count is what was asked for)


def test_the_check_can_fail(tmp_path: Path) -> None:
    def careless(path: Path) -> object:
        return json.loads(path.read_bytes())

    def untidy(path: Path) -> None:
        (path.parent / "left").write_text("x", encoding="utf-8")

    with pytest.raises(ValueError, match="Expecting"):
        check(Parser("a.json", "[]", careless), tmp_path, b"[")
    with pytest.raises(AssertionError):
        check(Parser("a.json", "[]", untidy), tmp_path, b"[]")
