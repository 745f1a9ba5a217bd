"""What results print, and what Jupyter shows of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import repzoo
from repzoo.errors import MissingExtra
from repzoo.measure.record import Record
from repzoo.measure.results import Accuracy, Latency, LatencyRatio, Setting
from repzoo.measure.sweep import SweepResult
from repzoo.packs.lint.finding import Finding
from repzoo.packs.lint.run import LintReport
from repzoo.report import charts
from repzoo.summary import Summary, Table
from repzoo.verbs.prediction import ClassProbability, Prediction

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
MARKUP = "<script>alert(1)</script>"


def accuracy(name: str) -> Record[Accuracy]:
    bounds = {"top1_low": 88.0, "top1_high": 92.0, "top5_low": 97.0, "top5_high": 99.0}
    values = Accuracy(n=100, top1=90.0, top5=98.0, **bounds)
    return Record({"name": name, "form": "deploy"}, values, {"name": "onnxruntime"})


def latency_ratio(first: str, second: str) -> Record[LatencyRatio]:
    values = LatencyRatio(
        setting=Setting(),
        ratio=0.5,
        ratio_low=0.4,
        ratio_high=0.6,
        faster="first",
        rounds=9,
    )
    sides = {
        "first": {"name": first, "form": "int8"},
        "second": {"name": second, "form": "deploy"},
    }
    return Record(sides, values, {"name": "onnxruntime"})


def test_a_table_is_aligned_and_ends_no_line_with_spaces() -> None:
    table = Table(["name", ">ms"], [["a", "1"], ["long", "10"]])
    assert table.text() == "name   ms\na       1\nlong   10"


def test_names_of_others_cannot_act_as_markup_or_break_a_line() -> None:
    summary = Summary([Table(["name"], [[MARKUP + "\nnext"]])], [MARKUP])
    assert "<script>" not in summary.html()
    assert summary.html().count("&lt;script&gt;") == 2
    assert summary.text() == f"name\n{MARKUP} next\n\n{MARKUP}"


def test_a_record_prints_one_line() -> None:
    assert repr(latency_ratio("int8", "float")) == (
        "<Record ratio: int8 takes 0.500 times as long as float "
        "(95 % interval 0.400 .. 0.600): faster>"
    )
    assert repr(accuracy("net")).startswith("<Record accuracy: net: Top-1 90.00 % (95")


def test_two_forms_of_one_name_are_told_apart() -> None:
    assert latency_ratio("net", "net").names == ("net (int8)", "net (deploy)")


def test_a_benchmark_prints_a_row_a_sentence_and_its_notes() -> None:
    values = Latency(
        setting=Setting(),
        p50_ms=1.234,
        p50_low_ms=1.0,
        p50_high_ms=2.0,
        p90_ms=2.0,
        p99_ms=3.0,
        fps=810.4,
        fps_low=800.0,
        fps_high=820.0,
        samples=10,
        steady=None,
    )
    engine = {"name": "onnxruntime"}
    record = Record({"name": "net", "form": "int8"}, values, engine)
    result = SweepResult([record], [latency_ratio("net", "float")], [], ["busy"])
    text = str(result)
    row = text.splitlines()[1].split("   ")
    assert [cell.strip() for cell in row if cell] == [
        *["net", "int8", "onnxruntime", "threads 1, streams 1, batch 1"],
        *["1.23", "2.00", "3.00", "810"],
    ]
    assert "net takes 0.500 times as long as float" in text
    assert text.endswith("note: busy")
    assert "<td" in result._repr_html_()


def test_an_evaluation_prints_accuracies_and_remarks() -> None:
    text = str(repzoo.Evaluation((accuracy("net"),), (), ("few images",)))
    assert text.splitlines()[1].split() == [
        *["net", "deploy", "onnxruntime", "100", "90.00"],
        *["88.00", "to", "92.00", "98.00"],
    ]
    assert text.endswith("note: few images")


def test_a_prediction_prints_its_classes() -> None:
    top = (ClassProbability("cat", 0.9), ClassProbability("dog", 0.1))
    assert str(Prediction("", top)) == "class      %\ncat     90.0\ndog     10.0"


def test_findings_are_printed_with_what_to_write() -> None:
    finding = Finding("calibration-few", "16 files", fix="take 100", file="a.yaml")
    text = str(LintReport(Path("pack"), ("a.yaml",), (finding,), ("net.onnx",)))
    assert "warning   a.yaml   16 files" in text
    assert text.endswith("a.yaml against net.onnx: 1 warning")
    nothing = LintReport(Path("pack"), ("a.yaml",), ())
    assert str(nothing) == "a.yaml: nothing is wrong"


@pytest.fixture(scope="module")
def report() -> Any:
    pytest.importorskip("sklearn", reason="the demo extra is not installed")
    settings: dict[str, Any] = {"images": 20, "placement": "everything"}
    settings.update(max_drop=-100, force=True)
    return repzoo.quantize(TUTORIALS / "block.onnx", "digits", **settings).report


def test_a_report_prints_layers_accuracy_and_share(report: Any) -> None:
    text = str(report)
    assert text.startswith("tried")
    assert "noisiest layers" in text
    assert "gate images: float" in text
    assert "of 5 layers" in text
    assert "placement: everything" in text


def test_the_chart_has_a_point_for_each_layer_and_stage(report: Any) -> None:
    chart = repzoo.chart(report)
    points = chart.spec["data"]["values"]
    layers = chart.spec["encoding"]["y"]["sort"]
    assert len(layers) == 5
    assert {point["stage"] for point in points} == set(
        chart.spec["encoding"]["color"]["scale"]["domain"]
    )
    assert {point["layer"] for point in points} == set(layers)
    json.dumps(chart.spec)
    assert repr(chart) == "<Chart: .svg() and .png() draw it>"


def test_without_the_extra_a_notebook_shows_the_chart_as_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> Any:
        raise MissingExtra("drawing charts", "page")

    monkeypatch.setattr(charts, "_converter", missing)
    assert charts.Chart({})._repr_png_() is None
    with pytest.raises(MissingExtra):
        charts.Chart({}).svg()


def test_only_a_report_has_a_chart() -> None:
    other: Any = {"layers": []}
    with pytest.raises(repzoo.InputError, match=r"such as int8\.report; got dict"):
        repzoo.chart(other)
