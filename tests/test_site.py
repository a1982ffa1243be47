"""The built site in a real browser without a network: `make site`, then `make site-check`.

Every page: no broken local link, no complaint on the console, no request for anything but files of the site, no scroll
sideways on a phone; a few of them under axe-core; the search, from a folder.
"""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

import pytest

from reports.formats import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'mechedit[dev]'")
SITE = Path(os.environ.get("MECHEDIT_SITE") or "nowhere").resolve()
pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine"),
]
CHECKED_BY_AXE = (
    "index.html",
    "guide/attribution.html",
    "guide/choosing.html",
    "reference/commands/mechedit.html",
    "reference/api/mechedit.html",
)


class Links(HTMLParser):
    """What a page leads to and what can be led to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.anchors |= {value for key, value in attrs if key in ("id", "name") and value}
        self.targets += [value for key, value in named.items() if key in ("href", "src") and value]


def broken(site: Path) -> list[str]:
    """Local links of the site that lead to no file, or to no place in one."""
    pages = {file: Links(file.read_text("utf-8")) for file in site.rglob("*.html")}
    faults = []
    for file, links in pages.items():
        for link in links.targets:
            parts = urlparse(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            name = unquote(parts.fragment)
            if not target.is_file() or (name and target in pages and name not in pages[target].anchors):
                faults.append(f"{file.relative_to(site)}: {link}")
    return sorted(set(faults))


def heard_on(view: Page, file: Path, site: Path) -> list[str]:
    """What the page complains of, and requests beyond the site."""
    heard: list[str] = []
    home = site.as_uri()
    view.on("console", lambda message: heard.append(f"console {message.type}: {message.text}"))
    view.on("pageerror", lambda error: heard.append(f"error: {error}"))
    outside = re.compile(rf"(?!{re.escape(home)}|data:|blob:|about:)")
    view.on("request", lambda request: heard.append(request.url) if outside.match(request.url) else None)
    view.goto(file.as_uri())
    return heard


def view_of(browser: Browser, width: int) -> Page:
    context = browser.new_context(offline=True, viewport={"width": width, "height": 900})
    return context.new_page()


def test_no_local_link_is_broken() -> None:
    assert len(list(SITE.rglob("*.html"))) > 60
    assert broken(SITE) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        "<a id='x' href='b.html'></a><a href='#x'></a><a href='#y'></a>", "utf-8"
    )
    assert broken(tmp_path) == ["a.html: #y", "a.html: b.html"]


def test_every_page_is_quiet_asks_nothing_and_fits_a_phone(browser: Browser) -> None:
    faults: dict[str, Any] = {}
    for file in sorted(SITE.rglob("*.html")):
        view = view_of(browser, 390)
        heard = heard_on(view, file, SITE)
        width = view.evaluate("document.documentElement.scrollWidth")
        if heard or width > 390:
            faults[file.relative_to(SITE).as_posix()] = heard or width
        view.context.close()
    assert faults == {}


def test_the_crawl_can_fail(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><body style='width:900px'><script>nowhere()</script><img src='http://example.org/x.png'>",
        "utf-8",
    )
    view = view_of(browser, 390)
    heard = heard_on(view, page, tmp_path)
    assert any("nowhere" in line for line in heard)
    assert any(line.startswith("http://example.org") for line in heard)
    assert view.evaluate("document.documentElement.scrollWidth") > 390


def test_the_search_works_from_a_folder(browser: Browser) -> None:
    view = view_of(browser, 1100)
    view.goto((SITE / "index.html").as_uri())
    view.fill("input[name=q]", "covariance")
    view.press("input[name=q]", "Enter")
    view.wait_for_selector("#search-results ul.search li a", timeout=60_000)
    links = view.query_selector_all("#search-results ul.search li a")
    assert any("covariance" in link.inner_text().lower() for link in links)


@pytest.mark.parametrize("page", CHECKED_BY_AXE)
def test_nothing_serious_is_inaccessible(browser: Browser, page: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe")
    view = view_of(browser, 1100)
    view.goto((SITE / page).as_uri())
    violations = axe.Axe().run(view).response["violations"]
    serious = [v for v in violations if v["impact"] in ("serious", "critical")]
    assert [f"{v['id']}: {v['nodes'][0]['html'][:140]}" for v in serious] == []
