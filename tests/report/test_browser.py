"""The page in headless Chromium: everything is drawn, nothing is asked of a network, no width or scheme breaks it.

Needs Debian's package chromium and Playwright for Python; skipped without them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")

DRAWN = {
    "rate-distortion": ".scatterlayer .trace", "bits-by-tensor": ".treemaplayer .slice",
    "bits-by-depth": ".scatterlayer .trace", "gap": ".heatmaplayer .hm", "coordinates": ".scatterlayer .trace",
    "function-residual": ".scatterlayer .trace", "bytes": ".barlayer .point", "headline": "table",
    "claims": "svg .interval",
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser: Any, page: Path, width: int, scheme: str) -> tuple[Any, list[str], list[str]]:
    """The page with what it said on the console and what it asked for, once all is drawn."""
    tab = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    for plot in tab.locator("[data-plot]").all():
        plot.locator(".main-svg").first.wait_for()
    return tab, said, asked


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_every_figure_is_drawn(browser: Any, page: Path, width: int, scheme: str) -> None:
    tab, said, asked = opened(browser, page, width, scheme)
    for name, mark in DRAWN.items():
        box = tab.locator(f"#{name}").bounding_box()
        assert box["width"] > 0.8 * width and box["height"] > 100, name
        assert tab.locator(f"#{name} {mark}").count() >= 1, name
    for plot in tab.locator("[data-plot] .main-svg:first-child").all():
        assert plot.bounding_box()["width"] > 300
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    for bar in tab.locator(".legend .scrollbar").all():  # a legend that does not fit its plot scrolls
        assert bar.get_attribute("width") in (None, "0")
    assert said == []
    assert asked == [page.as_uri()]
    tab.context.close()


def test_without_scripts_the_tables_stay(browser: Any, page: Path) -> None:
    tab = browser.new_context(viewport={"width": 1280, "height": 900}, java_script_enabled=False).new_page()
    tab.goto(page.as_uri())
    assert tab.get_by_text("Pictures need JavaScript").is_visible()
    assert not tab.locator("#gap .plot").is_visible()
    tab.locator("#gap summary").click()
    assert tab.locator("#gap table").is_visible()
    tab.context.close()


def test_plots_follow_the_scheme(browser: Any, page: Path) -> None:
    tab, said, _ = opened(browser, page, 1280, "light")
    for scheme in ("light", "dark", "light"):
        tab.emulate_media(color_scheme=scheme)
        ink = tab.evaluate("getComputedStyle(document.body).color")
        playwright.expect(tab.locator("#gap .xtick text").first).to_have_css("fill", ink)
    assert said == []
    tab.context.close()


def test_keyboard_reaches_tables_and_folded_ones_open(browser: Any, page: Path) -> None:
    tab, _, _ = opened(browser, page, 400, "light")
    region = tab.locator("#claims [role=region]")
    region.focus()
    assert tab.evaluate("document.activeElement.getAttribute('role')") == "region"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    before = tab.locator("#claims table").bounding_box()["x"]
    tab.keyboard.press("ArrowRight")
    tab.wait_for_timeout(500)
    assert tab.locator("#claims table").bounding_box()["x"] < before
    folded = tab.locator("#gap details")
    folded.locator("summary").focus()
    tab.keyboard.press("Enter")
    assert folded.locator("table").is_visible()
    tab.context.close()
