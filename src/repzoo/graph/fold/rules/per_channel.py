"""Rules for operators that treat every channel alone: normalization, arithmetic, pooling."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repzoo.graph.fold import algebra
from repzoo.graph.fold.affine_node import AffineNode, Answer, refuse
from repzoo.graph.fold.algebra import Array
from repzoo.graph.fold.geometry import depthwise
from repzoo.graph.fold.rules.windows import UNKNOWN_PADDING, window_of
from repzoo.graph.fold.tensors import (
    channel_axes,
    channels_of,
    constant_values,
    int_of,
    rank_of,
)
from repzoo.graph.tools.ir_facts import is_standard
from repzoo.graph.tools.symbolic_sizes import have_same_shape

# ONNX attributes are float32, defaults too.
DEFAULT_EPSILON = float(np.float32(1e-5))


def batch_normalization(node: ir.Node) -> Answer:
    """BatchNormalization in inference mode, on [N, C] or [N, C, H, W]."""
    source, *parameters = node.inputs
    gamma, beta, mean, variance = (constant_values(value) for value in parameters)
    if source is None or gamma is None or beta is None:
        return refuse(node, "its statistics are not constant")
    if mean is None or variance is None:
        return refuse(node, "its statistics are not constant")
    # Before opset 14 a second output marks training.
    if node.attributes.get_int("training_mode", 0) or len(node.outputs) > 1:
        return refuse(node, "it is in training mode; export the model in eval mode")
    rank = rank_of(node.outputs[0])
    if rank not in (2, 4):
        return refuse(
            node,
            f"it works on a tensor of rank {rank or 'unknown'}; only [N, C] "
            "and [N, C, H, W] are folded",
        )
    epsilon = node.attributes.get_float("epsilon", DEFAULT_EPSILON)
    return AffineNode(
        node,
        source,
        depthwise(gamma.size),
        build=lambda: algebra.from_batchnorm(gamma, beta, mean, variance, epsilon),
        flat=rank == 2,
    )


def elementwise(node: ir.Node) -> Answer:
    """Add, Sub, Mul or Div with one constant for each channel, in any shape that broadcasts."""
    left = constant_values(node.inputs[0])
    right = constant_values(node.inputs[1])
    if left is not None and right is None:
        source, values = node.inputs[1], left
    elif right is not None and left is None:
        source, values = node.inputs[0], right
    else:
        return None  # two tensors: a sum for the finder, or a product of activations
    constant_first = left is not None
    # A constant divided by a tensor is not affine.
    if source is None or (node.op_type == "Div" and constant_first):
        return None
    channels = _broadcast_to_channels(values, source, node.outputs[0])
    if channels is None:
        return None
    axis, per_channel = channels
    scale, shift = _scale_and_shift(
        node.op_type, per_channel, constant_first=constant_first
    )
    return AffineNode(
        node,
        source,
        depthwise(per_channel.size),
        build=lambda: algebra.from_scale(scale, shift),
        flat=axis == rank_of(source) - 1,
    )


def _broadcast_to_channels(
    values: Array, source: ir.Value, output: ir.Value
) -> tuple[int, Array] | None:
    """The axis of the channels, and `values` as one number for each channel.

    None if they vary over pixels, or widen the tensor, or the numbers are integers.
    """
    for axis in channel_axes(source, output):
        sides = [1] * rank_of(source)
        sides[axis] = int_of(source, axis)
        try:
            return axis, np.broadcast_to(values, sides).reshape(-1)
        except ValueError:
            continue
    return None


def _scale_and_shift(
    kind: str, values: Array, constant_first: bool
) -> tuple[Array, Array]:
    """(scale, shift) of Add, Sub, Mul or Div with `values`."""
    ones = np.ones_like(values)
    zeros = np.zeros_like(values)
    if kind == "Mul":
        return values, zeros
    if kind == "Div":
        return 1 / values, zeros
    if kind == "Add":
        return ones, values
    return (-ones, values) if constant_first else (ones, -values)


def average_pool(node: ir.Node) -> Answer:
    """A 2-D AveragePool that divides by the same number everywhere."""
    source = node.inputs[0]
    kernel = node.attributes.get_ints("kernel_shape", ())
    if len(kernel) != 2:
        return None
    window = window_of(node, source, kernel)
    if window is None:
        return refuse(node, UNKNOWN_PADDING)
    if any(window.pads) and not node.attributes.get_int("count_include_pad", 0):
        return refuse(
            node,
            "it averages fewer pixels at the border (count_include_pad=0), which no convolution "
            "does",
        )
    # With ceil_mode the last window may reach beyond the padding.
    has_ceil_mode = node.attributes.get_int("ceil_mode", 0)
    channels = channels_of(node.outputs[0])
    if has_ceil_mode or window.is_dilated or source is None or not channels:
        return None
    geometry = window.geometry(channels, channels, groups=channels)
    return AffineNode(
        node,
        source,
        geometry,
        build=lambda: algebra.from_average_pool(
            channels, geometry.kernel, geometry.strides, geometry.pads
        ),
    )


def reshaped_batch_normalization(node: ir.Node) -> Answer:
    """A BatchNormalization of the rows of [..., C], between two changes of shape.

    `node` is the Reshape that restores the shape which a Flatten or Reshape had changed to [N, C].
    """
    normalization = _producer(node)
    if normalization is None or normalization.op_type != "BatchNormalization":
        return None
    first = _producer(normalization)
    if first is None or first.op_type not in ("Flatten", "Reshape"):
        return None
    source = first.inputs[0]
    if source is None or not is_standard(normalization):
        return None
    affine = batch_normalization(normalization)
    if not isinstance(affine, AffineNode) or not affine.flat:
        return None
    channels = int_of(source, rank_of(source) - 1)
    is_restored = have_same_shape(source, node.outputs[0])
    if not is_restored or channels != affine.geometry.inputs:
        return None
    return AffineNode(
        node,
        source,
        affine.geometry,
        affine.build,
        flat=True,
        more=(normalization, first),
    )


def _producer(node: ir.Node) -> ir.Node | None:
    """The node that computes the first input."""
    first = node.inputs[0] if node.inputs else None
    return first.producer() if first is not None else None
