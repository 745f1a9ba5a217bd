"""Charts: their data are the Records' figures, and what is drawn is an SVG without scripts."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from repzoo.errors import MissingExtra
from repzoo.measure import record
from repzoo.report import charts, tables

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def specs() -> dict[str, charts.Spec]:
    return charts.readme_charts(RESULTS)


def test_bars_are_the_top1_of_the_records(specs: dict[str, charts.Spec]) -> None:
    rows = specs["int8-accuracy"]["data"]["values"]
    assert {row["model"] for row in rows} == {
        "repvgg_a0.clothing",
        "efficientnet_lite0",
    }
    shown = {**charts.SHOWN_QUANTIZERS, **charts.SHOWN_VARIANTS}
    assert {row["quantizer"] for row in rows} <= set(shown.values())
    for model in ("repvgg_a0.clothing", "efficientnet_lite0"):
        floats = {round(row["float"], 2) for row in rows if row["model"] == model}
        assert len(floats) == 1  # all judged on the same images
    for row in rows:
        assert row["low"] <= row["int8"] <= row["high"]
        assert row["own"] == row["quantizer"].endswith(("repzoo", "harden"))
    collapsed = [row for row in rows if row["int8"] < 50]
    assert [row["quantizer"] for row in collapsed] == ["ONNX Runtime, per tensor"]


def test_points_are_the_jobs_latency_and_accuracy(
    specs: dict[str, charts.Spec],
) -> None:
    points = specs["latency-accuracy"]["data"]["values"]
    jobs = tables.newest_jobs(record.read(RESULTS / "clothing.jsonl"))
    assert len(points) == 2 * len(jobs)
    first = jobs[0]
    assert points[0]["ms"] == first.single["deploy"].p50_ms
    assert points[1]["top1"] == first.accuracy["int8"].top1


def test_drawing(specs: dict[str, charts.Spec]) -> None:
    pytest.importorskip("vl_convert")
    drawn = charts.svg(specs["latency-accuracy"])
    tags = {
        item.tag.rpartition("}")[2] for item in ElementTree.fromstring(drawn).iter()
    }
    assert "svg" in tags
    assert "script" not in tags
    assert "repghostnet_050" in drawn
    assert charts.png(specs["latency-accuracy"], scale=0.2).startswith(b"\x89PNG")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MissingExtra, match=r"repzoo\[page\]"):
        charts.svg({})
