"""Which nodes of an ONNX graph are affine maps of one tensor, and with what values.

A rule is a function from a node to an Answer. It is a list of guards and one answer at the end:

    AffineNode  the node is this map of that tensor
    Refusal     it would be affine, but for a reason that a person should hear
    None        it is something else

Rules read the graph. They never change it, and they keep no state.

To add a rule, write such a function in the module of its kind (layers, per_channel, movement) and
name it in RULES. It takes the map's values from a constructor of `algebra`, in a function that
runs only when the fold is written. Whether a fold pays is not the rule's business: the engine
compares costs. If the certificate does not know the operator, it needs an implementation in
graph/certificate/operators.py, written from the ONNX specification. A test shows the rule at work,
and one for each refusal (tests/graph/fold/test_rules_and_fold.py).
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from repzoo.graph.fold.affine_node import Answer
from repzoo.graph.fold.rules import layers, movement, per_channel
from repzoo.graph.fold.tensors import channels_of, is_standard, rank_of

Rule = Callable[[ir.Node], Answer]

RULES: dict[str, Rule] = {
    "Add": per_channel.elementwise,
    "AveragePool": per_channel.average_pool,
    "BatchNormalization": per_channel.batch_normalization,
    "Conv": layers.conv,
    "Div": per_channel.elementwise,
    "Gemm": layers.gemm,
    "MatMul": layers.matmul,
    "Mul": per_channel.elementwise,
    "Pad": movement.pad,
    "Reshape": per_channel.normalized_rows,
    "ScatterND": movement.scatter,
    "Slice": movement.slice_channels,
    "Sub": per_channel.elementwise,
}


def as_affine(node: ir.Node, output: int = 0) -> Answer:
    """What the rule for the operator of `node` says of its output number `output`."""
    if not is_standard(node):
        return None
    # The only affine operator with several outputs.
    if node.op_type == "Split":
        return movement.split(node, output)
    rule = RULES.get(node.op_type)
    return rule(node) if rule else None


def concatenated_inputs(node: ir.Node) -> list[ir.Value]:
    """The tensors whose channels `node`, a Concat, joins; none if it does something else."""
    if node.op_type != "Concat" or not is_standard(node) or len(node.inputs) < 2:
        return []
    rank = rank_of(node.outputs[0])
    # Of a matrix, axis 1 is the last one: -1. Of images it is -3.
    is_channel_axis = node.attributes.get_int("axis", 1) in (1, 1 - rank)
    if rank not in (2, 4) or not is_channel_axis:
        return []
    parts = []
    for value in node.inputs:
        if value is None or not channels_of(value):
            return []
        parts.append(value)
    return parts
