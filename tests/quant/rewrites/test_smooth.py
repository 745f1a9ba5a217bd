"""Factors of least predicted noise: the function stays, the slope is the noise's, twins end
alike, and INT8 is nearer to float.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from tests.quant import placements as place

from repzoo.engines import engine
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network import channels, layers
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters import compute
from repzoo.quant.rewrites import equalize
from repzoo.quant.rewrites import smooth as smoothing
from repzoo.quant.rewrites.equalize import EqualizedModel

# A chain, a residual, a depthwise layer with ReLU6 behind it: `live` has one channel far wider
# than the others, though weights are alike.
NET = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 8, 8] data) => (float[N, 5] output)
    {
        stem = Conv <pads = [1, 1, 1, 1]> (data, stem_w, stem_b)
        live = Relu (stem)
        one = Conv <pads = [1, 1, 1, 1]> (live, one_w)
        sum = Add (one, live)
        alive = Relu (sum)
        wide = Conv (alive, wide_w)
        six = Clip (wide, zero, top)
        deep = Conv <group = 12, pads = [1, 1, 1, 1]> (six, deep_w)
        last = Conv (deep, last_w)
        pooled = GlobalAveragePool (last)
        flat = Flatten (pooled)
        output = Gemm <transB = 1> (flat, fc_w, fc_b)
    }"""
SHAPES = {
    "stem_w": (10, 3, 3, 3), "stem_b": (10,), "one_w": (10, 10, 3, 3), "wide_w": (12, 10, 1, 1), "deep_w": (12, 1, 3, 3),
    "last_w": (8, 12, 1, 1), "fc_w": (5, 8), "fc_b": (5,), "zero": (), "top": (),
}  # fmt: skip


def net(seed: int = 0) -> onnx.ModelProto:
    rng, model = np.random.default_rng(seed), onnx.parser.parse_model(NET)
    for name, shape in SHAPES.items():
        values = rng.standard_normal(shape) / np.sqrt(int(np.prod(shape[1:])))
        values = {"zero": np.zeros(()), "top": np.array(6.0)}.get(name, values)
        if name == "stem_b":
            values[3] = 25.0  # a wide activation behind ordinary weights
        if name == "wide_w":
            values[:, 3] /= 20
        model.graph.initializer.append(
            numpy_helper.from_array(np.asarray(values, np.float32), name)
        )
    return model


def images(seed: int = 9, count: int = 64) -> npt.NDArray[np.float32]:
    return (
        np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)
    )


def collect(model: onnx.ModelProto) -> Statistics:
    tensors = place.candidates(model)[0].tensors
    return collect_statistics(
        model,
        list(tensors),
        list(layers.find_layers(model).values()),
        CalibrationStream([images()], 64),
        engine("onnxruntime"),
        1,
    )


def smooth_ranges(model: onnx.ModelProto, per_channel: bool) -> EqualizedModel:
    seen = collect(model)
    start = equalize.equalize_ranges(model)
    return smoothing.smooth(
        model, start, seen, place.candidates(model)[0].tensors, per_channel
    )


def run(
    model: onnx.ModelProto, inputs: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    return (
        engine("onnxruntime")
        .open(model, exact=True)
        .run(images() if inputs is None else inputs)
    )


def error(model: onnx.ModelProto, base: EqualizedModel, name: str) -> float:
    """Mean squared error of the INT8 form of `base`, on images that it was not calibrated on."""
    placed = place.candidates(model)[0]
    seen = collect(model).rescaled(base.factors, layers.find_layers(model).values())
    parameters = compute.compute_parameters(
        base.model, placed, seen, load_scheme(name), compute.Corrections()
    )
    inputs = images(4, 256)
    return float(
        np.square(
            run(compute.write_qdq(parameters, placed, load_scheme(name)), inputs)
            - run(model, inputs)
        ).mean()
    )


def rescale_randomly(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same function, its free channels multiplied by 10^-2 .. 10^2."""
    all_layers = layers.find_layers(model)
    linked = channels.link_channels(model, all_layers)
    total = 10 ** np.random.default_rng(seed).uniform(-2, 2, linked.count)
    total[channels.FIXED] = 1
    return equalize.rescale_channels(model, all_layers, linked, total).model


@pytest.mark.parametrize("per_channel", [True, False])
def test_function_is_unchanged_and_relu6_channels_are_fixed(per_channel: bool) -> None:
    model = net()
    smoothed = smooth_ranges(model, per_channel)
    assert (
        np.abs(run(smoothed.model) - run(model)).max() < 1e-5 * np.abs(run(model)).max()
    )
    assert smoothed.factors
    assert "six" not in smoothed.factors


@pytest.mark.parametrize("per_channel", [True, False])
def test_gradient_matches_finite_differences(per_channel: bool) -> None:
    model = net()
    seen, all_layers = collect(model), layers.find_layers(model)
    linked, start = (
        channels.link_channels(model, all_layers),
        equalize.equalize_ranges(model),
    )
    terms = smoothing._noise_terms(
        start.model,
        seen.rescaled(start.factors, all_layers.values()),
        place.candidates(model)[0].tensors,
        linked,
        per_channel,
    )

    def noise(theta: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        slope = np.zeros(linked.count)
        return sum(term.add(theta, slope) for term in terms), slope

    theta = np.random.default_rng(0).normal(0, 0.3, linked.count)
    steps = 1e-5 * np.eye(linked.count)
    numeric = [
        (noise(theta + step)[0] - noise(theta - step)[0]) / 2e-5 for step in steps
    ]
    np.testing.assert_allclose(
        noise(theta)[1], numeric, rtol=1e-5, atol=1e-6 * np.abs(numeric).max()
    )


@pytest.mark.parametrize("name", ["per-tensor", "ort-cpu"])
def test_int8_error_is_lower_than_with_equalized_weights_alone(name: str) -> None:
    errors = []
    for seed in range(3):
        model = net(seed)
        start = equalize.equalize_ranges(model)
        errors.append(
            (
                error(model, smooth_ranges(model, load_scheme(name).per_channel), name),
                error(model, start, name),
            )
        )
    ours, theirs = np.array(errors).mean(0)
    assert ours < 0.8 * theirs


@pytest.mark.parametrize("name", ["per-tensor", "ort-cpu"])
def test_rescaled_copy_gives_the_same_int8_within_noise(name: str) -> None:
    model = net()
    twin = rescale_randomly(model, 4)
    assert np.abs(run(twin) - run(model)).max() < 1e-4 * np.abs(run(model)).max()
    ours, theirs = (
        error(network, smooth_ranges(network, load_scheme(name).per_channel), name)
        for network in (model, twin)
    )
    assert theirs < 1.5 * ours
    assert error(twin, EqualizedModel(twin, {}), name) > 4 * theirs


def test_dead_and_constant_channels_are_left_finite() -> None:
    model = net()
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item).copy()
        if item.name == "stem_w":
            values[2] = 0
        if item.name == "one_w":
            values[:] = 0
        item.CopyFrom(numpy_helper.from_array(values, item.name))
    smoothed = smooth_ranges(model, False)
    assert all(
        np.isfinite(factors).all() and (factors > 0).all()
        for factors in smoothed.factors.values()
    )
    assert (
        np.abs(run(smoothed.model) - run(model)).max() < 1e-5 * np.abs(run(model)).max()
    )
