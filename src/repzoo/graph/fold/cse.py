"""Twins: nodes that do the same with the same inputs are one.

Merged are nodes of ONNX's own operators with equal settings that read the same tensors, or
small constants of equal value. Left alone are operators that draw at random, nodes that hold a
graph, and a second node that gives an output of the graph, which would lose its name. Weights
stay two where they are equal: a fold may yet take each into another layer.
"""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

SMALL = 64  # elements of constants that are compared by value
RANDOM = frozenset(
    {
        "RandomUniform",
        "RandomNormal",
        "RandomUniformLike",
        "RandomNormalLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    }
)


def eliminate_common_subexpressions(graph: ir.Graph) -> bool:
    """Keep the first of all nodes that are alike, in place; True when some were. Nodes must be
    sorted.
    """
    seen: dict[Hashable, ir.Node] = {}
    before = len(graph)
    for node in list(graph):
        if _is_plain(node):
            first = seen.setdefault(_key(node), node)
            if first is not node and not any(
                value.is_graph_output() for value in node.outputs
            ):
                ir.convenience.replace_all_uses_with(node.outputs, first.outputs)
                graph.remove(node, safe=True)
    return len(graph) < before


def _is_plain(node: ir.Node) -> bool:
    holds = any(
        item.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for item in node.attributes.values()
    )
    return (
        node.domain in ("", "ai.onnx")
        and node.op_type not in RANDOM
        and not holds
        and not _is_large(node)
    )


def _is_large(node: ir.Node) -> bool:
    held = (
        item.value
        for item in node.attributes.values()
        if item.type == ir.AttributeType.TENSOR
    )
    return any(tensor.size > SMALL for tensor in held)


def _key(node: ir.Node) -> Hashable:
    settings = sorted(
        (name, item.type.name, _setting(item)) for name, item in node.attributes.items()
    )
    return (
        node.op_type,
        len(node.outputs),
        tuple(map(_read, node.inputs)),
        tuple(settings),
    )


def _setting(item: ir.Attr) -> Hashable:
    if item.type == ir.AttributeType.TENSOR:
        return _values(item.value)
    return repr(item.value)


def _read(value: ir.Value | None) -> Hashable:
    """What stands for an input: itself, or what it holds."""
    if value is None or value.is_graph_input():
        return value
    tensor = ir.convenience.get_const_tensor(value)
    return value if tensor is None or tensor.size > SMALL else _values(tensor)


def _values(tensor: ir.TensorProtocol) -> Hashable:
    return tensor.dtype.name, tuple(tensor.shape.numpy()), tensor.tobytes()
