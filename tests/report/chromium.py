"""Headless Chromium for tests of HTML files: what a tab asks for, and what it complains of."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("Chromium", "chromium", "chromium-browser", "google-chrome")


class Tab:
    """One tab, what it asked for, and what it complained of."""

    def __init__(self, tab: Any) -> None:
        self.tab = tab
        self.requests: list[str] = []
        self.complaints: list[str] = []
        tab.on("request", lambda request: self.requests.append(request.url))
        tab.on("console", lambda message: self.complaints.append(message.text))
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("dialog", lambda dialog: self.complaints.append(dialog.message))

    def open(self, address: str, selection: str = "") -> Any:
        """The page at `address`, with `selection` behind its #."""
        self.tab.goto("about:blank")
        self.tab.goto(f"{address}#{selection}")
        return self.tab

    def addresses(self) -> set[str]:
        """What was asked for, but for what the page made itself."""
        own = [url for url in self.requests if not url.startswith("blob:")]
        return {url.partition("#")[0] for url in own}


@contextlib.contextmanager
def chromium(*arguments: str) -> Iterator[Tab]:
    """A tab in a new Chromium; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    paths = [path for path in map(shutil.which, NAMES) if path]
    if not paths:
        pytest.skip("Chromium is not installed; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as started:
        # Chromium's own sandbox refuses to start as root, as which containers run.
        is_root = hasattr(os, "getuid") and os.getuid() == 0
        sandbox = ["--no-sandbox"] if is_root else []
        browser = started.chromium.launch(
            executable_path=paths[0], args=[*sandbox, *arguments]
        )
        tab = browser.new_page(accept_downloads=True)
        tab.set_default_timeout(240_000)  # a loaded machine is slow, not wrong
        yield Tab(tab)
        browser.close()
