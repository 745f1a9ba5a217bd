"""What noise in a tensor costs, against noise that is put there: for every kind of operator between it and the layer that reads it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from repzoo.engines import engine
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.calibration.sensitivity import (
    SensitivityPropagation,
    activation_sensitivity,
    input_sensitivity,
)
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network import layers
from repzoo.quant.network.graph_view import GraphView

SIZE, SMALL = 8, 0.01
WAYS = {  # from t [N, 6, 8, 8] to u, which the layer reads, and its weights
    "a sum": ("s = Conv (data, other) u = Add (t, s)", (5, 6, 1, 1)),
    "ReLU": ("u = Relu (t)", (5, 6, 1, 1)),
    "ReLU after a sum": ("s = Conv (data, other) v = Add (t, s) u = Relu (v)", (5, 6, 1, 1)),
    "a GELU in one": ("u = Gelu (t)", (5, 6, 1, 1)),
    "a GELU in several": (
        "v = Div (t, root) e = Erf (v) f = Add (e, one) g = Mul (t, f) u = Mul (g, half)",
        (5, 6, 1, 1),
    ),
    "a swish": ("v = Sigmoid (t) u = Mul (t, v)", (5, 6, 1, 1)),
    "a hard sigmoid": ("u = HardSigmoid <alpha = 0.16666667, beta = 0.5> (t)", (5, 6, 1, 1)),
    "a constant for each channel": ("u = Mul (t, factors)", (5, 6, 1, 1)),
    "a divisor": ("u = Div (t, factors)", (5, 6, 1, 1)),
    "a gate": ("p = GlobalAveragePool (t) v = Sigmoid (p) u = Mul (t, v)", (5, 6, 1, 1)),
    "joined before": ("s = Conv (data, other) u = Concat <axis = 1> (t, s)", (5, 12, 1, 1)),
    "joined after": ("s = Conv (data, other) u = Concat <axis = 1> (s, t)", (5, 12, 1, 1)),
    "cut": ("v, u = Split <axis = 1> (t, parts)", (5, 4, 1, 1)),
    "a mean of all": ("u = GlobalAveragePool (t)", (5, 6, 1, 1)),
    "means of some": (
        "u = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (t)",
        (5, 6, 1, 1),
    ),
    "a mean by reduction": ("u = ReduceMean <axes = [2, 3], keepdims = 1> (t)", (5, 6, 1, 1)),
    "flattened": (
        "v = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (t) u = Flatten (v)",
        (5, 96),
    ),
    "several ways": ("v = Relu (t) w = GlobalAveragePool (t) u = Add (v, w)", (5, 6, 1, 1)),
}


def net(way: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """t is made by a layer; `noise`, a second input, is added to it, so that it can be put there."""
    opset = 20 if "Gelu" in way else 17
    layer = "y = Conv (u, weight)" if len(shape) == 4 else "y = Gemm <transB = 1> (u, weight)"
    made = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : {opset}]> g (float[1, 3, 8, 8] data, float[1, 6, 8, 8] noise) => (float[N, M] y) {{
        s0 = Conv (data, first)
        t = Add (s0, noise)
        {way.replace(") ", ")" + chr(10))}
        {layer} }}"""
    )
    random = np.random.default_rng(0)
    tensors = {
        "first": 1.5
        * random.standard_normal((6, 3, 1, 1))
        * np.array([0.2, 1, 3, 1, 0.5, 2]).reshape(6, 1, 1, 1),
        "other": random.standard_normal((6, 3, 1, 1)),
        "factors": np.array([0.1, 1, 3, 0.5, 2, 1]).reshape(1, 6, 1, 1),
        "root": np.array(np.sqrt(2)),
        "one": np.array(1.0),
        "half": np.array(0.5),
        "weight": random.standard_normal(shape)
        * np.linspace(0.3, 2, shape[1]).reshape(1, -1, *[1] * (len(shape) - 2)),
    }
    used = {name for node in made.graph.node for name in node.input}
    held = [
        numpy_helper.from_array(values.astype(np.float32), name)
        for name, values in tensors.items()
        if name in used
    ]
    made.graph.initializer.extend(held)
    if "parts" in used:
        made.graph.initializer.append(numpy_helper.from_array(np.array([2, 4]), "parts"))
    del made.graph.output[:]
    made.graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    return made


def without_noise(model: onnx.ModelProto) -> onnx.ModelProto:
    """t is what the layer makes, as in a model."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.node[0].output[0] = "t"
    del made.graph.node[1], made.graph.input[1]
    return made


def images(count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)


def seen(model: onnx.ModelProto, tensors: list[str]) -> Statistics:
    reads = [one for one in layers.find_layers(model).values() if one.source == "u"]
    batches = [images(256)[at : at + 1] for at in range(256)]
    return collect_statistics(
        model, tensors, reads, CalibrationStream(batches, 256), engine("onnxruntime"), 1
    )


def measured(model: onnx.ModelProto, channel: int) -> float:
    """Mean squared change of y, over its power, by noise of SMALL^2 in one channel of t, as for noise of 1."""
    import onnxruntime as ort

    session, random = ort.InferenceSession(model.SerializeToString()), np.random.default_rng(5)
    change, power = 0.0, 0.0
    for one in images(200):
        noise = np.zeros((1, 6, SIZE, SIZE), np.float32)
        clean = session.run(None, {"data": one[None], "noise": noise})[0]
        noise[0, channel] = SMALL * random.standard_normal((SIZE, SIZE))
        change += float(
            np.square(session.run(None, {"data": one[None], "noise": noise})[0] - clean).mean()
        )
        power += float(np.square(clean).mean())
    return change / power / SMALL**2


@pytest.mark.parametrize("way", WAYS)
def test_costs_are_what_noise_does(way: str) -> None:
    model = net(*WAYS[way])
    plain = without_noise(model)
    statistics = seen(
        plain, [name for node in plain.graph.node for name in node.output if name != "y"]
    )
    found = layers.find_layers(plain)
    charges = input_sensitivity(
        [one for one in found.values() if one.source == "u"],
        layers.initializer_arrays(plain),
        statistics,
    )
    costs = SensitivityPropagation(GraphView(plain), found, statistics).propagate(charges, charges)
    expected = [measured(model, channel) for channel in range(6)]
    # what slopes and factors make together is taken as what each makes alone
    np.testing.assert_allclose(costs["t"], expected, rtol=0.3, atol=0.02 * max(expected))


@pytest.mark.parametrize("way", WAYS)
def test_shapes_that_are_not_known_cost_precision_and_no_more(way: str) -> None:
    """An exporter may leave them out; every tensor still has a finite cost for each channel that was seen."""
    model = without_noise(net(*WAYS[way]))
    statistics = seen(
        model, [name for node in model.graph.node for name in node.output if name != "y"]
    )
    found = layers.find_layers(model)
    charges = input_sensitivity(
        [one for one in found.values() if one.source == "u"],
        layers.initializer_arrays(model),
        statistics,
    )
    wiring = GraphView(model)
    wiring.shapes.clear()
    costs = SensitivityPropagation(wiring, found, statistics).propagate(charges, charges)
    for name, cost in costs.items():
        assert len(cost) == len(statistics.histograms[name].low)
        assert np.isfinite(cost).all()
        assert (cost >= 0).all()
    assert costs["t"].max() > 0


def test_the_nearest_layers_speak_for_a_tensor() -> None:
    """t is read by a layer, and by a sum that another layer reads: what the other charges is for the sum's other input."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 8, 8] data) => (float[N, 4] z) {
        t = Conv (data, first)
        a = Conv (t, second)
        u = Add (a, t)
        y = Conv (u, third)
        p = GlobalAveragePool (y)
        z = Flatten (p) }"""
    )
    random = np.random.default_rng(1)
    for name, shape in {
        "first": (6, 3, 1, 1),
        "second": (6, 6, 1, 1),
        "third": (4, 6, 1, 1),
    }.items():
        model.graph.initializer.append(
            numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        )
    reads = list(layers.find_layers(model).values())
    statistics = collect_statistics(
        model, ["t", "a", "u"], reads, CalibrationStream([images(32)], 32), engine("onnxruntime"), 1
    )
    found = activation_sensitivity(GraphView(model), layers.find_layers(model), statistics)
    alone = {
        one.name: input_sensitivity([one], layers.initializer_arrays(model), statistics)[one.source]
        for one in reads
    }
    np.testing.assert_array_equal(found["t"].cost, alone["a"])
    np.testing.assert_array_equal(found["a"].cost, alone["y"])
    np.testing.assert_array_equal(found["u"].cost, alone["y"])
