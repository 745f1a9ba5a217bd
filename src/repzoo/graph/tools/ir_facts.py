"""Facts about the nodes and tensors of onnx-ir graphs that several modules need."""

from __future__ import annotations

import onnx_ir as ir

from repzoo.onnx_file import STANDARD_DOMAINS


def is_standard(node: ir.Node) -> bool:
    """Whether the operator is one of ONNX's own."""
    return node.domain in STANDARD_DOMAINS


def has_subgraph(node: ir.Node) -> bool:
    """Whether an attribute of `node` holds a graph, as the branches of an If do."""
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            return True
    return False


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant `value`; None if it is computed, or may be fed by a caller."""
    # A caller may feed another value in place of an input's default.
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)
