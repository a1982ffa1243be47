"""The circuit as an object: frames, pictures, page, JSON, and what a notebook shows of it."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fontTools.ttLib import TTFont
from PIL import Image

from reports import look
from reports.attribution_circuit import AttributionCircuit
from reports.circuit import PAGE_INCHES
from reports.circuit_figure import paint
from reports.errors import InputError, IntegrityError
from tests import reports_example as example

SVG = "{http://www.w3.org/2000/svg}"


def circuit(units: int = 24) -> AttributionCircuit:
    return AttributionCircuit(example.circuit(units) | {"share_asked": 0.8, "units": 40, "units_total": 350})


def test_nodes_and_edges_are_frames() -> None:
    made = circuit()
    assert made.nodes["id"].tolist() == [node["id"] for node in made["nodes"]]
    assert made.nodes.query("kind == 'token'")["pos"].tolist() == list(range(9))
    assert made.edges["score"].tolist() == [edge["score"] for edge in made["edges"]]
    assert made.edges["read"].isna().all()
    assert AttributionCircuit(made | {"edges": []}).edges.empty


def test_a_json_file_comes_back_and_another_is_refused(tmp_path: Path) -> None:
    made = circuit()
    file = made.save(tmp_path / "new" / "c.json")
    assert AttributionCircuit.load(file) == made == json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(made | {"schema_version": 9}), encoding="utf-8")
    with pytest.raises(IntegrityError, match="schema version 2, found 9"):
        AttributionCircuit.load(file)
    with pytest.raises(InputError, match="found none"):
        AttributionCircuit.load(tmp_path / "absent.json")


def inches(file: Path) -> tuple[float, float]:
    """Width and height that a picture says it has."""
    if file.suffix == ".svg":
        root = ElementTree.parse(file).getroot()
        return float(root.attrib["width"][:-2]), float(root.attrib["height"][:-2])
    if file.suffix == ".png":
        with Image.open(file) as image:
            return image.size[0] / 300, image.size[1] / 300
    width, height = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", file.read_bytes())[0]
    return float(width) / 72, float(height) / 72


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
@pytest.mark.parametrize("columns", [1, 2])
def test_a_picture_fits_its_columns_and_a_page(kind: str, columns: int, tmp_path: Path) -> None:
    file = circuit(300).save(tmp_path / f"c.{kind}", columns=columns)
    width, height = inches(file)
    assert width == pytest.approx(look.WIDTHS[columns], abs=0.01)
    assert height <= PAGE_INCHES + 0.01
    assert circuit(300).save(tmp_path / f"again.{kind}", columns=columns).read_bytes() == file.read_bytes()
    assert inches(circuit().save(tmp_path / f"free.{kind}", columns=None))[0] == pytest.approx(
        980 / 96, abs=0.01
    )


def test_the_svg_stands_alone(tmp_path: Path) -> None:
    file = circuit(300).save(tmp_path / "c.svg")
    text = file.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text.encode())
    assert root.tag == f"{SVG}svg"
    assert root.attrib["font-family"].startswith("DejaVu Sans Mono")
    assert "monospace" in root.attrib["font-family"]
    assert "var(" not in text
    assert root.find(f"{SVG}rect") is not None  # the paper's white
    words = " ".join(element.text or "" for element in root.iter(f"{SVG}text"))
    assert "40 of 350 scored units hold 71% of their |score|; 80% was" in words
    assert re.search(r"Drawn: the strongest \d+ of 310 nodes", words)
    faces = re.findall(r"@font-face .*?font-weight: (\d+); src: url\(data:font/woff;base64,([^)]*)\)", text)
    letters = {}
    for weight, data in faces:
        with TTFont(io.BytesIO(base64.b64decode(data))) as font:
            letters[weight] = {chr(code) for code in font.getBestCmap()}
    for element in root.iter(f"{SVG}text"):
        missing = set(element.text or "") - letters[element.attrib.get("font-weight", "400")]
        assert missing <= set("🙂שלוםabc") - set("abc")  # those that the font lacks
    scale = 72 * look.WIDTHS[1] / float(root.attrib["viewBox"].split()[2])
    sizes = [float(element.attrib["font-size"]) * scale for element in root.iter(f"{SVG}text")]
    assert min(sizes) >= 6


def test_the_pdf_embeds_its_font(tmp_path: Path) -> None:
    data = circuit().save(tmp_path / "c.pdf").read_bytes()
    assert b"/FontFile2" in data
    assert b"DejaVuSansMono" in data


def test_letters_that_no_font_has_are_named(tmp_path: Path) -> None:
    odd = circuit(0)
    odd["nodes"][0]["label"] = "\U00013000"  # an Egyptian hieroglyph
    with pytest.warns(UserWarning, match="no installed font has the letters \U00013000"):
        odd.save(tmp_path / "c.png")
    odd.save(tmp_path / "c.svg")  # the viewer's business: no warning


def test_words_from_right_to_left_leave_a_line_as_it_is(tmp_path: Path) -> None:

    arabic = circuit(3)
    arabic["nodes"][-2]["promotes"] = ["ه"]
    lines = [text.get_text() for text in paint(arabic._drawing, inches=6).texts]
    assert sum(line.startswith("\u200e") for line in lines) == 1


@pytest.mark.parametrize(
    ("name", "columns", "match"),
    [("c.gif", 1, r"\.svg, \.pdf, \.png, \.html, \.json"), ("c.svg", 3, "1, 2 or")],
)
def test_another_suffix_or_width_is_refused(name: str, columns: int, match: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match):
        circuit().save(tmp_path / name, columns=columns)
    assert not list(tmp_path.iterdir())


def test_the_page_holds_all_nodes_and_loads_nothing(tmp_path: Path) -> None:
    made = circuit(300)
    text = made.save(tmp_path / "c.html").read_text(encoding="utf-8")
    assert "<h1>Circuit of ·English</h1>" in text
    assert "80% was asked for" in text
    assert all(f'"id":"{node["id"]}"' in text for node in made["nodes"])
    assert not re.search(r"""(?:src|href)=["']?https?:""", text)


def test_a_cell_shows_the_picture_and_the_graph_to_explore() -> None:
    made = circuit()
    shown = made._repr_html_()
    assert shown.count("<svg") == 1
    frame = re.findall(r'srcdoc="([^"]*)"', shown)
    assert len(frame) == 1
    assert "circuit-data" in frame[0]
    assert "<script" not in frame[0]
    other = AttributionCircuit(made | {"target": "x"})
    names = [set(re.findall(r' id="(circuit-\w+-title)"', text)) for text in (shown, other._repr_html_())]
    assert names[0].isdisjoint(names[1])  # two circuits in one notebook
    assert "\n" not in repr(made)
    assert len(repr(AttributionCircuit(made | {"prompt": "word " * 500}))) < 300
