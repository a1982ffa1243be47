"""Indexes, comparisons and formats: what is listed, what is refused, and that hostile names stay names in each."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from experiments.runs import RunFolder
from mechedit.cli import main as mechedit_main
from reports import batch, compare, formats, overview
from reports.errors import InputError, IntegrityError
from reports.intervals import difference_interval, wilson
from reports.text import visible
from tests import reports_example as example
from tests.test_reports_page import Outline, addresses
from xlprobe.cli import main as xlprobe_main

BAD = "".join(example.HOSTILE)
NAMES = ("plain", "run10", "run2", 'x<script>"&\u202e🙂')
BROWSER = formats.chromium()


def write(
    folder: Path, *, acc: int, seed: int = 0, label: str = "MEGA", finish: bool = True, **more: Any
) -> Path:
    """A small finished run of one editor."""
    run = RunFolder.open(folder, {"seed": seed}, provenance={"seeds": {"all": seed}, "data": {"facts": "ab"}})
    editors = [
        {"name": "mega", "label": label, "acc": example.proportion(acc), "gen": example.proportion(20)}
    ]
    run.write_case(1, {"x": 1})
    run.write_json("summary", {"title": "A run", "model": "factworld", "n": 40, "editors": editors} | more)
    if finish:
        run.finish({})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four good runs, one of them hostile, and one of each way to be amiss."""
    root = tmp_path_factory.mktemp("batch") / "runs"
    for i, name in enumerate(NAMES[:3]):
        write(root / name, acc=38 - i, seed=i)
    write(root / NAMES[3], acc=1, label=BAD, title=BAD, model=BAD, notes=[BAD], not_done=[BAD])
    write(root / "broken", acc=1)
    (root / "broken" / "summary.json").write_text("{", encoding="utf-8")
    write(root / "going", acc=1, finish=False)
    write(root / "lost", acc=1)
    (root / "lost" / "cases" / "1.json").unlink()
    unfinished = RunFolder.open(root / "unfinished", {"seed": 9}, provenance={"seeds": {}})
    unfinished.write_case(1, {"x": 1})
    return root


@pytest.fixture(scope="module")
def made(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> batch.RunIndex:
    return batch.build([runs], tmp_path_factory.mktemp("out") / "all.html", progress=False)


def words(text: str) -> str:
    """What a reader sees, on one line."""
    outline = Outline(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    assert outline.faults == []
    return " ".join(" ".join(outline.words).split())


# -- the index -----------------------------------------------------------------------------------------------------


def test_every_run_is_listed_with_its_scores_or_its_reason(made: batch.RunIndex) -> None:
    text = words(made.index.read_text(encoding="utf-8"))
    low, high = (100 * edge for edge in wilson(38, 40))
    assert f"plain factworld MEGA 40 95.0 {low:.1f} – {high:.1f}" in text
    states = {entry.name: (entry.state, entry.page is not None) for entry in made.entries}
    assert {states[name] for name in NAMES} == {("complete", True)}
    assert states["broken"] == ("damaged", False)
    assert states["going"] == ("unfinished", True)
    assert states["lost"] == ("damaged", True)
    assert states["unfinished"] == ("unfinished", False)
    for reason in (
        "summary.json: not readable as JSON",
        "cases/1.json is missing",
        "no manifest.json; 1 cases are done",
    ):
        assert reason in text
    assert "8 runs" in text


def test_links_lead_to_pages_beside_the_index(made: batch.RunIndex) -> None:
    outline = Outline(made.index.read_text(encoding="utf-8"))
    links = {str(a["href"]) for tag, a in outline.tags if tag == "a" and not str(a["href"]).startswith("#")}
    pages = {entry.page for entry in made.entries if entry.page}
    assert {unquote(link) for link in links} == pages
    assert len(pages) == 6
    for page in pages:
        text = (made.index.parent / page).read_text(encoding="utf-8")
        assert addresses(text) == []
        assert len(text.encode()) < 3_000_000
    assert {file.name for file in made.index.parent.iterdir()} == {"all.html", "all-runs"}


def test_the_policy_of_the_index_lets_its_one_script_run_and_no_other(made: batch.RunIndex) -> None:
    text = made.index.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'" in text
    )
    assert not [name for _, a in Outline(text).tags for name in a if name.startswith("on")]


def test_the_same_runs_give_the_same_bytes(runs: Path, made: batch.RunIndex, tmp_path: Path) -> None:
    again = batch.build([runs], tmp_path / "all.html", progress=False)
    files = [made.index, *sorted((made.index.parent / "all-runs").iterdir())]
    others = [again.index, *sorted((tmp_path / "all-runs").iterdir())]
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in others]


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(runs: Path, made: batch.RunIndex, tmp_path: Path) -> None:
    again = batch.build([runs], tmp_path / "all.html", progress=False, workers=2)
    assert again.index.read_bytes() == made.index.read_bytes()


def test_runs_are_found_in_folders_and_patterns_by_name_once(runs: Path) -> None:
    found = [run.name for run in batch.find([runs])]
    assert found.index("run2") < found.index("run10")  # numbers by value
    assert [run.name for run in batch.find([runs / "run*"])] == ["run2", "run10"]
    assert batch.find([runs / "run10", runs])[0].name == "run10"
    assert len(batch.find([runs, runs / "plain", runs / ".." / "runs"])) == len(found)


@pytest.mark.parametrize("name", ["nothing", "no*"])
def test_a_name_without_runs_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=f"found no run at .*{re.escape(name)}"):
        batch.find([tmp_path / name])


def test_names_that_differ_only_in_case_get_pages_of_their_own() -> None:
    assert batch._slugs(["a/b", "A-b", "a b", "…"]) == ["a-b", "A-b-2", "a-b-3", "run"]


def test_overview_of_a_study_has_points_and_cosines(tmp_path: Path) -> None:
    cell = {
        "pair": "a-b",
        "objective": "tlm",
        "task": "pos",
        "delta_score": 0.05,
        "low": 0.01,
        "high": 0.09,
        "n": 7,
    }
    cell |= {"delta_retrieval": -0.2, "gradient_cosine": 0.125, "cosine_low": 0.1, "cosine_high": 0.2}
    pd.DataFrame([cell]).to_parquet(tmp_path / "cells.parquet")
    about = {"title": "t", "model": "m", "seeds": 2, "layer": 3, "claims": [], "advice": []}
    (tmp_path / "summary.json").write_text(json.dumps(about), encoding="utf-8")
    line = overview.read(tmp_path)
    ((label, scores),) = line.rows
    assert (line.kind, label) == ("transfer", "a-b, tlm, pos")
    shown = {name: overview.text(name, score) for name, score in scores.items()}
    assert [shown[k]["value"] for k in ("Change of score", "Change of retrieval", "Cosine")] == [
        "+5.0",
        "−20.0",
        "+0.125",
    ]
    assert shown["Change of score"]["interval"] == "+1.0 – +9.0"
    pd.DataFrame([{"pair": "a"}]).to_parquet(tmp_path / "cells.parquet")
    with pytest.raises(IntegrityError, match="objective"):
        overview.read(tmp_path)


# -- two runs side by side -----------------------------------------------------------------------------------------


def test_a_comparison_says_both_scores_and_their_difference(runs: Path, tmp_path: Path) -> None:
    text = words(
        compare.build(runs / "plain", runs / "run2", tmp_path / "c.html").read_text(encoding="utf-8")
    )
    first, second = ((k / 40, *wilson(k, 40)) for k in (38, 36))
    low, high = (f"{100 * edge:+.1f}".replace("-", "−") for edge in difference_interval(first, second))
    assert f"−5.0 {low} – {high}" in text
    assert "config: seed 0 2" in text
    assert "These runs edit the same facts" in text
    with pytest.raises(InputError, match="twice"):
        compare.render(runs / "plain", runs / ".." / "runs" / "plain")


def test_newcombes_published_interval() -> None:
    """56/70 against 48/80 [Newcombe 1998, table II, method 10]; Wald's rule gives another."""
    low, high = difference_interval((48 / 80, *wilson(48, 80)), (56 / 70, *wilson(56, 70)))
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)
    wald = 1.959964 * math.sqrt(0.6 * 0.4 / 80 + 0.8 * 0.2 / 70)
    assert round(0.2 - wald, 4) != 0.0524
    assert all(map(math.isnan, difference_interval((0.5, math.nan, math.nan), (0.5, 0.4, 0.6))))


def test_curves_of_two_runs_share_a_scale(tmp_path: Path) -> None:
    for name, factor in (("a", 1.0), ("b", 5.0)):
        write(tmp_path / name, acc=3)
        frame = example.contrast()
        frame[["score", "low", "high"]] *= factor
        frame.to_parquet(tmp_path / name / "contrast.parquet")
        example.heads().assign(score=lambda f, k=factor: k * f["score"]).to_parquet(
            tmp_path / name / "heads.parquet"
        )
    text = compare.render(tmp_path / "a", tmp_path / "b")
    ticks = [
        set(
            re.findall(
                r">([−\d.]+)</text>",
                re.findall(rf"<svg[^>]*{side}-heads0-title.*?</svg>", text, re.DOTALL)[0],
            )
        )
        for side in ("first", "second")
    ]
    assert "7.5" in ticks[0] & ticks[1]  # the colour bar of both reaches the larger one's scores
    assert Outline(text).faults == []
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_runs_of_two_kinds_or_unfinished_ones_are_not_compared(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no summary\.json"):
        compare.render(runs / "plain", runs / "unfinished")
    with pytest.raises(InputError, match="holds many"):
        compare.render(runs / "plain", runs)
    study = shutil.copytree(runs / "plain", tmp_path / "study")
    pd.DataFrame([{"pair": "a"}]).to_parquet(study / "cells.parquet")
    about = {"title": "t", "model": "m", "seeds": 2, "layer": 3, "claims": [], "advice": []}
    (study / "summary.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises((InputError, IntegrityError)):
        compare.render(runs / "plain", study)


# -- hostile strings -----------------------------------------------------------------------------------------------


def test_hostile_names_are_text_in_index_page_and_comparison(runs: Path, made: batch.RunIndex) -> None:
    entry = next(e for e in made.entries if e.name == NAMES[3])
    assert entry.page is not None
    texts = {
        "index": made.index.read_text(encoding="utf-8"),
        "page": (made.index.parent / entry.page).read_text(encoding="utf-8"),
        "compare": compare.render(runs / NAMES[3], runs / "plain"),
    }
    for where, text in texts.items():
        seen = re.sub(r"<script>\"use strict.*?</script>", "", text, count=1, flags=re.DOTALL)
        assert not [tag for tag, _ in Outline(seen).tags if tag == "script"], where
        assert not re.search("[\u202e\u200b]", text), where
        shown = "".join(Outline(seen).words)
        for token in example.HOSTILE:
            assert visible(token) in shown, (where, token)


class Rendered(HTMLParser):
    """Tags and text of rendered Markdown."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


def markdown(text: str) -> Rendered:
    """As a reader of Markdown that lets HTML through would show it."""
    return Rendered(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def test_hostile_names_are_text_in_markdown(runs: Path, tmp_path: Path) -> None:
    file = formats.save(overview.render(runs / NAMES[3]), tmp_path / "page.md")
    shown = markdown(file.read_text(encoding="utf-8"))
    assert not {"script", "style", "iframe"} & set(shown.tags)
    for token in example.HOSTILE:
        assert visible(token) in shown.words, token
    assert "script" in markdown("<script>alert(1)</script>").tags  # the oracle lets markup through


# -- formats -------------------------------------------------------------------------------------------------------


def test_markdown_has_what_the_page_has(tmp_path: Path) -> None:
    run = example.write_run(tmp_path / "run")
    file = formats.save(overview.render(run), tmp_path / "demo.md")
    text = file.read_text(encoding="utf-8")
    shown = markdown(text)
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", overview.render(run))
    assert re.findall(r"^## (.*)$", text, re.M) == headings
    assert shown.tags.count("table") == 6  # scores, claims, layers, neurons, heat of tokens, provenance
    assert "97.5 [87.1 – 99.6] n 40" in shown.words
    pictures = re.findall(r"\]\((demo-files/[\w-]+\.svg)\)", text)
    assert len(pictures) == shown.tags.count("img") == len(list((tmp_path / "demo-files").iterdir())) == 5
    for name in pictures:
        svg = (tmp_path / name).read_text(encoding="utf-8")
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(--" not in svg
    assert (
        formats.save(overview.render(run), tmp_path / "again" / "demo.md").read_text(encoding="utf-8") == text
    )


def test_pdf_without_chromium_is_refused_before_anything_is_written(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="headless Chromium, found none"):
        batch.build([runs], tmp_path / "out" / "x.pdf", format="pdf", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_pdf_is_the_same_twice(runs: Path, tmp_path: Path) -> None:
    page = overview.render(runs / "plain")
    first, second = (formats.save(page, tmp_path / name).read_bytes() for name in ("a.pdf", "b.pdf"))
    assert first.startswith(b"%PDF-")
    assert first == second


def printed(*ids: int, text: bytes = b"") -> bytes:
    """What Chromium writes of tags: objects 10, 11, ... of these ids, a cell that names its header, the tree by id."""
    objects = b"".join(b"%d 0 obj\n/ID (node%08d)\nendobj\n" % (10 + i, one) for i, one in enumerate(ids))
    entries = sorted((b"(node%08d)" % one, b"%d 0 R" % (10 + i)) for i, one in enumerate(ids))
    tree = b" ".join(b" ".join(entry) for entry in entries)
    ends = b"%s %s" % (entries[0][0], entries[-1][0])
    return objects + text + b"<</Headers [(node%08d)]>>\n<</Limits [%s]\n/Names [%s]>>" % (ids[0], ends, tree)


def test_tags_of_a_pdf_are_counted_in_the_order_of_its_objects() -> None:
    same = {formats._renumbered(printed(*ids)) for ids in ((4, 5, 58), (54, 55, 58), (54, 7, 6))}
    assert same == {printed(1, 2, 3)}
    assert formats._renumbered(printed(4, 5, 58, text=b"x")) not in same
    for untouched in (b"%PDF-", printed(4, 5) + printed(6, 7), printed(4, 4)):
        assert formats._renumbered(untouched) == untouched


# -- the commands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("main", [mechedit_main, xlprobe_main], ids=["mechedit", "xlprobe"])
def test_the_commands_make_an_index(
    main: Any, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "report",
        str(runs / "plain"),
        str(runs / "unfinished"),
        "-o",
        str(tmp_path / "i.html"),
        "--quiet",
    ]
    assert main([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert Path(said["report"]) == tmp_path / "i.html"
    assert [run["state"] for run in said["runs"]] == ["complete", "unfinished"]
    assert main(argv) == 0
    assert "unfinished: no manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["plain", "-o", "x.docx"], "x.docx"),
        (["plain", "-o", "x.md", "--format", "html"], "x.md"),
        (["plain", "--compare"], "two runs"),
        (["nowhere"], "nowhere"),
    ],
)
def test_wrong_use_is_one_line(
    runs: Path, argv: list[str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mechedit_main(["report", str(runs / argv[0]), *argv[1:]]) == 2
    assert match in capsys.readouterr().err
