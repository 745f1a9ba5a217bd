"""Expressions: pieces of a graph that compute one affine map of one tensor.

An expression is built from the affine maps of single nodes (rules/) by composition, addition and
concatenation (algebra.py). Its geometry and costs are known at once. Its values are computed only
if the fold decides to write it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import onnx_ir as ir

from repzoo.graph.fold import algebra
from repzoo.graph.fold.affine_node import AffineNode
from repzoo.graph.fold.algebra import AffineMap
from repzoo.graph.fold.geometry import (
    Geometry,
    Pair,
    add_geometry,
    compose_geometry,
    depthwise,
    join_geometry,
)
from repzoo.graph.fold.rules import as_affine
from repzoo.graph.fold.tensors import channels_of, rank_of

# A rule for another operator may have to name it here.
WEIGHTED = ("Conv", "Gemm", "MatMul")
# Operators that scale but do not shift.
WITHOUT_SHIFT = frozenset({"MatMul", "Mul", "Div"})


@dataclass(frozen=True)
class Expression:
    """A tensor as one affine map of the tensor `source`.

    own_nodes   the nodes that combine the parts; all nodes of an expression without parts
    parts       the expressions that it is made of
    combine     computes the map in float64, from the maps of the parts
    macs        multiply-accumulates of all its nodes per pixel of the source
    parameters  weights of all its nodes
    flat        the channels are the last axis of rows, not the second axis of an image
    size        number of its nodes; one that two parts share counts twice
    """

    source: ir.Value
    geometry: Geometry
    own_nodes: tuple[ir.Node, ...]
    parts: tuple[Expression, ...]
    combine: Callable[[list[AffineMap]], AffineMap]
    macs: float = 0.0
    parameters: int = 0
    flat: bool = False
    size: int = 0

    @property
    def is_source_itself(self) -> bool:
        """Whether nothing is done to the source."""
        return self.size == 0

    @property
    def cost(self) -> float:
        """Multiply-accumulates per source pixel of the one node that would replace it."""
        return macs_per_input_pixel(self.geometry)

    @functools.cached_property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes that compute it, the last one first; empty for the source itself."""
        nodes: list[ir.Node] = []
        stack = [self]
        while stack:
            expression = stack.pop()
            nodes += expression.own_nodes
            stack += reversed(expression.parts)
        # Both terms of a sum may contain the same Split.
        return tuple(dict.fromkeys(nodes))

    def build(self) -> AffineMap:
        """The map in float64.

        Raises:
            Inexact: with these values, no single map equals the expression.
        """
        # Not by recursion: a sum of a thousand branches is a thousand levels deep.
        order: list[Expression] = []
        stack = [self]
        while stack:
            expression = stack.pop()
            order.append(expression)
            stack += expression.parts
        # Each part comes after what it is part of, and the last part comes first.
        maps: list[AffineMap] = []
        for expression in reversed(order):
            count = len(expression.parts)
            operands = maps[len(maps) - count :]
            del maps[len(maps) - count :]
            maps.append(expression.combine(operands))
        return maps[0]


def macs_per_input_pixel(geometry: Geometry) -> float:
    """Multiply-accumulates per pixel of the input; a stride computes fewer output pixels."""
    return geometry.macs / _area(geometry.strides)


def _area(strides: Pair) -> int:
    """Input pixels for each output pixel."""
    height, width = strides
    return height * width


# --- construction -------------------------------------------------------------------------------


def source_itself(value: ir.Value) -> Expression:
    """`value` as an expression of itself. Its channels become known when it is combined."""
    return Expression(
        value, Geometry(0, 0), (), (), combine=lambda _: algebra.identity(0)
    )


def from_node(affine: AffineNode) -> Expression:
    """The map of one affine node. Data movement costs nothing."""
    macs = macs_per_input_pixel(affine.geometry)
    parameters = affine.geometry.macs
    return Expression(
        source=affine.source,
        geometry=affine.geometry,
        own_nodes=affine.nodes,
        parts=(),
        combine=lambda _: affine.build(),
        macs=0.0 if affine.moves else macs,
        parameters=0 if affine.moves else parameters,
        flat=affine.flat,
        size=len(affine.nodes),
    )


def compose(outer: Expression, inner: Expression) -> Expression:
    """`outer`, of one node, applied to `inner`, which computes its source.

    Raises:
        Inexact: no single affine map equals the composition.
    """
    # Costs are per pixel of the innermost source.
    outer_macs = outer.macs / _area(inner.geometry.strides)
    return Expression(
        source=inner.source,
        geometry=compose_geometry(outer.geometry, inner.geometry),
        own_nodes=(),
        parts=(outer, inner),
        combine=lambda maps: algebra.compose(maps[0], maps[1]),
        macs=inner.macs + outer_macs,
        parameters=inner.parameters + outer.parameters,
        flat=outer.flat or inner.flat,
        size=outer.size + inner.size,
    )


def add(node: ir.Node, left: Expression, right: Expression) -> Expression:
    """The sum (or, for Sub, difference) of two expressions of one source.

    Raises:
        Inexact: the two maps do not line up.
    """
    if left.is_source_itself:
        left = _identity(left, right.geometry.outputs)
    if right.is_source_itself:
        right = _identity(right, left.geometry.outputs)
    geometry = add_geometry(left.geometry, right.geometry)
    sign = -1.0 if node.op_type == "Sub" else 1.0
    own_macs = left.geometry.outputs / _area(geometry.strides)
    return Expression(
        source=left.source,
        geometry=geometry,
        own_nodes=(node,),
        parts=(left, right),
        combine=lambda maps: algebra.add(maps[0], algebra.scale_output(maps[1], sign)),
        macs=left.macs + right.macs + own_macs,
        parameters=left.parameters + right.parameters,
        flat=left.flat or right.flat,
        size=left.size + right.size + 1,
    )


def concatenate(node: ir.Node, parts: list[Expression]) -> Expression:
    """The channels of several expressions of one source, one after another.

    Raises:
        Inexact: the maps do not line up.
    """
    geometry = parts[0].geometry
    for part in parts[1:]:
        geometry = join_geometry(geometry, part.geometry)
    return Expression(
        source=parts[0].source,
        geometry=geometry,
        own_nodes=(node,),
        parts=tuple(parts),
        combine=lambda maps: functools.reduce(algebra.join, maps),
        macs=sum(part.macs for part in parts),
        parameters=sum(part.parameters for part in parts),
        flat=parts[0].flat,
        size=sum(part.size for part in parts) + 1,
    )


def as_part(expression: Expression, part: ir.Value, flat: bool) -> Expression:
    """`expression`, or the identity if `part` is the source itself, for a concatenation."""
    if expression.is_source_itself:
        expression = _identity(expression, channels_of(part))
    return replace(expression, flat=flat)


def _identity(expression: Expression, channels: int) -> Expression:
    """The source itself, whose channels are known now."""
    return replace(
        expression,
        geometry=depthwise(channels),
        combine=lambda _: algebra.identity(channels),
    )


# --- questions ----------------------------------------------------------------------------------


def is_read_only_by(value: ir.Value, readers: Collection[ir.Node]) -> bool:
    """Whether nothing but `readers` needs `value`: no other node, and no caller."""
    if value.is_graph_output():
        return False
    return all(use.node in readers for use in value.uses())


def is_closed(expression: Expression, root: ir.Node) -> bool:
    """Whether nothing outside the expression reads its intermediate results.

    Needed beyond the check while it is built: a Split has several outputs.
    """
    nodes = set(expression.nodes)
    for node in expression.nodes:
        if node is root:
            continue
        if not all(is_read_only_by(value, nodes) for value in node.outputs):
            return False
    return True


def have_same_layout(left: Expression, right: Expression) -> bool:
    """Whether both have their channels along the same axis. The source itself fits either."""
    has_source_itself = left.is_source_itself or right.is_source_itself
    return has_source_itself or left.flat == right.flat


def saves_nodes(expression: Expression, root: ir.Node) -> bool:
    """Whether fewer nodes are written than replaced, or a BatchNormalization is replaced.

    A lone BatchNormalization becomes a depthwise 1x1 convolution.
    """
    shifts = any(node.op_type not in WITHOUT_SHIFT for node in expression.nodes)
    # Rows with more than one axis take a MatMul and an Add.
    needs_add = expression.flat and rank_of(root.outputs[0]) != 2 and shifts
    written = 2 if needs_add else 1
    is_batchnorm = expression.nodes[0].op_type == "BatchNormalization"
    return len(expression.nodes) > written or is_batchnorm


def belongs_to_layer_before(expression: Expression) -> bool:
    """Whether the expression begins with a scale that the layer before it can absorb.

    There it scales output channels, which per-channel weight scales absorb in quantization. In
    the layer after it would scale input channels, which they cannot.
    """
    source = expression.source
    first_node = expression.nodes[-1]
    producer = source.producer()
    if first_node.op_type == "Conv" or producer is None:
        return False
    if producer.op_type not in WEIGHTED:
        return False
    first = as_affine(first_node)
    if not isinstance(first, AffineNode) or first.source is not source:
        return False
    if not (first.geometry.is_pointwise and first.geometry.is_diagonal):
        return False
    has_affine_producer = isinstance(as_affine(producer), AffineNode)
    return has_affine_producer and is_read_only_by(source, {first_node})


def belongs_to_layer_after(expression: Expression, root: ir.Node) -> bool:
    """Whether it is a shift, then a scale, that only a padded convolution reads.

    That convolution can absorb the scale, but not the shift. Once both are one node, it could
    absorb neither.
    """
    begins_with_shift = expression.nodes[-1].op_type in ("Add", "Sub")
    several_nodes = len(expression.nodes) > 1
    if not begins_with_shift or not several_nodes or has_bias(root):
        return False
    if not expression.geometry.is_pointwise:
        return False
    readers = [use.node for use in root.outputs[0].uses()]
    if len(readers) != 1:
        return False
    reader = as_affine(readers[0])
    return isinstance(reader, AffineNode) and any(reader.geometry.pads)


def has_bias(node: ir.Node) -> bool:
    """Whether a node adds a constant per channel."""
    if node.op_type == "BatchNormalization":
        return True
    return node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2


def weight_count(node: ir.Node) -> int:
    """Number of weights of a convolution or linear layer; 0 for other nodes."""
    if node.op_type not in WEIGHTED:
        return 0
    weight = node.inputs[1]
    if weight is None or weight.shape is None:
        return 0
    return math.prod(weight.shape.numpy())


def explain_cost(expression: Expression) -> str:
    """The sentence that refuses an expression whose single node would cost more."""
    height, width = expression.geometry.kernel
    weights = expression.geometry.macs
    return (
        f"one {height}x{width} convolution in place of {len(expression.nodes)} nodes would take "
        f"{expression.cost:,.0f} MACs for each input pixel and {weights:,} "
        f"weights; they take {expression.macs:,.0f} and {expression.parameters:,}"
    )
