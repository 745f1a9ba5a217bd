"""Rules for layers with weights: convolutions and linear layers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repzoo.graph.fold import algebra
from repzoo.graph.fold.affine_node import AffineNode, Answer, refuse
from repzoo.graph.fold.algebra import AffineMap, Array
from repzoo.graph.fold.geometry import Geometry
from repzoo.graph.fold.rules.windows import UNKNOWN_PADDING, window_of
from repzoo.graph.fold.tensors import constant_values, rank_of, stored_values
from repzoo.graph.tools.fold_result import Refusal


def conv(node: ir.Node) -> Answer:
    """A 2-D convolution with a constant weight that no other node reads."""
    source, weight, *_ = node.inputs
    values = stored_values(weight)
    if values is None or weight is None or source is None:
        return refuse(
            node,
            "its weights are not constant (a graph input or computed), so nothing can be folded "
            "into them",
        )
    if values.ndim != 4:
        return refuse(
            node, f"it is a {values.ndim - 2}-D convolution; only 2-D ones are folded"
        )
    if len(weight.uses()) > 1:
        return _refuse_shared(node, weight)
    outputs, inputs_per_group, *kernel = values.shape
    window = window_of(node, source, kernel)
    if window is None:
        return refuse(node, UNKNOWN_PADDING)
    bias = _bias(node, size=outputs)
    if bias is None:
        return refuse(node, "its bias is not constant")
    groups = node.attributes.get_int("group", 1)
    is_divisible = groups >= 1 and values.size > 0 and outputs % groups == 0
    if not is_divisible or min(*window.strides, *window.dilations) < 1:
        return refuse(node, "its groups, strides or dilations mean nothing")
    geometry = window.geometry(outputs, inputs_per_group * groups, groups)
    return AffineNode(
        node,
        source,
        geometry,
        build=lambda: AffineMap(geometry, np.asarray(values, np.float64), bias),
    )


def gemm(node: ir.Node) -> Answer:
    """A linear layer of [N, inputs]: alpha * x @ weight + beta * bias."""
    source, weight, *_ = node.inputs
    values = stored_values(weight)
    is_transposed = node.attributes.get_int("transA", 0) == 1
    not_a_layer = refuse(
        node, "its weights are not constant or its input is transposed"
    )
    if source is None or weight is None or values is None:
        return not_a_layer
    if values.ndim != 2 or is_transposed:
        return not_a_layer
    if len(weight.uses()) > 1:
        return _refuse_shared(node, weight)
    matrix = values if node.attributes.get_int("transB", 0) else values.T
    outputs, inputs = matrix.shape
    bias = _bias(node, size=1)
    if bias is None or bias.shape not in _bias_shapes(outputs):
        return refuse(
            node, "its bias is not constant, or not one number for each output"
        )
    alpha = node.attributes.get_float("alpha", 1.0)
    beta = node.attributes.get_float("beta", 1.0)
    shift = np.broadcast_to(bias.reshape(-1) * beta, (outputs,))

    def build() -> AffineMap:
        scaled = np.asarray(matrix, np.float64) * alpha
        return algebra.from_matrix(scaled, shift)

    return AffineNode(node, source, Geometry(outputs, inputs), build, flat=True)


def matmul(node: ir.Node) -> Answer:
    """A linear layer of [..., inputs] without its bias: x @ weight [inputs, outputs]."""
    source, weight = node.inputs
    values = stored_values(weight)
    if source is None or weight is None or values is None:
        return None  # a product of activations
    if values.ndim != 2 or rank_of(source) < 2:
        rank = rank_of(source) or "unknown"
        return refuse(
            node,
            f"it multiplies ranks {rank} and {values.ndim}; only rows by a matrix fold",
        )
    if len(weight.uses()) > 1:
        return _refuse_shared(node, weight)
    inputs, outputs = values.shape
    return AffineNode(
        node,
        source,
        Geometry(outputs, inputs),
        build=lambda: algebra.from_matrix(values.T),
        flat=True,
    )


def _bias(node: ir.Node, size: int) -> Array | None:
    """The bias of a Conv or Gemm, zeros [size] if it has none; None if it is not constant."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return np.zeros(size) if bias is None else constant_values(bias)


def _bias_shapes(outputs: int) -> list[tuple[int, ...]]:
    """Shapes of a Gemm's bias that give each output one number."""
    return [(), (1,), (1, 1), (outputs,), (1, outputs)]


def _refuse_shared(node: ir.Node, weight: ir.Value) -> Refusal:
    """A weight that other nodes read cannot take anything in."""
    others = len(weight.uses()) - 1
    return refuse(
        node, f"its weight {weight.name!r} is shared with {others} other reader(s)"
    )
