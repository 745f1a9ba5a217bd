"""Float16 models: which operators stay in float32, how the model is judged, who reads the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests import small_model

import repzoo
from repzoo.artifact import Artifact
from repzoo.engines import engine
from repzoo.errors import GateError
from repzoo.protobuf_stream import clone
from repzoo.quant.search import half_model
from repzoo.quant.search.verdict import Budget

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _needs_digits() -> None:
    pytest.importorskip(
        "sklearn", reason="the demo extra, with the digits, is not installed"
    )


def rescaled(factor: float) -> Artifact:
    """The small model with the first layer times `factor`, and the second divided by it."""
    model = clone(small_model.small().model)
    for item in model.graph.initializer:
        factors = {"first": factor, "second": 1 / factor}
        values = numpy_helper.to_array(item) * np.float32(factors.get(item.name, 1))
        item.CopyFrom(numpy_helper.from_array(values, item.name))
    return replace(small_model.small(), model=model)


def convert(artifact: Artifact, budget: Budget | None = None) -> Any:
    return half_model.quantize(
        artifact,
        small_model.sets(),
        engine("onnxruntime"),
        "fp16",
        budget or Budget(5.0),
    )


def test_everything_is_in_float16_where_nothing_overflows() -> None:
    converted, report = convert(small_model.small())
    half = report.record.values.half
    assert converted.form == "fp16"
    assert (half.operators, half.kept) == (6, ())
    assert half.in_arithmetic.same_prediction > 98
    assert report.chosen.stage == "all in float16"
    assert report.chosen is report.candidates[0]
    assert converted.steps[-1].settings["precision"] == "fp16"
    types = {item.data_type for item in converted.model.graph.initializer}
    assert types == {onnx.TensorProto.FLOAT16}


def test_operators_that_overflow_are_named_and_kept() -> None:
    converted, report = convert(rescaled(1e5))
    kept = {item["node"]: item["cause"] for item in report.record.values.half.kept}
    assert kept == dict.fromkeys(["a", "b", "c"], "overflow")
    assert report.chosen.stage == "overflow in float32"
    assert "all in float16: its outputs are not finite" in report.warnings
    assert report.paired.values.same_prediction > 98
    stored = {item.name: item.data_type for item in converted.model.graph.initializer}
    assert stored["first"] == stored["second"] == onnx.TensorProto.FLOAT
    assert stored["means:float16"] == onnx.TensorProto.FLOAT16


def test_the_prediction_of_a_cast_to_float16_says_what_overflows() -> None:
    prediction = half_model.predict_float16(rescaled(1e5), small_model.sets())
    assert prediction.paired is None
    named = prediction.analysis.because("overflow")
    assert [item.node for item in named] == ["a", "b", "c"]
    fine = half_model.predict_float16(small_model.small(), small_model.sets())
    assert fine.analysis.kept == ()
    assert fine.paired is not None
    assert fine.paired.same_prediction > 98


def test_a_drop_above_the_budget_is_refused() -> None:
    budget = Budget(-100.0)  # demands a gain that no model has
    with pytest.raises(
        GateError, match=r"small: FP16 loses .* above the budget of \N{MINUS SIGN}100"
    ):
        convert(small_model.small(), budget)
    _, report = convert(small_model.small(), Budget(-100.0, force=True))
    assert any(text.startswith("forced: FP16 loses") for text in report.warnings)
    # Nothing holds, so the noisiest operators were tried in float32 as well.
    stages = [candidate.stage for candidate in report.candidates]
    assert stages == [
        "all in float16",
        "1 noisy operators in float32",
        "3 noisy operators in float32",
    ]


def test_the_command_and_those_that_read_its_file(
    run: Run, small_file: Path, digit_folders: Path, tmp_path: Path
) -> None:
    output = tmp_path / "half.onnx"
    options = ("--data", digit_folders, "--images", 64, "--precision", "fp16")
    ran = run("quantize", small_file, "-o", output, *options, "--max-drop", 5)
    assert ran.code == 0, ran.err
    assert "in FP16 arithmetic" in ran.out
    assert "6 of 6 operators in float16; FP16 / float latency" in " ".join(
        ran.out.split()
    )
    onnx.checker.check_model(onnx.load(output), full_check=True)
    info = run("info", output, "--json").document
    assert (info["form"], info["steps"][-1]["settings"]["precision"]) == (
        "fp16",
        "fp16",
    )
    before = run("count", small_file, "--json").document
    after = run("count", output, "--json").document
    assert (after["macs"], after["parameters"]) == (
        before["macs"],
        before["parameters"],
    )
    assert after["bytes"] == before["bytes"] / 2
    against = ("--data", digit_folders, "--against", small_file, "--json")
    paired = run("evaluate", output, *against).document["paired"]
    assert paired["same_prediction"] > 98
    assert run("bench", output, "--seconds", 0.1, "--json").code == 0
    for command in ("quantize", "harden", "pack"):
        extra = ("--target", "rdk-x5") if command != "quantize" else ()
        place = ("-o", tmp_path / "refused", "--data", "digits", *extra)
        refused = run(command, output, *place)
        assert refused.code == 2
        assert "half is in half precision (fp16); give the float32 model" in refused.err


def test_int8_files_and_settings_of_int8_are_refused(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    place = ("-o", tmp_path / "o.onnx", "--data", "digits")
    mixed = run(
        "quantize", small_file, *place, "--precision", "fp16", "--scheme", "rdk-x5"
    )
    assert mixed.code == 2
    assert "scheme (--scheme) is a setting of INT8; leave it out" in mixed.err
    unknown = run("quantize", small_file, *place, "--precision", "fp8")
    assert unknown.code == 2
    int8 = tmp_path / "int8.onnx"
    options = ("--images", 32, "--placement", "layers", "--force")
    made = run("quantize", small_file, "-o", int8, "--data", "digits", *options)
    assert made.code == 0
    refused = run("quantize", int8, *place, "--precision", "fp16")
    assert refused.code == 2
    assert "is quantized already; give the float model" in refused.err


def test_a_card_shows_int8_and_float16_beside_float(
    run: Run, small_file: Path, tmp_path: Path
) -> None:
    output = ("-o", tmp_path / "card", "--precision", "fp16", "--scheme", "vastai")
    data = ("--data", "digits", "--images", 32, "--seconds", 0.05, "--force")
    ran = run("card", small_file, *output, *data, "--json")
    assert ran.code == 0, ran.err
    document = ran.document
    assert document["half"]["form"] == "fp16"
    assert {"deploy", "int8", "fp16"} <= document["accuracy"].keys()
    assert document["cost"]["fp16"]["bytes"] == document["cost"]["deploy"]["bytes"] / 2
    # INT8 is for a board here; float16 was timed.
    assert document["ratios"].keys() == {"fp16"}
    assert (tmp_path / "card" / "small.fp16.onnx").is_file()
    assert "## FP16" in (tmp_path / "card" / "card_cn.md").read_text("utf-8")


def test_bfloat16_needs_an_engine_that_computes_in_it(
    run: Run, small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ("-o", tmp_path / "o.onnx", "--data", "digits", "--precision", "bf16")
    refused = run("quantize", small_file, *place)
    assert refused.code == 2
    assert "onnxruntime has no bfloat16 arithmetic on this host" in refused.err
    openvino = pytest.importorskip(
        "repzoo.engines.openvino", reason="the openvino extra is not installed"
    ).OpenVino
    assert isinstance(openvino().computes_bfloat16(), bool)
    # Where the processor lacks it, OpenVINO computes the same file in float32.
    monkeypatch.setattr(openvino, "computes_bfloat16", lambda _: True)
    converted, report = half_model.quantize(
        small_model.small(), small_model.sets(), openvino(), "bf16", Budget(10.0)
    )
    assert (converted.form, converted.opset) == ("bf16", 22)
    assert report.record.values.half is not None
    assert report.record.values.half.kept == ()
    assert report.paired.values.same_prediction > 90


def test_the_api_takes_a_precision() -> None:
    options = repzoo.QuantizeOptions(precision="fp16")
    assert options.precision == "fp16"
