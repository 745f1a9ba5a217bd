"""A float layer runs in float: ONNX Runtime must not quantize its weights on its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from tests.quant import placements as place
from tests.tolerance import relative

from repzoo.engines import engine
from repzoo.errors import MissingExtra
from repzoo.quant.network.placement import Placement
from repzoo.quant.parameters import qdq_writer as qdq
from repzoo.quant.parameters import scales

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 8, 12, 12] data) => (float[N, 10] output)
    <float zero = {0}, float six = {6}> {
    a = Conv (data, first, ab) b = Clip (a, zero, six)
    c = Conv <group = 8, pads = [1, 1, 1, 1]> (b, deep, cb) d = Clip (c, zero, six)
    e = Conv (d, last, eb) p = GlobalAveragePool (e) f = Flatten (p)
    output = Gemm <transB = 1> (f, head, hb) }"""
REST = ["c", "e", "output"]
FLOATS = {
    "depthwise": ["c"],
    "the first": ["a"],
    "linear": ["output"],
    "all but the first": REST,
    "all but the last": ["a", "c", "e"],
}


def model() -> onnx.ModelProto:
    """Channels of `deep` differ by a factor of 50: with one scale, the smallest gets two steps."""
    result, random = onnx.parser.parse_model(TEXT), np.random.default_rng(0)
    shapes = {
        "first": (8, 8, 1, 1),
        "deep": (8, 1, 3, 3),
        "last": (8, 8, 1, 1),
        "head": (10, 8),
    }
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
    result.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name)
        for name, value in tensors.items()
    )
    return result


def quantize_except(floats: list[str]) -> tuple[onnx.ModelProto, Placement]:
    graph = model()
    everything = place.candidates(graph)[0]
    placement = place.placement(graph, "some", everything.nodes - set(floats))
    activations = {
        name: scales.uint8_parameters(-8.0, 8.0) for name in placement.tensors
    }
    initializers = {
        item.name: numpy_helper.to_array(item) for item in graph.graph.initializer
    }
    weight_names = {"a": "first", "c": "deep", "e": "last", "output": "head"}
    weights = {
        name: to_seven_bits(scales.quantize_weight(initializers[weight], 0))
        for name, weight in weight_names.items()
    }
    return qdq.insert_qdq(
        graph, placement, activations, per_channel=True, weights=weights
    ), placement


def to_seven_bits(result: scales.QuantizedWeight) -> scales.QuantizedWeight:
    """7-bit weights, whose products do not saturate on hosts without VNNI."""
    return scales.QuantizedWeight(
        result.scale * 2, np.round(result.values / 2).astype(np.int8)
    )


@pytest.mark.parametrize("floats", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_float_layer_runs_in_float_on_every_engine(
    name: str, floats: list[str]
) -> None:
    """No engine may differ from the reference evaluator by more than a few steps."""
    result, _ = quantize_except(floats)
    onnx.checker.check_model(result, full_check=True)
    inputs = np.random.default_rng(1).standard_normal((8, 8, 12, 12)).astype(np.float32)
    reference = engine("reference").open(result).run(inputs)
    try:
        runner = engine(name)
    except MissingExtra as error:
        pytest.skip(str(error))
    output = runner.open(result).run(inputs)
    limit = relative(runner, 0.02) * np.abs(reference).max()
    assert np.abs(output - reference).max() <= limit


def test_mutant_with_a_shared_dequantize_loses_accuracy_on_onnxruntime() -> None:
    """With the shared DequantizeLinear instead of its own, the layer's weights are rounded."""
    result, _ = quantize_except(FLOATS["depthwise"])
    layer = next(node for node in result.graph.node if node.output[0] == "c")
    own = next(node for node in result.graph.node if node.output[0] == layer.input[0])
    shared = next(
        node
        for node in result.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] == own.input[0]
        and node is not own
    )
    layer.input[0] = shared.output[0]
    inputs = np.random.default_rng(1).standard_normal((8, 8, 12, 12)).astype(np.float32)
    reference, output = (
        engine(name).open(result).run(inputs) for name in ("reference", "onnxruntime")
    )
    assert np.abs(output - reference).max() > 0.02 * np.abs(reference).max()


def test_no_dequantize_is_added_if_every_layer_is_quantized() -> None:
    result, placement = quantize_except([])
    scales = [
        node
        for node in result.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0].endswith("_quantized")
    ]
    assert len(
        [
            node
            for node in scales
            if any(node.input[0].startswith(f"{name}_") for name in placement.tensors)
        ]
    ) == len(placement.tensors)
    assert replace(placement, name="again").tensors == placement.tensors
