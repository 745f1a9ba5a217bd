"""Every rung starts from a graph that computes what the model does, with statistics that are that graph's own."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip("sklearn", reason="the demo extra, with the digits, is not installed")

from tests.quant.conftest import add, sets, small

from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches
from repzoo.engines import engine
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.network import layers
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.rewrites.stages import STAGES, Stage
from repzoo.quant.search import gate as gating
from repzoo.quant.search import ladder
from repzoo.quant.search.gate import Budget, Gate
from repzoo.quant.search.ladder import Target

BODY = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 16, 16] data) => (float[N, 10] output) {
    a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (data, first, first_b)
    b = RELU (a)
    c = Conv <pads = [PAD, PAD, PAD, PAD]> (b, second, second_b)
    d = Relu (c)
    pooled = GlobalAveragePool (d)
    flat = Flatten (pooled)
    output = Gemm <transB = 1> (flat, means, lengths) }"""
NEEDS = {
    "equalized": "plain",
    "equalized through ReLU6": "relu6",
    "absorbed": "high",
    "coarse and fine": "center",
}


@functools.cache
def made(kind: str) -> Artifact:
    """A network in which the rungs that need `kind` find something to do, and no others."""
    random = np.random.default_rng(1)
    relu, pad = ("Clip" if kind == "relu6" else "Relu"), (0 if kind == "high" else 1)
    model = onnx.parser.parse_model(
        BODY.replace("RELU (a)", f"{relu} (a{', zero, six' if kind == 'relu6' else ''})").replace(
            "PAD", str(pad)
        )
    )
    second = random.standard_normal((12, 12, 3, 3)) / 10
    if kind == "center":
        second[range(12), range(12), 1, 1] += random.uniform(2, 3, 12)
    tensors = {
        "first": random.standard_normal((12, 3, 3, 3)) / 3,
        "first_b": np.where(np.arange(12) % 4 == 0, 9.0, 0.0) if kind == "high" else np.zeros(12),
        "second": second,
        "second_b": np.zeros(12),
        "means": random.standard_normal((10, 12)),
        "lengths": np.zeros(10),
    }
    add(
        model,
        tensors | ({"zero": np.zeros(()), "six": np.full((), 6.0)} if kind == "relu6" else {}),
    )
    return replace(small(), model=model, name=kind)


@functools.cache
def climb(kind: str) -> ladder._Climb:
    target = Target(engine("onnxruntime"), load_scheme("per-tensor"), search_seconds=0)
    started = ladder._Climb(Gate(made(kind), sets().gate, target.engine, Budget()), target, sets())
    started.calibrate()
    started.raced(0.0)
    return started


@functools.cache
def inputs() -> npt.NDArray[np.float32]:
    return np.concatenate(
        [
            one.inputs
            for one in batches(
                sets().calibration, made("plain").require_preprocess(), 16, ReadReport()
            )
        ]
    )


def rung(name: str) -> Stage:
    return next(one for one in STAGES if one.name == name)


@pytest.mark.parametrize("name", [*NEEDS])
def test_the_function_is_the_same_and_the_statistics_are_its_own(name: str) -> None:
    base = climb(NEEDS[name]).base(rung(name).rewrites)
    onnx.checker.check_model(base.model, full_check=True)
    before, after = (
        engine("onnxruntime").open(model, exact=True).run(inputs())
        for model in (made(NEEDS[name]).model, base.model)
    )
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4 * np.abs(before).max())
    tensors, reads = (
        list(base.statistics.histograms),
        [
            one
            for key, one in layers.find_layers(base.model).items()
            if key in base.statistics.moments
        ],
    )
    present = {value for node in base.model.graph.node for value in node.output} | {"data"}
    tensors = [one for one in tensors if one in present]
    fresh = collect_statistics(
        base.model,
        tensors,
        reads,
        CalibrationStream([inputs()], len(inputs())),
        engine("onnxruntime"),
        1,
    )
    for tensor in tensors:
        known, found = base.statistics.histograms[tensor], fresh.histograms[tensor]
        room = 1e-3 * max(np.abs(found.high).max(), np.abs(found.low).max())
        np.testing.assert_allclose(
            np.stack([known.low, known.high]),
            np.stack([found.low, found.high]),
            rtol=1e-3,
            atol=room,
        )
    for one in reads:  # of random positions, so alike, not equal
        own, true = base.statistics.moments[one.name], fresh.moments[one.name]
        np.testing.assert_allclose(own.mean, true.mean, atol=0.1 * np.abs(true.mean).max())
        np.testing.assert_allclose(
            own.grams[0], true.grams[0], atol=0.1 * np.abs(true.grams[0]).max()
        )


@pytest.mark.parametrize("name", [*NEEDS])
def test_its_int8_form_is_near_the_float_model_and_leaves_no_layer_in_float(name: str) -> None:
    way = climb(NEEDS[name])
    artifact, plan = way.write(rung(name), way.starts[0])
    assert plan.weights.keys() == layers.find_layers(way.base(rung(name).rewrites).model).keys()
    true = engine("onnxruntime").open(way.artifact.model, exact=True).run(inputs())
    told = engine("onnxruntime").open(artifact.model, exact=True).run(inputs())
    assert 10 * np.log10(np.square(true).sum() / np.square(told - true).sum()) > 25


def test_coarse_and_fine_is_nearer_where_the_center_taps_are_outliers() -> None:
    way = climb("center")
    true = engine("onnxruntime").open(way.artifact.model, exact=True).run(inputs())

    def error(recipe: Stage) -> float:
        plain = replace(recipe, corrections=replace(recipe.corrections, gptq=False))
        told = (
            engine("onnxruntime")
            .open(way.write(plain, way.starts[0])[0].model, exact=True)
            .run(inputs())
        )
        return float(np.square(told - true).mean())

    assert error(rung("coarse and fine")) < error(rung("equalized"))


@pytest.mark.parametrize("kind", ["plain", "relu6", "high", "center"])
def test_a_rung_that_would_change_nothing_is_passed_over(kind: str) -> None:
    found = {recipe.name for recipe in STAGES if recipe.rewrites and climb(kind).changes(recipe)}
    assert found == {"equalized", *(name for name, needed in NEEDS.items() if needed == kind)}


def test_a_model_that_nothing_helps_is_tried_on_every_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gating, "UNCHANGED", 101.0)
    monkeypatch.setattr(gating, "ENOUGH", 101.0)
    target = Target(engine("onnxruntime"), load_scheme("per-tensor"), search_seconds=0)
    _, report = ladder.quantize(made("center"), sets(), target, Budget(force=True))
    tried = [one.stage for one in report.candidates]
    assert {"rounding", "second-order", "equalized", "coarse and fine"} <= {*tried}
    assert tried.index("coarse and fine") < tried.index(
        "equalized, escape 1" if "equalized, escape 1" in tried else tried[-1]
    )


def test_what_leaves_int8_for_16_bits_keeps_them_where_a_rewrite_adds_nodes() -> None:
    target = Target(engine("onnxruntime"), load_scheme("rdk"), search_seconds=0)
    way = ladder._Climb(Gate(made("center"), sets().gate, target.engine, Budget()), target, sets())
    way.calibrate()
    way.raced(0.0)
    wide = way.without(way.starts[0], ["c"])
    assert wide.int16_tensors
    base = way.base(rung("coarse and fine").rewrites)
    assert way._placed(base, wide).int16_tensors & wide.int16_tensors
