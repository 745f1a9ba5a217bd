"""The form of a model that brings its own scales of activations, as hb_mapper computes it best.

What it makes of Q/DQ pairs was measured in hb_mapper 1.24.3, `calibration_type: load`:

    Conv, then Add           a pair between them makes it round twice, in a node of its own. Without
                             one the convolution adds the other operand before it rounds.
    GlobalAveragePool        the output takes the scale of the input, which is too coarse for means,
                             and a second rounding then makes our scale of it.
    ReduceMean, height and   becomes the same pool, and takes the scale that its pair has.
    width
    AveragePool              as GlobalAveragePool; nothing takes its place.

Its default flow rounds sums and means once. So with a pair on every activation, our scales had more
noise than the tool's own: 25.8 against 27.1 dB on FasterNet-T0.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper

from repzoo.protobuf_stream import clone
from repzoo.quant.network.graph_view import GraphView
from repzoo.quant.parameters.activation_qdq import insert_activation_qdq

SPATIAL = (2, 3)


def load_form(model: onnx.ModelProto, scales: Mapping[str, float]) -> onnx.ModelProto:
    """`model` with Q/DQ pairs that hold `scales`, real numbers per integer step, by activation.

    Args:
        model: float, of opset 10 to 12, with images of rank 4.
        scales: names that the graph lacks are left out.
    """
    return insert_activation_qdq(with_means(model), loaded_scales(model, scales))


def loaded_scales(
    model: onnx.ModelProto, scales: Mapping[str, float]
) -> dict[str, float]:
    """Those of `scales` that hb_mapper needs pairs for, each as it will be on the board."""
    graph = GraphView(model)
    result = dict(scales)
    for node in graph.nodes:
        if node.op_type == "Add":
            result.pop(_fused_operand(graph, node), None)
        if node.op_type == "AveragePool" and node.input[0] in scales:
            result[node.output[0]] = scales[node.input[0]]
    return result


def _fused_operand(graph: GraphView, add: onnx.NodeProto) -> str:
    """The operand of `add` whose convolution also computes the sum; "" where none can.

    Of two convolutions it is the later one: the other's output has to be there by then.
    """
    layers = {name for name in add.input if _is_convolution(graph, name, add)}
    for node in reversed(graph.nodes):
        if node.output[0] in layers:
            return str(node.output[0])
    return ""


def _is_convolution(graph: GraphView, name: str, reader: onnx.NodeProto) -> bool:
    """Whether a Conv writes `name`, and only `reader` reads it."""
    producer = graph.producers.get(name)
    is_layer = producer is not None and producer.op_type == "Conv"
    return is_layer and graph.sole_consumer(name) is reader


def with_means(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` with a ReduceMean in place of each GlobalAveragePool: the same values."""
    result = clone(model)
    for node in result.graph.node:
        if node.op_type == "GlobalAveragePool":
            mean = helper.make_node(
                "ReduceMean",
                node.input,
                node.output,
                name=node.name,
                axes=SPATIAL,
                keepdims=1,
            )
            node.CopyFrom(mean)
    return result
