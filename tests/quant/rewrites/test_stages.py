"""A stage starts from a graph that computes what the model does, with statistics of its own."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.small_model import add, sets, small

from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches
from repzoo.engines import engine
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.network import layers
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.rewrites.stages import STAGES, Stage
from repzoo.quant.search import ladder, verdict
from repzoo.quant.search.comparison import FloatComparison
from repzoo.quant.search.evaluator import Evaluator
from repzoo.quant.search.gate import Gate
from repzoo.quant.search.ladder import Target
from repzoo.quant.search.verdict import Budget

BODY = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 16, 16] data) => (float[N, 10] output) {
    a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (data, first, first_b)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, second, second_b)
    d = Relu (c)
    pooled = GlobalAveragePool (d)
    flat = Flatten (pooled)
    output = Gemm <transB = 1> (flat, means, lengths) }"""
EQUALIZED = next(stage for stage in STAGES if stage.name == "equalized")


@functools.cache
def network(outliers: bool = False) -> Artifact:
    """A small network; with `outliers`, its center taps are large as in a folded RepVGG."""
    random = np.random.default_rng(1)
    model = onnx.parser.parse_model(BODY)
    second = random.standard_normal((12, 12, 3, 3)) / 10
    if outliers:
        second[range(12), range(12), 1, 1] += random.uniform(2, 3, 12)
    tensors = {
        "first": random.standard_normal((12, 3, 3, 3)) / 3,
        "first_b": np.zeros(12),
        "second": second,
        "second_b": np.zeros(12),
        "means": random.standard_normal((10, 12)),
        "lengths": np.zeros(10),
    }
    add(model, tensors)
    return replace(small(), model=model, name="network")


@functools.cache
def make_evaluator() -> Evaluator:
    target = Target(engine("onnxruntime"), load_scheme("per-tensor"), search_seconds=0)
    gate = Gate(FloatComparison(network(), sets().gate, target.engine), Budget())
    return ladder.calibrate(gate, sets(), target)[0]


@functools.cache
def inputs() -> npt.NDArray[np.float32]:
    read = batches(sets().calibration, network().require_preprocess(), 16, ReadReport())
    return np.concatenate([batch.inputs for batch in read])


def test_equalization_keeps_the_function_and_carries_the_statistics_along() -> None:
    cache = make_evaluator().builder.cache
    assert cache.changes(EQUALIZED)
    equalized = cache.get(EQUALIZED)
    onnx.checker.check_model(equalized.model, full_check=True)
    runtime = engine("onnxruntime")
    before = runtime.open(network().model, exact=True).run(inputs())
    after = runtime.open(equalized.model, exact=True).run(inputs())
    np.testing.assert_allclose(
        after, before, rtol=1e-3, atol=1e-4 * np.abs(before).max()
    )
    statistics = equalized.statistics
    all_layers = layers.find_layers(equalized.model)
    wanted = [layer for name, layer in all_layers.items() if name in statistics.moments]
    tensors = list(statistics.histograms)
    stream = CalibrationStream([inputs()], len(inputs()))
    fresh = collect_statistics(equalized.model, tensors, wanted, stream, runtime, 1)
    for tensor in tensors:
        known = statistics.histograms[tensor]
        true = fresh.histograms[tensor]
        largest = max(np.abs(true.high).max(), np.abs(true.low).max())
        np.testing.assert_allclose(known.low, true.low, rtol=1e-3, atol=1e-3 * largest)
        np.testing.assert_allclose(
            known.high, true.high, rtol=1e-3, atol=1e-3 * largest
        )
    # Moments are of random positions, so they are similar, not equal.
    for layer in wanted:
        own = statistics.moments[layer.name]
        true_moments = fresh.moments[layer.name]
        mean_limit = 0.1 * np.abs(true_moments.mean).max()
        np.testing.assert_allclose(own.mean, true_moments.mean, atol=mean_limit)
        gram_limit = 0.1 * np.abs(true_moments.grams[0]).max()
        np.testing.assert_allclose(own.grams[0], true_moments.grams[0], atol=gram_limit)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_quantizes_every_layer_and_stays_near_the_float_model(
    stage: Stage,
) -> None:
    builder = make_evaluator().builder
    build = builder.build(stage, builder.space.starting_placements()[0])
    assert (
        build.plan.weights.keys()
        == layers.find_layers(builder.cache.get(stage).model).keys()
    )
    runtime = engine("onnxruntime")
    true = runtime.open(network().model, exact=True).run(inputs())
    quantized = runtime.open(build.artifact.model, exact=True).run(inputs())
    noise = np.square(quantized - true).sum()
    assert 10 * np.log10(np.square(true).sum() / noise) > 25


def test_a_model_that_nothing_helps_is_tried_on_every_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verdict, "UNCHANGED", 101.0)
    monkeypatch.setattr(verdict, "ENOUGH", 101.0)
    # Not searched: the fastest placement may have a single layer, and then nothing leaves it.
    target = Target(
        engine("onnxruntime"),
        load_scheme("per-tensor"),
        placement="everything",
        may_fall_back=True,
    )
    _, report = ladder.quantize(
        network(outliers=True), sets(), target, Budget(force=True)
    )
    tried = [candidate.stage for candidate in report.candidates]
    assert tried[: len(STAGES)] == [stage.name for stage in STAGES]
    assert len(tried) > len(STAGES)
