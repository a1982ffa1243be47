"""The page: complete, safe, the same each time, honest about what is missing, and rendered in a real browser."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from reports import html
from reports.errors import InputError, IntegrityError
from reports.gallery import gallery
from reports.page import build
from reports.text import clip, visible
from tests import reports_example as example

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "br", "hr", "img", "input", "link", "col", "wbr"}


class Outline(HTMLParser):
    """Tags, attributes, ids and headings of a page; notes tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.faults += self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def addresses(text: str) -> list[str]:
    """Everything on the page that a browser might fetch, but for parts of the page itself and inline data."""
    found = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)
    for _, attributes in Outline(text).tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"):
            value = attributes.get(name)
            if value and not value.startswith(("#", "data:image/png;base64,")):
                found.append(value)
    return found + re.findall(r"@import|url\((?!#)[^)]*\)|xmlns", text)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = example.write_run(tmp_path_factory.mktemp("runs") / "demo")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed_with_unique_ids_and_one_h1(page: str) -> None:
    outline = Outline(page)
    assert outline.faults == []
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    links = [attributes["href"] for tag, attributes in outline.tags if tag == "a"]
    assert {str(link)[1:] for link in links} <= set(ids)
    assert len(links) == 10


def test_the_page_asks_nothing_of_the_network(page: str) -> None:
    bare = page
    for name in ("cytoscape.min.js", "circuitsvis.js"):  # their texts name where they come from
        library, _ = html._script(name)
        assert library in page
        bare = bare.replace(library, "")
    assert addresses(bare) == []
    assert "default-src 'none'" in page
    outline = Outline(re.sub(r"(<script[^>]*>).*?</script>", r"\1</script>", page, flags=re.DOTALL))
    assert not [tag for tag, _ in outline.tags if tag in ("link", "iframe", "object", "embed")]
    assert [a.get("type") for tag, a in outline.tags if tag == "script"] == [
        *["application/json"] * 2,
        *[None] * 4,
    ]
    assert len(page.encode()) < 3_000_000


def test_the_oracle_of_addresses_can_fail() -> None:
    for bad in (
        '<script src="https://cdn.example.org/x.js">',
        '<link href="style.css">',
        "<style>@import 'x'</style>",
        "<p style='background: url(x.png)'>",
        '<svg xmlns="x">',
    ):
        assert addresses(bad), bad


def test_numbers_of_the_run_are_on_the_page(page: str) -> None:
    text = " ".join(" ".join(Outline(page).words).split())
    for words in (
        "MEGA 97.5 87.1 – 99.6 n 40",
        "no edit 0.0 0.0 – 8.8 n 40",
        "layer window 5–7",
        "model factworld",
    ):
        assert words in text
    for words in ("MEGA's mean is at least 0.90", "Fluency and consistency", "seeds.edit", 'editor = "mega"'):
        assert words in text
    assert "Largest change from before to after the edit: attention, old object, layer 7" in text
    assert "L6 H6 (+1.841)" in text


def test_every_picture_and_scrolled_part_has_a_name(page: str) -> None:
    tags = Outline(page).tags
    ids = {attributes.get("id") for _, attributes in tags}
    pictures = [a for tag, a in tags if tag == "svg"]
    assert len(pictures) == 5
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert set(str(attributes["aria-labelledby"]).split()) <= ids
    for _, attributes in tags:
        if attributes.get("role") == "region":
            assert attributes.get("aria-label")
            assert attributes.get("tabindex") == "0"


def test_light_dark_and_print_are_there(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert page.index("@media print { :root") > page.index("prefers-color-scheme: dark")


def test_the_same_run_gives_the_same_bytes(run: Path, page: str, tmp_path: Path) -> None:
    again = build(run, tmp_path / "elsewhere" / "x.html")
    assert again.read_text(encoding="utf-8") == page
    assert [p.name for p in again.parent.iterdir()] == ["x.html"]


def minimal(folder: Path, **summary: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(
        json.dumps({"title": "t", "n": 1, "editors": []} | summary), encoding="utf-8"
    )
    return folder


def test_another_run_gives_other_bytes(tmp_path: Path) -> None:
    folder = minimal(tmp_path / "run")
    texts = set()
    for score in (0.5, 0.6):
        pd.DataFrame({"first": [0], "last": [1], "score": [score]}).to_parquet(folder / "window.parquet")
        texts.add(build(folder).read_text(encoding="utf-8"))
    assert len(texts) == 2


def test_missing_files_are_said(tmp_path: Path) -> None:
    text = build(minimal(tmp_path / "run")).read_text(encoding="utf-8")
    (said,) = re.findall(r"Not part of this run: (.*?)\.<", text)
    assert (
        said == "layer curves, heads, window, neurons, circuit, attention patterns, provenance, configuration"
    )
    links = re.findall(r'<a href="#([\w-]+)">', text)
    assert links == ["result", "reading", "not-done"]  # the menu has what the page has
    assert "No editor was evaluated" in text
    assert Outline(text).faults == []


def test_empty_frames_are_said(tmp_path: Path) -> None:
    folder = minimal(tmp_path / "run")
    for name, frame in (("contrast", example.contrast()), ("heads", example.heads())):
        frame.head(0).to_parquet(folder / f"{name}.parquet")
    assert "Not part of this run: layer curves, heads, window," in build(folder).read_text(encoding="utf-8")


def test_no_known_fact_is_no_score(tmp_path: Path) -> None:
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    editors = [{"name": "mega", "label": "MEGA", "acc": nothing, "es": {"value": math.nan, "n": 0}}]
    text = build(minimal(tmp_path / "run", n=0, editors=editors)).read_text(encoding="utf-8")
    assert "n known 0" in text
    assert text.count('<span class="value">undefined</span>') == 2
    assert not re.search(r"\bnan\b", " ".join(Outline(text).words), re.IGNORECASE)


def test_an_editor_without_a_metric_was_not_run(tmp_path: Path) -> None:
    editors = [{"name": "a", "acc": example.proportion(1)}, {"name": "b", "gen": example.proportion(2)}]
    assert (
        build(minimal(tmp_path / "run", editors=editors)).read_text(encoding="utf-8").count("not run<") == 2
    )


def test_facets_of_heads_share_a_page(tmp_path: Path) -> None:
    folder = minimal(tmp_path / "run")
    parts = [
        example.heads().head(2).assign(object=o, stage=s) for o in ("new", "old") for s in ("before", "after")
    ]
    pd.concat(parts).to_parquet(folder / "heads.parquet")
    text = build(folder).read_text(encoding="utf-8")
    assert re.findall(r"<h3>(.*?)</h3>", text)[:2] == [
        "new object, before the edit",
        "new object, after the edit",
    ]
    assert Outline(text).faults == []


def test_hostile_strings_are_visible_text_everywhere(tmp_path: Path) -> None:
    bad = "".join(example.HOSTILE)
    cell = example.proportion(1, 2)
    folder = minimal(
        tmp_path / "run",
        title=bad,
        subtitle=bad,
        model=bad,
        notes=[bad],
        not_done=[bad],
        editors=[{"name": bad, "label": bad, "acc": cell}],
        verdicts=[{"claim": bad, "answer": bad, "evidence": bad}],
    )
    pd.DataFrame(
        {"layer": [1], "module": [bad], "unit": [bad], "score": [0.5], "promotes": [bad], "demotes": [bad]}
    ).to_parquet(folder / "neurons.parquet")
    example.contrast().assign(module=bad).iloc[::2].drop_duplicates(["layer", "object", "stage"]).to_parquet(
        folder / "contrast.parquet"
    )
    (folder / "provenance.json").write_text(json.dumps({bad: {bad: [bad]}}), encoding="utf-8")
    (folder / "config.toml").write_text(bad, encoding="utf-8")
    text = build(folder).read_text(encoding="utf-8")
    outline = Outline(text)
    assert outline.faults == []
    assert not [tag for tag, _ in outline.tags if tag == "script"]
    assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]
    assert not re.search("[\u202e\u200b]", text)
    assert text.count("<style>") == text.count("</style>") == 1
    words = "".join(outline.words)
    for token in example.HOSTILE:
        assert visible(token) in words


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("summary.json", "{", r"summary\.json: not readable"),
        ("summary.json", "[]", "expected a JSON object"),
        ("summary.json", '{"title": 3, "editors": []}', "title: expected a str, found int"),
        ("summary.json", '{"title": "t"}', "editors: expected a list, found none"),
        ("summary.json", '{"title": "t", "editors": [], "window": 5}', "window"),
        ("summary.json", '{"title": "t", "editors": [], "verdicts": [1]}', "verdicts"),
        ("summary.json", '{"title": "t", "editors": [{"name": "a", "acc": 97.5}]}', "fraction"),
        ("summary.json", '{"title": "t", "editors": [{"acc": 0.5}]}', "no field 'name'"),
        ("contrast.parquet", "not parquet", r"contrast\.parquet: not readable"),
        ("provenance.json", "{", r"provenance\.json"),
        ("circuit.json", "{}", r"circuit\.json"),
    ],
)
def test_damaged_files_are_named_and_no_page_is_written(
    tmp_path: Path, file: str, content: str, match: str
) -> None:
    folder = minimal(tmp_path / "run")
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(IntegrityError, match=match):
        build(folder)
    assert not list(folder.glob("*.html"))


@pytest.mark.parametrize("name", ["contrast", "heads", "window", "neurons"])
def test_a_frame_without_its_columns_is_named(tmp_path: Path, name: str) -> None:
    folder = minimal(tmp_path / "run")
    pd.DataFrame({"x": [1]}).to_parquet(folder / f"{name}.parquet")
    with pytest.raises(IntegrityError, match=rf"{name}\.parquet"):
        build(folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"summary\.json"):
        build(tmp_path)


def test_visible_and_clip() -> None:
    assert visible("") == "∅"
    assert visible("\x00\u00a0\u3164\ufe0f") == "⟨U+0000⟩⟨U+00A0⟩⟨U+3164⟩⟨U+FE0F⟩"
    assert visible("é 北京 🙂") == "é 北京 🙂"
    assert clip("abc", 3) == "abc"
    assert clip("abcd", 3) == "ab…"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_renders_it_without_network_or_complaint(run: Path, tmp_path: Path, scheme: str) -> None:
    from PIL import Image, ImageStat

    picture = tmp_path / "page.png"
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr "
    flags += f"--blink-settings=preferredColorScheme={int(scheme == 'light')} --window-size=1000,3000"
    command = [
        str(BROWSER),
        *flags.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={picture}",
    ]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", (run / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr  # no script error, no refusal by the content-security policy
    image = Image.open(picture).convert("L")
    assert image.size == (1000, 3000)
    ground = ImageStat.Stat(image.crop((0, 0, 5, 5))).mean[0]
    assert (ground > 240) if scheme == "light" else (ground < 40)
    bands = [image.crop((0, y, 1000, y + 500)) for y in range(0, 3000, 500)]
    assert all(ImageStat.Stat(band).stddev[0] > 5 for band in bands)  # something is drawn all the way down


def test_the_gallery_is_drawn_from_a_run_and_is_the_same_twice(tmp_path: Path) -> None:
    run = example.write_run(tmp_path / "run")
    made, again = gallery(run, tmp_path / "a"), gallery(run, tmp_path / "b")
    assert {file.name for file in made} == {"layers.png", "heads.png", "window.png", "circuit.svg"}
    assert [file.read_bytes() for file in made] == [file.read_bytes() for file in again]
    ElementTree.fromstring((tmp_path / "a" / "circuit.svg").read_text(encoding="utf-8"))
    (run / "window.parquet").unlink()
    with pytest.raises(InputError, match=r"window\.parquet"):
        gallery(run, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_quantised_weights_stand_at_the_top_of_the_page(tmp_path: Path) -> None:
    folder = example.write_run(tmp_path / "run")
    assert "dequantised" not in build(folder).read_text(encoding="utf-8")
    record = json.loads((folder / "provenance.json").read_text())
    record["model"] = {"name": "m", "quantization": "4-bit (Q4_1)"}
    (folder / "provenance.json").write_text(json.dumps(record))
    assert "<dt>weights</dt><dd>4-bit (Q4_1), dequantised</dd>" in build(folder).read_text(encoding="utf-8")
