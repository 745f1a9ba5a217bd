"""Nodes that give their input back as it is, at inference: they go, and a graph's output keeps
its name.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repzoo.graph.fold.tensors import constant
from repzoo.graph.tools.constant_folding import shape_preserving_input

NEUTRAL_SIZE = (
    2**18
)  # elements of a tensor of zeros or ones that is read to see whether it is one
NEUTRAL = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0}


def eliminate_identities(graph: ir.Graph) -> None:
    """Dropout passes its input through at inference; its mask must be unread. So do added
    zeros, factors of one, Casts
    to the same type, Reshapes and Transposes that change no shape."""
    for node in list(graph):
        if (
            node.op_type == "Dropout"
            and node.inputs[0] is not None
            and not any(out.uses() for out in node.outputs[1:])
        ):
            training = node.inputs[2] if len(node.inputs) > 2 else None
            flag = constant(training)
            if training is None or (flag is not None and not flag.any()):
                _replace_value(graph, node, node.inputs[0])
        elif (
            node.domain in ("", "ai.onnx") and (source := _given_back(node)) is not None
        ):
            _replace_value(graph, node, source)


def _given_back(node: ir.Node) -> ir.Value | None:
    """The input that the operator gives back as it is."""
    if node.op_type == "Cast":
        return _of_that_type(node)
    if node.op_type in ("Reshape", "Transpose"):
        return shape_preserving_input(node)
    return _untouched(node) if node.op_type in NEUTRAL else None


def _of_that_type(node: ir.Node) -> ir.Value | None:
    """A Cast's input, where it has the type that it is cast to."""
    source, to = node.inputs[0], node.attributes.get("to")
    same = (
        source is not None
        and source.dtype is not None
        and to is not None
        and to.as_int() == int(source.dtype)
    )
    return source if same else None


def _untouched(node: ir.Node) -> ir.Value | None:
    """The operand that an Add, Sub, Mul or Div gives back as it is: the other is all zeros or
    ones, and widens nothing.
    """
    pairs = [(0, 1), (1, 0)] if node.op_type in ("Add", "Mul") else [(0, 1)]
    for source, other in ((node.inputs[one], node.inputs[two]) for one, two in pairs):
        numbers = constant(other)
        small = numbers is not None and numbers.size <= NEUTRAL_SIZE
        if (
            source is not None
            and numbers is not None
            and small
            and np.all(numbers == NEUTRAL[node.op_type])
        ):
            sides = list(source.shape or ())
            widens = numbers.ndim > len(sides) or any(
                a not in (1, b)
                for a, b in zip(numbers.shape[::-1], sides[::-1], strict=False)
            )
            return None if widens else source
    return None


def _replace_value(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    if node.outputs[0].is_graph_output():
        kept = ir.Node(
            "", "Identity", [source], outputs=[ir.Value(name=node.outputs[0].name)]
        )
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], [kept], [node.outputs[0]], [kept.outputs[0]]
        )
    else:
        ir.convenience.replace_all_uses_with(node.outputs[0], source)
        graph.remove(node, safe=True)
