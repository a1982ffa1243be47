"""Every parser of the project with a sound input of its own, accidents for it, and what must hold of any other input.

A parser reads a folder. It gives an object whose every text is Unicode, or refuses in one line of bounded length
(`MechEditError`); it raises nothing else, writes nothing, takes at most `SECONDS` of processor time and `MEMORY` bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import resource
import signal
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pandas as pd
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from experiments import again, config, recipe
from experiments.gguf_header import read_header
from experiments.recipe import Experiment, Plan
from experiments.runs import RunFolder
from experiments.weight_files import weight_elements, weight_files
from mechedit.cli.fact import chosen_fact
from mechedit.cli.pairs import read_pairs
from mechedit.data.facts import FactEdit, load_facts
from mechedit.editors import EditBook, WeightChange
from mechedit.editors.steering.gates import HiddenGate, Whitening
from mechedit.editors.steering.paraphrases import load_paraphrases
from mechedit.editors.steering.steering_edit import SteeringEdit
from mechedit.editors.steering.transport import AffineMap
from mechedit.editors.weights.weight_edit import LowRank
from mechedit.recipes.evaluate import _references
from reports import graph, overview, viewer
from reports.diagnosis import Check, Diagnosis
from reports.errors import LONGEST, MechEditError
from tests import reports_example as example
from tests.gguf_files import hf_model, write
from tests.test_facts import FLAT, ORIGINAL
from tests.test_schemas import ZSRE, ripple_row
from xlprobe.cli.options import read_lines, read_parallel
from xlprobe.data.corpora import load_bitext, load_conllu, load_links, load_sib200

CORPUS = Path(__file__).parent / "corpus"
SECONDS, MEMORY = 5.0, 2**31
PAGES = Path("/proc/self/statm")

Input = tuple[str, bytes]  # the file of the parser's folder that is another, and what it holds


@dataclasses.dataclass(frozen=True)
class Parser:
    """Sound files by name, what reads their folder, and what has to be made right again behind a change of one."""

    files: dict[str, bytes]
    read: Callable[[Path], object]
    mend: Callable[[Path], None] = lambda folder: None


# -- what must hold ------------------------------------------------------------------------------------------------


class TooSlow(BaseException):
    """Past every `except Exception`."""


def check(parser: Parser, folder: Path, given: Input | None = None) -> None:
    """Reads or refuses as the project does; the folder, which may be used again, stays as it is."""
    for name, sound in parser.files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(given[1] if given and given[0] == name else sound)
    parser.mend(folder)
    before = held(folder)
    try:
        with bounded():
            found = parser.read(folder)
        for text in texts(found):
            text.encode()
    except MechEditError as error:
        said = str(error)
        assert len(said.splitlines()) <= 1, f"a refusal of several lines: {said!r}"
        assert len(said) <= LONGEST, f"a refusal of {len(said)} characters: {said[:200]!r}"
        said.encode()
    assert held(folder) == before, "the parser has written"


@contextmanager
def bounded() -> Iterator[None]:
    """The limits on processor time and memory, for the length of the block."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {SECONDS} s")

    old = signal.signal(signal.SIGPROF, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if PAGES.exists():
        now = int(PAGES.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def held(folder: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def texts(value: object) -> Iterator[str]:
    """Every text in plain data and dataclasses."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(key)
            yield from texts(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from texts(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from texts(getattr(value, field.name))


# -- accidents -----------------------------------------------------------------------------------------------------

NESTED = (b"[", b"{", b'{"a":', b"(", b"[[", b"a=[", b"a.")
INSERTED = (
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\t" * 9),
    *(b"x" * 10_000, b"\\ud800", b"<script>", b"../", b"\xd9\xa1", b"\xc2\xb2"),
)
VALUES = (
    *(b"null", b"1e999", b"NaN", b"-Infinity", b"-0", b"-1", b"9" * 5000, b"9" * 400, b"1e308", b"0.5"),
    *(b"[]", b"{}", b'""', b"true", b'"\\u0000"', b'"\\ud800"', b"", b'"/etc/passwd"', b'{"$float": "x"}'),
    *(b'{"$float": []}', b'{"$float": "nan"}', b"1979-05-27T07:32:00Z", b"'", b'"' + b"a" * 300 + b'"'),
)
TOKENS = re.compile(rb'"(?:[^"\\\n]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null|\w+|[^\w\s]|\t|\n')


@st.composite
def accidents(draw: st.DrawFn, parser: Parser) -> Input:
    """One file of the parser's after one to four accidents."""
    name = draw(st.sampled_from(sorted(parser.files)))
    data = parser.files[name]
    for _ in range(draw(st.integers(1, 4))):
        data = draw(st.sampled_from((_bytes, _line, _token, _token, _nest)))(draw, data)
    return name, data


def _bytes(draw: st.DrawFn, data: bytes) -> bytes:
    at = draw(st.integers(0, len(data)))
    kind = draw(st.sampled_from(("flip", "cut", "insert", "end")))
    if kind == "flip":
        return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    if kind == "cut":
        return data[:at] + data[at + draw(st.integers(0, 40)) :]
    return data[:at] if kind == "end" else data[:at] + draw(st.sampled_from(INSERTED)) + data[at:]


def _line(draw: st.DrawFn, data: bytes) -> bytes:
    lines = data.split(b"\n")
    i = draw(st.integers(0, len(lines) - 1))
    ways: tuple[list[bytes], ...] = (
        [],
        [lines[i]] * 2,
        [lines[i], b""],
        [b"\t".join(lines[i : i + 2])],
        [lines[i] * 50],
        lines[::-1],
    )
    lines[i : i + 1] = draw(st.sampled_from(ways))
    return b"\n".join(lines)


def _token(draw: st.DrawFn, data: bytes) -> bytes:
    """A value, key, cell or sign is another, or missing, or stands there twice."""
    found = list(TOKENS.finditer(data))
    if not found:
        return data
    one = found[draw(st.integers(0, len(found) - 1))]
    other = found[draw(st.integers(0, len(found) - 1))]
    new = draw(st.sampled_from((*VALUES, other[0], one[0] * 2)))
    return data[: one.start()] + new + data[one.end() :]


def _nest(draw: st.DrawFn, data: bytes) -> bytes:
    at = draw(st.integers(0, len(data)))
    return (
        data[:at]
        + draw(st.sampled_from(NESTED)) * draw(st.sampled_from((2, 50, 500, 900, 5_000)))
        + data[at:]
    )


# -- sound inputs --------------------------------------------------------------------------------------------------

CONLLU = """# sent_id = a1
1-2\tdel\t_\t_\t_\t_\t_\t_\t_\t_
1\tde\tde\tADP\tE\t_\t2\tcase\t_\t_
2\tel\tel\tDET\tD\t_\t0\troot\t_\t_
2.1\tx\tx\tX\t_\t_\t_\t_\t_\t_

# sent_id = a2
1\tHola\thola\tINTJ\tI\t_\t0\troot\t_\t_

"""
BUILT = {"subject": "Ann", "prompt": "{} speaks", "target_true": "Dutch", "target_new": "Greek"}
RECIPE = """experiment = "small"
limit = 3
names = ["a", "b"]
inner = { rate = 0.5, window = [4, 7] }
[matrix]
seed = [0, 1]
"""
SUMMARY = {
    "title": "A run",
    "model": "factworld",
    "n": 40,
    "editors": [{"name": "mega", "label": "MEGA", "acc": example.proportion(38)}],
    "notes": ["a note"],
}


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    window: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True)
class Small:
    limit: int = 1
    seed: int = 0
    names: tuple[str, ...] = ()
    inner: Inner = Inner()
    model: str | None = None


KNOWN = {"small": Experiment("small", Small, lambda config: Plan((), 0), lambda config, out, shown: {})}
MODEL: Any = SimpleNamespace(hash="ab" * 32, name="tiny", device=torch.device("cpu"))


def saved(write: Callable[[Path], object]) -> dict[str, bytes]:
    """The files that `write` leaves in a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "saved"
        write(folder)
        found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".")}


def _diagnosis(folder: Path) -> None:
    checks = [
        Check("padding", 1e-6, 1e-4, "of it", "change"),
        Check("mask", float("nan"), 1.0, "of it", "change"),
    ]
    about = {"subject": "tiny", "dtype": "float32", "device": "cpu", "attention": "eager"}
    Diagnosis.of(checks, notes=("one", "two"), provenance={"seeds": {"all": 0}}, **about).save(folder)


def _book(folder: Path) -> None:
    fact = FactEdit("Ann", "{} speaks", "Dutch", "Greek", case_id=3)
    made = AffineMap(torch.zeros(4), torch.eye(4)[:, :2], torch.eye(2), torch.ones(2))
    white = Whitening(torch.eye(4)[:, :1], torch.ones(1), 2.0)
    gate = HiddenGate(1, torch.zeros(2, 4), 0.5, "mahalanobis", "last", white)
    other = dataclasses.replace(fact, case_id=4)
    edits = {"3": SteeringEdit(fact, {1: made}, gate, 0.5), "4": SteeringEdit(other, {2: made})}
    EditBook(edits, MODEL.hash).save(folder)


def _change(folder: Path) -> None:
    fact = FactEdit("Ann", "{} speaks", "Dutch", "Greek", case_id=3)
    parts = {"h.0.weight": (LowRank(torch.ones(4, 1), torch.ones(1, 4)),)}
    WeightChange("rome", (fact,), MODEL.hash, parts).save(folder)


def _run(folder: Path) -> None:
    facts = {"model": {"hash": "ab"}, "data": {}, "seeds": {"all": 0}, "dtype": "float32"}
    run = RunFolder.open(folder, {"experiment": "small", "limit": 2}, provenance=facts)
    run.write_case(1, {"score": float("nan"), "nested": [1, 2.5, None, {"a": "b"}]})
    run.write_json("summary", SUMMARY)
    run.finish({"n": 1})


def _read_run(folder: Path) -> object:
    run = RunFolder(folder, {})
    found = [
        overview.state(folder),
        run.cases(),
        run.provenance,
        recipe.read(folder / "config.toml", KNOWN),
    ]
    return [*found, overview.read(folder), again.compare_runs(folder, folder)]


def _weights(folder: Path) -> None:
    folder.mkdir()
    save_file({"w": torch.ones(2, 2)}, folder / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": {"w": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _seal(folder: Path) -> None:
    """The frame's sha256 as it is now, so that what is read is the damaged frame."""
    try:
        record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        record["frames"]["checks"]["sha256"] = hashlib.sha256(
            (folder / "checks.parquet").read_bytes()
        ).hexdigest()
        (folder / "result.json").write_text(json.dumps(record), encoding="utf-8")
    except (ValueError, KeyError, TypeError, RecursionError):
        return


def _parquet() -> bytes:
    stream = io.BytesIO()
    pd.DataFrame([FLAT, FLAT | {"case_id": 2}]).to_parquet(stream)
    return stream.getvalue()


def _gguf() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "a.gguf", hf_model("llama"))
        return (Path(folder) / "a.gguf").read_bytes()


def _said(folder: Path) -> object:
    """KEY=VALUE as the operating system hands it over: bytes that are no UTF-8 arrive as lone surrogates."""
    text = (folder / "said").read_bytes().decode("utf-8", "surrogateescape")
    return recipe.read(folder / "a.toml", KNOWN, settings=text.split("\n"))


def _in_words(path: Path) -> object:
    """--fact, in which a `{` says that the fact is given in words."""
    text = path.read_bytes().decode("utf-8", "surrogateescape").lstrip()
    return chosen_fact(Namespace(fact="{" + text[1:], case=None, seed=0, space=None))


def _parallel(folder: Path) -> object:
    return read_parallel(Namespace(source=folder / "a", target=folder / "b", links=folder / "l"))


def _text(name: str, text: str, read: Callable[[Path], object]) -> Parser:
    return Parser({name: text.encode()}, lambda folder: read(folder / name))


def _json(value: object, read: Callable[[Path], object]) -> Parser:
    return _text("a.json", json.dumps(value, indent=1), read)


BITEXT = {"a": b"A dog .\nA bird .\n", "b": b"Ein Hund .\nEin Vogel .\n", "l": b"0-0 1-1\n0-0 2-2\n"}
TOPICS = "index_id\tcategory\ttext\n1\ttravel\tA dog .\n2\tsports\tA bird .\n"
SETTINGS = {"a.toml": RECIPE.encode(), "said": b'limit=4\nnames=["x"]\ninner.rate=2'}
RESULT = saved(_diagnosis)

PARSERS: dict[str, Parser] = {
    "conllu": _text("a.conllu", CONLLU, load_conllu),
    "sib200": _text("a.tsv", TOPICS, load_sib200),
    "bitext-tsv": _text("a.tsv", "A dog .\tEin Hund .\nA bird .\tEin Vogel .\n", load_bitext),
    "bitext-files": Parser(BITEXT, lambda f: load_bitext(f / "a", f / "b", links=f / "l")),
    "links": _text("a.links", "0-0 1-2 2-1\n\n0-0\n", load_links),
    "lines": _text("a.txt", "A dog .\nA bird .\n", lambda path: read_lines(str(path), argument="text")),
    "parallel": Parser(BITEXT, _parallel),
    "counterfact": _json([ORIGINAL], load_facts),
    "easyedit": _json([FLAT], load_facts),
    "zsre": _json([ZSRE], load_facts),
    "ripple": _json([ripple_row()], load_facts),
    "facts-jsonl": _text("a.jsonl", f"{json.dumps(ORIGINAL)}\n{json.dumps(ORIGINAL)}\n", load_facts),
    "facts-parquet": Parser({"a.parquet": _parquet()}, lambda folder: load_facts(folder / "a.parquet")),
    "fact-in-words": _json(BUILT, _in_words),
    "paraphrases": _json({"The mother tongue of {} is": ["{} speaks"]}, load_paraphrases),
    "references": _json({"English": ["A text ."]}, lambda path: _references(_asking(path))),
    "pairs-json": _json([{"prompt": "A", "target": "B"}], lambda path: read_pairs(str(path))),
    "pairs-csv": _text("a.csv", 'prompt,target\n"A, b",B\n', lambda path: read_pairs(str(path))),
    "recipe": _text("a.toml", RECIPE, lambda path: recipe.read(path, KNOWN)),
    "overrides": Parser(SETTINGS, _said),
    "config": _text("a.toml", config.dump(Small(names=("a",), model="m")), lambda p: config.load(p, Small)),
    "run": Parser(saved(_run), _read_run),
    "result": Parser(RESULT, Diagnosis.load),
    "result-frame": Parser(RESULT, Diagnosis.load, _seal),
    "edit-book": Parser(saved(_book), EditBook.load),
    "weight-change": Parser(saved(_change), lambda folder: WeightChange.load(folder, MODEL)),
    "circuit": _json(example.circuit(3), graph.read),
    "viewer-list": _json({"graphs": [{"slug": "a", "scan": "tiny"}]}, viewer._listed),
    "gguf": Parser({"a.gguf": _gguf()}, lambda folder: read_header(folder / "a.gguf")),
    "checkpoint": Parser(saved(_weights), lambda f: weight_elements(weight_files(f))),
}


def _asking(path: Path) -> Any:
    return SimpleNamespace(references=path)


# -- inputs that are kept ------------------------------------------------------------------------------------------


def kept() -> list[tuple[str, Path]]:
    """(parser, file) of every input under `tests/corpus`: names are `<hash>-<file of the parser's folder>`."""
    return [(name, file) for name in PARSERS for file in sorted((CORPUS / name).glob("*-*"))]


def read_kept(file: Path) -> Input:
    """The input that a file of the corpus holds."""
    return file.name.split("-", 1)[1].replace("__", "/"), file.read_bytes()


def keep(name: str, given: Input) -> Path:
    """Writes an input into the corpus of its parser."""
    file, data = given
    target = CORPUS / name / f"{hashlib.sha256(data).hexdigest()[:12]}-{file.replace('/', '__')}"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return target
