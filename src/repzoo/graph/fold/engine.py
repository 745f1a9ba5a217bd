"""The fold: every linear piece between two nonlinearities becomes one cheaper node.

A sweep visits all nodes from the outputs to the input. For each node it lists the expressions
(expression.py) that end there: the affine maps of single nodes, their compositions, sums and
concatenations. An expression is replaced by one Conv or Gemm if the map is exact, costs no more
multiply-accumulates and no more weights, and has no intermediate result that others read.
Expressions that save the most are tried first. Sweeps repeat until nothing changes, so a folded
graph folds to itself. Every expression that is not replaced leaves a Refusal with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from repzoo.errors import InputError
from repzoo.graph.fold import expression as expressions
from repzoo.graph.fold import write
from repzoo.graph.fold.algebra import AffineMap, Inexact
from repzoo.graph.fold.border_constants import mark_borders
from repzoo.graph.fold.cse import eliminate_common_subexpressions
from repzoo.graph.fold.eliminate import eliminate_identities
from repzoo.graph.fold.expression import Expression
from repzoo.graph.fold.rules import AffineNode, as_affine, concatenated_inputs
from repzoo.graph.fold.tensors import node_name, rank_of
from repzoo.graph.fold.timing import Stopwatch, Timer
from repzoo.graph.tools.constant_folding import fold_constants
from repzoo.graph.tools.fold_result import Fold, FoldResult, Refusal
from repzoo.graph.tools.pieces import inline_functions, to_ir, to_proto

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

# Simplifies a graph in place. Returns whether it changed anything.
Simplifier = Callable[[ir.Graph], bool]


def fold(model: onnx.ModelProto, timer: Timer | None = None) -> FoldResult:
    """Fold `model`, which is not changed, to a fixed point.

    timer  times folds that are not obviously faster. Without it the result is the same on every
           machine

    Raises:
        InputError: the graph is quantized, older than opset 7, or inconsistent.
    """
    prepared = _prepare(inline_functions(model))
    folds, refusals = fold_graph(prepared.graph, timer, eliminate_common_subexpressions)
    passes.RemoveUnusedNodesPass()(prepared)
    prepared.graph.sort()
    _order_initializers(prepared.graph)
    folded = to_proto(prepared)
    folded.metadata_props.clear()
    folded.metadata_props.extend(model.metadata_props)
    return FoldResult(folded, folds, refusals)


def fold_graph(
    graph: ir.Graph, timer: Timer | None = None, simplify: Simplifier = lambda _: False
) -> tuple[tuple[Fold, ...], tuple[Refusal, ...]]:
    """Fold `graph` in place to a fixed point. Tensors need their shapes.

    simplify  applied between sweeps. It comes after a sweep that changed nothing, because a fold
              cannot absorb a node that merging has given a second reader

    Replaced initializers stay in the graph, unused.
    """
    sweeper = _Sweeper(graph, None if timer is None else Stopwatch(timer))
    # Weights that are not finite are refused by the certificate, with a sentence.
    with np.errstate(all="ignore"):
        while sweeper.sweep() or simplify(graph):
            pass
    return tuple(sweeper.folds), tuple(sweeper.refusals.values())


@dataclass
class _Sweeper:
    """A fold in progress."""

    graph: ir.Graph
    stopwatch: Stopwatch | None = None
    folds: list[Fold] = field(default_factory=list)
    refusals: dict[str, Refusal] = field(default_factory=dict)

    def sweep(self) -> bool:
        """One pass from the outputs to the input. Returns whether anything was folded."""
        self.refusals = {}
        count = len(self.folds)
        for node in reversed(list(self.graph)):
            # An earlier fold of this sweep may have removed the node.
            if node.graph is self.graph:
                self._fold_at(node)
        return len(self.folds) > count

    def _fold_at(self, root: ir.Node) -> None:
        """Replace the best expression that ends in `root`, if any qualifies."""
        candidates = [
            item for item in self._expressions(root.outputs[0]) if _is_worth(item, root)
        ]
        candidates.sort(key=lambda item: (item.cost - item.macs, -len(item.nodes)))
        for candidate in candidates:
            reason = _why_too_expensive(candidate)
            if reason is not None:
                if reason:
                    self._refuse(root, reason)
                continue
            try:
                affine = _without_border(candidate.build())
            except Inexact as error:
                self._refuse(root, str(error))
                continue
            slower = self._why_slower(candidate, affine, root.outputs[0])
            if slower:
                self._refuse(root, slower)
                continue
            self._replace(root, candidate, affine)
            return

    def _replace(
        self, root: ir.Node, expression: Expression, affine: AffineMap
    ) -> None:
        record = Fold(
            output=str(root.outputs[0].name),
            nodes=tuple(node_name(node) for node in expression.nodes),
            kind="+".join(dict.fromkeys(node.op_type for node in expression.nodes)),
            macs_before=expression.macs,
            macs_after=expression.cost,
        )
        write.replace(self.graph, root, expression, affine)
        self.folds.append(record)

    def _refuse(self, node: ir.Node, reason: str) -> None:
        name = node_name(node)
        self.refusals.setdefault(name, Refusal(name, reason))

    def _why_slower(
        self, expression: Expression, affine: AffineMap, output: ir.Value
    ) -> str:
        """The reason for refusing a fold that was measured to be slower; "" for none."""
        if self.stopwatch is None or expression.flat:
            return ""
        nodes = [node for node in self.graph if node in expression.nodes]
        # A stand-in for the source: the trial node must not count as another reader of it.
        stand_in = replace(expression, source=ir.Value(name=expression.source.name))
        names = ("folded", "folded.weight", "folded.bias")
        (trial,) = write.nodes_for(stand_in, affine, output, names)
        trial.outputs[0].name = output.name
        return self.stopwatch.refusal(expression.source, nodes, trial, affine.geometry)

    # --- the expressions that end in a tensor ---

    def _expressions(self, value: ir.Value) -> list[Expression]:
        node = value.producer()
        if node is None or node.graph is not self.graph:
            return []
        affine = as_affine(node, value.index() or 0)
        if isinstance(affine, Refusal):
            self.refusals.setdefault(affine.node, affine)
            return []
        if isinstance(affine, AffineNode):
            return list(self._chains(affine))
        parts = concatenated_inputs(node)
        if parts:
            return list(self._concatenations(node, parts))
        if node.op_type in ("Add", "Sub") and len(node.inputs) == 2:
            return list(self._sums(node))
        return []

    def _chains(self, link: AffineNode) -> Iterator[Expression]:
        """One affine node, alone and after every expression of its source."""
        yield expressions.of_node(link)
        is_only_output = len(link.node.outputs) == 1
        if not is_only_output or not expressions.is_read_only_by(
            link.source, link.nodes
        ):
            return
        for inner in self._expressions(link.source):
            if inner.flat != link.flat:
                continue
            try:
                yield expressions.composed(link, inner)
            except Inexact as error:
                self._refuse(link.node, str(error))

    def _sums(self, node: ir.Node) -> Iterator[Expression]:
        """Sums of two expressions of the same source."""
        # x + x: both terms are the same nodes, which would be counted and removed twice.
        if node.inputs[0] is node.inputs[1]:
            return
        left_operands = self._operand(node.inputs[0], node)
        right_operands = self._operand(node.inputs[1], node)
        for left in left_operands:
            for right in right_operands:
                has_nodes = left.nodes or right.nodes
                if left.source is not right.source or not has_nodes:
                    continue
                if not expressions.have_same_layout(left, right):
                    continue
                try:
                    yield expressions.added(node, left, right)
                except Inexact as error:
                    self._refuse(node, str(error))

    def _concatenations(
        self, node: ir.Node, parts: list[ir.Value]
    ) -> Iterator[Expression]:
        """For each source that all parts share, the largest expression of each part."""
        if len(set(parts)) < len(parts):
            return
        flat = rank_of(node.outputs[0]) == 2
        by_source: list[dict[ir.Value, Expression]] = []
        for part in parts:
            operands = self._operand(part, node)
            fitting = [item for item in operands if not item.nodes or item.flat == flat]
            by_source.append({item.source: item for item in fitting})
        for source in by_source[0]:
            if not all(source in known for known in by_source):
                continue
            chosen: list[Expression] = []
            for known, part in zip(by_source, parts, strict=True):
                chosen.append(expressions.as_part(known[source], part, flat))
            try:
                yield expressions.concatenated(node, chosen)
            except Inexact as error:
                self._refuse(node, str(error))

    def _operand(self, value: ir.Value | None, reader: ir.Node) -> list[Expression]:
        """An input of a sum or concatenation: the tensor itself, and its expressions."""
        if value is None:
            return []
        operands = [expressions.source_itself(value)]
        if expressions.is_read_only_by(value, (reader,)):
            operands += self._expressions(value)
        return operands


def _is_worth(expression: Expression, root: ir.Node) -> bool:
    """Whether replacing the expression makes the graph better, costs aside."""
    return (
        expressions.saves_nodes(expression, root)
        and not expressions.belongs_to_layer_before(expression)
        and not expressions.belongs_to_layer_after(expression, root)
        and expressions.is_closed(expression, root)
    )


def _why_too_expensive(expression: Expression) -> str | None:
    """None if one node costs no more; else the reason, "" if it is not worth telling."""
    if expression.flat and expression.geometry.groups > 1:
        return "a scale and shift of [N, C] has no cheaper operator than the one that it is"
    costs_more = expression.cost > expression.macs
    if costs_more or expression.geometry.macs > expression.parameters:
        several = len(expression.nodes) > 1
        return expressions.too_expensive(expression) if several else ""
    return None


def _without_border(affine: AffineMap) -> AffineMap:
    """`affine`, which must have no border of constants: convolutions pad with zeros."""
    if affine.fill is not None:
        raise Inexact(
            "its border holds constants that are not zero, which no convolution pads with"
        )
    return affine


# --- before and after the sweeps ----------------------------------------------------------------


def _prepare(model: onnx.ModelProto) -> ir.Model:
    """`model` with constants folded, identities removed and borders of constants noted."""
    kinds = {node.op_type for node in model.graph.node}
    quantized = sorted(
        kind for kind in kinds if kind in QUANTIZED or kind.startswith("QLinear")
    )
    if quantized:
        raise InputError(
            f"the graph is quantized already (it holds {quantized[0]}); fold the float model, "
            "then quantize"
        )
    opset = _opset_of(model)
    if opset < OLDEST_OPSET:
        raise InputError(
            f"the graph is of opset {opset}; convert it to {OLDEST_OPSET} or later "
            "(onnx.version_converter)"
        )
    try:
        prepared = to_ir(model)
    except ir.serde.SerdeError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(
            f"the graph holds something that ONNX does not define ({reason}); export it again"
        ) from None
    fold_constants(prepared)
    eliminate_identities(prepared.graph)
    # The pass would change subgraphs too.
    if not any(_holds_graph(node) for node in prepared.graph):
        passes.IdentityEliminationPass()(prepared)
    # An unused node would count as a reader.
    passes.RemoveUnusedNodesPass()(prepared)
    # Last, because it stores notes on nodes.
    mark_borders(prepared.graph, model)
    return prepared


def _opset_of(model: onnx.ModelProto) -> int:
    for item in model.opset_import:
        if item.domain in ("", "ai.onnx"):
            return int(item.version)
    return OLDEST_OPSET


def _holds_graph(node: ir.Node) -> bool:
    graph_types = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(item.type in graph_types for item in node.attributes.values())


def _order_initializers(graph: ir.Graph) -> None:
    """Order initializers by their first reader. Shape inference moves large ones to the end."""
    read: dict[ir.Value, None] = {}
    for node in graph:
        for value in node.inputs:
            if value is not None and value.is_initializer():
                read[value] = None
    for value in read:
        del graph.initializers[str(value.name)]
        graph.register_initializer(value)
