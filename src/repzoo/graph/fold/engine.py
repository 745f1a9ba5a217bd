"""The fold: every linear piece between two nonlinearities becomes one cheaper node.

A sweep visits all nodes from the outputs to the inputs. For each node it lists the expressions
that end there (finder.py): the affine maps of single nodes, their compositions, sums and
concatenations. Nodes that runtimes fuse into one kernel, such as those of GELU, are left alone
(fused.py). An expression is replaced by one Conv or Gemm if the map is exact, costs no more
multiply-accumulates and no more weights, and has no intermediate result that others read.
Expressions that save the most are tried first. Sweeps repeat until nothing changes, so a folded
graph folds to itself. Every expression that is not replaced leaves a Refusal with a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from repzoo.graph.fold import expression as expressions
from repzoo.graph.fold import write
from repzoo.graph.fold.algebra import AffineMap
from repzoo.graph.fold.cse import eliminate_common_subexpressions
from repzoo.graph.fold.expression import Expression
from repzoo.graph.fold.finder import ExpressionFinder
from repzoo.graph.fold.fused import fused_nodes
from repzoo.graph.fold.geometry import Inexact
from repzoo.graph.fold.prepare import (
    order_initializers,
    prepare,
    separate_shared_pools,
)
from repzoo.graph.fold.spelling import respell
from repzoo.graph.fold.tensors import node_name
from repzoo.graph.fold.timing import Stopwatch, Timer
from repzoo.graph.tools.fold_result import Fold, FoldResult, Refusal
from repzoo.graph.tools.functions import inline_functions
from repzoo.graph.tools.ir_model import to_proto

# Simplifies a graph in place. Returns whether it changed anything.
Simplifier = Callable[[ir.Graph], bool]


def fold(model: onnx.ModelProto, timer: Timer | None = None) -> FoldResult:
    """Fold `model`, which is not changed, to a fixed point.

    timer  times folds that are not obviously faster. Without it the result is the same on every
           machine

    Raises:
        InputError: the graph is quantized, older than opset 7, or inconsistent, or its outputs
            need no node.
    """
    prepared = prepare(inline_functions(model))
    respellings = respell(prepared.graph)
    separate_shared_pools(prepared.graph, write.UsedNames(prepared.graph))
    folds, refusals = fold_graph(prepared.graph, timer, eliminate_common_subexpressions)
    passes.RemoveUnusedNodesPass()(prepared)
    prepared.graph.sort()
    order_initializers(prepared.graph)
    folded = to_proto(prepared)
    folded.metadata_props.clear()
    folded.metadata_props.extend(model.metadata_props)
    return FoldResult(folded, folds, refusals, respellings)


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
    return tuple(sweeper.folds), tuple(sweeper.refusals_in_order())


@dataclass
class _Sweeper:
    """A fold in progress.

    stopwatch  times folds that are not obviously faster; None: do not time
    folds      all that were made
    refusals   of the last sweep, by the name of the node
    """

    graph: ir.Graph
    stopwatch: Stopwatch | None = None
    folds: list[Fold] = field(default_factory=list)
    refusals: dict[str, Refusal] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names = write.UsedNames(self.graph)
        # Once: what the fold leaves of a composite is the composite.
        self._fused = fused_nodes(self.graph)
        self._finder = ExpressionFinder(self.graph, self._refuse, self._fused)

    def sweep(self) -> bool:
        """One pass from the outputs to the inputs. Returns whether anything was folded."""
        self.refusals = {}
        self._finder = ExpressionFinder(self.graph, self._refuse, self._fused)
        count = len(self.folds)
        for node in reversed(list(self.graph)):
            # An earlier fold of this sweep may have removed the node.
            if node.graph is self.graph:
                self._fold_at(node)
        return len(self.folds) > count

    def refusals_in_order(self) -> list[Refusal]:
        """The refusals of the last sweep, in the order of the graph."""
        remaining = dict(self.refusals)
        ordered = []
        for node in self.graph:
            refusal = remaining.pop(node_name(node), None)
            if refusal is not None:
                ordered.append(refusal)
        return ordered

    def _fold_at(self, root: ir.Node) -> None:
        """Replace the best expression that ends in `root`, if any qualifies."""
        candidates = self._finder.expressions(root.outputs[0])
        for candidate in sorted(candidates, key=_rank):
            affine = self._qualify(candidate, root)
            if affine is not None:
                self._replace(root, candidate, affine)
                return
        # The sweep goes on towards the inputs, so that these are not needed again.
        self._finder.forget(root)

    def _qualify(self, candidate: Expression, root: ir.Node) -> AffineMap | None:
        """The map of `candidate` if it is to be replaced; None and a refusal if it is not."""
        reason = _why_too_expensive(candidate)
        is_refused = node_name(root) in self.refusals
        # A node has one refusal, so there is nothing more to find out.
        if reason is not None and (not reason or is_refused):
            return None
        if not _is_worthwhile(candidate, root):
            return None
        if reason is not None:
            self._refuse(root, reason)
            return None
        try:
            affine = _without_border(candidate.build())
        except Inexact as error:
            self._refuse(root, str(error))
            return None
        slower = self._why_slower(candidate, affine, root.outputs[0])
        if slower:
            self._refuse(root, slower)
            return None
        return affine

    def _replace(
        self, root: ir.Node, expression: Expression, affine: AffineMap
    ) -> None:
        names = [node_name(node) for node in expression.nodes]
        operators = dict.fromkeys(node.op_type for node in expression.nodes)
        record = Fold(
            output=str(root.outputs[0].name),
            nodes=tuple(names),
            kind="+".join(operators),
            macs_before=expression.macs,
            macs_after=expression.cost,
        )
        for node in expression.nodes:
            self._finder.forget(node)
        write.replace(self.graph, root, expression, affine, self._names)
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
        replaced = set(expression.nodes)
        nodes = [node for node in self.graph if node in replaced]
        # A stand-in for the source: the trial node must not count as another reader of it.
        stand_in = replace(expression, source=ir.Value(name=expression.source.name))
        names = write.LayerNames("folded", "folded.weight", "folded.bias")
        (trial,) = write.nodes_for(stand_in, affine, output, names)
        trial.outputs[0].name = output.name
        return self.stopwatch.refusal(expression.source, nodes, trial, affine.geometry)


def _rank(candidate: Expression) -> tuple[float, int]:
    """Those that save the most come first, and of these the longest."""
    saved = candidate.macs - candidate.cost
    return -saved, -candidate.size


def _is_worthwhile(expression: Expression, root: ir.Node) -> bool:
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
    takes_more_macs = expression.cost > expression.macs
    takes_more_weights = expression.geometry.macs > expression.parameters
    if not takes_more_macs and not takes_more_weights:
        return None
    several = expression.size > 1
    return expressions.explain_cost(expression) if several else ""


def _without_border(affine: AffineMap) -> AffineMap:
    """`affine`, which must have no border of constants: convolutions pad with zeros."""
    if affine.fill is not None:
        raise Inexact(
            "its border holds constants that are not zero, which no convolution pads with"
        )
    return affine
