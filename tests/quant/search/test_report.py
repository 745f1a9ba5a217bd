"""What `--report` says of models that were broken on purpose, and of sound ones, through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("sklearn", reason="the demo extra, with the digits, is not installed")

from tests.quant.conftest import small

from repzoo.data.batches import ReadReport, batches
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.errors import MissingExtra
from repzoo.quant.search import gate

Run = Callable[..., Any]
PIXELS = 16  # of a channel of the last convolution


@pytest.fixture
def reported(run: Run, tmp_path: Path) -> Callable[..., Any]:
    """`reported({weight: values}, *options)`: the report on the small classifier with these weights."""

    def done(weights: dict[str, npt.NDArray[Any]], *options: object) -> Any:
        model = onnx.ModelProto()
        model.CopyFrom(small().model)
        for item in model.graph.initializer:
            if item.name in weights:
                item.CopyFrom(
                    numpy_helper.from_array(weights[item.name].astype(np.float32), item.name)
                )
        source, out, report = (tmp_path / name for name in ("in.onnx", "out.onnx", "report.json"))
        source.write_bytes(replace(small(), model=model).to_bytes())
        ran = run(
            "quantize",
            source,
            "-o",
            out,
            "--data",
            "digits",
            "--images",
            64,
            "--search",
            0,
            "--force",
            "--report",
            report,
            *options,
        )
        assert ran.code == 0, ran.err
        return json.loads(report.read_text())

    return done


def stored(name: str) -> npt.NDArray[np.float64]:
    return next(
        numpy_helper.to_array(item).astype(np.float64)
        for item in small().model.graph.initializer
        if item.name == name
    )


def test_a_channel_of_weights_a_thousand_times_as_large_is_named(
    reported: Callable[..., Any],
) -> None:
    """The same function, its channel divided again by the next layer; strict per-tensor weights then hold nothing but that channel."""
    second, means = stored("second"), stored("means")
    second[5] *= 1000
    means[:, 5 * PIXELS : 6 * PIXELS] /= 1000
    report = reported({"second": second, "means": means}, "--scheme", "per-tensor")["values"]
    first = report["rungs"][0]
    worst = first["culprits"][0]
    assert not first["holds"]
    assert (worst["layer"], worst["side"], worst["outliers"][0]) == ("c", "weight", 5)
    assert 100 < worst["spread"] < 10000
    rungs = {one["recipe"]: one for one in report["rungs"]}
    for name in ("rounding", "second-order"):
        assert rungs[name]["drop_low"] > 0.3
        assert rungs[name]["culprits"][0]["layer"] == "c"
    assert rungs["equalized"]["holds"]  # through the Flatten too
    assert rungs["equalized"]["logits_snr_db"] > 20 + rungs["second-order"]["logits_snr_db"]
    assert report["recipe"].startswith("equalized")
    assert report["drop_low"] < 0.3


def test_an_outlying_activation_behind_a_flatten_is_named(reported: Callable[..., Any]) -> None:
    """The same channel where weights have scales of their own: what suffers is the tensor that the last layer reads, flattened."""
    second, means = stored("second"), stored("means")
    second[5] *= 1000
    means[:, 5 * PIXELS : 6 * PIXELS] /= 1000
    rung = reported({"second": second, "means": means}, "--scheme", "ort-minmax")["values"][
        "rungs"
    ][0]
    worst = rung["culprits"][0]
    assert (worst["layer"], worst["side"]) == ("output", "activation")
    assert worst["tensor"] in ("d", "flat")
    assert {one // PIXELS if worst["tensor"] == "flat" else one for one in worst["outliers"]} == {5}
    assert worst["activation_db"] < 20


def test_an_outlying_activation_behind_a_flatten_is_cut_where_ranges_may_be(
    reported: Callable[..., Any],
) -> None:
    second, means = stored("second"), stored("means")
    second[5] *= 1000
    means[:, 5 * PIXELS : 6 * PIXELS] /= 1000
    rung = reported({"second": second, "means": means})["values"]["rungs"][0]
    assert rung["recipe"] == "rounding"
    assert rung["same_prediction"] > 95


def test_an_outlying_activation_is_named(reported: Callable[..., Any]) -> None:
    first, second = stored("first"), stored("second")
    first[3] *= 1000
    second[:, 3] /= 1000
    report = reported({"first": first, "second": second}, "--scheme", "ort-minmax")["values"]
    worst = next(one for one in report["rungs"][0]["culprits"] if one["side"] == "activation")
    assert (worst["layer"], worst["outliers"][0]) == ("c", 3)
    assert worst["spread"] > 100
    assert worst["seen"][1] > 100 * np.median([one["seen"][1] for one in report["layers"]])


def test_an_outlying_activation_is_cut_where_ranges_may_be(reported: Callable[..., Any]) -> None:
    """One channel of twelve is given up for the others."""
    first, second = stored("first"), stored("second")
    first[3] *= 1000
    second[:, 3] /= 1000
    rung = reported({"first": first, "second": second})["values"]["rungs"][0]
    assert rung["recipe"] == "rounding"
    assert rung["passes"]
    assert rung["expected_changed"] < 5
    assert rung["same_prediction"] > 95


def test_the_report_of_a_sound_model_names_nobody_and_shows_all(
    reported: Callable[..., Any],
) -> None:
    report = reported({})
    values = report["values"]
    assert values["culprits"] == []
    assert {one["layer"] for one in values["layers"]} <= {"a", "c", "output"}
    for one in values["layers"]:
        assert {"weight_db", "activation_db", "range", "seen", "method"} <= one.keys()
        assert one["seen"][0] <= one["range"][1]
        assert not one["outliers"] or one["spread"] < 20
    assert {"calibrate", "place", "gate"} <= values["stages"].keys()
    assert all(
        one["seconds"] > 0 and one["n"] == report["data"]["selection_images"]
        for one in values["rungs"]
    )
    assert report["data"]["gate_images"] > report["data"]["selection_images"] > 0


def test_a_qdq_file_means_the_same_on_every_engine(
    reported: Callable[..., Any], tmp_path: Path
) -> None:
    """Weights of 7 bits, so that the file is exact on hosts without VNNI too. What differs is how engines round halves on the way:
    a step or so at the logits. A prediction differs only where the two best classes are nearer than that."""
    reported({}, "--scheme", "ort-cpu-7bit")
    model, data = onnx.load(tmp_path / "out.onnx"), open_source("digits").held_out()
    some = data.subset(range(0, len(data), 3))
    inputs = np.concatenate(
        [one.inputs for one in batches(some, small().require_preprocess(), 64, ReadReport())]
    )
    truth = engine("reference").open(model).run(inputs)
    margins = np.diff(np.sort(truth, axis=1)[:, -2:], axis=1)[:, 0]
    for name in ("onnxruntime", "openvino", "mnn"):
        try:
            found = engine(name).open(model).run(inputs)
        except MissingExtra:
            continue
        off = np.abs(found - truth).max(1)
        differs = found.argmax(1) != truth.argmax(1)
        assert differs.mean() <= 0.02, name
        assert (margins[differs] <= 2 * off[differs]).all(), name
        assert np.median(off) < 0.02 * truth.std(), name


def test_what_is_to_be_expected_is_told_of_the_gate_s_images_too(
    reported: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless their logits would take too much memory."""
    told = {
        "expected_changed",
        "expected_changed_error",
        "expected_drop",
        "expected_drop_error",
        "logits_snr_db",
    }
    found = reported({})
    assert told <= found["values"].keys()
    assert 20 < found["values"]["logits_snr_db"] < 60
    monkeypatch.setattr(gate, "LOGITS", 1)
    assert not told & reported({})["values"].keys()
