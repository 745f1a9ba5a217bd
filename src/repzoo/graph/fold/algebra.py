"""Affine spatial maps: what convolutions, BatchNorms, scales, pools and linear layers share.

    y[o, p] = bias[o] + sum over i, t of kernel[o, i, t] * x[i, p * stride + t * dilation - pad]
    x[i] is fill[i] outside the image

A convolution has fill = 0. A border of constants has another fill, until the map before it
turns out to give just these constants where its own input is 0.

Everything is float64 and pure. Values are cast once, when a fold is written. `compose` and
`add` return maps that are equal *everywhere, borders included*, or raise Inexact with the
reason.

Sources: X. Ding et al., "RepVGG", arXiv:2101.03697, equations 3 and 4; "Diverse Branch Block",
arXiv:2103.13425, transforms I to VI.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from repzoo.graph.fold.geometry import (
    Geometry,
    Inexact,
    Pads,
    Pair,
    add_geometry,
    compose_geometry,
    depthwise,
)

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class AffineMap:
    """An affine map in float64.

    kernel      [outputs, inputs / groups, kh, kw]
    bias        [outputs]
    fill        [inputs], the input outside the image; None for zeros
    fill_error  relative error of `fill`, which was rounded when the graph was written
    """

    geometry: Geometry
    kernel: Array
    bias: Array
    fill: Array | None = None
    fill_error: float = 0.0

    def __post_init__(self) -> None:
        """Values must have the shape that the geometry says."""
        shape = self.geometry
        inputs_per_group = shape.inputs // shape.groups
        expected = (shape.outputs, inputs_per_group, *shape.kernel)
        if self.kernel.shape != expected or self.bias.shape != (shape.outputs,):
            raise ValueError(
                f"kernel {self.kernel.shape} and bias {self.bias.shape} do not fit {shape}"
            )


def from_kernel(
    kernel: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    groups: int = 1,
    **window: tuple[int, ...],
) -> AffineMap:
    """The map of a convolution.

    kernel  [outputs, inputs / groups, kh, kw]
    bias    [outputs]; None for zeros
    window  strides, pads and dilations, where they are not the defaults of Geometry
    """
    values = np.asarray(kernel, np.float64)
    outputs, inputs, height, width = values.shape
    geometry = Geometry(
        outputs,
        inputs * groups,
        (height, width),
        groups=groups,
        **window,  # type: ignore[arg-type]
    )
    shift = np.zeros(outputs) if bias is None else np.asarray(bias, np.float64)
    return AffineMap(geometry, values, shift)


def from_matrix(matrix: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> AffineMap:
    """The map of a linear layer: y = matrix @ x + bias.

    matrix  [outputs, inputs]
    bias    [outputs]; None for zeros
    """
    values = np.asarray(matrix, np.float64)
    return from_kernel(values[:, :, None, None], bias)


def from_scale(scale: npt.ArrayLike, shift: npt.ArrayLike) -> AffineMap:
    """y = scale * x + shift for each channel; both [C]."""
    values = np.asarray(scale, np.float64)
    return from_kernel(values.reshape(-1, 1, 1, 1), shift, groups=values.size)


def from_batchnorm(
    gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float
) -> AffineMap:
    """Inference BatchNorm: y = gamma * (x - mean) / sqrt(variance + epsilon) + beta; all [C]."""
    scale = gamma / np.sqrt(variance + epsilon)
    return from_scale(scale, beta - mean * scale)


def identity(channels: int) -> AffineMap:
    """y = x."""
    return from_scale(np.ones(channels), np.zeros(channels))


def from_average_pool(
    channels: int, kernel: Pair, strides: Pair, pads: Pads
) -> AffineMap:
    """Average pooling that counts its padding (count_include_pad = 1, or no padding)."""
    height, width = kernel
    taps = np.full((channels, 1, height, width), 1 / (height * width))
    return from_kernel(taps, groups=channels, strides=strides, pads=pads)


def zero_pad(channels: int, pads: Pads) -> AffineMap:
    """y = x inside a frame of zeros."""
    return replace(identity(channels), geometry=depthwise(channels, pads))


def constant_pad(fill: Array, pads: Pads, fill_error: float) -> AffineMap:
    """y = x inside a frame of constants, one for each channel.

    fill        [C]
    fill_error  see AffineMap
    """
    has_fill = bool(np.any(fill != 0))
    padded = zero_pad(fill.size, pads)
    return replace(padded, fill=fill if has_fill else None, fill_error=fill_error)


def select_channels(channels: int, start: int, count: int) -> AffineMap:
    """The `count` channels from `start` on, of `channels`."""
    return from_matrix(np.eye(channels)[start : start + count])


def scale_output(affine: AffineMap, factor: float) -> AffineMap:
    """factor * affine(x)."""
    return replace(affine, kernel=affine.kernel * factor, bias=affine.bias * factor)


# --- sums ---------------------------------------------------------------------------------------


def add(left: AffineMap, right: AffineMap) -> AffineMap:
    """The map of left(x) + right(x).

    Raises:
        Inexact: they do not line up, or pad with constants.
    """
    if left.fill is not None or right.fill is not None:
        raise Inexact(
            "a sum pads with constants that are not zero, which no convolution does"
        )
    target = add_geometry(left.geometry, right.geometry)
    kernel = _fit_kernel(left, target) + _fit_kernel(right, target)
    return AffineMap(target, kernel, left.bias + right.bias)


def _fit_kernel(part: AffineMap, target: Geometry) -> Array:
    """The kernel of `part` in the window, dilation and groups of `target`."""
    kernel = regroup(part, target.groups).kernel
    geometry = part.geometry
    is_aligned = geometry.pads[:2] == target.pads[:2]
    if is_aligned and geometry.kernel == target.kernel:
        return kernel
    rows = _taps_in(target, geometry, axis=0)
    columns = _taps_in(target, geometry, axis=1)
    larger = np.zeros((*kernel.shape[:2], *target.kernel))
    larger[:, :, rows[:, None], columns[None, :]] = kernel
    return larger


def _taps_in(target: Geometry, part: Geometry, axis: int) -> Indices:
    """For each tap of `part`, the tap of `target` that reads the same pixel."""
    start = target.pads[axis] - part.pads[axis]
    steps = np.arange(part.kernel[axis]) * part.dilations[axis]
    taps: Indices = (start + steps) // target.dilations[axis]
    return taps


def regroup(affine: AffineMap, groups: int) -> AffineMap:
    """The same map with fewer groups (a divisor of its own), zeros filled in."""
    geometry = affine.geometry
    if groups == geometry.groups:
        return affine
    # Each new group holds `merged` old ones, which read blocks of its inputs, one after another.
    merged = geometry.groups // groups
    inputs = geometry.inputs // geometry.groups
    outputs = geometry.outputs // geometry.groups
    kernel = np.zeros((geometry.outputs, merged * inputs, *geometry.kernel))
    for index in range(geometry.groups):
        first_row = index * outputs
        first_column = index % merged * inputs
        rows = slice(first_row, first_row + outputs)
        columns = slice(first_column, first_column + inputs)
        kernel[rows, columns] = affine.kernel[rows]
    return replace(affine, geometry=replace(geometry, groups=groups), kernel=kernel)


def join(first: AffineMap, second: AffineMap) -> AffineMap:
    """The map that gives the channels of first(x), then those of second(x).

    Raises:
        Inexact: they do not line up, or pad with constants.
    """
    start = first.geometry.outputs
    total = start + second.geometry.outputs
    return add(_embed_outputs(first, total, 0), _embed_outputs(second, total, start))


def _embed_outputs(part: AffineMap, total: int, start: int) -> AffineMap:
    """`part` as the channels from `start` on of a map that gives `total`, the others zero."""
    dense = regroup(part, 1)
    rows = slice(start, start + part.geometry.outputs)
    kernel = np.zeros((total, *dense.kernel.shape[1:]))
    kernel[rows] = dense.kernel
    bias = np.zeros(total)
    bias[rows] = dense.bias
    geometry = replace(dense.geometry, outputs=total)
    return replace(dense, geometry=geometry, kernel=kernel, bias=bias)


# --- compositions -------------------------------------------------------------------------------


def compose(outer: AffineMap, inner: AffineMap) -> AffineMap:
    """The map of outer(inner(x)).

    Raises:
        Inexact: outer pads and inner strides or has a window, or gives something other than the
            padding outside its image.
    """
    target = compose_geometry(outer.geometry, inner.geometry)
    if any(outer.geometry.pads):
        _require_padding(outer, inner)
    # Every tap of `outer` reads the bias of `inner`, those outside the image too.
    all_taps = outer.kernel.sum((2, 3))
    bias = outer.bias + _multiply_grouped(all_taps, inner.bias, outer.geometry)
    kernel = _compose_kernels(outer, inner, target)
    return AffineMap(target, kernel, bias, inner.fill, inner.fill_error)


def _require_padding(outer: AffineMap, inner: AffineMap) -> None:
    """Outside its image `inner`, which has one tap, gives what `outer` pads with."""
    outside = inner.bias
    if inner.fill is not None:
        taps = inner.kernel[:, :, 0, 0]
        outside = outside + _multiply_grouped(taps, inner.fill, inner.geometry)
    if outer.fill is None:
        if np.any(outside != 0):
            raise Inexact(
                "the outer convolution pads with 0 where the inner map would give its shift, so "
                "borders would differ"
            )
        return
    largest_error = np.abs(outer.fill - outside).max()
    tolerance = outer.fill_error * np.abs(outside).max()
    # Written so that NaN is refused too.
    if not largest_error <= tolerance:
        raise Inexact(
            "the border is filled with constants that the map before it does not give for "
            "zeros, so borders would differ"
        )


def _multiply_grouped(taps: Array, vector: Array, geometry: Geometry) -> Array:
    """taps [O, I/g] times vector [I], group by group."""
    groups = geometry.groups
    blocks = taps.reshape(groups, geometry.outputs // groups, -1)
    parts = vector.reshape(groups, -1)
    product: Array = np.einsum("goi,gi->go", blocks, parts)
    return product.reshape(-1)


def _compose_kernels(outer: AffineMap, inner: AffineMap, target: Geometry) -> Array:
    """The kernel of outer(inner(x)): the sum over the taps of `outer`."""
    groups = target.groups
    # One product needs no memory for a sum.
    if outer.geometry.kernel == (1, 1) and inner.geometry.kernel == target.kernel:
        return _multiply_channels(outer, inner, groups, (0, 0))
    rows = _reached_taps(outer.geometry, inner.geometry, target, axis=0)
    columns = _reached_taps(outer.geometry, inner.geometry, target, axis=1)
    kernel = np.zeros((target.outputs, target.inputs // groups, *target.kernel))
    for row, target_rows in enumerate(rows):
        for column, target_columns in enumerate(columns):
            product = _multiply_channels(outer, inner, groups, (row, column))
            kernel[:, :, target_rows[:, None], target_columns[None, :]] += product
    return kernel


def _reached_taps(
    outer: Geometry, inner: Geometry, target: Geometry, axis: int
) -> list[Indices]:
    """For each tap of `outer`, the taps of `target` that it reaches through all of `inner`."""
    steps = np.arange(inner.kernel[axis]) * inner.dilations[axis]
    reached: list[Indices] = []
    for tap in range(outer.kernel[axis]):
        start = tap * outer.dilations[axis] * inner.strides[axis]
        reached.append((start + steps) // target.dilations[axis])
    return reached


def _multiply_channels(
    outer: AffineMap, inner: AffineMap, groups: int, tap: Pair
) -> Array:
    """sum over m of outer[o, m, tap] * inner[m, i, :, :], in `groups` groups."""
    row, column = tap
    # Diagonal maps are not made dense: a depthwise layer of 1,000 channels would take a million
    # numbers for each tap.
    if outer.geometry.is_diagonal:
        return outer.kernel[:, :, row, column, None, None] * inner.kernel
    if inner.geometry.is_diagonal:
        return _multiply_by_scales(outer.kernel[:, :, row, column], outer, inner)
    outputs = outer.geometry.outputs
    left = regroup(outer, groups).kernel[:, :, row, column]
    left = left.reshape(groups, outputs // groups, -1)
    right = regroup(inner, groups).kernel.reshape(groups, left.shape[2], -1)
    return (left @ right).reshape(outputs, -1, *inner.geometry.kernel)


def _multiply_by_scales(weights: Array, outer: AffineMap, inner: AffineMap) -> Array:
    """weights [O, M / groups of `outer`] times the kernels of `inner`, which has one for each m."""
    groups = outer.geometry.groups
    sides = inner.geometry.kernel
    scales = inner.kernel.reshape(groups, 1, -1, *sides)
    blocks = weights.reshape(groups, -1, weights.shape[1])
    product = blocks[..., None, None] * scales
    return product.reshape(*weights.shape, *sides)
