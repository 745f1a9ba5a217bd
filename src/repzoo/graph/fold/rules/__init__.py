"""Which nodes of an ONNX graph are affine maps of one tensor, and with what values.

A rule is a function from a node to an Answer. It is a list of guards and one answer at the end:

    AffineNode  the node is this map of that tensor
    Refusal     it would be affine, but for a reason that a person should hear
    None        it is something else

Rules read the graph. They never change it, and they keep no state. Constants that nodes compute,
such as a scale behind an Unsqueeze, are initializers before a rule sees them
(tools/constant_folding.py, which lists the operators that it folds).

To add a rule:

1. Write such a function in the module of its kind: layers, per_channel or movement. windows.py
   reads the attributes of windows, tensors.py the constants and shapes of inputs.
2. Name it in RULES, under the operator that computes the result. An operator has one rule, which
   tells its spellings apart. A pattern of several nodes is named under its last one, and lists
   the others in `AffineNode.more` (see per_channel.reshaped_batch_normalization).
3. Take the map's values from a constructor of `algebra`, in a function that runs only when the
   fold is written. Whether a fold pays is not the rule's business: the engine compares costs.
4. A new operator with weights, or one that scales without a shift, belongs in WEIGHTED or
   WITHOUT_SHIFT of expression.py, which say when a fold saves nodes. One with a window belongs in
   WINDOWED of timing.py.
5. If the certificate does not know the operator, implement it in graph/certificate/operators.py,
   from the ONNX specification.
6. Test the rule at work, and each refusal: a Case in tests/graph/fold/test_rules_and_fold.py.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from repzoo.graph.fold.affine_node import Answer
from repzoo.graph.fold.rules import layers, movement, per_channel
from repzoo.graph.fold.tensors import channels_of, is_channel_axis
from repzoo.graph.tools.ir_facts import is_standard

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
    "Reshape": per_channel.reshaped_batch_normalization,
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


def concat_parts(node: ir.Node) -> list[ir.Value]:
    """The tensors whose channels `node`, a Concat, joins; none if it does something else."""
    if node.op_type != "Concat" or not is_standard(node) or len(node.inputs) < 2:
        return []
    axis = node.attributes.get_int("axis", 1)
    if not is_channel_axis(axis, node.outputs[0]):
        return []
    parts = []
    for value in node.inputs:
        if value is None or not channels_of(value):
            return []
        parts.append(value)
    return parts
