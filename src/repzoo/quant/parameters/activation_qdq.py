"""Q/DQ pairs around the activations of a float model, as tools for trained quantization read them.

Such tools take the scales of a file instead of calibrating: QuantizeLinear and DequantizeLinear of
opset 10, int8, one scale for each tensor, zero point 0. Their opset has no scale for each output
channel, so weights stay float: on the target's grid, they are rounded to themselves.

qdq_writer.py writes whole INT8 models, which need opset 13.

Source: ONNX operators QuantizeLinear-10 and DequantizeLinear-10.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from repzoo.graph.tools.onnx_edit import add_initializer, tensor_names, unused_name
from repzoo.protobuf_stream import clone


def insert_activation_qdq(
    model: onnx.ModelProto, scales: Mapping[str, float]
) -> onnx.ModelProto:
    """A copy of `model` in which all nodes read the tensors in `scales` through a Q/DQ pair.

    Args:
        model: float, of opset 10 or newer. Graph outputs stay as they are.
        scales: real numbers per integer step, by activation; names that the graph lacks are left
            out.
    """
    result = clone(model)
    graph = result.graph
    names = tensor_names(graph)
    written = {graph.input[0].name}
    for node in graph.node:
        written.update(node.output)
    pairs: dict[str, list[onnx.NodeProto]] = {}
    for name, scale in scales.items():
        if name in written:
            pairs[name] = _pair(graph, name, scale, names)
    nodes = list(pairs.get(graph.input[0].name, ()))
    for node in graph.node:
        copy = clone(node)
        for index, name in enumerate(copy.input):
            if name in pairs:
                copy.input[index] = pairs[name][1].output[0]
        nodes.append(copy)
        for name in node.output:
            nodes.extend(pairs.get(name, ()))
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _pair(
    graph: onnx.GraphProto, name: str, scale: float, names: set[str]
) -> list[onnx.NodeProto]:
    """The QuantizeLinear and the DequantizeLinear of one tensor."""
    constants = [
        add_initializer(graph, f"{name}_scale", np.array(scale, np.float32), names),
        add_initializer(graph, f"{name}_zero_point", np.array(0, np.int8), names),
    ]
    quantized = unused_name(f"{name}_quantized", names)
    dequantized = unused_name(f"{name}_dequantized", names)
    names.update((quantized, dequantized))
    return [
        helper.make_node(
            "QuantizeLinear",
            [name, *constants],
            [quantized],
            name=f"{quantized}_QuantizeLinear",
        ),
        helper.make_node(
            "DequantizeLinear",
            [quantized, *constants],
            [dequantized],
            name=f"{dequantized}_DequantizeLinear",
        ),
    ]
