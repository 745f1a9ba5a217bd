"""Predicted cost of noise against injected noise, for every operator on the way to a layer."""

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
PATHS = {  # from t [N, 6, 8, 8] to u, which the layer reads, and its weights
    "a sum": ("s = Conv (data, other) u = Add (t, s)", (5, 6, 1, 1)),
    "ReLU": ("u = Relu (t)", (5, 6, 1, 1)),
    "ReLU after a sum": (
        "s = Conv (data, other) v = Add (t, s) u = Relu (v)",
        (5, 6, 1, 1),
    ),
    "a GELU in one": ("u = Gelu (t)", (5, 6, 1, 1)),
    "a GELU in several": (
        "v = Div (t, root) e = Erf (v) f = Add (e, one) g = Mul (t, f) u = Mul (g, half)",
        (5, 6, 1, 1),
    ),
    "a swish": ("v = Sigmoid (t) u = Mul (t, v)", (5, 6, 1, 1)),
    "a hard sigmoid": (
        "u = HardSigmoid <alpha = 0.16666667, beta = 0.5> (t)",
        (5, 6, 1, 1),
    ),
    "a constant for each channel": ("u = Mul (t, factors)", (5, 6, 1, 1)),
    "a divisor": ("u = Div (t, factors)", (5, 6, 1, 1)),
    "a gate": (
        "p = GlobalAveragePool (t) v = Sigmoid (p) u = Mul (t, v)",
        (5, 6, 1, 1),
    ),
    "joined before": (
        "s = Conv (data, other) u = Concat <axis = 1> (t, s)",
        (5, 12, 1, 1),
    ),
    "joined after": (
        "s = Conv (data, other) u = Concat <axis = 1> (s, t)",
        (5, 12, 1, 1),
    ),
    "cut": ("v, u = Split <axis = 1> (t, parts)", (5, 4, 1, 1)),
    "a mean of all": ("u = GlobalAveragePool (t)", (5, 6, 1, 1)),
    "means of some": (
        "u = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (t)",
        (5, 6, 1, 1),
    ),
    "a mean by reduction": (
        "u = ReduceMean <axes = [2, 3], keepdims = 1> (t)",
        (5, 6, 1, 1),
    ),
    "flattened": (
        "v = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (t) u = Flatten (v)",
        (5, 96),
    ),
    "several ways": (
        "v = Relu (t) w = GlobalAveragePool (t) u = Add (v, w)",
        (5, 6, 1, 1),
    ),
}


def net(path: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """A layer computes t, and `noise`, a second input of the model, is added to it."""
    opset = 20 if "Gelu" in path else 17
    layer = (
        "y = Conv (u, weight)"
        if len(shape) == 4
        else "y = Gemm <transB = 1> (u, weight)"
    )
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N, 3, 8, 8] data, float[N, 6, 8, 8] noise) => (float[N, M] y) {{
        s0 = Conv (data, first)
        t = Add (s0, noise)
        {path.replace(") ", ")" + chr(10))}
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
    used = {name for node in model.graph.node for name in node.input}
    initializers = [
        numpy_helper.from_array(values.astype(np.float32), name)
        for name, values in tensors.items()
        if name in used
    ]
    model.graph.initializer.extend(initializers)
    if "parts" in used:
        model.graph.initializer.append(
            numpy_helper.from_array(np.array([2, 4]), "parts")
        )
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    )
    return model


def remove_noise(model: onnx.ModelProto) -> onnx.ModelProto:
    """t is what the layer makes, as in a model."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.node[0].output[0] = "t"
    del result.graph.node[1], result.graph.input[1]
    return result


def images(count: int) -> npt.NDArray[np.float32]:
    return (
        np.random.default_rng(3)
        .standard_normal((count, 3, SIZE, SIZE))
        .astype(np.float32)
    )


def collect(model: onnx.ModelProto, tensors: list[str]) -> Statistics:
    reads = [
        layer for layer in layers.find_layers(model).values() if layer.source == "u"
    ]
    batches = np.split(images(256), 4)
    return collect_statistics(
        model, tensors, reads, CalibrationStream(batches, 256), engine("onnxruntime"), 1
    )


def measure_cost(model: onnx.ModelProto, channel: int) -> float:
    """Relative power of the change of y for noise in one channel of t, per unit of noise power."""
    session, random = engine("onnxruntime").open(model, 1), np.random.default_rng(5)
    inputs = images(200)
    noise = np.zeros((len(inputs), 6, SIZE, SIZE), np.float32)
    clean = session.run_all({"data": inputs, "noise": noise})[0]
    noise[:, channel] = SMALL * random.standard_normal((len(inputs), SIZE, SIZE))
    noisy = session.run_all({"data": inputs, "noise": noise})[0]
    change, power = np.square(noisy - clean).mean(), np.square(clean).mean()
    return float(change / power / SMALL**2)


@pytest.mark.parametrize("path", PATHS)
def test_predicted_costs_match_the_measured_effect_of_noise(path: str) -> None:
    model = net(*PATHS[path])
    plain = remove_noise(model)
    statistics = collect(
        plain,
        [name for node in plain.graph.node for name in node.output if name != "y"],
    )
    layers_by_name = layers.find_layers(plain)
    at_inputs = input_sensitivity(
        [layer for layer in layers_by_name.values() if layer.source == "u"],
        layers.initializer_arrays(plain),
        statistics,
    )
    costs = SensitivityPropagation(
        GraphView(plain), layers_by_name, statistics
    ).propagate(at_inputs, at_inputs)
    expected = [measure_cost(model, channel) for channel in range(6)]
    # what slopes and factors make together is taken as what each makes alone
    np.testing.assert_allclose(
        costs["t"], expected, rtol=0.3, atol=0.02 * max(expected)
    )


@pytest.mark.parametrize("path", PATHS)
def test_unknown_shapes_still_give_a_finite_cost_for_every_channel(path: str) -> None:
    """An exporter may leave shapes out; the cost is then less precise."""
    model = remove_noise(net(*PATHS[path]))
    statistics = collect(
        model,
        [name for node in model.graph.node for name in node.output if name != "y"],
    )
    layers_by_name = layers.find_layers(model)
    at_inputs = input_sensitivity(
        [layer for layer in layers_by_name.values() if layer.source == "u"],
        layers.initializer_arrays(model),
        statistics,
    )
    wiring = GraphView(model)
    wiring.shapes.clear()
    costs = SensitivityPropagation(wiring, layers_by_name, statistics).propagate(
        at_inputs, at_inputs
    )
    for name, cost in costs.items():
        assert len(cost) == len(statistics.histograms[name].low)
        assert np.isfinite(cost).all()
        assert (cost >= 0).all()
    assert costs["t"].max() > 0


def test_only_the_nearest_layers_determine_the_cost() -> None:
    """t is read by a layer and by an Add: the layer behind the Add adds nothing to its cost."""
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
            numpy_helper.from_array(
                random.standard_normal(shape).astype(np.float32), name
            )
        )
    reads = list(layers.find_layers(model).values())
    statistics = collect_statistics(
        model,
        ["t", "a", "u"],
        reads,
        CalibrationStream([images(32)], 32),
        engine("onnxruntime"),
        1,
    )
    sensitivities = activation_sensitivity(
        GraphView(model), layers.find_layers(model), statistics
    )
    values = layers.initializer_arrays(model)
    single = {
        layer.name: input_sensitivity([layer], values, statistics)[layer.source]
        for layer in reads
    }
    np.testing.assert_array_equal(sensitivities["t"].cost, single["a"])
    np.testing.assert_array_equal(sensitivities["a"].cost, single["y"])
    np.testing.assert_array_equal(sensitivities["u"].cost, single["y"])
