"""Identity elimination: nodes that pass a tensor on as it is, in inference, are removed.

These are Dropout, arithmetic with zeros or ones, a Cast to the same type, and a Reshape or
Transpose that changes no shape. An output of the graph keeps its name.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repzoo.graph.fold.tensors import constant_values
from repzoo.graph.tools.constant_folding import shape_preserving_input
from repzoo.graph.tools.ir_facts import is_standard

# Elements of a constant that is read to see whether it is all zeros or ones.
NEUTRAL_SIZE = 2**18
NEUTRAL = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0}


def eliminate_identities(graph: ir.Graph) -> None:
    """Remove all such nodes of `graph`, in place. Tensors need their shapes."""
    for node in list(graph):
        source = _input_passed_on(node)
        if source is not None:
            _remove(graph, node, source)


def _input_passed_on(node: ir.Node) -> ir.Value | None:
    """The input that `node` passes on as it is; None if it changes it."""
    if not is_standard(node):
        return None
    if node.op_type == "Dropout":
        return node.inputs[0] if _is_inactive(node) else None
    if node.op_type == "Cast":
        return _input_of_same_type(node)
    if node.op_type in ("Reshape", "Transpose"):
        return shape_preserving_input(node)
    return _unchanged_operand(node) if node.op_type in NEUTRAL else None


def _is_inactive(dropout: ir.Node) -> bool:
    """Whether a Dropout passes its input on, and nobody reads its mask."""
    for mask in dropout.outputs[1:]:
        if mask.uses() or mask.is_graph_output():
            return False
    training = dropout.inputs[2] if len(dropout.inputs) > 2 else None
    if training is None:
        return True
    values = constant_values(training)
    return values is not None and not values.any()


def _input_of_same_type(cast: ir.Node) -> ir.Value | None:
    """The input of a Cast to the type that it has."""
    source = cast.inputs[0]
    target = cast.attributes.get("to")
    if source is None or source.dtype is None or target is None:
        return None
    return source if target.as_int() == int(source.dtype) else None


def _unchanged_operand(node: ir.Node) -> ir.Value | None:
    """The operand that arithmetic with zeros or ones leaves as it is."""
    left, right = node.inputs
    neutral = NEUTRAL[node.op_type]
    if _is_neutral(right, neutral):
        return None if _widens(right, left) else left
    is_commutative = node.op_type in ("Add", "Mul")
    if is_commutative and _is_neutral(left, neutral):
        return None if _widens(left, right) else right
    return None


def _is_neutral(operand: ir.Value | None, number: int) -> bool:
    """Whether every element of `operand` is known to be `number`."""
    values = constant_values(operand)
    if values is None or values.size > NEUTRAL_SIZE:
        return False
    return bool(np.all(values == number))


def _widens(operand: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether broadcasting with the constant `operand` gives a larger tensor than `other`."""
    values = constant_values(operand)
    if values is None or other is None:
        return True
    sides = list(other.shape or ())
    missing = len(sides) - values.ndim
    if missing < 0:
        return True
    # Broadcasting aligns the last axes.
    pairs = zip(values.shape, sides[missing:], strict=True)
    return any(side not in (1, other_side) for side, other_side in pairs)


def _remove(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    """Remove `node`, which passes `source` on."""
    output = node.outputs[0]
    if not output.is_graph_output():
        ir.convenience.replace_all_uses_with(output, source)
        graph.remove(node, safe=True)
        return
    # The output of the graph must keep its name, so a node has to compute it.
    named = ir.Value(name=output.name)
    identity = ir.Node("", "Identity", [source], outputs=[named])
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [identity], [output], [named]
    )
