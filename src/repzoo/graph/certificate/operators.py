"""ONNX operators in float64, written from the specification for the proof.

The fold has its own arithmetic (graph/fold/algebra.py). Nothing is shared with it, so one mistake
cannot be in both.

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
Compute = Callable[[onnx.NodeProto, list[Stored], bool], Array]
Move = Callable[[onnx.NodeProto, Array, list[Array], int], Array]

BLOCK = (
    2**20
)  # weights converted to float64 at once: a float64 copy of a large layer is never made

# --- arithmetic: (node, inputs, absolute) ---------------------------------------------------------


def convolve(node: onnx.NodeProto, inputs: list[Stored], absolute: bool) -> Array:
    """Conv of [N, C, H, W] by [O, C / groups, height, width], plus a bias [O] if given."""
    image, weight, *bias = inputs
    groups = integer(node, "group", 1)
    if image.ndim != 4 or weight.ndim != 4:
        raise UnknownExpression(node.name)
    if image.shape[1] != weight.shape[1] * groups or len(weight) % groups:
        raise UnknownExpression(node.name)
    window = Window.of(node, weight.shape[2:], image.shape[2:])
    taps = list(window.taps(image))
    patches = np.stack(taps, axis=2)  # [N, C, taps, height, width]
    height, width = patches.shape[3:]
    # One matrix product for each group: [O, C * taps] by [C * taps, N * height * width].
    patches = patches.transpose(1, 2, 0, 3, 4)
    pixels = len(image) * height * width
    columns = patches.reshape(groups, -1, pixels)
    rows = weight.reshape(groups, len(weight) // groups, -1)
    product = multiply_blockwise(rows, columns, absolute)
    output = product.reshape(len(weight), len(image), height, width)
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
        block = weight[:, start : start + rows].astype(np.float64)
        if absolute:
            np.abs(block, out=block)
        np.matmul(block, columns, out=product[:, start : start + rows])
    return product


def batch_normalize(node: onnx.NodeProto, inputs: list[Array], absolute: bool) -> Array:
    """Inference BatchNormalization of [N, C, ...] by scale, bias, mean and variance, each [C]."""
    image, *parameters = inputs
    # [C] becomes [C, 1, ...], which broadcasts with [N, C, ...].
    shape = (-1, *[1] * (image.ndim - 2))
    gamma, beta, mean, variance = (values.reshape(shape) for values in parameters)
    deviation = np.sqrt(variance + real(node, "epsilon", 1e-5))
    if absolute:
        return np.abs(gamma) * (image + np.abs(mean)) / deviation + np.abs(beta)
    return gamma * (image - mean) / deviation + beta


def _gemm(node: onnx.NodeProto, inputs: list[Stored], absolute: bool) -> Array:
    left, right, *bias = inputs
    if left.ndim != 2 or right.ndim != 2:
        raise UnknownExpression(node.name)
    alpha = real(node, "alpha", 1.0)
    beta = real(node, "beta", 1.0)
    if absolute:
        alpha, beta = abs(alpha), abs(beta)
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
    window = Window.of(node, integers(node, "kernel_shape", (1, 1)), image.shape[2:])
    total = sum(window.taps(image))
    if integer(node, "count_include_pad", 0) or not any(window.pads):
        return np.asarray(total / math.prod(window.kernel))
    return np.asarray(total / sum(window.taps(np.ones_like(image))))


def _subtract(_: onnx.NodeProto, inputs: list[Array], absolute: bool) -> Array:
    return inputs[0] + inputs[1] if absolute else inputs[0] - inputs[1]


ARITHMETIC: dict[str, Compute] = {
    "Conv": convolve,
    "BatchNormalization": batch_normalize,
    "Gemm": _gemm,
    "AveragePool": _average_pool,
    "MatMul": lambda _node, inputs, _absolute: inputs[0] @ inputs[1],
    "Concat": lambda node, inputs, _absolute: np.concatenate(
        inputs, integer(node, "axis", 1)
    ),
    "Add": lambda _node, inputs, _absolute: inputs[0] + inputs[1],
    "Sub": _subtract,
    "Mul": lambda _node, inputs, _absolute: inputs[0] * inputs[1],
    "Div": lambda _node, inputs, _absolute: inputs[0] / inputs[1],
}


# --- data movement: (node, image, its other inputs, which output) ---------------------------------


def _setting(
    node: onnx.NodeProto, settings: list[Array], index: int, name: str
) -> Array:
    """An input, or the attribute that it was in older opsets; empty where neither is there."""
    if index < len(settings) and settings[index].size:
        return settings[index]
    return np.asarray(integers(node, name, ()), np.float64)


def _pad(
    node: onnx.NodeProto, image: Array, settings: list[Array], _output: int
) -> Array:
    if text(node, "mode", "constant") != "constant":
        raise UnknownExpression(node.name)
    pads = _setting(
        node, settings, 0, "pads"
    )  # every axis's beginning, then every axis's end
    axes = settings[2] if len(settings) > 2 and settings[2].size else range(image.ndim)
    begins, ends = pads.reshape(2, -1)
    widths = [(0, 0)] * image.ndim
    for axis, begin, end in zip(axes, begins, ends, strict=True):
        widths[int(axis)] = (int(begin), int(end))
    fill = real(node, "value", 0.0)
    if len(settings) > 1 and settings[1].size:
        fill = float(settings[1].reshape(-1)[0])
    return np.pad(image, widths, constant_values=fill)


def _split(
    node: onnx.NodeProto, image: Array, settings: list[Array], output: int
) -> Array:
    axis, count = integer(node, "axis", 0), len(node.output)
    sizes = _setting(node, settings, 0, "split")
    if not sizes.size:
        sizes = np.full(
            count, -(-image.shape[axis] // count)
        )  # equal, with a smaller last one
    ends = np.cumsum(sizes.astype(np.int64))
    return np.split(image, ends[: count - 1], axis)[output]


def _slice(
    node: onnx.NodeProto, image: Array, settings: list[Array], _output: int
) -> Array:
    starts = _setting(node, settings, 0, "starts")
    ends = _setting(node, settings, 1, "ends")
    axes = _setting(node, settings, 2, "axes")
    steps = (
        settings[3] if len(settings) > 3 and settings[3].size else np.ones(len(starts))
    )
    selection = [slice(None)] * image.ndim
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = int(axes[index]) if axes.size else index
        selection[axis] = slice(int(start), int(end), int(steps[index]))
    return image[tuple(selection)]


def _flatten(
    node: onnx.NodeProto, image: Array, _settings: list[Array], _output: int
) -> Array:
    axis = integer(node, "axis", 1) % (image.ndim + 1)
    return image.reshape(math.prod(image.shape[:axis]), -1)


def _reshape(
    node: onnx.NodeProto, image: Array, settings: list[Array], _output: int
) -> Array:
    if not settings or integer(node, "allowzero", 0):
        raise UnknownExpression(node.name)
    shape = reshape_shape(image.shape, [int(side) for side in settings[0]])
    if shape is None:
        raise UnknownExpression(node.name)
    return image.reshape(shape)


def reshape_shape(shape: tuple[int, ...], target: list[int]) -> tuple[int, ...] | None:
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
    total, fixed = math.prod(shape), math.prod(side for side in sides if side != -1)
    if -1 not in sides:
        return tuple(sides) if fixed == total else None
    if fixed == 0 or total % fixed:
        return None
    return tuple(total // fixed if side == -1 else side for side in sides)


MOVES: dict[str, Move] = {
    "Pad": _pad,
    "Split": _split,
    "Slice": _slice,
    "Flatten": _flatten,
    "Reshape": _reshape,
}


def scatter(
    node: onnx.NodeProto, image: Array, settings: list[Array], absolute: bool
) -> Array:
    """ScatterND of settings (index [..., axes], numbers [...]).

    With `absolute`, a number that is written counts as no less inexact than the image around it.
    """
    reduction = attribute(node, "reduction")
    if reduction is not None and reduction.s != b"none":
        raise UnknownExpression(node.name)
    index, numbers = settings
    if absolute:
        numbers = np.maximum(np.abs(numbers), image.max())
    result = image.copy()
    try:
        result[tuple(np.moveaxis(index.astype(np.int64), -1, 0))] = numbers
    except (IndexError, ValueError):
        raise UnknownExpression(node.name) from None
    return result
