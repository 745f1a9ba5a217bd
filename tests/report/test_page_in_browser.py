"""The page in Chromium: sorting, filters, address, languages, keyboard; no request, no error."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.report.chromium import Tab, chromium
from tests.report.test_page import HOSTILE, judged, timed

from repzoo.report import page

FORMULA = "=1+1"
MODELS = {"net_a": (2.0, 80.0), "net_b": (1.0, 75.0), "net_c": (4.0, 79.0)}


class Browser:
    """A tab that shows one page."""

    def __init__(self, tab: Tab, address: str) -> None:
        self.complaints = tab.complaints
        self.addresses = tab.addresses
        self.address = address
        self._tab = tab

    def open(self, selection: str = "") -> Any:
        """The page with `selection` in its address."""
        return self._tab.open(self.address, selection)

    def names(self) -> list[str]:
        """The models of the table, from top to bottom."""
        rows = self._tab.tab.locator("#table tbody th")
        texts: list[str] = rows.all_text_contents()
        return texts


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    pytest.importorskip("vl_convert")
    records: list[Any] = []
    for name, (ms, top1) in MODELS.items():
        records += [timed(name, ms), judged(name, top1)]
    other = {"name": "vino", "version": "2"}
    records += [timed("net_a", 1.5, engine=other), judged("net_d"), timed(FORMULA)]
    records += [timed(HOSTILE, 5.0), judged(HOSTILE)]
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(page.render(records).html, "utf-8")
    with chromium() as tab:
        yield Browser(tab, file.as_uri())


def test_headings_sort_and_what_is_not_known_comes_last(browser: Browser) -> None:
    tab = browser.open()
    heading = tab.locator("#table th[data-name=ms]")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    names = browser.names()
    assert names[:2] == ["net_b", "net_a"]
    assert set(names[2:4]) == {"net_a", FORMULA}
    assert (names[4], names[6]) == ("net_c", "net_d")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert "onerror" in browser.names()[0]
    assert browser.names()[-1] == "net_d"  # it has no latency
    assert "sort=-ms" in tab.url


def test_filters_stand_in_the_address_and_are_read_from_it(browser: Browser) -> None:
    tab = browser.open()
    tab.get_by_label("Latency ≤ (ms)").fill("1.8")
    assert sorted(browser.names()) == ["net_a", "net_b"]
    tab.get_by_label("Engine").select_option("vino")
    assert browser.names() == ["net_a"]
    assert tab.locator("#count").text_content() == "1 of 7 rows"
    selection = tab.url.partition("#")[2]
    browser.open(selection)
    assert browser.names() == ["net_a"]
    assert tab.get_by_label("Latency ≤ (ms)").input_value() == "1.8"
    tab.get_by_role("button", name="Show all").click()
    assert len(browser.names()) == 7
    # What is not offered, or is no number, selects nothing.
    browser.open("engine=unknown&max_ms=abc&sort=nothing&lang=xx&model=nobody")
    assert len(browser.names()) == 7


def test_a_point_and_a_name_open_the_model_and_escape_closes_it(
    browser: Browser,
) -> None:
    tab = browser.open()
    tab.locator("#chart .mark-symbol.role-mark path").last.click()
    tab.locator("#model[open]").wait_for()
    assert "model=" in tab.url
    tab.keyboard.press("Escape")
    tab.wait_for_function("!document.getElementById('model').open")
    # The address follows when the browser reports that the dialog is closed.
    tab.wait_for_function("!location.hash.includes('model=')")
    tab.keyboard.press("/")
    tab.keyboard.type("net_b")
    assert browser.names() == ["net_b"]
    tab.locator("#table tbody a").focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#name").text_content() == "net_b"
    assert "75.00 (74.00 … 76.00)" in tab.locator("#sections").text_content()
    tab.go_back()
    tab.wait_for_function("!document.getElementById('model').open")


def test_the_language_and_the_colors_are_switched(browser: Browser) -> None:
    tab = browser.open()
    tab.get_by_role("button", name="中文").click()
    assert tab.title() == page.words()["zh"]["title"]
    assert tab.evaluate("document.documentElement.lang") == "zh-Hans"
    assert tab.get_by_label("引擎").is_visible()
    tab.locator("#theme").click()
    dark = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(dark) == "rgb(13, 17, 23)"
    assert "lang=zh" in tab.url
    assert "theme=dark" in tab.url


def test_what_is_shown_is_saved(browser: Browser) -> None:
    tab = browser.open("sort=model&max_ms=3")
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Save as CSV").click()
    text = Path(download.value.path()).read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["model"] for row in rows} == {"'" + FORMULA, "net_a", "net_b"}
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Save as JSON").click()
    document = json.loads(Path(download.value.path()).read_text("utf-8"))
    assert {row["model"] for row in document} == {FORMULA, "net_a", "net_b"}
    assert [row["top1"] for row in document if row["model"] == "net_b"] == [75.0]


def test_nothing_was_asked_for_and_nothing_was_complained_of(browser: Browser) -> None:
    tab = browser.open("q=script")
    assert "<img src=x" in browser.names()[0]
    tab.locator("#table tbody a").click()
    tab.locator("#chart svg").wait_for()
    assert not tab.locator("img").count()
    assert browser.addresses() == {browser.address}
    assert not browser.complaints
    size = Path(browser.address.removeprefix("file://")).stat().st_size
    assert size < page.MAX_BYTES
