"""Affine spatial maps: what convolutions, BatchNorms, scales, pools and linear layers share.

    y[o, p] = bias[o] + sum over i, t of kernel[o, i, t] * x[i, p * stride + t * dilation - pad]
    x[i] is fill[i] outside the image

A convolution has fill = 0. A border of constants has another fill, until the map before it
turns out to give just these constants where its own input is 0.

Everything is float64 and pure. Values are cast once, when a fold is written. `compose` and
`add` return maps that are equal *everywhere, borders included*, or raise Inexact with the
reason. Pads are (top, left, bottom, right) as in ONNX.

Sources: X. Ding et al., "RepVGG", arXiv:2101.03697, equations 3 and 4; "Diverse Branch Block",
arXiv:2103.13425, transforms I to VI.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Inexact(ValueError):
    """No single affine map equals the composition or sum of two maps. The text says why.

    This is an answer and not a failure.
    """


@dataclass(frozen=True)
class Geometry:
    """The shape of a map without its values. `kernel` is (height, width) in taps."""

    outputs: int
    inputs: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def span(self) -> tuple[int, int]:
        """Pixels covered by the kernel: (k - 1) * dilation + 1."""
        height, width = self.kernel
        return (
            (height - 1) * self.dilations[0] + 1,
            (width - 1) * self.dilations[1] + 1,
        )

    @property
    def excess(self) -> tuple[int, int]:
        """Total padding minus (span - 1): out = floor((in + excess - 1) / stride) + 1."""
        top, left, bottom, right = self.pads
        height, width = self.span
        return top + bottom - height + 1, left + right - width + 1

    @property
    def is_pointwise(self) -> bool:
        """One tap, no padding."""
        return self.kernel == (1, 1) and not any(self.pads)

    @property
    def is_diagonal(self) -> bool:
        """Output channel c reads input channel c only."""
        return self.groups == self.inputs == self.outputs

    @property
    def macs(self) -> int:
        """Multiply-accumulates for each output pixel."""
        taps = self.kernel[0] * self.kernel[1]
        return self.outputs * (self.inputs // self.groups) * taps


@dataclass(frozen=True)
class AffineMap:
    """An affine map in float64.

    kernel  [outputs, inputs / groups, kh, kw]
    bias    [outputs]
    fill    [inputs], the input outside the image; None for zeros
    doubt   relative error of `fill`, which was rounded when the graph was written
    """

    geometry: Geometry
    kernel: Array
    bias: Array
    fill: Array | None = None
    doubt: float = 0.0

    def __post_init__(self) -> None:
        """Values must have the shape that the geometry says."""
        shape = self.geometry
        expected = (shape.outputs, shape.inputs // shape.groups, *shape.kernel)
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
    channels: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
) -> AffineMap:
    """Average pooling that counts its padding (count_include_pad = 1, or no padding)."""
    taps = np.full((channels, 1, *kernel), 1 / (kernel[0] * kernel[1]))
    return from_kernel(taps, groups=channels, strides=strides, pads=pads)


def zero_pad(channels: int, pads: tuple[int, int, int, int]) -> AffineMap:
    """y = x inside a frame of zeros."""
    geometry = Geometry(channels, channels, pads=pads, groups=channels)
    return replace(identity(channels), geometry=geometry)


def frame(fill: Array, pads: tuple[int, int, int, int], doubt: float) -> AffineMap:
    """y = x inside a frame of constants, one for each channel.

    fill   [C]
    doubt  see AffineMap
    """
    has_fill = bool(np.any(fill != 0))
    return replace(
        zero_pad(fill.size, pads), fill=fill if has_fill else None, doubt=doubt
    )


def select(channels: int, start: int, count: int) -> AffineMap:
    """The `count` channels from `start` on, of `channels`."""
    rows = np.eye(channels)[start : start + count]
    return from_kernel(rows[:, :, None, None])


def scaled(affine: AffineMap, factor: float) -> AffineMap:
    """factor * affine(x)."""
    return replace(affine, kernel=affine.kernel * factor, bias=affine.bias * factor)


# --- sums ---------------------------------------------------------------------------------------


def add_geometry(left: Geometry, right: Geometry) -> Geometry:
    """The geometry of left(x) + right(x).

    The kernel of the sum covers both kernels, each at the place where it meets the image.

    Raises:
        Inexact: the outputs do not line up.
    """
    if (left.outputs, left.inputs) != (right.outputs, right.inputs):
        raise Inexact(
            f"{left.outputs}x{left.inputs} and {right.outputs}x{right.inputs} channels do not add"
        )
    if left.strides != right.strides:
        raise Inexact(f"strides {left.strides} and {right.strides} differ")
    if left.excess != right.excess:
        raise Inexact(
            f"pads {left.pads} and {right.pads} give outputs of different sizes"
        )
    dilations = _common_dilations(left, right)
    kernel, begins, ends = [], [], []
    for axis in (0, 1):
        # Pixels that the kernel of the sum covers before a window's first image pixel, and from
        # that pixel on.
        before = max(left.pads[axis], right.pads[axis])
        after = max(
            left.span[axis] - left.pads[axis], right.span[axis] - right.pads[axis]
        )
        kernel.append((before + after - 1) // dilations[axis] + 1)
        begins.append(before)
        ends.append(left.excess[axis] + after - 1)
    return Geometry(
        outputs=left.outputs,
        inputs=left.inputs,
        kernel=(kernel[0], kernel[1]),
        strides=left.strides,
        pads=(begins[0], begins[1], ends[0], ends[1]),
        dilations=dilations,
        groups=math.gcd(left.groups, right.groups),
    )


def _common_dilations(left: Geometry, right: Geometry) -> tuple[int, int]:
    """Dilations at which one kernel can hold the taps of both."""
    if left.kernel == (1, 1):
        dilations = right.dilations
    elif right.kernel == (1, 1) or left.dilations == right.dilations:
        dilations = left.dilations
    else:
        return (1, 1)
    for axis in (0, 1):
        # The taps of one lie between those of the other.
        if (left.pads[axis] - right.pads[axis]) % dilations[axis]:
            return (1, 1)
    return dilations


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
    kernel = _placed(left, target) + _placed(right, target)
    return AffineMap(target, kernel, left.bias + right.bias)


def _placed(part: AffineMap, target: Geometry) -> Array:
    """The kernel of `part` in the window, dilation and groups of `target`."""
    kernel = grouped(part, target.groups).kernel
    own = part.geometry
    if kernel.shape[2:] == target.kernel and own.pads[:2] == target.pads[:2]:
        return kernel
    placed = np.zeros((*kernel.shape[:2], *target.kernel))
    taps = []
    for axis in (0, 1):
        start = target.pads[axis] - own.pads[axis]
        pixels = start + np.arange(kernel.shape[2 + axis]) * own.dilations[axis]
        taps.append(pixels // target.dilations[axis])
    placed[:, :, taps[0][:, None], taps[1][None, :]] = kernel
    return placed


def grouped(affine: AffineMap, groups: int) -> AffineMap:
    """The same map with fewer groups (a divisor of its own), zeros filled in."""
    geometry = affine.geometry
    if groups == geometry.groups:
        return affine
    merged = geometry.groups // groups  # old groups in each new one
    inputs = geometry.inputs // geometry.groups
    outputs = geometry.outputs // geometry.groups
    kernel = np.zeros((geometry.outputs, merged * inputs, *geometry.kernel))
    for index in range(geometry.groups):
        rows = slice(index * outputs, (index + 1) * outputs)
        start = index % merged * inputs
        kernel[rows, start : start + inputs] = affine.kernel[rows]
    return replace(affine, geometry=replace(geometry, groups=groups), kernel=kernel)


def join_geometry(first: Geometry, second: Geometry) -> Geometry:
    """The geometry of the channels of first(x), then those of second(x).

    Raises:
        Inexact: the outputs do not line up.
    """
    total = first.outputs + second.outputs
    # As a sum of maps that each leave the channels of the other at zero.
    return add_geometry(
        replace(first, outputs=total, groups=1),
        replace(second, outputs=total, groups=1),
    )


def join(first: AffineMap, second: AffineMap) -> AffineMap:
    """The map that gives the channels of first(x), then those of second(x)."""
    total = first.geometry.outputs + second.geometry.outputs
    return add(_among(first, total, 0), _among(second, total, first.geometry.outputs))


def _among(part: AffineMap, total: int, start: int) -> AffineMap:
    """`part` as the channels from `start` on of a map that gives `total`, the others zero."""
    dense = grouped(part, 1)
    rows = slice(start, start + part.geometry.outputs)
    kernel = np.zeros((total, *dense.kernel.shape[1:]))
    kernel[rows] = dense.kernel
    bias = np.zeros(total)
    bias[rows] = dense.bias
    geometry = replace(dense.geometry, outputs=total)
    return replace(dense, geometry=geometry, kernel=kernel, bias=bias)


# --- compositions -------------------------------------------------------------------------------


def compose_geometry(outer: Geometry, inner: Geometry) -> Geometry:
    """The geometry of outer(inner(x)), if it is exact.

    Raises:
        Inexact: no window could make it so.
    """
    if outer.inputs != inner.outputs:
        raise Inexact(
            f"{outer.inputs} channels are read where {inner.outputs} are made"
        )
    is_plain = outer.is_pointwise and outer.strides == (1, 1)
    if is_plain and outer.is_diagonal:
        return inner  # at once, for chains of such maps may be long
    is_one_tap = inner.kernel == (1, 1) and inner.strides == (1, 1)
    if any(outer.pads) and not is_one_tap:
        raise Inexact(
            "the outer convolution pads what the inner one computes, so borders would differ"
        )
    dilations = _composed_dilations(outer, inner)
    kernel = []
    for axis in (0, 1):
        span = (outer.span[axis] - 1) * inner.strides[axis] + inner.span[axis]
        kernel.append((span - 1) // dilations[axis] + 1)
    top, left, bottom, right = (
        own + other for own, other in zip(outer.pads, inner.pads, strict=True)
    )
    return Geometry(
        outputs=outer.outputs,
        inputs=inner.inputs,
        kernel=(kernel[0], kernel[1]),
        strides=_times(outer.strides, inner.strides),
        pads=(top, left, bottom, right),
        dilations=dilations,
        groups=_common_groups(outer, inner),
    )


def _composed_dilations(outer: Geometry, inner: Geometry) -> tuple[int, int]:
    """Dilations at which one kernel holds every tap of `outer` on every tap of `inner`."""
    if outer.kernel == (1, 1):
        return inner.dilations
    if inner.kernel == (1, 1):
        return _times(outer.dilations, inner.strides)
    return (1, 1)


def _common_groups(outer: Geometry, inner: Geometry) -> int:
    """The most groups into which both maps can be cut together."""
    if outer.is_diagonal:
        return inner.groups
    if inner.is_diagonal:
        return outer.groups
    return math.gcd(outer.groups, inner.groups)


def compose(outer: AffineMap, inner: AffineMap) -> AffineMap:
    """The map of outer(inner(x)).

    Raises:
        Inexact: outer pads and inner strides or has a window, or gives something other than the
            padding outside its image.
    """
    target = compose_geometry(outer.geometry, inner.geometry)
    if any(outer.geometry.pads):
        _require_padding(outer, inner)
    all_taps = outer.kernel.sum((2, 3))
    bias = outer.bias + _apply(all_taps, inner.bias, outer.geometry)
    kernel = _composed_kernel(outer, inner, target)
    return AffineMap(target, kernel, bias, inner.fill, inner.doubt)


def _require_padding(outer: AffineMap, inner: AffineMap) -> None:
    """Outside its image `inner`, which has one tap, gives what `outer` pads with."""
    outside = inner.bias
    if inner.fill is not None:
        taps = inner.kernel[:, :, 0, 0]
        outside = outside + _apply(taps, inner.fill, inner.geometry)
    if outer.fill is None:
        if np.any(outside != 0):
            raise Inexact(
                "the outer convolution pads with 0 where the inner map would give its shift, so "
                "borders would differ"
            )
        return
    largest_error = np.abs(outer.fill - outside).max()
    # Written so that NaN is refused too.
    if not largest_error <= outer.doubt * np.abs(outside).max():
        raise Inexact(
            "the border is filled with constants that the map before it does not give for "
            "zeros, so borders would differ"
        )


def _apply(taps: Array, vector: Array, geometry: Geometry) -> Array:
    """taps [O, I/g] times vector [I], group by group."""
    groups = geometry.groups
    blocks = taps.reshape(groups, geometry.outputs // groups, -1)
    product: Array = np.einsum("goi,gi->go", blocks, vector.reshape(groups, -1))
    return product.reshape(-1)


def _composed_kernel(outer: AffineMap, inner: AffineMap, target: Geometry) -> Array:
    """The kernel of outer(inner(x)): the sum over the taps of `outer`."""
    own, before = outer.geometry, inner.geometry
    if own.kernel == (1, 1) and before.kernel == target.kernel:
        return _channel_product(outer, inner, target.groups, 0, 0)
    kernel = np.zeros((target.outputs, target.inputs // target.groups, *target.kernel))
    for row in range(own.kernel[0]):
        rows = _taps(outer.geometry, before, target, 0, row)
        for column in range(own.kernel[1]):
            columns = _taps(outer.geometry, before, target, 1, column)
            product = _channel_product(outer, inner, target.groups, row, column)
            kernel[:, :, rows[:, None], columns[None, :]] += product
    return kernel


def _taps(
    outer: Geometry, inner: Geometry, target: Geometry, axis: int, tap: int
) -> npt.NDArray[np.intp]:
    """The taps of `target` that tap number `tap` of `outer` reaches through all of `inner`."""
    start = tap * outer.dilations[axis] * inner.strides[axis]
    pixels = start + np.arange(inner.kernel[axis]) * inner.dilations[axis]
    taps: npt.NDArray[np.intp] = pixels // target.dilations[axis]
    return taps


def _channel_product(
    outer: AffineMap, inner: AffineMap, groups: int, row: int, column: int
) -> Array:
    """sum over m of outer[o, m, row, column] * inner[m, i, :, :].

    Diagonal maps are not made dense: a depthwise layer of 1,000 channels would take a million.
    """
    sides = inner.kernel.shape[2:]
    tap = outer.kernel[:, :, row, column]
    if outer.geometry.is_diagonal:
        return tap[:, :, None, None] * inner.kernel
    if inner.geometry.is_diagonal:
        own_groups = outer.geometry.groups
        scales = inner.kernel.reshape(own_groups, 1, -1, *sides)
        blocks = tap.reshape(own_groups, -1, tap.shape[1])
        product = blocks[..., None, None] * scales
        return product.reshape(*tap.shape, *sides)
    outputs = outer.geometry.outputs
    left = grouped(outer, groups).kernel[:, :, row, column]
    left = left.reshape(groups, outputs // groups, -1)
    right = grouped(inner, groups).kernel.reshape(groups, left.shape[2], -1)
    return (left @ right).reshape(outputs, -1, *sides)


def _times(left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
    return left[0] * right[0], left[1] * right[1]
