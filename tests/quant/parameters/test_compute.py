"""Quantization plans: bias correction, number formats of schemes, shared ranges, and SQNR."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from tests.quant.parameters.test_qdq_writer import images, net, probe, run
from tests.quant.placements import candidates
from tests.quant.rewrites import test_equalize

from repzoo.engines import engine
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network import layers
from repzoo.quant.network.placement import Placement
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters import activation_ranges, compute, sqnr
from repzoo.quant.parameters.compute import Corrections
from repzoo.quant.parameters.ranges import ChosenRange
from repzoo.quant.rewrites import equalize

COARSE = replace(load_scheme("ort-cpu"), name="coarse", weight_bits=7)


def collect(model: onnx.ModelProto, placement: Placement) -> Statistics:
    reads = [
        layer
        for name, layer in layers.find_layers(model).items()
        if name in placement.nodes
    ]
    tensors = list(
        dict.fromkeys([*placement.tensors, *(layer.source for layer in reads)])
    )
    return collect_statistics(
        model,
        tensors,
        reads,
        CalibrationStream([images(64)], 64),
        engine("onnxruntime"),
        1,
    )


def test_bias_correction_restores_channel_means() -> None:
    """One layer with 7-bit weights and one scale."""
    model = net()
    placement = Placement("one", frozenset({"grouped"}), ("wise",))
    statistics, coarse = collect(model, placement), replace(COARSE, per_channel=False)
    shifts = {}
    for bias in (False, True):
        result = compute.write_qdq(
            compute.compute_parameters(
                model, placement, statistics, coarse, Corrections(False, bias, "minmax")
            ),
            placement,
            coarse,
        )
        change = (
            probe(result, ["grouped"])["grouped"] - probe(model, ["grouped"])["grouped"]
        )
        shifts[bias] = np.abs(change.mean((0, 2, 3))).max()
    assert shifts[True] < 0.2 * shifts[False]


def test_bias_correction_includes_the_shift_of_rounding_activations() -> None:
    """Most outputs of GELU lie within a step of 0, and rounding moves their mean."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 3, 12, 12] data) => (float[N, 5] z) {
        a = Conv (data, first, shift)
        b = Gelu (a)
        y = Conv (b, second)
        p = GlobalAveragePool (y)
        z = Flatten (p) }"""
    )
    random = np.random.default_rng(0)
    held = {
        "first": random.standard_normal((16, 3, 1, 1)) / 4,
        "shift": np.linspace(-1.2, -0.3, 16),
        "second": random.uniform(0.2, 1, (5, 16, 1, 1)),
    }
    held["first"][0] *= (
        20  # reaches far, so that a step is as long as what GELU leaves of the others
    )
    for name, values in held.items():
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(values.astype(np.float32), name)
        )
    placement = Placement("one", frozenset({"y"}), ("b",))
    statistics, shifts = collect(model, placement), {}
    for kept in (statistics.histograms["b"].samples, np.zeros((16, 0), np.float32)):
        statistics.histograms["b"].samples = kept
        result = compute.write_qdq(
            compute.compute_parameters(
                model, placement, statistics, load_scheme("ort-cpu"), Corrections()
            ),
            placement,
            load_scheme("ort-cpu"),
        )
        change = run(result, images(64, 3)) - run(model, images(64, 3))
        shifts[kept.size > 0] = np.abs(change.mean(0)).max()
    assert shifts[True] < 0.4 * shifts[False]


@pytest.mark.parametrize(
    "name", ["ort-cpu", "per-tensor", "ort-cpu-7bit", "mnn", "rdk-x5", "vastai"]
)
def test_every_scheme_gets_its_number_formats_and_stays_accurate(name: str) -> None:
    model, scheme = net(), load_scheme(name)
    placement = candidates(model)[0]
    result = compute.write_qdq(
        compute.compute_parameters(
            model, placement, collect(model, placement), scheme, Corrections()
        ),
        placement,
        scheme,
    )
    onnx.checker.check_model(result, full_check=True)
    constants = layers.initializer_arrays(result)
    weights = [
        constants[item]
        for item in constants
        if item.endswith("_quantized") and constants[item].ndim > 1
    ]
    assert (
        max(int(np.abs(values.astype(int)).max()) for values in weights)
        == scheme.weight_max
    )
    points = {
        int(constants[item])
        for item in constants
        if item.endswith("_zero_point") and constants[item].ndim == 0
    }
    assert {constants["data_zero_point"].dtype} == {np.dtype(scheme.activation_type)}
    assert not scheme.activation_symmetric or points == {0}
    expected = run(model, images(32, 3))
    assert np.sqrt(
        np.mean((run(result, images(32, 3)) - expected) ** 2)
    ) < 0.08 * np.std(expected)


def test_the_sqnr_report_names_the_layer_and_side_that_were_broken() -> None:
    model = net()
    placement = candidates(model)[0]
    statistics = collect(model, placement)
    result = compute.compute_parameters(
        model, placement, statistics, load_scheme("ort-cpu"), Corrections()
    )
    worst = sqnr.layer_sqnr(result, statistics)[0]
    assert min(worst.weight_db, worst.activation_db) > 30  # sound
    spoiled = result.weights["again"]
    values = spoiled.values.copy()
    values[5] = np.clip(values[5].astype(int) + 40, -127, 127)
    weights = replace(
        result, weights={**result.weights, "again": replace(spoiled, values=values)}
    )
    worst = sqnr.layer_sqnr(weights, statistics)[0]
    assert (worst.layer, worst.side, worst.channels[0]) == ("again", "weight", 5)
    inputs = replace(
        result, ranges={**result.ranges, "wise": ChosenRange("", (0.0, 0.05))}
    )
    worst = sqnr.layer_sqnr(inputs, statistics)[0]
    assert (worst.layer, worst.side) == ("grouped", "activation")


MOVED = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 12, 12] data) => (float[N, 5] y) {
    a = Conv (data, first)
    b = Relu (a)
    left, right = Split <axis = 1> (b, parts)
    c = Conv (left, second)
    d = Concat <axis = 1> (c, right)
    e = MaxPool <kernel_shape = [4, 4], strides = [4, 4]> (d)
    f = Flatten (e)
    y = Gemm <transB = 1> (f, third) }"""


def model_with_pooling() -> tuple[onnx.ModelProto, Placement, Statistics]:
    model, random = onnx.parser.parse_model(MOVED), np.random.default_rng(0)
    for name, shape in {
        "first": (8, 3, 1, 1),
        "second": (4, 4, 1, 1),
        "third": (5, 72),
    }.items():
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(
                random.standard_normal(shape).astype(np.float32), name
            )
        )
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array([4, 4]), "parts")
    )
    placement = replace(
        load_scheme("ort-cpu"),
        name="all",
        quantized=(*load_scheme("ort-cpu").quantized, "MaxPool"),
    )
    everything = candidates(model, placement)[0]
    return model, everything, collect(model, everything)


def test_data_movement_keeps_the_range_of_its_input() -> None:
    model, everything, statistics = model_with_pooling()
    result = compute.compute_parameters(
        model, everything, statistics, load_scheme("ort-cpu"), Corrections()
    )
    parameters = result.activations
    assert {"b", "left", "right", "c", "d", "e", "f"} <= parameters.keys()
    assert parameters["left"] == parameters["right"] == parameters["b"]
    assert parameters["c"] == parameters["d"] == parameters["e"] == parameters["f"]
    assert parameters["b"] != parameters["d"]


def test_noise_in_other_tensors_is_attributed_to_a_downstream_layer() -> None:
    """A tensor in front of MaxPool, Flatten or Concat gets too wide a range."""
    model, everything, statistics = model_with_pooling()
    result = compute.compute_parameters(
        model, everything, statistics, load_scheme("ort-cpu"), Corrections()
    )
    assert (
        min(layer.activation_db for layer in sqnr.layer_sqnr(result, statistics)) > 25
    )
    for tensor, expected_layers in {
        "d": "y",
        "e": "y",
        "right": "y",
        "b": "cy",
        "data": "a",
    }.items():
        coarse = replace(
            result, ranges={**result.ranges, tensor: ChosenRange("", (-500.0, 500.0))}
        )
        worst = sqnr.layer_sqnr(coarse, statistics)[0]
        assert worst.layer in expected_layers
        assert (worst.side, worst.tensor) == ("activation", tensor)
        assert f"of {tensor}, channels" in worst.sentence()
        assert worst.activation_db < 20


def test_a_float_layer_is_listed_if_its_input_is_quantized() -> None:
    model, _, _ = model_with_pooling()
    placement = Placement("one", frozenset({"a"}), ("data", "b"))
    statistics = collect_statistics(
        model,
        ["data", "b", "left"],
        list(layers.find_layers(model).values()),
        CalibrationStream([images(64)], 64),
        engine("onnxruntime"),
        1,
    )
    result = compute.compute_parameters(
        model, placement, statistics, load_scheme("ort-cpu"), Corrections()
    )
    coarse = replace(
        result, ranges={**result.ranges, "b": ChosenRange("", (-500.0, 500.0))}
    )
    worst = sqnr.layer_sqnr(coarse, statistics)[0]
    assert worst.layer in ("c", "y")
    assert (worst.side, worst.tensor) == ("activation", "b")
    assert worst.weight_db == sqnr.MAX_DB


@pytest.mark.parametrize("name", ["ort-cpu", "per-tensor"])
def test_rescaled_channels_do_not_change_the_int8_result(name: str) -> None:
    """Channels rescaled by 10^-2..10^2, the same function: only equalization saves INT8."""
    model, scheme = test_equalize.net(), load_scheme(name)
    twin = test_equalize.rescale_randomly(model)
    expected = test_equalize.run(model)
    errors = {}
    for what, graph in {
        "as it is": model,
        "twin": twin,
        "equalized": equalize_model(model),
        "twin, equalized": equalize_model(twin),
    }.items():
        placement = candidates(graph)[0]
        reads = [
            layer
            for layer in layers.find_layers(graph).values()
            if layer.name in placement.nodes
        ]
        tensors = list(
            dict.fromkeys([*placement.tensors, *(layer.source for layer in reads)])
        )
        statistics = collect_statistics(
            graph,
            tensors,
            reads,
            CalibrationStream([test_equalize.images()], 16),
            engine("onnxruntime"),
            1,
        )
        result = compute.write_qdq(
            compute.compute_parameters(
                graph, placement, statistics, scheme, Corrections()
            ),
            placement,
            scheme,
        )
        errors[what] = float(
            np.sqrt(np.mean((test_equalize.run(result) - expected) ** 2))
            / np.std(expected)
        )
    assert errors["twin"] > 4 * errors["as it is"]
    assert errors["equalized"] < 0.1
    assert errors["twin, equalized"] == pytest.approx(errors["equalized"], rel=0.5)


def equalize_model(model: onnx.ModelProto) -> onnx.ModelProto:
    return equalize.equalize_ranges(model).model


def test_a_sigmoid_in_int8_has_the_range_of_the_function() -> None:
    """Whatever was seen of it, and whatever the method: what it gates would shrink otherwise."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 17]>
        g (float[N, 3, 12, 12] data) => (float[N, 5] y) {
        a = Conv (data, first) s = Sigmoid (a) b = Mul (a, s) c = Conv (b, second)
        p = GlobalAveragePool (c) y = Flatten (p) }"""
    )
    random = np.random.default_rng(0)
    for name, shape in {"first": (8, 3, 1, 1), "second": (5, 8, 1, 1)}.items():
        values = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    scheme = load_scheme("ort-cpu")
    placement = candidates(model, scheme)[0]
    statistics = collect(model, placement)
    for method in ("auto", "minmax", "percentile"):
        chosen = activation_ranges.choose_ranges(
            model, placement, statistics, scheme, method
        )
        assert chosen["s"] == ("function", (0.0, 1.0))
