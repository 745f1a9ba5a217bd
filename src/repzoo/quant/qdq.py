"""The only writer of QuantizeLinear and DequantizeLinear.

Format: ONNX QDQ. Each quantised activation t becomes t -> Q -> DQ -> readers; each weight is stored as int8 behind a DQ, its
bias as int32 behind a DQ with scale (input scale x weight scale). Per-channel axes need opset 13; older graphs are converted.
Source: ONNX operators QuantizeLinear-13, DequantizeLinear-13; ONNX Runtime, "Quantize ONNX models" (QDQ representation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from repzoo.errors import InputError
from repzoo.quant import ranges
from repzoo.quant.place import WEIGHTED, Placement
from repzoo.quant.ranges import Affine

Numbers = npt.NDArray[Any]
MIN_OPSET = 13
INT32_ROOM = float(2**30)  # a bias keeps one bit free for the accumulator


@dataclass
class _Writer:
    graph: onnx.GraphProto
    weights: dict[str, onnx.TensorProto]
    activations: Mapping[str, Affine]
    per_channel: bool

    def add(self, name: str, values: Numbers) -> str:
        """Store a constant."""
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def dequantised(self, name: str, values: Numbers, scale: Numbers, axis: int) -> tuple[str, onnx.NodeProto]:
        """Constants for a quantised `name` and the DequantizeLinear that restores it."""
        scalar = scale.size == 1 and not self.per_channel
        shaped = scale.astype(np.float32).reshape(()) if scalar else scale.astype(np.float32)
        zeros = np.zeros(shaped.shape, values.dtype)
        inputs = [self.add(f"{name}_quantized", values), self.add(f"{name}_scale", shaped), self.add(f"{name}_zero_point", zeros)]
        node = helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantized"], name=f"{name}_DequantizeLinear")
        if not scalar:
            node.attribute.append(helper.make_attribute("axis", axis))
        return f"{name}_dequantized", node


def at_least_opset(model: onnx.ModelProto, version: int = MIN_OPSET) -> onnx.ModelProto:
    """`model` converted to opset `version` when it is older (onnx's own converter), else as it is."""
    current = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if current >= version:
        return model
    try:
        return onnx.version_converter.convert_version(model, version)
    except Exception as error:
        raise InputError(f"INT8 needs opset {version}; this graph has {current} and cannot be converted: {error}") from None


def write(model: onnx.ModelProto, placement: Placement, activations: Mapping[str, Affine], per_channel: bool) -> onnx.ModelProto:
    """`model` (float, folded, opset >= 13) with the Q/DQ pairs of `placement`; `activations` gives each tensor's parameters."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {item.name: item for item in made.graph.initializer}
    writer = _Writer(made.graph, constants, activations, per_channel)
    pairs = {name: _pair_nodes(writer, name) for name in placement.tensors}
    nodes: list[onnx.NodeProto] = list(pairs.get(made.graph.input[0].name, ()))
    for node in model.graph.node:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        if node.op_type in WEIGHTED and node.output[0] in placement.nodes:
            nodes.extend(_quantised_weights(writer, copied))
        for index, value in enumerate(copied.input):
            if value in pairs:
                copied.input[index] = f"{value}_dequantized"
        nodes.append(copied)
        nodes.extend(pair for value in node.output for pair in pairs.get(value, ()))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    _drop_unread_constants(made.graph)
    del made.graph.value_info[:]
    return made


def _pair_nodes(writer: _Writer, name: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    parameters = writer.activations[name]
    scale = writer.add(f"{name}_scale", np.array(parameters.scale, np.float32))
    zero = writer.add(f"{name}_zero_point", np.array(parameters.zero_point, np.uint8))
    quantise = helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_quantized"], name=f"{name}_QuantizeLinear")
    restore = helper.make_node(
        "DequantizeLinear", [f"{name}_quantized", scale, zero], [f"{name}_dequantized"], name=f"{name}_DequantizeLinear"
    )
    return quantise, restore


def _quantised_weights(writer: _Writer, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Rewire weight and bias of `node` to quantised constants; the DQ nodes that this takes."""
    if any(item.name in ("alpha", "beta") and item.f != 1.0 for item in node.attribute):
        raise InputError(
            f"{node.name or node.output[0]}: a Gemm with alpha or beta other than 1 is not quantised; fold the model first"
        )
    name = node.name or node.output[0]
    values = numpy_helper.to_array(writer.weights[node.input[1]])
    axis = 1 if node.op_type == "Gemm" and not any(item.name == "transB" and item.i for item in node.attribute) else 0
    bias = (
        numpy_helper.to_array(writer.weights[node.input[2]]).astype(np.float64) if len(node.input) > 2 and node.input[2] else None
    )
    incoming = float(np.float32(writer.activations[node.input[0]].scale))
    least = np.abs(bias) / (incoming * INT32_ROOM) if bias is not None else 0.0
    least = least if writer.per_channel else float(np.max(least))
    made = ranges.weight(values, axis if writer.per_channel else None, least)
    weight_name, weight_node = writer.dequantised(f"{name}:{node.input[1]}", made.values, made.scale, axis)
    nodes = [weight_node]
    node.input[1] = weight_name
    if bias is not None:
        scale = (np.float32(incoming) * made.scale.astype(np.float32)).astype(np.float64)
        stored = np.round(bias / scale).astype(np.int32)
        node.input[2], bias_node = writer.dequantised(f"{name}:{node.input[2]}", stored, scale, 0)
        nodes.append(bias_node)
    return nodes


def _drop_unread_constants(graph: onnx.GraphProto) -> None:
    read = {value for node in graph.node for value in node.input}
    kept = [item for item in graph.initializer if item.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
