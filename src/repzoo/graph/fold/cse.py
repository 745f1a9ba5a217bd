"""Common-subexpression elimination: nodes that compute the same from the same inputs become one.

Merged are nodes of ONNX's own operators with equal attributes that read the same tensors, or small
constants of equal value. These stay apart:

- operators that draw random numbers, and nodes that hold a graph;
- a second node that computes an output of the graph, which would lose its name;
- equal weights: a fold may yet put a different layer into each.

onnx-ir has such a pass. It merges equal weights too, and nodes of other domains.
"""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from repzoo.graph.tools.ir_facts import constant_tensor, has_subgraph, is_standard

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
    """Keep the first of all nodes that are alike, in place. Returns whether any was removed.

    Nodes must be sorted, so that what a node reads is merged before it.
    """
    first_by_content: dict[Hashable, ir.Node] = {}
    before = len(graph)
    for node in list(graph):
        if not _can_merge(node):
            continue
        first = first_by_content.setdefault(_content(node), node)
        gives_output = any(value.is_graph_output() for value in node.outputs)
        if first is node or gives_output:
            continue
        ir.convenience.replace_all_uses_with(node.outputs, first.outputs)
        graph.remove(node, safe=True)
    return len(graph) < before


def _can_merge(node: ir.Node) -> bool:
    """Whether the result of `node` follows from its attributes and inputs, all easy to compare."""
    if not is_standard(node) or node.op_type in RANDOM or has_subgraph(node):
        return False
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.TENSOR and attribute.value.size > SMALL:
            return False
    return True


def _content(node: ir.Node) -> Hashable:
    """What two nodes have in common if they compute the same."""
    attributes = []
    for name, attribute in sorted(node.attributes.items()):
        value = _attribute_value(attribute)
        attributes.append((name, attribute.type.name, value))
    inputs = [_input_content(value) for value in node.inputs]
    return node.op_type, len(node.outputs), tuple(inputs), tuple(attributes)


def _attribute_value(attribute: ir.Attr) -> Hashable:
    if attribute.type == ir.AttributeType.TENSOR:
        return _values(attribute.value)
    return repr(attribute.value)


def _input_content(value: ir.Value | None) -> Hashable:
    """What identifies an input: the tensor itself, or the values of a small constant."""
    tensor = constant_tensor(value)
    return value if tensor is None or tensor.size > SMALL else _values(tensor)


def _values(tensor: ir.TensorProtocol) -> Hashable:
    shape = tuple(tensor.shape.numpy())
    return tensor.dtype.name, shape, tensor.tobytes()
