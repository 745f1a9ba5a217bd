"""HardSwish as a gate and a product, for engines that compute both in INT8 but not HardSwish.

HardSwish(x) = x HardSigmoid(x; 1/6, 1/2) (ONNX operator HardSwish-14). ONNX Runtime runs its node
as these two anyway, so that in float nothing changes. Between Q/DQ pairs both become integers: see
`qdq_writer` for the gate.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper

from repzoo.graph.tools.onnx_edit import tensor_names, unused_name
from repzoo.protobuf_stream import clone

ALPHA, BETA = 1 / 6, 0.5


def with_gates(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with HardSigmoid and Mul in place of its HardSwish nodes.

    A copy, or `model` itself where it has none. All other tensors keep their names, and the same
    model always gets the same new ones.
    """
    if not any(map(_is_hard_swish, model.graph.node)):
        return model
    result = clone(model)
    names = tensor_names(result.graph)
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        if _is_hard_swish(node):
            nodes.extend(_gate_and_product(node, names))
        else:
            nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def _is_hard_swish(node: onnx.NodeProto) -> bool:
    return node.op_type == "HardSwish" and not node.domain


def _gate_and_product(
    node: onnx.NodeProto, names: set[str]
) -> Iterator[onnx.NodeProto]:
    """The two nodes that compute what `node` does; the name of the gate is added to `names`."""
    source, output = node.input[0], node.output[0]
    gate = unused_name(f"{output}_gate", names)
    names.add(gate)
    yield helper.make_node(
        "HardSigmoid", [source], [gate], name=gate, alpha=ALPHA, beta=BETA
    )
    yield helper.make_node("Mul", [source, gate], [output], name=node.name)
