"""Which nodes of an ONNX graph are affine maps of one tensor, and with what values.

A rule is guards, then one answer: a Link (this node is that map of that tensor), a Refusal (it
would be, but for a reason that a person should hear), or None (it is something else). Rules
read the graph and never change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from repzoo.graph.fold import algebra
from repzoo.graph.fold.algebra import AffineMap, Geometry
from repzoo.graph.fold.tensors import (
    channel_axes,
    channels_of,
    constant,
    int_of,
    node_name,
    rank_of,
    sides_of,
    stored,
)
from repzoo.graph.tools.fold_result import Refusal
from repzoo.graph.tools.symbolic_sizes import same_shape


@dataclass(frozen=True)
class AffineNode:
    """`node` computes the map `build()` (of `geometry`) of the tensor `source`.

    flat   tensors are [..., C], rows of channels: [N, C], or what a linear layer makes of
           [N, length, C]
    moves  it only moves values (padding, choosing channels) and costs no arithmetic
    more   other nodes that belong to it; the last one reads `source`
    """

    node: ir.Node
    source: ir.Value
    geometry: Geometry
    build: Callable[[], AffineMap]
    flat: bool = False
    moves: bool = False
    more: tuple[ir.Node, ...] = ()

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """From the one that gives the output to the one that reads `source`."""
        return (self.node, *self.more)


@dataclass(frozen=True)
class Border:
    """What `ScatterND` nodes make of a Pad: every pixel of its frame, and no other, has the
    number of its channel.

    fill   float64 [C]; `doubt` as in algebra.AffineMap
    nodes  behind the last ScatterND: the others, those that compute where they write, and the Pad
    """

    fill: algebra.Array
    doubt: float
    nodes: tuple[ir.Node, ...]


# Key in the `meta` of a ScatterND: a Border, or the sentence that says why it is none
# (border_constants.py).
BORDER = "repzoo.border"

Answer = AffineNode | Refusal | None

AUTO_PAD = (
    "its padding depends on the size of its input (auto_pad=SAME), which is open or dilated; "
    "export it with a fixed size"
)


def as_affine(node: ir.Node, output: int = 0) -> Answer:
    """`node` as the affine map that gives its `output`, by the one rule for its operator."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Split":
        return _split(node, output)
    rule = _RULES.get(node.op_type)
    return rule(node) if rule else None


def concatenated_inputs(node: ir.Node) -> list[ir.Value]:
    """The tensors whose channels `node` (Concat) puts one below the other; none when it does
    something else.
    """
    parts = [value for value in node.inputs if value is not None and channels_of(value)]
    whole = (
        node.op_type == "Concat"
        and node.domain in ("", "ai.onnx")
        and len(parts) == len(node.inputs) > 1
    )
    rank = rank_of(node.outputs[0])
    return (
        parts
        if whole
        and rank in (2, 4)
        and node.attributes.get_int("axis", 1) in (1, 1 - rank)
        else []
    )


def _conv(node: ir.Node) -> Answer:
    source, weight, *rest = node.inputs
    values = stored(weight)
    if values is None or weight is None or source is None:
        return Refusal(
            node_name(node),
            "its weights are not constant (a graph input or computed), so nothing can be folded "
            "into them",
        )
    if values.ndim != 4:
        return Refusal(
            node_name(node),
            f"it is a {values.ndim - 2}-D convolution; only 2-D ones are folded",
        )
    if len(weight.uses()) > 1:
        return Refusal(
            node_name(node),
            f"its weight {weight.name!r} is shared with {len(weight.uses()) - 1} other reader(s)",
        )
    if (pads := _pads(node, source, values.shape[2:])) is None:
        return Refusal(node_name(node), AUTO_PAD)
    bias = (
        constant(rest[0]) if rest and rest[0] is not None else np.zeros(values.shape[0])
    )
    if bias is None:
        return Refusal(node_name(node), "its bias is not constant")
    groups = node.attributes.get_int("group", 1)
    window = {
        "strides": _ints(node, "strides", (1, 1)),
        "dilations": _ints(node, "dilations", (1, 1)),
        "pads": pads,
    }
    if (
        groups < 1
        or not values.size
        or len(values) % groups
        or min(*window["strides"], *window["dilations"]) < 1
    ):
        return Refusal(node_name(node), "its groups, strides or dilations mean nothing")
    shape = Geometry(
        values.shape[0],
        values.shape[1] * groups,
        values.shape[2:],
        groups=groups,
        **window,  # type: ignore[arg-type]
    )
    return AffineNode(
        node, source, shape, lambda: algebra.from_kernel(values, bias, groups, **window)
    )


def _batchnorm(node: ir.Node) -> Answer:
    source, *parameters = node.inputs
    known = [constant(value) for value in parameters]
    if source is None or any(value is None for value in known):
        return Refusal(node_name(node), "its statistics are not constant")
    if (
        node.attributes.get_int("training_mode", 0) or len(node.outputs) > 1
    ):  # the second marks training before opset 14
        return Refusal(
            node_name(node), "it is in training mode; export the model in eval mode"
        )
    if rank_of(node.outputs[0]) not in (2, 4):
        return Refusal(
            node_name(node),
            f"it works on a tensor of rank {rank_of(node.outputs[0]) or 'unknown'}; only [N, C] "
            "and [N, C, H, W] are folded",
        )
    gamma, beta, mean, variance = (value for value in known if value is not None)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    channels = Geometry(gamma.size, gamma.size, groups=gamma.size)
    return AffineNode(
        node,
        source,
        channels,
        lambda: algebra.from_batchnorm(gamma, beta, mean, variance, epsilon),
        rank_of(node.outputs[0]) == 2,
    )


def _gemm(node: ir.Node) -> Answer:
    source, weight, *rest = node.inputs
    values = constant(weight)
    transposed = node.attributes.get_int("transA", 0) == 1
    if (
        source is None
        or weight is None
        or values is None
        or values.ndim != 2
        or transposed
    ):
        return Refusal(
            node_name(node), "its weights are not constant or its input is transposed"
        )
    if len(weight.uses()) > 1:
        return Refusal(
            node_name(node),
            f"its weight {weight.name!r} is shared with {len(weight.uses()) - 1} other reader(s)",
        )
    values = (
        values if node.attributes.get_int("transB", 0) else values.T
    ) * node.attributes.get_float("alpha", 1.0)
    bias = constant(rest[0]) if rest and rest[0] is not None else np.zeros(1)
    if bias is None or bias.shape not in (
        (),
        (1,),
        (1, 1),
        (len(values),),
        (1, len(values)),
    ):
        return Refusal(
            node_name(node),
            "its bias is not constant, or not one number for each output",
        )
    shift = np.broadcast_to(
        bias.reshape(-1) * (node.attributes.get_float("beta", 1.0) or 0.0),
        values.shape[:1],
    )
    return AffineNode(
        node,
        source,
        Geometry(*values.shape),
        lambda: algebra.from_kernel(values[:, :, None, None], shift),
        flat=True,
    )


def _matmul(node: ir.Node) -> Answer:
    """A constant [inputs, outputs] on the right of [..., inputs]: a linear layer without its
    bias.
    """
    source, weight = node.inputs
    values = constant(weight)
    if source is None or weight is None or values is None:
        return None  # a product of activations
    if values.ndim != 2 or rank_of(source) < 2:
        return Refusal(
            node_name(node),
            f"it multiplies ranks {rank_of(source) or 'unknown'} and {values.ndim}; only rows "
            "by a matrix fold",
        )
    if len(weight.uses()) > 1:
        return Refusal(
            node_name(node),
            f"its weight {weight.name!r} is shared with {len(weight.uses()) - 1} other reader(s)",
        )
    shape = Geometry(values.shape[1], values.shape[0])
    return AffineNode(
        node,
        source,
        shape,
        lambda: algebra.from_kernel(values.T[:, :, None, None]),
        flat=True,
    )


def _elementwise(node: ir.Node) -> Answer:
    """Add, Sub, Mul or Div with a constant for each channel."""
    left, right = constant(node.inputs[0]), constant(node.inputs[1])
    if (left is None) == (right is None):
        return (
            None  # two tensors: a sum for the fold to see, or a product of activations
        )
    source, values = (
        (node.inputs[1], left) if left is not None else (node.inputs[0], right)
    )
    if source is None or values is None or (node.op_type == "Div" and left is not None):
        return None
    spreads = (
        (axis, _along(values, axis, source))
        for axis in channel_axes(source, node.outputs[0])
    )
    axis, spread = next(
        ((axis, spread) for axis, spread in spreads if spread is not None), (0, None)
    )
    if spread is None:
        # varies over pixels, or the constant widens the tensor, or the numbers are
        # integers
        return None
    scale, shift = _scale_and_shift(
        node.op_type, spread, constant_first=left is not None
    )
    channels = Geometry(spread.size, spread.size, groups=spread.size)
    return AffineNode(
        node,
        source,
        channels,
        lambda: algebra.from_scale(scale, shift),
        axis == rank_of(source) - 1,
    )


def _along(values: algebra.Array, axis: int, like: ir.Value) -> algebra.Array | None:
    """`values` as one number for each place on `axis`; None where they vary along another or
    widen the tensor.
    """
    sides = [1] * rank_of(like)
    sides[axis] = int_of(like, axis)
    try:
        return np.broadcast_to(values, sides).reshape(-1)
    except ValueError:
        return None


def _scale_and_shift(
    kind: str, values: algebra.Array, constant_first: bool
) -> tuple[algebra.Array, algebra.Array]:
    ones, zeros = np.ones_like(values), np.zeros_like(values)
    if kind == "Mul":
        return values, zeros
    if kind == "Div":
        return 1 / values, zeros
    if kind == "Add":
        return ones, values
    return (-ones, values) if constant_first else (ones, -values)


def _average_pool(node: ir.Node) -> Answer:
    kernel, source = _ints(node, "kernel_shape", ()), node.inputs[0]
    if len(kernel) != 2:
        return None
    pads = _pads(node, source, kernel)
    if pads is None:
        return Refusal(node_name(node), AUTO_PAD)
    if any(pads) and not node.attributes.get_int("count_include_pad", 0):
        return Refusal(
            node_name(node),
            "it averages fewer pixels at the border (count_include_pad=0), which no convolution "
            "does",
        )
    unusual = node.attributes.get_int("ceil_mode", 0)
    strides, channels = _ints(node, "strides", (1, 1)), channels_of(node.outputs[0])
    if (
        unusual
        or source is None
        or not channels
        or _ints(node, "dilations", (1, 1)) != (1, 1)
    ):
        return None
    window = (kernel[0], kernel[1]), (strides[0], strides[1]), pads
    shape = Geometry(channels, channels, *window, groups=channels)
    return AffineNode(
        node, source, shape, lambda: algebra.from_average_pool(channels, *window)
    )


def _pad(node: ir.Node) -> Answer:
    """A frame of zeros, around height and width only."""
    source, *_ = node.inputs
    sizes, value, axes = (
        _setting(node, *where) for where in (("pads", 1), ("value", 2), ("axes", 3))
    )
    if (
        source is None
        or rank_of(source) != 4
        or sizes is None
        or value is None
        or axes is None
    ):
        return None
    if node.attributes.get_string("mode", "constant") != "constant" or value.any():
        return Refusal(
            node_name(node),
            "it pads with something other than zeros, which no convolution does",
        )
    both = np.zeros((2, 4), int)
    both[:, axes.astype(int) if axes.size else slice(None)] = sizes.reshape(2, -1)
    channels = channels_of(source)
    if not channels or both.min() < 0 or both[:, :2].any():
        return None  # it crops, or pads channels
    top, left, bottom, right = (int(side) for side in both[:, 2:].reshape(-1))
    frame = top, left, bottom, right
    shape = Geometry(channels, channels, pads=frame, groups=channels)
    return AffineNode(
        node, source, shape, lambda: algebra.zero_pad(channels, frame), moves=True
    )


def _scatter(node: ir.Node) -> Answer:
    """The last of those that fill a frame of zeros with constants."""
    border = node.meta.get(BORDER)
    if not isinstance(border, Border):
        return Refusal(node_name(node), border) if border else None
    zeros = _pad(border.nodes[-1])
    if not isinstance(zeros, AffineNode):
        return None
    build = lambda: algebra.frame(border.fill, zeros.geometry.pads, border.doubt)  # noqa: E731
    return AffineNode(
        node, zeros.source, zeros.geometry, build, moves=True, more=border.nodes
    )


def _split(node: ir.Node, output: int) -> Answer:
    """Channels apart: each output is a run of them."""
    source, counts = node.inputs[0], [channels_of(value) for value in node.outputs]
    rank = 0 if source is None else rank_of(source)
    if (
        source is None
        or rank not in (2, 4)
        or node.attributes.get_int("axis", 0) not in (1, 1 - rank)
        or not all(counts)
    ):
        return None
    return _chosen(node, source, sum(counts[:output]), counts[output])


def _slice(node: ir.Node) -> Answer:
    """A run of channels, where only these are cut."""
    source = node.inputs[0]
    starts, axes, steps = (
        _setting(node, *where) for where in (("starts", 1), ("axes", 3), ("steps", 4))
    )
    if (
        source is None
        or starts is None
        or axes is None
        or steps is None
        or starts.size != 1
    ):
        return None
    axis = int(axes[0]) if axes.size else 0
    total, count = channels_of(source), channels_of(node.outputs[0])
    if (
        axis not in (1, 1 - rank_of(source))
        or (steps.size and steps[0] != 1)
        or not total
        or not count
    ):
        return None
    start = int(max(starts[0] + total, 0) if starts[0] < 0 else starts[0])
    return _chosen(node, source, start, count)


def _chosen(node: ir.Node, source: ir.Value, start: int, count: int) -> AffineNode:
    total = channels_of(source)
    shape, flat = Geometry(count, total), rank_of(source) == 2
    return AffineNode(
        node,
        source,
        shape,
        lambda: algebra.select(total, start, count),
        flat,
        moves=True,
    )


def _rows(node: ir.Node) -> Answer:
    """A Reshape that ends where a Flatten (or Reshape) began, with only the BatchNormalization
    of its rows [.., C] between them.
    """
    normal = _producer(node)
    opening = (
        _producer(normal)
        if normal is not None and normal.op_type == "BatchNormalization"
        else None
    )
    source = (
        opening.inputs[0]
        if opening is not None and opening.op_type in ("Flatten", "Reshape")
        else None
    )
    seen = as_affine(normal) if normal is not None and source is not None else None
    if (
        normal is None
        or opening is None
        or source is None
        or not isinstance(seen, AffineNode)
        or not seen.flat
    ):
        return None
    if (
        not same_shape(source, node.outputs[0])
        or int_of(source, rank_of(source) - 1) != seen.geometry.inputs
    ):
        return None
    return AffineNode(
        node, source, seen.geometry, seen.build, flat=True, more=(normal, opening)
    )


def _producer(node: ir.Node) -> ir.Node | None:
    return (
        node.inputs[0].producer()
        if node.inputs and node.inputs[0] is not None
        else None
    )


def _setting(node: ir.Node, name: str, index: int) -> algebra.Array | None:
    """An attribute of older operator sets that became an input; empty when it is not given,
    None when it is computed.
    """
    if name in node.attributes:
        return np.atleast_1d(np.asarray(node.attributes[name].value, np.float64))
    value = node.inputs[index] if index < len(node.inputs) else None
    known = constant(value)
    return (
        np.zeros(0)
        if value is None
        else None
        if known is None
        else np.atleast_1d(known)
    )


_RULES: dict[str, Callable[[ir.Node], Answer]] = {
    "Conv": _conv,
    "BatchNormalization": _batchnorm,
    "Gemm": _gemm,
    "Add": _elementwise,
    "Sub": _elementwise,
    "Mul": _elementwise,
    "Div": _elementwise,
    "AveragePool": _average_pool,
    "MatMul": _matmul,
    "Reshape": _rows,
    "Pad": _pad,
    "ScatterND": _scatter,
    "Slice": _slice,
}


def _ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(node.attributes.get_ints(name, default) or default)


def _pads(
    node: ir.Node, source: ir.Value | None, kernel: Sequence[int]
) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right); None where they depend on a size that is not known, or on
    what runtimes disagree about.
    """
    kind = node.attributes.get_string("auto_pad", "NOTSET")
    if kind == "NOTSET":
        top, left, bottom, right = _ints(node, "pads", (0, 0, 0, 0))
        return top, left, bottom, right
    if kind == "VALID":
        return 0, 0, 0, 0  # whatever `pads` says
    strides, sides = _ints(node, "strides", (1, 1)), sides_of(source)
    if (
        _ints(node, "dilations", (1, 1)) != (1, 1)
        or len(strides) != 2
        or min(strides) < 1
    ):
        return None
    total = [
        kernel[a] - 1 if strides[a] == 1 else _missing(sides[a], kernel[a], strides[a])
        for a in (0, 1)
    ]
    if total[0] is None or total[1] is None:
        return None
    less, more = (
        (total[0] // 2, total[1] // 2),
        (total[0] - total[0] // 2, total[1] - total[1] // 2),
    )
    return (*more, *less) if kind == "SAME_LOWER" else (*less, *more)


def _missing(side: int | None, kernel: int, stride: int) -> int | None:
    """Pixels that `side` lacks for ceil(side / stride) windows."""
    return (
        None
        if side is None
        else max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    )
