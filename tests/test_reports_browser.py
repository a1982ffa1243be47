"""Every kind of page in a real browser without a network: no complaint, no request, accessible, and its script works.

Rules of accessibility are axe-core's (WCAG 2 A and AA among them, contrast in light and in dark).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from reports import batch, compare, page
from reports.formats import chromium
from tests import reports_example as example
from tests.test_reports_batch import write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'mechedit[dev]'")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="no axe: pip install 'mechedit[dev]'"
)
pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
KINDS = ("page", "short", "index", "compare")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("browser")
    full = example.write_run(root / "runs" / "full")
    for name, acc in (("a", 38), ("b", 3), ("c", 20)):
        write(root / "runs" / name, acc=acc)
    (root / "runs" / "c" / "cases" / "1.json").unlink()
    return {
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


def violations(view: Page) -> list[str]:
    found: list[dict[str, Any]] = axe.Axe().run(view).response["violations"]
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
