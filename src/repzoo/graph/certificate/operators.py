"""ONNX operators in float64, written from the specification for the proof.

The fold has its own arithmetic (graph/fold/algebra.py). Nothing is shared with it, so one mistake
cannot be in both.

An operator is an entry in ARITHMETIC, which computes with all of its inputs, or in MOVES, which
moves the elements of the first one as constants say. ScatterND is apart, since what it writes has
roundings of its own.

Each operator can also compute its error bound: with `absolute` it takes the magnitude of every
constant and adds where it would subtract. Applied to the magnitude of the input, that bounds every
intermediate sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.graph.certificate.attributes import attribute, integer, integers, real, text
from repzoo.graph.certificate.window import Array, UnknownExpression, Window

Stored = npt.NDArray[Any]  # a constant in the number type of the file
Shape = tuple[int, ...]

# Weights converted to float64 at once: a float64 copy of a large layer is never made.
BLOCK = 2**20


# --- arithmetic -----------------------------------------------------------------------------------

# (node, inputs, absolute): the output. With `absolute` the inputs are magnitudes. The weight of a
# Conv or Gemm and the parameters of a BatchNormalization come as they are.
Arithmetic = Callable[[onnx.NodeProto, list[Stored], bool], Array]


def convolve(node: onnx.NodeProto, inputs: list[Stored], absolute: bool) -> Array:
    """Conv of [N, C, H, W] by [O, C / groups, height, width], plus a bias [O] if given.

    Raises:
        UnknownExpression: it is not 2-D, or the channels do not fit.
    """
    image, weight, *bias = inputs
    if image.ndim != 4 or weight.ndim != 4:
        raise UnknownExpression(node.name)
    groups = integer(node, "group", 1)
    outputs = len(weight)
    if image.shape[1] != weight.shape[1] * groups or outputs % groups:
        raise UnknownExpression(node.name)
    window = Window.of(node, weight.shape[2:], image.shape[2:])
    taps = list(window.taps(image))
    patches = np.stack(taps, axis=2)  # [N, C, taps, height, width]
    images, _, _, height, width = patches.shape
    # One matrix product for each group: [O, C * taps] by [C * taps, N * height * width].
    channels_first = patches.transpose(1, 2, 0, 3, 4)
    columns = channels_first.reshape(groups, -1, images * height * width)
    rows = weight.reshape(groups, outputs // groups, -1)
    product = multiply_blockwise(rows, columns, absolute)
    output = product.reshape(outputs, images, height, width)
    output = output.swapaxes(0, 1)
    if bias:
        output = output + bias[0][:, None, None]
    return output


def multiply_blockwise(weight: Stored, columns: Array, absolute: bool) -> Array:
    """weight [G, O, K] (its magnitude where `absolute`) times columns [G, K, P], in float64."""
    groups, outputs, taps = weight.shape
    product = np.empty((groups, outputs, columns.shape[2]))
    rows = max(1, BLOCK // (groups * taps))
    for start in range(0, outputs, rows):
        end = start + rows
        block = weight[:, start:end].astype(np.float64)
        if absolute:
            np.abs(block, out=block)
        np.matmul(block, columns, out=product[:, start:end])
    return product


def batch_normalize(node: onnx.NodeProto, inputs: list[Array], absolute: bool) -> Array:
    """Inference BatchNormalization of [N, C, ...] by scale, bias, mean and variance, each [C]."""
    image, *parameters = inputs
    # [C] becomes [C, 1, ...], which broadcasts with [N, C, ...].
    ones = [1] * (image.ndim - 2)
    columns = [values.reshape(-1, *ones) for values in parameters]
    gamma, beta, mean, variance = columns
    # Attributes are float32, defaults too.
    epsilon = real(node, "epsilon", float(np.float32(1e-5)))
    deviation = np.sqrt(variance + epsilon)
    if absolute:
        centered = image + np.abs(mean)
        return np.abs(gamma) * centered / deviation + np.abs(beta)
    return gamma * (image - mean) / deviation + beta


def _gemm(node: onnx.NodeProto, inputs: list[Stored], absolute: bool) -> Array:
    left, right, *bias = inputs
    if left.ndim != 2 or right.ndim != 2:
        raise UnknownExpression(node.name)
    alpha = real(node, "alpha", 1.0)
    beta = real(node, "beta", 1.0)
    if absolute:
        alpha = abs(alpha)
        beta = abs(beta)
    # multiply_blockwise takes [outputs, inputs] by [inputs, rows].
    weight = right if integer(node, "transB", 0) else right.T
    columns = left if integer(node, "transA", 0) else left.T
    (product,) = multiply_blockwise(weight[None], columns[None], absolute)
    output: Array = alpha * product.T
    if bias:
        output = output + beta * bias[0]
    return output


def _average_pool(node: onnx.NodeProto, inputs: list[Array], _absolute: bool) -> Array:
    if integer(node, "ceil_mode", 0):
        raise UnknownExpression(node.name)
    image = inputs[0]
    kernel = integers(node, "kernel_shape", (1, 1))
    window = Window.of(node, kernel, image.shape[2:])
    total = sum(window.taps(image))
    counts_pads = integer(node, "count_include_pad", 0)
    if counts_pads or not any(window.pads):
        return np.asarray(total / math.prod(kernel))
    pixels = sum(window.taps(np.ones_like(image)))
    return np.asarray(total / pixels)


def _matmul(_node: onnx.NodeProto, inputs: list[Array], _absolute: bool) -> Array:
    left, right = inputs
    return np.asarray(left @ right)


def _concat(node: onnx.NodeProto, inputs: list[Array], _absolute: bool) -> Array:
    axis = integer(node, "axis", 1)
    return np.concatenate(inputs, axis)


def _add(_node: onnx.NodeProto, inputs: list[Array], _absolute: bool) -> Array:
    left, right = inputs
    return left + right


def _subtract(_node: onnx.NodeProto, inputs: list[Array], absolute: bool) -> Array:
    left, right = inputs
    return left + right if absolute else left - right


def _multiply(_node: onnx.NodeProto, inputs: list[Array], _absolute: bool) -> Array:
    left, right = inputs
    return left * right


def _divide(_node: onnx.NodeProto, inputs: list[Array], _absolute: bool) -> Array:
    left, right = inputs
    return left / right


ARITHMETIC: dict[str, Arithmetic] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": batch_normalize,
    "Concat": _concat,
    "Conv": convolve,
    "Div": _divide,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Mul": _multiply,
    "Sub": _subtract,
}


# --- data movement --------------------------------------------------------------------------------

# (node, image, its other inputs, which of the node's outputs): that output
Movement = Callable[[onnx.NodeProto, Array, list[Array], int], Array]


def _input_or_attribute(
    node: onnx.NodeProto,
    settings: list[Array],
    index: int,
    name: str,
) -> Array:
    """An input, or the attribute that it was in older opsets; empty where neither is there."""
    values = _optional_input(settings, index)
    if values.size:
        return values
    return np.asarray(integers(node, name, ()), np.float64)


def _optional_input(settings: list[Array], index: int) -> Array:
    """An input that may be left out; it is empty then."""
    if index >= len(settings):
        return np.zeros(0)
    return settings[index]


def _pad(
    node: onnx.NodeProto,
    image: Array,
    settings: list[Array],
    _output: int,
) -> Array:
    if text(node, "mode", "constant") != "constant":
        raise UnknownExpression(node.name)
    fill = real(node, "value", 0.0)
    number = _optional_input(settings, 1)
    if number.size:
        fill = float(number.reshape(-1)[0])
    axes = _optional_input(settings, 2)
    if not axes.size:
        axes = np.arange(image.ndim, dtype=np.float64)
    # Every axis's beginning, then every axis's end.
    begins, ends = _input_or_attribute(node, settings, 0, "pads").reshape(2, -1)
    widths = [(0, 0)] * image.ndim
    for axis, begin, end in zip(axes, begins, ends, strict=True):
        widths[int(axis)] = (int(begin), int(end))
    return np.pad(image, widths, constant_values=fill)


def _split(
    node: onnx.NodeProto,
    image: Array,
    settings: list[Array],
    output: int,
) -> Array:
    axis = integer(node, "axis", 0)
    parts = len(node.output)
    sizes = _input_or_attribute(node, settings, 0, "split")
    if not sizes.size:
        # Equal parts; the last is smaller where the side is no multiple.
        sizes = np.full(parts, -(-image.shape[axis] // parts))
    ends = np.cumsum(sizes.astype(np.int64))
    return np.split(image, ends[: parts - 1], axis)[output]


def _slice(
    node: onnx.NodeProto,
    image: Array,
    settings: list[Array],
    _output: int,
) -> Array:
    starts = _input_or_attribute(node, settings, 0, "starts")
    ends = _input_or_attribute(node, settings, 1, "ends")
    axes = _input_or_attribute(node, settings, 2, "axes")
    steps = _optional_input(settings, 3)
    if not axes.size:
        axes = np.arange(len(starts), dtype=np.float64)
    if not steps.size:
        steps = np.ones(len(starts))
    selection = [slice(None)] * image.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        selection[int(axis)] = slice(int(start), int(end), int(step))
    return image[tuple(selection)]


def _flatten(
    node: onnx.NodeProto,
    image: Array,
    _settings: list[Array],
    _output: int,
) -> Array:
    axis = integer(node, "axis", 1) % (image.ndim + 1)
    rows = math.prod(image.shape[:axis])
    return image.reshape(rows, -1)


def _reshape(
    node: onnx.NodeProto,
    image: Array,
    settings: list[Array],
    _output: int,
) -> Array:
    if not settings or integer(node, "allowzero", 0):
        raise UnknownExpression(node.name)
    target = settings[0].astype(np.int64).tolist()
    shape = reshape_shape(image.shape, target)
    if shape is None:
        raise UnknownExpression(node.name)
    return image.reshape(shape)


def reshape_shape(shape: Shape, target: list[int]) -> Shape | None:
    """What Reshape (allowzero=0) makes of `shape`; None where the sizes do not agree.

    In `target` 0 keeps the side that is there, and one -1 takes what the others leave.
    """
    if target.count(-1) > 1 or any(side < -1 for side in target):
        return None
    sides = []
    for axis, side in enumerate(target):
        if side == 0 and axis >= len(shape):
            return None
        sides.append(shape[axis] if side == 0 else side)
    total = math.prod(shape)
    if -1 not in sides:
        return tuple(sides) if math.prod(sides) == total else None
    fixed = -math.prod(sides)  # without the one -1
    if fixed == 0 or total % fixed:
        return None
    sides[sides.index(-1)] = total // fixed
    return tuple(sides)


MOVES: dict[str, Movement] = {
    "Flatten": _flatten,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
}


def scatter(
    node: onnx.NodeProto,
    image: Array,
    settings: list[Array],
    absolute: bool,
) -> Array:
    """ScatterND of settings (index [..., axes], numbers [...]).

    With `absolute`, a number that is written counts as no less inexact than the image around it.

    Raises:
        UnknownExpression: it adds to what is there, or writes outside the image.
    """
    reduction = attribute(node, "reduction")
    if reduction is not None and reduction.s != b"none":
        raise UnknownExpression(node.name)
    index, numbers = settings
    if absolute:
        numbers = np.maximum(np.abs(numbers), image.max())
    axes_first = np.moveaxis(index.astype(np.int64), -1, 0)
    result = image.copy()
    try:
        result[tuple(axes_first)] = numbers
    except (IndexError, ValueError):
        raise UnknownExpression(node.name) from None
    return result
