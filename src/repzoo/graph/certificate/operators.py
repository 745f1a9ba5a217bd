"""ONNX operators in float64, for proofs: written from the specification, and sharing nothing with algebra.py that could err alike.

`absolute` asks for the bound of an operator instead of its value: the magnitude of every constant, and of every difference the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

Array = npt.NDArray[np.float64]
Stored = npt.NDArray[Any]

BLOCK = 2**20  # weights taken to float64 at once


class Unknown(Exception):
    """The expression holds something that no fold replaces."""


@dataclass(frozen=True)
class Window:
    """What a convolution or a pool slides over its image; each pair is (height, width), pads are (top, left, bottom, right)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @classmethod
    def of(
        cls, node: onnx.NodeProto, kernel: tuple[int, ...], sides: tuple[int, ...] | None = None
    ) -> Window:
        """That of `node` on an image of these [height, width], which auto_pad needs."""
        strides, dilations = integers(node, "strides", (1, 1)), integers(node, "dilations", (1, 1))
        kind = next((item.s for item in node.attribute if item.name == "auto_pad"), b"NOTSET")
        pads = integers(node, "pads", (0, 0, 0, 0)) if kind == b"NOTSET" else (0, 0, 0, 0)
        if kind.startswith(b"SAME"):
            if sides is None:
                raise Unknown(node.name)
            both = [
                _same(*of, kind == b"SAME_LOWER")
                for of in zip(sides, kernel, strides, dilations, strict=True)
            ]
            pads = (both[0][0], both[1][0], both[0][1], both[1][1])
        return cls(kernel, strides, dilations, pads)

    def taps(self, image: Array) -> Iterator[tuple[int, int, Array]]:
        """(row, column, what the tap there sees [N, C, height, width]) of `image` [N, C, H, W]."""
        top, left, bottom, right = self.pads
        padded = np.pad(image, ((0, 0), (0, 0), (top, bottom), (left, right)))
        height, width = (
            (padded.shape[a + 2] - (self.kernel[a] - 1) * self.dilations[a] - 1) // self.strides[a]
            + 1
            for a in (0, 1)
        )
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                y, x = row * self.dilations[0], column * self.dilations[1]
                rows = slice(y, y + (height - 1) * self.strides[0] + 1, self.strides[0])
                columns = slice(x, x + (width - 1) * self.strides[1] + 1, self.strides[1])
                yield row, column, padded[:, :, rows, columns]


def _same(side: int, kernel: int, stride: int, dilation: int, lower: bool) -> tuple[int, int]:
    """auto_pad along one axis: as much as makes ceil(side / stride) windows fit; SAME_LOWER puts the odd pixel first."""
    total = max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
    less, more = total // 2, total - total // 2
    return (more, less) if lower else (less, more)


def _conv(node: onnx.NodeProto, inputs: list[Stored], absolute: bool) -> Array:
    image, weight, *bias = inputs
    groups = integer(node, "group", 1)
    if (
        image.ndim != 4
        or weight.ndim != 4
        or image.shape[1] != weight.shape[1] * groups
        or len(weight) % groups
    ):
        raise Unknown(node.name)
    window = Window.of(node, (weight.shape[2], weight.shape[3]), image.shape[2:])
    seen = np.stack([part for *_, part in window.taps(image)], 2).swapaxes(
        0, 1
    )  # [C, N, taps, height, width]
    columns = seen.swapaxes(1, 2).reshape(groups, -1, len(image) * seen.shape[3] * seen.shape[4])
    product = _product(weight.reshape(groups, len(weight) // groups, -1), columns, absolute)
    total = product.reshape(len(weight), len(image), *seen.shape[3:]).swapaxes(0, 1)
    return total + bias[0][:, None, None] if bias else total


def _product(weight: Stored, columns: Array, absolute: bool) -> Array:
    """weight [G, O, K] (its magnitude where `absolute`) times columns [G, K, P] in float64, without a float64 copy of it all."""
    groups, outputs, taps = weight.shape
    product = np.empty((groups, outputs, columns.shape[2]))
    rows = max(1, BLOCK // (groups * taps))
    for start in range(0, outputs, rows):
        part = weight[:, start : start + rows].astype(np.float64)
        np.matmul(
            np.abs(part, out=part) if absolute else part,
            columns,
            out=product[:, start : start + rows],
        )
    return product


def batchnorm(node: onnx.NodeProto, inputs: list[Array], absolute: bool) -> Array:
    """Inference BatchNormalization of [N, C, ...]."""
    image, *parameters = inputs
    shape = (-1, *[1] * (image.ndim - 2))
    gamma, beta, mean, variance = (values.reshape(shape) for values in parameters)
    epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
    deviation = np.sqrt(variance + epsilon)
    if absolute:
        return np.abs(gamma) * (image + np.abs(mean)) / deviation + np.abs(beta)
    return gamma * (image - mean) / deviation + beta


def _gemm(node: onnx.NodeProto, inputs: list[Stored], absolute: bool) -> Array:
    left, right, *bias = inputs
    if left.ndim != 2 or right.ndim != 2:
        raise Unknown(node.name)
    alpha, beta = (
        next((item.f for item in node.attribute if item.name == name), 1.0)
        for name in ("alpha", "beta")
    )
    alpha, beta = (abs(alpha), abs(beta)) if absolute else (alpha, beta)
    rows = right if integer(node, "transB", 0) else right.T
    product: Array = _product(
        rows[None], (left if integer(node, "transA", 0) else left.T)[None], absolute
    )[0].T
    return alpha * product + (beta * bias[0] if bias else 0.0)


def _average_pool(node: onnx.NodeProto, inputs: list[Array], _: bool) -> Array:
    if integer(node, "ceil_mode", 0):
        raise Unknown(node.name)
    window = Window.of(node, integers(node, "kernel_shape", (1, 1)), inputs[0].shape[2:])
    whole = integer(node, "count_include_pad", 0) or not any(window.pads)
    ones = np.ones_like(inputs[0])
    seen = math.prod(window.kernel) if whole else sum(part for *_, part in window.taps(ones))
    return np.asarray(sum(part for *_, part in window.taps(inputs[0])) / seen)


def _difference(_: onnx.NodeProto, inputs: list[Array], absolute: bool) -> Array:
    return inputs[0] + inputs[1] if absolute else inputs[0] - inputs[1]


def _concat(node: onnx.NodeProto, inputs: list[Array], _: bool) -> Array:
    return np.concatenate(inputs, integer(node, "axis", 1))


def _pad(node: onnx.NodeProto, image: Array, settings: list[Array], _: int) -> Array:
    """`pads` lists every axis's beginning, then every axis's end; an attribute before opset 11."""
    empty = np.zeros(0)
    sizes, value, axes = [*settings, empty, empty, empty][:3]
    sizes = sizes if sizes.size else np.asarray(integers(node, "pads", ()), float)
    widths = [(0, 0)] * image.ndim
    for axis, (before, after) in zip(
        axes if axes.size else range(image.ndim), sizes.reshape(2, -1).T, strict=True
    ):
        widths[int(axis)] = int(before), int(after)
    constant = (
        float(value.reshape(-1)[0])
        if value.size
        else next((item.f for item in node.attribute if item.name == "value"), 0.0)
    )
    if any(item.name == "mode" and item.s != b"constant" for item in node.attribute):
        raise Unknown(node.name)
    return np.pad(image, widths, constant_values=constant)


def scatter(node: onnx.NodeProto, image: Array, settings: list[Array], absolute: bool) -> Array:
    """ScatterND of settings (index [..., axes], numbers [...]); `absolute` takes a number for no less inexact than its image."""
    if any(item.name == "reduction" and item.s != b"none" for item in node.attribute):
        raise Unknown(node.name)
    index, numbers = settings
    made = image.copy()
    try:
        made[tuple(np.moveaxis(index.astype(np.int64), -1, 0))] = (
            np.maximum(np.abs(numbers), image.max()) if absolute else numbers
        )
    except (IndexError, ValueError):
        raise Unknown(node.name) from None
    return made


def _split(node: onnx.NodeProto, image: Array, settings: list[Array], output: int) -> Array:
    """Sizes are given, or equal with a smaller last one."""
    axis = integer(node, "axis", 0)
    each = -(-image.shape[axis] // len(node.output))
    sizes = [
        int(size)
        for size in (
            settings[0] if settings else integers(node, "split", (each,) * (len(node.output) - 1))
        )
    ]
    return np.split(image, np.cumsum(sizes)[: len(node.output) - 1], axis)[output]


def _slice(node: onnx.NodeProto, image: Array, settings: list[Array], _: int) -> Array:
    empty = np.zeros(0)
    given = [*settings, empty, empty, empty, empty][:4]
    starts, ends, axes = (item if item.size else np.asarray(integers(node, name, ()), float)
                          for item, name in zip(given, ("starts", "ends", "axes"), strict=False))  # fmt: skip
    cut = [slice(None)] * image.ndim
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        step = int(given[3][index]) if given[3].size else 1
        cut[int(axes[index]) if axes.size else index] = slice(int(start), int(end), step)
    return image[tuple(cut)]


def _flatten(node: onnx.NodeProto, image: Array, _settings: list[Array], _: int) -> Array:
    axis = integer(node, "axis", 1) % (image.ndim + 1)
    return image.reshape(math.prod(image.shape[:axis]), -1)


def _reshape(node: onnx.NodeProto, image: Array, settings: list[Array], _: int) -> Array:
    """0 keeps a side, -1 is what the others leave."""
    if not settings or integer(node, "allowzero", 0):
        raise Unknown(node.name)
    sides = [int(side) or image.shape[axis] for axis, side in enumerate(settings[0])]
    try:
        return image.reshape(sides)
    except ValueError:
        raise Unknown(node.name) from None


MOVES: dict[str, Callable[[onnx.NodeProto, Array, list[Array], int], Array]] = {
    "Pad": _pad,
    "Split": _split,
    "Slice": _slice,
    "Flatten": _flatten,
    "Reshape": _reshape,
}
OPERATORS: dict[str, Callable[[onnx.NodeProto, list[Stored], bool], Array]] = {
    "Conv": _conv,
    "BatchNormalization": batchnorm,
    "Gemm": _gemm,
    "AveragePool": _average_pool,
    "MatMul": lambda _node, inputs, _absolute: inputs[0] @ inputs[1],
    "Concat": _concat,
    "Add": lambda _node, inputs, _absolute: inputs[0] + inputs[1],
    "Sub": _difference,
    "Mul": lambda _node, inputs, _absolute: inputs[0] * inputs[1],
    "Div": lambda _node, inputs, _absolute: inputs[0] / inputs[1],
}


def integer(node: onnx.NodeProto, name: str, default: int) -> int:
    """An attribute, or its default."""
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def integers(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """As `integer`, of several."""
    return (
        next((tuple(item.ints) for item in node.attribute if item.name == name), default) or default
    )
