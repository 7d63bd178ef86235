"""The pages in a real browser: sorted and filtered by hand and keyboard, on a phone, in the dark, without scripts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import boards

from harness.report import site

PAGES = ("boards/x.html", "index.html", "paper.html")
OUTCOMES = pd.DataFrame(
    [("m", "untouched", "1", "0.5", "clean", "1111"), ("m", "untouched", "1", "0.5", "apgd-ce", "110?")],
    columns=["model", "method", "beta", "c", "stage", "outcomes"],
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("the browser tests need chromium")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page of the site of a hard board and a pair; what the console says or is asked of the network fails."""
    boards.write(boards.hard(), tmp_path / "leaderboards/x.csv", OUTCOMES)
    for protocol in ("paper", "pixel"):
        boards.write(boards.board("ResNet-18", protocol), tmp_path / f"leaderboards/{protocol}.csv")
    site.build(boards.all_stored(tmp_path / "leaderboards"), tmp_path / "site")
    contexts, said, asked, wanted = [], [], [], []

    def open_page(name: str = "boards/x.html", **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        wanted.append((tmp_path / "site" / name).as_uri())
        page.goto(wanted[-1])
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == wanted


def column(page: Any, number: int) -> list[str]:
    """What the shown rows have there."""
    cells = page.locator(f"#rows tbody tr:visible > :nth-child({number})")
    return [" ".join(text.split()) for text in cells.all_inner_texts()]


BETA, GAINED = 3, 10


@pytest.mark.slow
@pytest.mark.parametrize("by", ["click", "keyboard"])
def test_the_table_is_sorted_by_its_headings(opened: Callable[..., Any], by: str) -> None:
    page = opened()
    heading = page.locator("#rows thead th").nth(GAINED - 1)
    button = heading.get_by_role("button")
    before = column(page, GAINED)

    def press() -> str | None:
        if by == "click":
            button.click()
        else:
            button.focus()
            page.keyboard.press("Enter")
        found: str | None = heading.get_attribute("aria-sort")
        return found

    def numbers() -> list[float]:
        return [float(text) for text in column(page, GAINED) if text]

    assert press() == "ascending"
    assert numbers() == sorted(numbers())
    assert set(column(page, GAINED)[len(numbers()) :]) == {""}, "nothing comes last"
    assert press() == "descending"
    assert numbers() == sorted(numbers(), reverse=True)
    assert set(column(page, GAINED)[len(numbers()) :]) == {""}
    assert press() is None
    assert column(page, GAINED) == before


@pytest.mark.slow
def test_the_table_is_filtered(opened: Callable[..., Any]) -> None:
    page = opened()
    status = page.locator("output")
    assert status.inner_text() == "14 of 14 rows"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.get_by_label("Find").focus()
    page.keyboard.type("WIDERES bounded")
    assert (column(page, BETA), status.inner_text()) == (["0.7", "0.8, c = 0.3"], "2 of 14 rows")
    page.get_by_label("Find").fill("")
    page.get_by_label("Model").select_option(boards.SCRIPT)
    assert set(column(page, 2)) == {boards.SCRIPT}
    page.get_by_label("Model").select_option("")
    page.get_by_label("only flagged").focus()
    page.keyboard.press("Space")
    assert column(page, BETA) == ["0.9/0.3 0.9 0.9 0.8 0.9", "0.9", "0.8, c = 0.3"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_does_not_scroll_sideways(opened: Callable[..., Any], width: int, name: str) -> None:
    page = opened(name, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    wide = "[...document.querySelectorAll('.scroll')].some((one) => one.scrollWidth > one.clientWidth)"
    assert page.evaluate(wide) == (width < 1280 or name == PAGES[0]), "a wide table scrolls in itself"


@pytest.mark.slow
def test_without_scripts_the_page_has_its_table_and_no_dead_controls(opened: Callable[..., Any]) -> None:
    page = opened(java_script_enabled=False)
    assert len(column(page, BETA)) == 14
    assert page.get_by_role("button").count() == 0
    assert not page.get_by_label("Find").is_visible()


CONTRASTS = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = channels(getComputedStyle(one).backgroundColor);
      if (colour.length === 3) return colour;
    }
  };
  return [...document.querySelectorAll("body *")]
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .filter((one) => one.checkVisibility() && !["SCRIPT", "OPTION"].includes(one.tagName))
    .map((one) => {
      const style = getComputedStyle(one);
      const [a, b] = [light(channels(one.closest("svg") ? style.fill : style.color)), light(behind(one))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.tagName, one.textContent.slice(0, 30)];
    });
}"""
"""WCAG's contrast of every piece of text with what is behind it."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_in_both_schemes(opened: Callable[..., Any], scheme: str, name: str) -> None:
    page = opened(name, color_scheme=scheme)
    dark = sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")))) < 200
    assert dark == (scheme == "dark")
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 20
    assert any(tag == "text" for _, tag, _ in contrasts) == (name == PAGES[0])
    assert [found for found in contrasts if found[0] < 4.5] == []
