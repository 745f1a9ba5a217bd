"""Before the first sweep of the fold, and after the last one.

`prepare` refuses graphs that the fold cannot work on. In all others it folds constants, removes
identities and marks borders of constants, so that the rules see plain layers.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from repzoo.errors import InputError
from repzoo.graph.fold.border_constants import mark_borders
from repzoo.graph.fold.eliminate import eliminate_identities
from repzoo.graph.fold.write import UsedNames
from repzoo.graph.tools.constant_folding import fold_constants
from repzoo.graph.tools.ir_facts import has_subgraph, is_standard
from repzoo.graph.tools.ir_model import to_ir
from repzoo.onnx_file import opset_of

QUANTIZED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "ConvInteger",
        "MatMulInteger",
    }
)
# Before opset 7 BatchNormalization trains unless told otherwise, and broadcasting is an attribute.
OLDEST_OPSET = 7
MOST_COPIES = 8  # readers of a pool that get one of their own


def prepare(model: onnx.ModelProto) -> ir.Model:
    """A copy of `model` (functions inlined) that is ready for the sweeps.

    Raises:
        InputError: the graph is quantized, older than opset 7, or inconsistent, or its outputs
            need no node.
    """
    require_float(model, "fold the float model")
    require_opset(model, OLDEST_OPSET)
    prepared = to_ir(model)
    fold_constants(prepared)
    eliminate_identities(prepared.graph)
    # The pass would change subgraphs too.
    if not any(has_subgraph(node) for node in prepared.graph):
        passes.IdentityEliminationPass()(prepared)
    # An unused node would count as a reader.
    passes.RemoveUnusedNodesPass()(prepared)
    _require_nodes(prepared.graph)
    # Last, because it stores notes on nodes.
    mark_borders(prepared.graph, model)
    return prepared


def require_float(model: onnx.ModelProto, advice: str) -> None:
    """Refuse a quantized graph.

    advice  what to do with the float model, as a clause

    Raises:
        InputError: a node quantizes, or computes in integers.
    """
    kinds = sorted({node.op_type for node in model.graph.node})
    for kind in kinds:
        if kind in QUANTIZED or kind.startswith("QLinear"):
            raise InputError(
                f"the graph is quantized already (it holds {kind}); {advice}, then quantize"
            )


def require_opset(model: onnx.ModelProto, oldest: int) -> None:
    """Refuse a graph of an operator set before `oldest`.

    Raises:
        InputError: says how to convert it.
    """
    opset = opset_of(model)
    if 0 < opset < oldest:
        raise InputError(
            f"the graph is of opset {opset}; convert it to {oldest} or later "
            "(onnx.version_converter)"
        )


def _require_nodes(graph: ir.Graph) -> None:
    """Refuse a graph of which no node is left: no runtime takes one without nodes.

    Raises:
        InputError: every output is an input, or a stored constant.
    """
    if len(graph):
        return
    names = ", ".join(str(value.name) for value in graph.outputs)
    raise InputError(
        f"nothing is computed for the outputs ({names}): each is an input of the graph or a "
        "stored constant; export the graph with the outputs that its nodes compute"
    )


def order_initializers(graph: ir.Graph) -> None:
    """Order initializers by their first reader. Shape inference moves large ones to the end."""
    in_order: dict[ir.Value, None] = {}
    for node in graph:
        for value in node.inputs:
            if value is not None and value.is_initializer():
                in_order[value] = None
    for value in in_order:
        del graph.initializers[str(value.name)]
        graph.register_initializer(value)


def separate_shared_pools(graph: ir.Graph, names: UsedNames) -> None:
    """Give each sum that reads an AveragePool one of its own, in place.

    A branch that stands twice is one node with two readers in many files, and no fold can take in
    a node that others read. Pools have no weights, so that a copy costs nothing until it is folded.
    Copies that no fold has taken in are merged again (cse.py).
    """
    for node in list(graph):
        if node.op_type != "AveragePool" or not is_standard(node):
            continue
        output = node.outputs[0]
        uses = list(output.uses())
        are_sums = all(use.node.op_type in ("Add", "Sub") for use in uses)
        if output.is_graph_output() or not are_sums or len(uses) > MOST_COPIES:
            continue
        for use in uses[1:]:
            copy = _copy(node, names)
            graph.insert_after(node, copy)
            use.node.replace_input_with(use.idx, copy.outputs[0])


def _copy(node: ir.Node, names: UsedNames) -> ir.Node:
    """A node like `node`, which has one output, whose output has a name of its own."""
    output = node.outputs[0]
    new_output = ir.Value(
        name=names.unused(str(output.name)), shape=output.shape, type=output.type
    )
    copy = ir.Node(
        node.domain,
        node.op_type,
        node.inputs,
        attributes=list(node.attributes.values()),
        version=node.version,
        name=node.name,
        outputs=[new_output],
    )
    names.add(copy)
    return copy
