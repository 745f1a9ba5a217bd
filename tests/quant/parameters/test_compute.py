"""Plans: biases that keep the mean, the numbers that a scheme asks for, and the noise that is told against the noise that is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from tests.quant.parameters.test_qdq_writer import images, net, probe, run
from tests.quant.rewrites import test_equalize

from repzoo.engines import engine
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network import layers
from repzoo.quant.network.placement import Placement, candidates
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters import compute as plan
from repzoo.quant.parameters import sqnr as diagnose
from repzoo.quant.parameters.compute import Corrections
from repzoo.quant.rewrites import equalize

COARSE = replace(load_scheme("ort-cpu"), name="coarse", weight_bits=7)


def seen(model: onnx.ModelProto, placement: Placement) -> Statistics:
    reads = [one for name, one in layers.find_layers(model).items() if name in placement.nodes]
    tensors = list(dict.fromkeys([*placement.tensors, *(one.source for one in reads)]))
    return collect_statistics(
        model, tensors, reads, CalibrationStream([images(64)], 64), engine("onnxruntime"), 1
    )


def test_corrected_biases_keep_the_mean_of_a_layer() -> None:
    """One layer in INT8 by coarse weights of one scale: its mean outputs are the float model's, and are not without."""
    model = net()
    one = Placement("one", frozenset({"grouped"}), ("wise",))
    statistics, coarse = seen(model, one), replace(COARSE, per_channel=False)
    off = {}
    for bias in (False, True):
        made = plan.write_qdq(
            plan.compute_parameters(
                model, one, statistics, coarse, Corrections(False, bias, "minmax")
            ),
            one,
            coarse,
        )
        change = probe(made, ["grouped"])["grouped"] - probe(model, ["grouped"])["grouped"]
        off[bias] = np.abs(change.mean((0, 2, 3))).max()
    assert off[True] < 0.2 * off[False]


def test_biases_take_up_the_mean_that_rounding_moves() -> None:
    """GELU leaves most numbers within a step of 0, and a few far off: rounding moves their mean, which is not so without them."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[N, 3, 12, 12] data) => (float[N, 5] z) {
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
    one = Placement("one", frozenset({"y"}), ("b",))
    statistics, off = seen(model, one), {}
    for kept in (statistics.histograms["b"].samples, np.zeros((16, 0), np.float32)):
        statistics.histograms["b"].samples = kept
        made = plan.write_qdq(
            plan.compute_parameters(model, one, statistics, load_scheme("ort-cpu"), Corrections()),
            one,
            load_scheme("ort-cpu"),
        )
        change = run(made, images(64, 3)) - run(model, images(64, 3))
        off[kept.size > 0] = np.abs(change.mean(0)).max()
    assert off[True] < 0.4 * off[False]


@pytest.mark.parametrize("name", ["ort-cpu", "per-tensor", "ort-cpu-7bit", "mnn", "rdk", "vastai"])
def test_every_scheme_is_honored_and_near_the_float_model(name: str) -> None:
    model, wanted = net(), load_scheme(name)
    one = candidates(model)[0]
    made = plan.write_qdq(
        plan.compute_parameters(model, one, seen(model, one), wanted, Corrections()), one, wanted
    )
    onnx.checker.check_model(made, full_check=True)
    constants = layers.initializer_arrays(made)
    weights = [
        constants[item]
        for item in constants
        if item.endswith("_quantized") and constants[item].ndim > 1
    ]
    assert max(int(np.abs(values.astype(int)).max()) for values in weights) == wanted.weight_max
    points = {
        int(constants[item])
        for item in constants
        if item.endswith("_zero_point") and constants[item].ndim == 0
    }
    assert {constants["data_zero_point"].dtype} == {np.dtype(wanted.activation_type)}
    assert not wanted.activation_symmetric or points == {0}
    expected = run(model, images(32, 3))
    assert np.sqrt(np.mean((run(made, images(32, 3)) - expected) ** 2)) < 0.08 * np.std(expected)


def test_the_diagnosis_names_the_layer_and_the_side_that_was_broken() -> None:
    model = net()
    one = candidates(model)[0]
    statistics = seen(model, one)
    made = plan.compute_parameters(model, one, statistics, load_scheme("ort-cpu"), Corrections())
    worst = diagnose.layer_sqnr(made, statistics)[0]
    assert min(worst.weight_db, worst.activation_db) > 30  # sound
    spoiled = made.weights["again"]
    values = spoiled.values.copy()
    values[5] = np.clip(values[5].astype(int) + 40, -127, 127)
    weights = replace(made, weights={**made.weights, "again": replace(spoiled, values=values)})
    found = diagnose.layer_sqnr(weights, statistics)[0]
    assert (found.layer, found.side, found.channels[0]) == ("again", "weight", 5)
    inputs = replace(made, ranges={**made.ranges, "wise": (0.0, 0.05)})
    found = diagnose.layer_sqnr(inputs, statistics)[0]
    assert (found.layer, found.side) == ("grouped", "activation")


MOVED = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 12, 12] data) => (float[N, 5] y) {
    a = Conv (data, first)
    b = Relu (a)
    left, right = Split <axis = 1> (b, parts)
    c = Conv (left, second)
    d = Concat <axis = 1> (c, right)
    e = MaxPool <kernel_shape = [4, 4], strides = [4, 4]> (d)
    f = Flatten (e)
    y = Gemm <transB = 1> (f, third) }"""


def moved() -> tuple[onnx.ModelProto, Placement, Statistics]:
    model, random = onnx.parser.parse_model(MOVED), np.random.default_rng(0)
    for name, shape in {"first": (8, 3, 1, 1), "second": (4, 4, 1, 1), "third": (5, 72)}.items():
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([4, 4]), "parts"))
    one = replace(
        load_scheme("ort-cpu"), name="all", quantized=(*load_scheme("ort-cpu").quantized, "MaxPool")
    )
    everything = candidates(model, one)[0]
    return model, everything, seen(model, everything)


def test_what_is_only_moved_keeps_its_steps() -> None:
    model, everything, statistics = moved()
    made = plan.compute_parameters(
        model, everything, statistics, load_scheme("ort-cpu"), Corrections()
    )
    numbers = made.activations
    assert {"b", "left", "right", "c", "d", "e", "f"} <= numbers.keys()
    assert numbers["left"] == numbers["right"] == numbers["b"]
    assert numbers["c"] == numbers["d"] == numbers["e"] == numbers["f"]
    assert numbers["b"] != numbers["d"]


def test_the_diagnosis_tells_of_tensors_that_no_layer_reads() -> None:
    """Steps of the tensor before MaxPool and Flatten, or of a Concat's input, are too coarse: the layer behind is told of it."""
    model, everything, statistics = moved()
    made = plan.compute_parameters(
        model, everything, statistics, load_scheme("ort-cpu"), Corrections()
    )
    assert min(one.activation_db for one in diagnose.layer_sqnr(made, statistics)) > 25
    for tensor, layers_told in {"d": "y", "e": "y", "right": "y", "b": "cy", "data": "a"}.items():
        coarse = replace(made, ranges={**made.ranges, tensor: (-500.0, 500.0)})
        found = diagnose.layer_sqnr(coarse, statistics)[0]
        assert found.layer in layers_told
        assert (found.side, found.tensor) == ("activation", tensor)
        assert f"of {tensor}, channels" in found.sentence()
        assert found.activation_db < 20


def test_a_layer_in_float_is_told_of_steps_in_its_input() -> None:
    model, _, _ = moved()
    one = Placement("one", frozenset({"a"}), ("data", "b"))
    statistics = collect_statistics(
        model,
        ["data", "b", "left"],
        list(layers.find_layers(model).values()),
        CalibrationStream([images(64)], 64),
        engine("onnxruntime"),
        1,
    )
    made = plan.compute_parameters(model, one, statistics, load_scheme("ort-cpu"), Corrections())
    coarse = replace(made, ranges={**made.ranges, "b": (-500.0, 500.0)})
    found = diagnose.layer_sqnr(coarse, statistics)[0]
    assert found.layer in ("c", "y")
    assert (found.side, found.tensor) == ("activation", "b")
    assert found.weight_db == diagnose.MAX_DB


@pytest.mark.parametrize("name", ["ort-cpu", "per-tensor"])
def test_rescaled_channels_do_not_change_the_int8_result(name: str) -> None:
    """The same function with its free channels multiplied by 10^-2 .. 10^2; without equalization INT8 is lost."""
    model, wanted = test_equalize.net(), load_scheme(name)
    twin = test_equalize.scrambled(model)
    expected = test_equalize.run(model)
    errors = {}
    for what, graph in {
        "as it is": model,
        "twin": twin,
        "equalized": equalized(model),
        "twin, equalized": equalized(twin),
    }.items():
        one = candidates(graph)[0]
        reads = [layer for layer in layers.find_layers(graph).values() if layer.name in one.nodes]
        tensors = list(dict.fromkeys([*one.tensors, *(layer.source for layer in reads)]))
        found = collect_statistics(
            graph,
            tensors,
            reads,
            CalibrationStream([test_equalize.images()], 16),
            engine("onnxruntime"),
            1,
        )
        made = plan.write_qdq(
            plan.compute_parameters(graph, one, found, wanted, Corrections()), one, wanted
        )
        errors[what] = float(
            np.sqrt(np.mean((test_equalize.run(made) - expected) ** 2)) / np.std(expected)
        )
    assert errors["twin"] > 4 * errors["as it is"]
    assert errors["equalized"] < 0.1
    assert errors["twin, equalized"] == pytest.approx(errors["equalized"], rel=0.5)


def equalized(model: onnx.ModelProto) -> onnx.ModelProto:
    return equalize.equalize_ranges(model).model
