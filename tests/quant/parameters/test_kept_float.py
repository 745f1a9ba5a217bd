"""A layer that is left in float is float on the engine too: ONNX Runtime would round its weights to 8 bits behind our back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from repzoo.engines import engine
from repzoo.errors import MissingExtra
from repzoo.quant.network import placement as place
from repzoo.quant.network.placement import Placement
from repzoo.quant.parameters import qdq_writer as qdq
from repzoo.quant.parameters import scales

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 8, 12, 12] data) => (float[N, 10] output)
    <float zero = {0}, float six = {6}> {
    a = Conv (data, first, ab) b = Clip (a, zero, six)
    c = Conv <group = 8, pads = [1, 1, 1, 1]> (b, deep, cb) d = Clip (c, zero, six)
    e = Conv (d, last, eb) p = GlobalAveragePool (e) f = Flatten (p) output = Gemm <transB = 1> (f, head, hb) }"""
REST = ["c", "e", "output"]
FLOATS = {
    "depthwise": ["c"],
    "the first": ["a"],
    "linear": ["output"],
    "all but the first": REST,
    "all but the last": ["a", "c", "e"],
}


def model() -> onnx.ModelProto:
    """Channels of `deep` differ by up to fifty, which `last` undoes: one scale for all of them leaves two steps to the smallest."""
    made, random = onnx.parser.parse_model(TEXT), np.random.default_rng(0)
    shapes = {"first": (8, 8, 1, 1), "deep": (8, 1, 3, 3), "last": (8, 8, 1, 1), "head": (10, 8)}
    tensors: dict[str, npt.NDArray[Any]] = {
        name: random.standard_normal(shape) for name, shape in shapes.items()
    }
    spread = np.geomspace(1, 1 / 50, 8)
    tensors["deep"] *= spread.reshape(8, 1, 1, 1)
    tensors["last"] /= spread.reshape(1, 8, 1, 1)
    tensors |= {
        "ab": np.zeros(8),
        "cb": np.zeros(8),
        "eb": np.zeros(8),
        "hb": random.standard_normal(10),
    }
    made.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()
    )
    return made


def without(floats: list[str]) -> tuple[onnx.ModelProto, Placement]:
    graph = model()
    every = place.candidates(graph)[0]
    one = place.placement(graph, "some", every.nodes - set(floats))
    numbers = {name: scales.uint8_parameters(-8.0, 8.0) for name in one.tensors}
    stored = {item.name: numpy_helper.to_array(item) for item in graph.graph.initializer}
    halved = {"a": "first", "c": "deep", "e": "last", "output": "head"}
    rounded = {
        name: seven_bits(scales.quantize_weight(stored[weight], 0))
        for name, weight in halved.items()
    }
    return qdq.insert_qdq(graph, one, numbers, per_channel=True, weights=rounded), one


def seven_bits(made: scales.QuantizedWeight) -> scales.QuantizedWeight:
    """Coarser weights, which no engine clips on hosts without VNNI."""
    return scales.QuantizedWeight(made.scale * 2, np.round(made.values / 2).astype(np.int8))


@pytest.mark.parametrize("floats", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_what_the_file_says_is_float_is_float_on_the_engine(name: str, floats: list[str]) -> None:
    """The reference evaluator does as the file says; no engine may be further from it than a few steps of the last tensor."""
    made, _ = without(floats)
    onnx.checker.check_model(made, full_check=True)
    inputs = np.random.default_rng(1).standard_normal((8, 8, 12, 12)).astype(np.float32)
    truth = engine("reference").open(made).run(inputs)
    try:
        found = engine(name).open(made).run(inputs)
    except MissingExtra as error:
        pytest.skip(str(error))
    assert np.abs(found - truth).max() <= 0.02 * np.abs(truth).max()


def test_mutant_one_scale_before_a_float_layer_is_what_onnxruntime_acts_on() -> None:
    """The test above can fail: with the shared DequantizeLinear in the place of the layer's own, its weights are rounded."""
    made, _ = without(FLOATS["depthwise"])
    layer = next(node for node in made.graph.node if node.output[0] == "c")
    own = next(node for node in made.graph.node if node.output[0] == layer.input[0])
    shared = next(
        node
        for node in made.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] == own.input[0] and node is not own
    )
    layer.input[0] = shared.output[0]
    inputs = np.random.default_rng(1).standard_normal((8, 8, 12, 12)).astype(np.float32)
    truth, found = (engine(name).open(made).run(inputs) for name in ("reference", "onnxruntime"))
    assert np.abs(found - truth).max() > 0.02 * np.abs(truth).max()


def test_nothing_is_added_where_no_layer_is_left_in_float() -> None:
    made, one = without([])
    scales = [
        node
        for node in made.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0].endswith("_quantized")
    ]
    assert len(
        [
            node
            for node in scales
            if any(node.input[0].startswith(f"{name}_") for name in one.tensors)
        ]
    ) == len(one.tensors)
    assert replace(one, name="again").tensors == one.tensors
