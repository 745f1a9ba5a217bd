"""im2col: what a layer reads at some of its output positions, and which positions to look at.

Shapes use the letters of layers.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from repzoo.quant.network.layers import Layer

Images = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def sample_positions(
    layer: Layer,
    activation: Images,
    count: int,
    random: np.random.Generator,
) -> Ids | None:
    """`count` random output positions of each image, flat [N, count]; None if that is all of them.

    Args:
        layer: reads `activation`.
        activation: float32 [N, C, H, W], or [N, C] for a Gemm.
        count: positions of each image.
        random: draws them.
    """
    total = output_positions(layer, activation.shape[2:])
    if count >= total:
        return None
    # One set is drawn and shifted by a random number per image. That is as uniform as drawing a
    # set per image, and much cheaper.
    shifts = random.integers(total, size=(len(activation), 1))
    positions = random.choice(total, count, replace=False)
    return np.asarray((positions + shifts) % total)


def im2col(
    layer: Layer,
    activation: Images,
    outputs: Ids | None,
) -> Images:
    """What the layer reads at some output positions of each image: float32 [G, K, N R].

    Args:
        layer: reads `activation`.
        activation: float32 [N, C, H, W], or [N, C] for a Gemm.
        outputs: flat output positions [N, R] (see `sample_positions`); None for all.
    """
    if activation.ndim == 2:
        return activation.T[None]
    images, channels, *size = activation.shape
    if outputs is None:
        all_positions = np.arange(output_positions(layer, size))
        outputs = np.tile(all_positions, (images, 1))
    positions, is_inside = _input_positions(layer, size, outputs)
    pixels = activation.reshape(images, channels, -1)
    columns = np.empty((channels, *positions.shape), np.float32)
    for image in range(images):
        own_positions = positions[:, image]
        columns[:, :, image] = pixels[image].take(own_positions, axis=1)
    if not is_inside.all():
        columns *= is_inside  # padding is 0
    return columns.reshape(layer.groups, layer.fan_in, -1)


def _input_positions(
    layer: Layer,
    size: Sequence[int],
    outputs: Ids,
) -> tuple[Ids, Mask]:
    """(flat input position of each kernel tap [taps, N, R], whether it is inside the image).

    Positions outside of the image are 0. `outputs` [N, R] are flat output positions.
    """
    # Positions are computed one by one: only a few per image are needed, and a padded copy of the
    # activation would cost more.
    height, width = size
    _, output_width = _output_sides(layer, size)
    output_rows, output_columns = np.divmod(outputs, output_width)
    rows = _tap_coordinates(layer, size, 0, output_rows)
    columns = _tap_coordinates(layer, size, 1, output_columns)
    # every row with every column of the kernel: [rows, columns, N, R]
    rows = rows[:, None]
    columns = columns[None]
    is_row_inside = (rows >= 0) & (rows < height)
    is_column_inside = (columns >= 0) & (columns < width)
    is_inside = is_row_inside & is_column_inside
    positions = np.where(is_inside, rows * width + columns, 0)
    shape = (-1, *outputs.shape)
    return positions.reshape(shape), is_inside.reshape(shape)


def _tap_coordinates(
    layer: Layer,
    size: Sequence[int],
    axis: int,
    outputs: Ids,
) -> Ids:
    """What the kernel reads along one axis for output coordinates [N, R]: [kernel, N, R]."""
    padding_before, _ = _padding(layer, size)[axis]
    taps = np.arange(layer.kernel[axis]) * layer.dilations[axis]
    first = outputs * layer.strides[axis] - padding_before
    return np.asarray(taps[:, None, None] + first)


def output_positions(layer: Layer, size: Sequence[int]) -> int:
    """Number of output positions for an activation of spatial `size`; 1 for a Gemm."""
    if not size:
        return 1
    return math.prod(_output_sides(layer, size))


def _output_sides(layer: Layer, size: Sequence[int]) -> list[int]:
    """Height and width of the output. Source: ONNX operator Conv."""
    sides: list[int] = []
    for axis, (before, after) in enumerate(_padding(layer, size)):
        padded = size[axis] + before + after
        room = padded - layer.span(axis)
        sides.append(room // layer.strides[axis] + 1)
    return sides


def _padding(layer: Layer, size: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) of each spatial axis. Source: ONNX operator Conv, attribute auto_pad."""
    if layer.auto_pad == "VALID":
        return [(0, 0), (0, 0)]
    if layer.auto_pad == "NOTSET":
        begins, ends = layer.pads[:2], layer.pads[2:]
        return list(zip(begins, ends, strict=True))
    return [_same_padding(layer, axis, side) for axis, side in enumerate(size)]


def _same_padding(layer: Layer, axis: int, side: int) -> tuple[int, int]:
    """(before, after) of an axis of `side` pixels for auto_pad SAME_UPPER or SAME_LOWER."""
    # as many outputs as strides fit into the input, rounded up
    stride = layer.strides[axis]
    outputs = math.ceil(side / stride)
    covered = (outputs - 1) * stride + layer.span(axis)
    total = max(0, covered - side)
    smaller = total // 2
    larger = total - smaller
    # SAME_UPPER puts the odd pixel after, SAME_LOWER before.
    if layer.auto_pad == "SAME_UPPER":
        return smaller, larger
    return larger, smaller
