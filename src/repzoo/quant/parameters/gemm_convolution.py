"""INT8 Gemm as a 1x1 convolution, for engines whose integer matrix products are slow.

A linear layer of K inputs is a 1x1 convolution of an image of one pixel with K channels: the same
integers and the same sums. Without VNNI, OpenVINO multiplies one row by a matrix in INT8 no faster
than in float. With a convolution MobileNetV4-Small takes 6 % less time and FasterNet-T0 4 % (INT8,
224 pixels, one thread, AVX2). On ONNX Runtime both take 15 to 20 % longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from repzoo.graph.tools.onnx_edit import add_initializer, tensor_names
from repzoo.protobuf_stream import clone
from repzoo.quant.network.graph_view import integer_attribute

# Of all weights, in Gemms. With less there is little to gain (assumed, not measured), and opening a
# model once more to see takes OpenVINO seconds.
LARGE_SHARE = 0.1
PIXEL = "_pixel"  # behind the name of a Gemm's output: what its convolution writes


def layer_of(name: str) -> str:
    """The output of the Gemm whose convolution writes `name`; another name as it is."""
    return name.removesuffix(PIXEL)


def has_large_gemm(model: onnx.ModelProto) -> bool:
    """Whether the float `model` has Gemms with so many weights that their form matters."""
    sizes = {item.name: math.prod(item.dims) for item in model.graph.initializer}
    in_gemms = 0
    for node in model.graph.node:
        if node.op_type == "Gemm":
            in_gemms += sizes.get(node.input[1], 0)
    return in_gemms > LARGE_SHARE * sum(sizes.values())


def with_gemm_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The QDQ `model` with 1x1 convolutions in place of its INT8 Gemms.

    A copy, or `model` itself where it has none.
    """
    if not _int8_gemms(model.graph):
        return model
    result = clone(model)
    graph = result.graph
    gemms = _int8_gemms(graph)
    names = tensor_names(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        gemm = gemms.get(node.output[0])
        if gemm is None:
            nodes.append(node)
            continue
        shape = np.array([0, gemm.store_as_kernel(), 1, 1], np.int64)
        name = add_initializer(graph, f"{node.output[0]}_shape", shape, names)
        nodes.extend(_convolution(node, name))
    del graph.node[:]
    graph.node.extend(nodes)
    return result


@dataclass(frozen=True)
class _Gemm:
    """An INT8 Gemm's weight.

    dequantize     its DequantizeLinear
    stored         what that reads
    is_transposed  whether it is [outputs, inputs]
    """

    dequantize: onnx.NodeProto
    stored: onnx.TensorProto
    is_transposed: bool

    def store_as_kernel(self) -> int:
        """Store the weight as [outputs, inputs, 1, 1]; the number of inputs."""
        values = numpy_helper.to_array(self.stored)
        if not self.is_transposed:
            values = values.T
            for item in self.dequantize.attribute:
                if item.name == "axis":
                    item.i = 0
        kernel = np.ascontiguousarray(values)[:, :, None, None]
        self.stored.CopyFrom(numpy_helper.from_array(kernel, self.stored.name))
        return int(kernel.shape[1])


def _int8_gemms(graph: onnx.GraphProto) -> dict[str, _Gemm]:
    """The Gemms of a QDQ graph with weights of their own in INT8, by their outputs."""
    stored = {item.name: item for item in graph.initializer}
    weights: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            weights[node.output[0]] = node
    gemms: dict[str, _Gemm] = {}
    for node in graph.node:
        dequantize = weights.get(node.input[1]) if node.op_type == "Gemm" else None
        if dequantize is not None:
            is_transposed = integer_attribute(node, "transB", 0) == 1
            item = stored[dequantize.input[0]]
            gemms[node.output[0]] = _Gemm(dequantize, item, is_transposed)
    return gemms


def _convolution(node: onnx.NodeProto, shape: str) -> Iterator[onnx.NodeProto]:
    """The nodes in place of the Gemm `node`; `shape` is the name of [0, inputs, 1, 1]."""
    source, output = node.input[0], node.output[0]
    image, pixel = f"{output}_image", f"{output}{PIXEL}"
    yield helper.make_node("Reshape", [source, shape], [image], name=image)
    yield helper.make_node("Conv", [image, *node.input[1:]], [pixel], name=node.name)
    yield helper.make_node("Flatten", [pixel], [output], name=f"{output}_row", axis=1)
