"""How long the page takes to open, and to sort: 41 models on three engines, in headless Chromium.

    python -m benchmarks.page_speed [--models 41] [--repeats 7] [--keep page.html]

The models are the catalog's, the figures are made up. Opening is the time from the navigation to
the table and the chart in the document. Sorting is the time from a click on a heading to the frame
that shows the new order. Medians of the repeats; of sorting, of the slowest column.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from repzoo.graph.tools.cost_result import Cost
from repzoo.measure.host import host
from repzoo.measure.record import Record, line
from repzoo.measure.results import Accuracy, Latency, Setting
from repzoo.verbs import page
from repzoo.zoo import catalog

ENGINES = ("onnxruntime", "openvino", "mnn")
FORMS = ("deploy", "int8")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPENED = "() => document.querySelector('#table tbody tr') && document.querySelector('#chart svg')"
SORT = """(name) => new Promise((resolve) => {
  const start = performance.now();
  document.querySelector(`#table th[data-name="${name}"] button`).click();
  requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
})"""


def records(count: int) -> list[Record[Any]]:
    """Records of `count` models, in float and INT8, on each engine."""
    known = [spec.name for spec in catalog.models()]
    names = [f"{known[i % len(known)]}{'_' * (i // len(known))}" for i in range(count)]
    facts = host()
    rows: list[Record[Any]] = []
    for index, name in enumerate(names):
        for form in FORMS:
            rows += _of_form(index, name, form, facts)
    return rows


def _of_form(
    index: int, name: str, form: str, facts: dict[str, Any]
) -> list[Record[Any]]:
    artifact = {"name": name, "form": form, "sha256": f"{index}{form}", "classes": 1000}
    parameters = 1_000_000 + 100_000 * index
    size = parameters * (4 if form == "deploy" else 1)
    cost = Cost(
        nodes=200,
        parameters=parameters,
        macs=300 * parameters,
        bytes=size,
        operators={},
        uncounted={},
    )
    rows: list[Record[Any]] = [Record(artifact, cost)]
    top1 = 65 + 37 * index % 20
    interval = {"top1_low": top1 - 1.2, "top1_high": top1 + 1.1}
    top5 = {"top5": 90.0, "top5_low": 89.0, "top5_high": 91.0}
    for place, name_of_engine in enumerate(ENGINES):
        engine = {"name": name_of_engine, "version": "1"}
        accuracy = Accuracy(n=5000, top1=top1, **interval, **top5)
        data = {"name": "photos", "sha256": "d"}
        rows.append(Record(artifact, accuracy, engine=engine, host=facts, data=data))
        ms = 2 + 0.3 * (index * 7 % 41) + place
        rows.append(Record(artifact, _latency(ms), engine=engine, host=facts))
    return rows


def _latency(ms: float) -> Latency:
    return Latency(
        setting=Setting(),
        p50_ms=ms,
        p50_low_ms=0.97 * ms,
        p50_high_ms=1.04 * ms,
        p90_ms=1.1 * ms,
        p99_ms=1.5 * ms,
        fps=1000 / ms,
        fps_low=960 / ms,
        fps_high=1030 / ms,
        samples=1000,
        rounds=24,
        steady=True,
    )


def measure(address: str, repeats: int) -> tuple[list[float], dict[str, list[float]]]:
    """(milliseconds of each opening, those of each sorting by column)."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise SystemExit(
            "Chromium is not installed; on Debian: apt-get install chromium"
        )
    # Chromium's own sandbox refuses to start as root, as which containers run.
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    opened: list[float] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        for _ in range(repeats):
            tab = browser.new_page()
            tab.goto(address)
            tab.wait_for_function(OPENED)
            opened.append(tab.evaluate("performance.now()"))
            # The last tab is sorted.
            if len(opened) < repeats:
                tab.close()
        headings = tab.locator("#table thead th").all()
        columns = [heading.get_attribute("data-name") for heading in headings]
        sorting = {
            name: [tab.evaluate(SORT, name) for _ in range(repeats)] for name in columns
        }
        browser.close()
    return opened, sorting


def main() -> None:
    """Write a page, open and sort it, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=41)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="write the page here, and keep it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "records.jsonl"
        rows = records(options.models)
        log.write_text("".join(line(row) + "\n" for row in rows), "utf-8")
        path = (options.keep or Path(folder) / "page.html").resolve()
        page([log], path)
        opened, sorting = measure(path.as_uri(), options.repeats)
        size = path.stat().st_size
    slowest = max(sorting, key=lambda name: statistics.median(sorting[name]))
    print(f"{options.models} models, {len(rows)} Records, {size / 1e6:.2f} MB")
    print(f"opens in {_described(opened)}")
    print(f"sorts in {_described(sorting[slowest])}, by {slowest}")


def _described(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ms (median of {len(values)}, at most {max(values):.0f})"


if __name__ == "__main__":
    main()
