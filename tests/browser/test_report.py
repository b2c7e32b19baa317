"""The report's page in a real browser, as wide as a phone and as a desk: legible, whole, and without a request.

`make test-browser` runs these tests; they need Debian's chromium.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.published import paper
from colbert_zero.report.page import Report
from paper_study import publish_study

WIDTHS = {"phone": 390, "desk": 1280}
SMALLEST = 9.0
"""The smallest height of letters of a figure in CSS pixels, after scaling."""
TOUCHING = 1.5
"""How many pixels the boxes of two texts may share: they are a little larger than what is drawn."""

MEASURE_TEXTS = """() => [...document.querySelectorAll('figure svg')].map((svg, number) => {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].filter(text => text.textContent.trim() && frame.width).map(text => {
    const box = text.getBoundingClientRect();
    const matrix = text.getScreenCTM();
    const scale = Math.sqrt(Math.abs(matrix.a * matrix.d - matrix.b * matrix.c));
    return {
      text: text.textContent.trim(), size: parseFloat(getComputedStyle(text).fontSize) * scale,
      left: box.left, right: box.right, top: box.top, bottom: box.bottom,
    };
  });
  return {
    name: svg.closest('figure').getAttribute('aria-label'), number, texts,
    left: frame.left, right: frame.right, top: frame.top, bottom: frame.bottom,
  };
})"""
"""The texts of every figure that shows, where they are drawn and how large."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "there is no chromium: make browser"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def write_page(spec: Spec, path: Path) -> Path:
    path.write_text(Report.open(spec).html(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def small(finished_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small study that was really trained."""
    (report,) = finished_study.glob("results/reports/kept-*")
    with chdir(finished_study):
        spec = Spec.parse((report / "spec.json").read_text(encoding="utf-8"))
        return write_page(spec, tmp_path_factory.mktemp("small") / "report.html")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study with many rows, long names, and the published numbers beside."""
    folder = tmp_path_factory.mktemp("large")
    rows = {f"our-{name}": name for name in paper().rows}
    with chdir(folder):
        spec = publish_study(rows, lambda row, column: 0.3 * (len(row + column) % 5 - 2), ("scifact", "nq"))
        return write_page(spec, folder / "report.html")


@pytest.fixture(params=["small", "large"])
def address(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param).as_uri()


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """A page without network access; anything that it says or asks for is an error."""
    context = browser.new_context(viewport={"width": WIDTHS[request.param], "height": 900}, offline=True)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on(
        "request", lambda asked: said.append(f"request: {asked.url}") if not asked.is_navigation_request() else None
    )
    yield page
    context.close()
    assert said == []


def figures(page: Page) -> list[dict[str, Any]]:
    return [figure for figure in page.evaluate(MEASURE_TEXTS) if figure["texts"]]


def overlaps(texts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of texts that are drawn over each other."""
    found = []
    for number, one in enumerate(texts):
        for other in texts[number + 1 :]:
            width = min(one["right"], other["right"]) - max(one["left"], other["left"])
            height = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
            if width > TOUCHING and height > TOUCHING:
                found.append((one["text"], other["text"]))
    return found


def test_the_page_is_as_wide_as_its_window(page, address):
    page.goto(address)
    widths = page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1]


def test_the_text_of_figures_is_large_enough_to_read(page, address):
    page.goto(address)
    found = figures(page)
    assert found
    small = {
        (figure["name"], text["text"], text["size"])
        for figure in found
        for text in figure["texts"]
        if text["size"] < SMALLEST
    }
    assert small == set()


def test_no_two_labels_of_a_figure_are_drawn_over_each_other(page, address):
    page.goto(address)
    assert {figure["name"]: pairs for figure in figures(page) if (pairs := overlaps(figure["texts"]))} == {}


def test_no_label_of_a_figure_is_cut_off(page, address):
    page.goto(address)
    cut = [
        (figure["name"], text["text"])
        for figure in figures(page)
        for text in figure["texts"]
        if text["left"] < figure["left"] - 1
        or text["right"] > figure["right"] + 1
        or text["top"] < figure["top"] - 1
        or text["bottom"] > figure["bottom"] + 1
    ]
    assert cut == []


def test_a_number_leads_to_its_chain_which_is_legible(page, address):
    page.goto(address)
    before = len(figures(page))
    page.locator("#results + .wide a").first.click()
    found = figures(page)
    assert len(found) == before + 1
    chain = found[-1]
    assert chain["name"].startswith("The artifacts that the numbers of")
    assert min(text["size"] for text in chain["texts"]) >= SMALLEST
    assert overlaps(chain["texts"]) == []


def test_every_entry_of_the_navigation_leads_somewhere(page, address):
    page.goto(address)
    anchors = page.evaluate("() => [...document.querySelectorAll('nav a')].map(link => link.hash.slice(1))")
    assert len(anchors) > 5
    assert [anchor for anchor in anchors if page.locator(f"id={anchor}").count() != 1] == []


def test_the_published_numbers_are_on_the_page(page, large):
    page.goto(large.as_uri())
    section = page.locator("#against-the-paper")
    assert section.is_visible()
    assert page.locator("figure[aria-label^='Mean of the models of table 4'] svg").is_visible()
    assert page.get_by_text("paper: c-distilled").is_visible()
