"""Every kind of page in a real browser without a network: no complaint, no request, accessible, and its script works.

Rules of accessibility are axe-core's (WCAG 2 A and AA among them, contrast in light and in dark).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlparse

import pytest

from mechedit.anatomy.explain import explain
from mechedit.attribution import attribute, attribute_many
from mechedit.editors import FT, NoEdit
from mechedit.evaluation.evaluate import evaluate
from mechedit.factworld import edits
from mechedit.models.hooked import load_model
from reports import batch, compare, formats, html, overview, page
from reports.attribution_circuit import AttributionCircuit
from reports.formats import chromium
from reports.text import visible
from tests import reports_example as example
from tests.test_reports_batch import write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'mechedit[dev]'")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="no axe: pip install 'mechedit[dev]'"
)
pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
#: The graph that Cytoscape keeps with its frame.
GRAPH = "document.getElementById('explore-graph')._cyreg.cy"
ROOT = Path(__file__).resolve().parent.parent
KINDS = ("page", "short", "index", "compare", "facts", "paired", "edit")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("browser")
    full = example.write_run(root / "runs" / "full")
    for name, acc in (("a", 38), ("b", 3), ("c", 20)):
        write(root / "runs" / name, acc=acc)
    (root / "runs" / "c" / "cases" / "1.json").unlink()
    model, facts = load_model("factworld"), edits(3)
    for name, editor in (("ft", FT()), ("no_edit", NoEdit())):
        result = evaluate(model, editor, facts, progress=False)
        result.save(write(root / name, acc=3) / "results" / "evaluation")
    edit = explain(model, FT(), facts[0]).save(root / "edit")
    return {
        "facts": page.build(root / "ft"),
        "paired": compare.build(root / "no_edit", root / "ft", root / "paired.html"),
        "edit": formats.save(overview.render(edit), edit / "report.html"),
        "page": page.build(full),
        "short": page.build(root / "runs" / "a"),
        "index": batch.build([root / "runs"], root / "index.html", progress=False).index,
        "compare": compare.build(full, root / "runs" / "b", root / "compare.html"),
    }


def opened(
    browser: Browser, file: Path, *, scheme: Literal["light", "dark"] = "light", width: int = 1100
) -> tuple[Page, list[str]]:
    """The page in a browser without network, and a list to which its complaints and requests are added."""
    context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 900})
    view = context.new_page()
    heard: list[str] = []
    view.on("console", lambda message: heard.append(f"console {message.type}: {message.text}"))
    view.on("pageerror", lambda error: heard.append(f"error: {error}"))
    view.on("request", lambda request: heard.append(request.url) if request.url != file.as_uri() else None)
    view.goto(file.as_uri())
    return view, heard


def violations(view: Page, within: str | None = None) -> list[str]:
    found: list[dict[str, Any]] = axe.Axe().run(view, context=within).response["violations"]
    return [f"{v['impact']} {v['id']}: {v['nodes'][0]['html'][:120]}" for v in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_loads_nothing_complains_of_nothing_and_is_accessible(
    browser: Browser, pages: dict[str, Path], kind: str, scheme: Literal["light", "dark"]
) -> None:
    view, heard = opened(browser, pages[kind], scheme=scheme)
    assert heard == []
    assert violations(view) == []


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_phone_only_tables_and_pictures_scroll(
    browser: Browser, pages: dict[str, Path], kind: str
) -> None:
    view, _ = opened(browser, pages[kind], width=390)
    assert view.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_oracles_can_fail(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    text = "<p style='color: #ddd'>pale</p><img src='http://example.org/x.png'><script>nowhere()</script>"
    bad.write_text(
        f"<!DOCTYPE html><html><title>x</title><body style='width: 900px'>{text}", encoding="utf-8"
    )
    view, heard = opened(browser, bad, width=390)
    assert any(line.startswith("http://example.org") for line in heard)
    assert any("nowhere is not defined" in line for line in heard)
    assert {"color-contrast", "image-alt"} <= {line.split()[1].rstrip(":") for line in violations(view)}
    assert view.evaluate("document.documentElement.scrollWidth") > 390


def test_the_index_sorts_and_filters(browser: Browser, pages: dict[str, Path]) -> None:
    view, heard = opened(browser, pages["index"])

    def column(number: int) -> list[str]:
        cells = view.query_selector_all(f"#edit ~ .scroll tbody tr:not([hidden]) > :nth-child({number})")
        return [cell.inner_text().split()[0] for cell in cells]

    heading = view.get_by_role("button", name="Acc")
    heading.click()
    values = [float(value) for value in column(5)]
    assert values == sorted(values)
    assert len(set(values)) > 3
    heading.click()
    assert [float(value) for value in column(5)] == sorted(values, reverse=True)
    assert view.get_attribute("th[aria-sort]", "aria-sort") == "descending"
    view.get_by_role("button", name="Run", exact=True).click()
    assert column(1) == sorted(column(1))
    view.get_by_label("Only lines with").fill("factworld random")
    assert len(column(1)) == 1
    assert heard == []


def test_facts_are_filtered_sorted_and_lead_to_their_prompts(
    browser: Browser, pages: dict[str, Path]
) -> None:
    view, heard = opened(browser, pages["facts"], width=1200)
    rows = "table.sortable tbody tr:not([hidden])"
    shown = [row.inner_text() for row in view.query_selector_all(rows)]
    assert len(shown) == 3
    view.get_by_role("button", name="Prompt", exact=True).click()
    assert [row.inner_text() for row in view.query_selector_all(rows)] == sorted(shown)
    word = shown[0].split()[3]
    view.get_by_label("Only lines with").fill(word)
    kept = [row.inner_text() for row in view.query_selector_all(rows)]
    assert kept == [text for text in sorted(shown) if word.lower() in text.lower()]
    assert len(kept) < 3
    link = view.query_selector(f"{rows} a")
    assert link is not None
    details = view.locator(str(link.get_attribute("href")))
    assert details.get_attribute("open") is None
    link.click()
    assert details.get_attribute("open") is not None
    assert "neighbour" in details.inner_text()
    assert heard == []


@pytest.mark.parametrize("kind", ["index", "facts", "edit", "paired"])
def test_tables_fit_twelve_hundred_pixels(browser: Browser, pages: dict[str, Path], kind: str) -> None:
    view, _ = opened(browser, pages[kind], width=1200)
    wide = "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth).length"
    assert view.evaluate(wide) == 0
    view.set_viewport_size({"width": 500, "height": 900})  # the measure sees what does not fit
    assert view.evaluate(wide) > 0


def test_the_circuit_is_explored_by_filter_list_and_click(browser: Browser, pages: dict[str, Path]) -> None:
    view, heard = opened(browser, pages["page"])
    view.click("#explore > summary")
    view.wait_for_selector("#explore[data-drawn=yes]")
    graph = example.circuit()

    def shown(what: str) -> int:
        return int(view.evaluate(f"{GRAPH}.{what}().not('.away').length"))

    ends = {end for edge in graph["edges"] for end in (edge["source"], edge["target"])}
    assert (shown("nodes"), shown("edges")) == (len(ends), len(graph["edges"]))
    view.fill("#explore-share", "50")
    half = shown("edges")
    sizes = sorted((abs(edge["score"]) for edge in graph["edges"]), reverse=True)
    assert sum(sizes[: half - 1]) < 0.5 * sum(sizes) <= sum(sizes[:half]) + 1e-9
    view.select_option("#explore-sign", "neg")
    left = view.evaluate(f"{GRAPH}.edges().not('.away').map((edge) => edge.data('sign'))")
    assert left == ["neg"] * len(left)
    assert 0 < len(left) < half
    view.select_option("#explore-sign", "all")
    view.fill("#explore-share", "100")
    view.click("#explore-fit")
    view.locator("#explore-graph").scroll_into_view_if_needed()
    # The graph learns of the scrolling by an event, and keeps its place until then.
    view.wait_for_timeout(300)
    place = view.evaluate(f"{GRAPH}.getElementById('u0').renderedPosition()")
    box = view.locator("#explore-graph").bounding_box()
    assert box is not None
    view.mouse.click(box["x"] + place["x"], box["y"] + place["y"])
    told = view.locator("#explore-told")
    assert "head, layer 3" in told.inner_text()
    assert "·English" in told.inner_text()
    assert "<script>alert(1)</script>" in told.inner_text()  # a hostile token: text, as it is
    view.select_option("#explore-node", "target")
    assert "·English" in told.locator("h3").inner_text()
    assert "and 16 weaker ones" in told.inner_text()
    assert heard == []
    assert violations(view) == []


def test_a_circuit_of_sixty_nodes_and_a_thousand_edges_is_explored(browser: Browser, tmp_path: Path) -> None:
    run = example.write_run(tmp_path / "run")
    graph = example.circuit(50)
    names = [node["id"] for node in graph["nodes"]]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]][: 1000 - len(graph["edges"])]
    graph["edges"] += [{"source": a, "target": b, "score": 0.001} for a, b in pairs]
    (run / "circuit.json").write_text(json.dumps(graph), encoding="utf-8")
    view, heard = opened(browser, page.build(run))
    view.click("#explore > summary")
    view.wait_for_selector("#explore[data-drawn=yes]")
    assert view.evaluate(f"{GRAPH}.edges().length") == 1000
    assert heard == []


def drawn(view: Page) -> None:
    view.click("#look > summary")
    view.wait_for_selector("#look[data-drawn=yes]")
    view.wait_for_selector("#look-heads canvas")


def test_patterns_and_heat_are_drawn(browser: Browser, pages: dict[str, Path]) -> None:
    view, heard = opened(browser, pages["page"])
    assert view.locator("#look canvas").count() == 0  # not before it is asked for
    drawn(view)
    frame = example.looks()["token_heat"]
    tokens = example.circuit()["tokens"]
    shown = view.locator("#look-heat .colored-tokens > span > span").all_inner_texts()
    assert shown == [token.replace(" ", "·") for token in tokens]
    assert view.locator("#look-heads canvas").count() == 3 + 1
    assert view.locator("#look-heads h4").all_inner_texts() == ["L6 H0", "L3 H5", "L7 H2"]
    view.locator("#look-heads h4").nth(1).click()
    assert "L3 H5 Zoomed" in view.locator("#look-heads").inner_text()
    sums = frame.groupby("pos")["score"].sum()
    view.locator("#look-heat .colored-tokens > span").nth(4).hover()
    assert view.locator("#look-heat strong + br").locator("xpath=..").inner_text() == f"·Dan\n{sums[4]:.3f}"
    for scheme in ("light", "dark"):
        view.emulate_media(color_scheme=scheme)
        assert violations(view, "section[aria-labelledby=attention]") == []
    assert heard == []


def test_patterns_of_hostile_tokens_stay_text_and_run_nothing(browser: Browser, tmp_path: Path) -> None:
    attack = "<img src=x onerror=alert(1)>"
    tokens = [attack, "</script>", "&amp;", "<b>", "\u202e", "a\u200bb", "🙂", "שלום", " "]
    run = example.write_run(tmp_path / "run")
    (run / "circuit.json").write_text(json.dumps(example.circuit() | {"tokens": tokens}), encoding="utf-8")
    view, heard = opened(browser, page.build(run))
    drawn(view)
    shown = view.locator("#look-heat .colored-tokens > span > span").all_inner_texts()
    assert shown == [visible(token, spaces=True).replace(" ", "\xa0") for token in tokens]
    assert view.locator("#look img, #look b").count() == 0
    assert heard == []


def test_that_oracle_can_fail(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    """Without the escaping, CircuitsVis makes markup of a token."""
    bad = tmp_path / "bad.html"
    library, _ = html._script("circuitsvis.js")
    call = "CircuitsVis.render('x', CircuitsVis.ColoredTokens, {tokens: ['<b>y</b>'], values: [1]})"
    bad.write_text(f"<div id=x></div><script>{library}</script><script>{call}</script>", encoding="utf-8")
    view, _ = opened(browser, bad)
    view.wait_for_selector("#x b")


def test_patterns_fit_a_phone_and_are_not_printed(browser: Browser, pages: dict[str, Path]) -> None:
    view, _ = opened(browser, pages["page"], width=390)
    drawn(view)
    assert view.evaluate("document.documentElement.scrollWidth") <= 390
    box = view.locator("#look-heads canvas").last.bounding_box()
    assert box is not None
    assert 200 < box["width"] <= 390
    view.emulate_media(media="print")
    assert view.locator("table.heat").is_visible()
    assert not view.locator("#look").is_visible()


def test_the_vendored_library_is_the_one_that_is_named() -> None:
    folder = Path(html.__file__).parent / "vendor"
    digest = hashlib.sha256((folder / "cytoscape.min.js").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(b"").hexdigest() != digest


@pytest.mark.slow
def test_make_report_demo_gives_an_index_whose_every_page_works(browser: Browser, tmp_path: Path) -> None:
    """The runs, their pages and the index that the README promises, as the command makes them."""
    venv = Path(sys.prefix)
    told = [f"VENV={venv}", f"OUT_REPORTS={tmp_path / 'runs'}", "-o", str(venv / ".installed")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(["make", "-C", ROOT, *told, "report-demo"], check=True, env=environment)
    index = tmp_path / "runs" / "index.html"
    view, heard = opened(browser, index)
    links = view.eval_on_selector_all("main a[href$='.html']", "found => found.map(a => a.href)")
    view.get_by_label("Only lines with").first.fill("mega")
    shown = view.query_selector_all("table.sortable tbody tr:not([hidden])")
    assert shown
    assert all("mega" in line.inner_text().lower() for line in shown)
    assert heard == []
    pages = [index, *(Path(unquote(urlparse(link).path)) for link in sorted(set(links)))]
    assert len(pages) >= 5
    for file in pages:
        assert file.stat().st_size < 3_000_000
        view, heard = opened(browser, file)
        assert (file.name, heard, violations(view)) == (file.name, [], [])
        view, _ = opened(browser, file, width=390)
        assert view.evaluate("document.documentElement.scrollWidth") <= 390
    (circuit,) = (file for file in pages if 'id="explore"' in file.read_text(encoding="utf-8"))
    view, heard = opened(browser, circuit)
    view.locator("#explore summary").click()
    view.wait_for_selector("#explore[data-drawn=yes]")
    view.select_option("#explore-node", index=1)
    assert "nats" in view.inner_text("#explore-told")
    assert heard == []


def test_a_circuit_is_explored_on_its_page_and_in_a_cell(browser: Browser, tmp_path: Path) -> None:
    circuit = AttributionCircuit(example.circuit())
    view, heard = opened(browser, circuit.save(tmp_path / "circuit.html"))
    view.click("#explore > summary")
    view.wait_for_selector("#explore[data-drawn=yes]")
    assert view.evaluate(f"{GRAPH}.nodes().length") == len(circuit["nodes"])
    assert violations(view) == []
    assert heard == []
    cell = tmp_path / "cell.html"  # two circuits, as the cells of one notebook
    cell.write_text(
        circuit._repr_html_() + AttributionCircuit(example.circuit(3))._repr_html_(), encoding="utf-8"
    )
    view, heard = opened(browser, cell)
    assert view.locator("svg.circuit").count() == 2
    for place, units in enumerate((24, 3)):
        view.locator("details > summary").nth(place).click()
        frame = view.frame_locator("iframe").nth(place)
        frame.locator("#explore[data-drawn=yes]").wait_for()
        assert frame.locator("#explore-node option").count() == units + 10 + 1
        frame.locator("#explore-node").select_option("target")
        assert "·English" in frame.locator("#explore-told h3").inner_text()
    assert heard == []


@pytest.mark.parametrize("name", ["one", "many"])
def test_the_pages_of_attributions_are_accessible_and_fit(
    browser: Browser, tmp_path: Path, name: str
) -> None:
    model = load_model("factworld")
    if name == "one":
        attribute(model, "The capital of France is", " Paris", top_k=20).save(tmp_path / "run")
    else:
        prompts = ["The capital of France is", "The capital of Spain is"]
        attribute_many(model, prompts, [" Paris", " Madrid"], top_k=20, out=tmp_path / "run", progress=False)
    file = tmp_path / "page.html"
    file.write_text(overview.render(tmp_path / "run"), encoding="utf-8")
    for width in (1200, 390):
        view, heard = opened(browser, file, width=width)
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            view.emulate_media(color_scheme=scheme)
            assert violations(view) == []
        assert heard == []
    if name == "many":
        view.get_by_label("Only lines with").fill("spain")
        rows = view.locator("table.sortable tbody tr:visible")
        assert rows.count() == 1
        assert "Madrid" in rows.first.inner_text()
