"""Lists the expressions that end in a tensor, and remembers them during one sweep.

The expressions of a tensor follow from those of the tensors before it: a chain extends each of
them by one affine node, a sum and a concatenation combine those with the same source. There is at
most one for each (tensor, source), and none has more than MOST_NODES nodes, so that the work of a
sweep grows in proportion to the nodes. A longer chain is folded in several sweeps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import islice

import onnx_ir as ir

from repzoo.graph.fold import expression as expressions
from repzoo.graph.fold.affine_node import AffineNode, Answer
from repzoo.graph.fold.expression import Expression
from repzoo.graph.fold.geometry import Inexact
from repzoo.graph.fold.rules import as_affine, concat_parts
from repzoo.graph.fold.tensors import rank_of
from repzoo.graph.tools.fold_result import Refusal
from repzoo.graph.tools.ir_facts import is_standard

# Expressions of one tensor, those with the nearest sources. No network that we know has a chain of
# more affine nodes.
MOST_EXPRESSIONS = 32
# Nodes of one expression. A Diverse Branch Block has some hundred if its borders are written by
# ScatterND.
MOST_NODES = 1024

Refuse = Callable[[ir.Node, str], None]


class ExpressionFinder:
    """The expressions of the tensors of a graph, for one sweep from its outputs to its inputs.

    Only folds may change the graph meanwhile. A fold leaves the expressions of all tensors before
    it as they are, so these are listed once.
    """

    def __init__(
        self, graph: ir.Graph, refuse: Refuse, fused: Collection[ir.Node] = ()
    ) -> None:
        """refuse  is called with a node and the reason why it is not part of an expression.
        fused   nodes that runtimes fuse into one kernel: none is part of an expression
        """
        self._graph = graph
        self._fused = fused
        self._refuse = refuse
        self._expressions: dict[ir.Value, list[Expression]] = {}
        self._answers: dict[ir.Value, Answer] = {}

    def expressions(self, value: ir.Value) -> list[Expression]:
        """All expressions that end in `value`, short ones first.

        A stack takes the place of recursion: Python's own is not deep enough for chains of some
        hundred nodes.
        """
        stack = [value]
        while stack:
            current = stack[-1]
            missing = self._missing_operands(current)
            if missing:
                stack += missing
                continue
            if current not in self._expressions:
                listed = self._list(current)
                self._expressions[current] = list(islice(listed, MOST_EXPRESSIONS))
            stack.pop()
        return self._expressions[value]

    def _missing_operands(self, value: ir.Value) -> list[ir.Value]:
        """The operands of `value` that must be listed before it."""
        if value in self._expressions:
            return []
        operands = self._operands(value)
        return [item for item in operands if item not in self._expressions]

    def forget(self, node: ir.Node) -> None:
        """Free the memory for the outputs of `node`, which the sweep has passed."""
        for value in node.outputs:
            self._expressions.pop(value, None)
            self._answers.pop(value, None)

    # --- which tensors an expression of a tensor is made of ---

    def _operands(self, value: ir.Value) -> list[ir.Value]:
        """The tensors whose expressions those of `value` are made of."""
        node = self._producer(value)
        if node is None:
            return []
        affine = self._answer(node, value)
        if isinstance(affine, Refusal):
            return []
        if isinstance(affine, AffineNode):
            return [affine.source] if _can_extend(affine) else []
        parts = concat_parts(node) or _summands(node)
        return [part for part in parts if expressions.is_read_only_by(part, {node})]

    def _producer(self, value: ir.Value) -> ir.Node | None:
        """The node that computes `value`, unless it is fused, or one of a graph around this one."""
        node = value.producer()
        if node is None or node.graph is not self._graph or node in self._fused:
            return None
        return node

    def _answer(self, node: ir.Node, value: ir.Value) -> Answer:
        """What the rule for `node` says of its output `value`."""
        if value not in self._answers:
            self._answers[value] = as_affine(node, value.index() or 0)
        return self._answers[value]

    # --- the expressions of a tensor, those of its operands being known ---

    def _list(self, value: ir.Value) -> Iterator[Expression]:
        """The expressions that end in `value`; refuses what cannot be part of one."""
        node = self._producer(value)
        if node is None:
            return
        affine = self._answer(node, value)
        if isinstance(affine, Refusal):
            self._refuse(node, affine.reason)
        elif isinstance(affine, AffineNode):
            yield from self._chains(affine)
        else:
            parts = concat_parts(node)
            summands = _summands(node)
            if parts:
                yield from self._concatenations(node, parts)
            elif summands:
                yield from self._sums(node, *summands)

    def _chains(self, affine: AffineNode) -> Iterator[Expression]:
        """One affine node, alone and after every expression of its source."""
        outer = expressions.from_node(affine)
        yield outer
        if not _can_extend(affine):
            return
        for inner in self._expressions[affine.source]:
            if inner.flat != affine.flat or inner.size + outer.size > MOST_NODES:
                continue
            try:
                yield expressions.compose(outer, inner)
            except Inexact as error:
                self._refuse(affine.node, str(error))

    def _sums(
        self, node: ir.Node, left_value: ir.Value, right_value: ir.Value
    ) -> Iterator[Expression]:
        """Sums of two expressions of the same source."""
        right_by_source: dict[ir.Value, list[Expression]] = {}
        for right in self._operand(right_value, node):
            right_by_source.setdefault(right.source, []).append(right)
        for left in self._operand(left_value, node):
            for right in right_by_source.get(left.source, []):
                size = left.size + right.size
                # Two times the source itself is no expression.
                if not 0 < size < MOST_NODES:
                    continue
                if not expressions.have_same_layout(left, right):
                    continue
                try:
                    yield expressions.add(node, left, right)
                except Inexact as error:
                    self._refuse(node, str(error))

    def _concatenations(
        self, node: ir.Node, parts: list[ir.Value]
    ) -> Iterator[Expression]:
        """For each source that all parts share, the largest expression of each part."""
        if len(set(parts)) < len(parts):
            return
        flat = rank_of(node.outputs[0]) == 2
        by_source = [self._largest_by_source(part, node, flat) for part in parts]
        for source in by_source[0]:
            if not all(source in largest for largest in by_source):
                continue
            chosen: list[Expression] = []
            for largest, part in zip(by_source, parts, strict=True):
                chosen.append(expressions.as_part(largest[source], part, flat))
            if sum(item.size for item in chosen) >= MOST_NODES:
                continue
            try:
                yield expressions.concatenate(node, chosen)
            except Inexact as error:
                self._refuse(node, str(error))

    def _largest_by_source(
        self, part: ir.Value, node: ir.Node, flat: bool
    ) -> dict[ir.Value, Expression]:
        """The largest expression of `part`, an input of `node`, for each of its sources."""
        largest: dict[ir.Value, Expression] = {}
        # Short ones come first, so that longer ones of the same source replace them.
        for item in self._operand(part, node):
            if item.is_source_itself or item.flat == flat:
                largest[item.source] = item
        return largest

    def _operand(self, value: ir.Value, reader: ir.Node) -> list[Expression]:
        """An input of a sum or concatenation: the tensor itself, and its expressions."""
        operands = [expressions.source_itself(value)]
        if expressions.is_read_only_by(value, {reader}):
            operands += self._expressions[value]
        return operands


def _can_extend(affine: AffineNode) -> bool:
    """Whether expressions of the source of `affine` can take it in.

    A node with several outputs would still be needed for the others.
    """
    is_only_output = len(affine.node.outputs) == 1
    readers = set(affine.nodes)
    return is_only_output and expressions.is_read_only_by(affine.source, readers)


def _summands(node: ir.Node) -> list[ir.Value]:
    """The two terms of a sum or difference; none if `node` is neither."""
    is_sum = node.op_type in ("Add", "Sub") and is_standard(node)
    if not is_sum or len(node.inputs) != 2:
        return []
    left, right = node.inputs
    # x + x: both terms are the same nodes, which would be counted and removed twice.
    if left is None or right is None or left is right:
        return []
    return [left, right]
