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
from collections.abc import Iterable
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
        return _pair(
            (k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)
        )

    @property
    def excess(self) -> tuple[int, int]:
        """Total padding minus (span - 1): out = floor((in + excess - 1) / stride) + 1."""
        return _pair(self.pads[a] + self.pads[a + 2] - self.span[a] + 1 for a in (0, 1))

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
        return (
            self.outputs
            * (self.inputs // self.groups)
            * self.kernel[0]
            * self.kernel[1]
        )


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
    **where: tuple[int, ...],
) -> AffineMap:
    """A convolution's map. kernel [O, I/groups, kh, kw]; `where` may give strides, pads,
    dilations.
    """
    values = np.asarray(kernel, np.float64)
    outputs, inputs, height, width = values.shape
    geometry = Geometry(
        outputs,
        inputs * groups,
        (height, width),
        groups=groups,
        **where,  # type: ignore[arg-type]
    )
    return AffineMap(
        geometry,
        values,
        np.zeros(outputs) if bias is None else np.asarray(bias, np.float64),
    )


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
    return replace(
        identity(channels),
        geometry=Geometry(channels, channels, pads=pads, groups=channels),
    )


def frame(fill: Array, pads: tuple[int, int, int, int], doubt: float) -> AffineMap:
    """y = x inside a frame of constants, one for each channel."""
    return replace(
        zero_pad(fill.size, pads), fill=fill if np.any(fill != 0) else None, doubt=doubt
    )


def select(channels: int, start: int, count: int) -> AffineMap:
    """The `count` channels from `start` on, of `channels`."""
    return from_kernel(np.eye(channels)[start : start + count, :, None, None])


def scaled(one: AffineMap, factor: float) -> AffineMap:
    """factor * one(x)."""
    return replace(one, kernel=one.kernel * factor, bias=one.bias * factor)


# --- sums -------------------------------------------------------------------------------------
# ----------------------------


def add_geometry(one: Geometry, two: Geometry) -> Geometry:
    """The geometry of one(x) + two(x); Inexact when they do not line up."""
    if (one.outputs, one.inputs) != (two.outputs, two.inputs):
        raise Inexact(
            f"{one.outputs}x{one.inputs} and {two.outputs}x{two.inputs} channels do not add"
        )
    if one.strides != two.strides:
        raise Inexact(f"strides {one.strides} and {two.strides} differ")
    if one.excess != two.excess:
        raise Inexact(f"pads {one.pads} and {two.pads} give outputs of different sizes")
    dilations = (
        one.dilations
        if one.dilations == two.dilations or two.kernel == (1, 1)
        else (1, 1)
    )
    dilations = two.dilations if one.kernel == (1, 1) else dilations
    if any(
        (a.pads[x] - b.pads[x]) % dilations[x] for a, b in ((one, two),) for x in (0, 1)
    ):
        dilations = (1, 1)
    before = _pair(max(one.pads[a], two.pads[a]) for a in (0, 1))
    after = _pair(
        max(one.span[a] - one.pads[a], two.span[a] - two.pads[a]) - 1 for a in (0, 1)
    )
    kernel = _pair((before[a] + after[a]) // dilations[a] + 1 for a in (0, 1))
    pads = (before[0], before[1], one.excess[0] + after[0], one.excess[1] + after[1])
    return Geometry(
        one.outputs,
        one.inputs,
        kernel,
        one.strides,
        pads,
        dilations,
        math.gcd(one.groups, two.groups),
    )


def add(one: AffineMap, two: AffineMap) -> AffineMap:
    """The map of one(x) + two(x)."""
    if one.fill is not None or two.fill is not None:
        raise Inexact(
            "a sum pads with constants that are not zero, which no convolution does"
        )
    target = add_geometry(one.geometry, two.geometry)
    return AffineMap(
        target, _placed(one, target) + _placed(two, target), one.bias + two.bias
    )


def _placed(one: AffineMap, target: Geometry) -> Array:
    """The kernel of `one` in the window, dilation and groups of `target`."""
    kernel = grouped(one, target.groups).kernel
    if kernel.shape[2:] == target.kernel and one.geometry.pads[:2] == target.pads[:2]:
        return kernel
    placed = np.zeros((*kernel.shape[:2], *target.kernel))
    rows, columns = (
        [
            (target.pads[a] - one.geometry.pads[a] + t * one.geometry.dilations[a])
            // target.dilations[a]
            for t in range(kernel.shape[2 + a])
        ]
        for a in (0, 1)
    )
    placed[:, :, np.array(rows)[:, None], np.array(columns)[None, :]] = kernel
    return placed


def grouped(one: AffineMap, groups: int) -> AffineMap:
    """The same map with fewer groups (a divisor of its own), zeros filled in."""
    shape = one.geometry
    if groups == shape.groups:
        return one
    inside, inputs = shape.groups // groups, shape.inputs // shape.groups
    kernel = np.zeros((shape.outputs, inside * inputs, *shape.kernel))
    per_group = shape.outputs // shape.groups
    for index in range(shape.groups):
        rows = slice(index * per_group, (index + 1) * per_group)
        start = index % inside * inputs
        kernel[rows, start : start + inputs] = one.kernel[rows]
    return replace(one, geometry=replace(shape, groups=groups), kernel=kernel)


def join_geometry(one: Geometry, two: Geometry) -> Geometry:
    """The geometry of one(x) with two(x) below it, channel-wise; Inexact when they do not line
    up.
    """
    total = one.outputs + two.outputs
    return add_geometry(
        replace(one, outputs=total, groups=1), replace(two, outputs=total, groups=1)
    )


def join(one: AffineMap, two: AffineMap) -> AffineMap:
    """The map that gives the channels of one(x), then those of two(x)."""
    total = one.geometry.outputs + two.geometry.outputs
    return add(_among(one, total, 0), _among(two, total, one.geometry.outputs))


def _among(one: AffineMap, total: int, start: int) -> AffineMap:
    """`one` as the channels from `start` on of a map that gives `total`, the others zero."""
    dense, rows = grouped(one, 1), slice(start, start + one.geometry.outputs)
    kernel, bias = np.zeros((total, *dense.kernel.shape[1:])), np.zeros(total)
    kernel[rows], bias[rows] = dense.kernel, dense.bias
    return replace(
        dense, geometry=replace(dense.geometry, outputs=total), kernel=kernel, bias=bias
    )


# --- compositions -----------------------------------------------------------------------------
# ----------------------------


def compose_geometry(outer: Geometry, inner: Geometry) -> Geometry:
    """The geometry of outer(inner(x)), were it exact; Inexact when no window could make it so."""
    if outer.inputs != inner.outputs:
        raise Inexact(
            f"{outer.inputs} channels are read where {inner.outputs} are made"
        )
    if any(outer.pads) and (inner.kernel, inner.strides) != ((1, 1), (1, 1)):
        raise Inexact(
            "the outer convolution pads what the inner one computes, so borders would differ"
        )
    dilated = outer.kernel != (1, 1) and inner.kernel != (1, 1)
    dilations = (
        (1, 1)
        if dilated
        else (
            inner.dilations
            if outer.kernel == (1, 1)
            else _times(outer.dilations, inner.strides)
        )
    )
    span = _pair((outer.span[a] - 1) * inner.strides[a] + inner.span[a] for a in (0, 1))
    kernel = _pair((span[a] - 1) // dilations[a] + 1 for a in (0, 1))
    top, left, bottom, right = (
        one + two for one, two in zip(outer.pads, inner.pads, strict=True)
    )
    groups = _common_groups(outer, inner)
    return Geometry(
        outer.outputs,
        inner.inputs,
        kernel,
        _times(outer.strides, inner.strides),
        (top, left, bottom, right),
        dilations,
        groups,
    )


def compose(outer: AffineMap, inner: AffineMap) -> AffineMap:
    """The map of outer(inner(x)).

    Raises:
        Inexact: outer pads and inner strides or has a window, or gives something other than the
        padding outside its image.
    """
    target = compose_geometry(outer.geometry, inner.geometry)
    if any(outer.geometry.pads):
        _require_padding(outer, inner)
    bias = outer.bias + _apply(outer.kernel.sum((2, 3)), inner.bias, outer.geometry)
    return AffineMap(
        target, _composed_kernel(outer, inner, target), bias, inner.fill, inner.doubt
    )


def _require_padding(outer: AffineMap, inner: AffineMap) -> None:
    """Outside its image `inner`, which has one tap, gives what `outer` pads with."""
    outside = inner.bias
    if inner.fill is not None:
        outside = outside + _apply(inner.kernel[:, :, 0, 0], inner.fill, inner.geometry)
    if outer.fill is None and np.any(outside != 0):
        raise Inexact(
            "the outer convolution pads with 0 where the inner map would give its shift, so "
            "borders would differ"
        )
    if (
        outer.fill is not None
        and not np.abs(outer.fill - outside).max()
        <= outer.doubt * np.abs(outside).max()
    ):
        raise Inexact(
            "the border is filled with constants that the map before it does not give for "
            "zeros, so borders would differ"
        )


def _apply(taps: Array, vector: Array, shape: Geometry) -> Array:
    """taps [O, I/g] times vector [I], group by group."""
    blocks = taps.reshape(shape.groups, shape.outputs // shape.groups, -1)
    product: Array = np.einsum("goi,gi->go", blocks, vector.reshape(shape.groups, -1))
    return product.reshape(-1)


def _common_groups(outer: Geometry, inner: Geometry) -> int:
    if outer.is_diagonal:
        return inner.groups
    return outer.groups if inner.is_diagonal else math.gcd(outer.groups, inner.groups)


def _composed_kernel(outer: AffineMap, inner: AffineMap, target: Geometry) -> Array:
    out, inn = outer.geometry, inner.geometry
    if out.kernel == (1, 1) and inn.kernel == target.kernel:
        return _channel_product(outer, inner, target.groups, 0, 0)
    kernel = np.zeros((target.outputs, target.inputs // target.groups, *target.kernel))
    for row in range(out.kernel[0]):
        for column in range(out.kernel[1]):
            product = _channel_product(outer, inner, target.groups, row, column)
            rows, columns = (
                [
                    (tap * out.dilations[a] * inn.strides[a] + t * inn.dilations[a])
                    // target.dilations[a]
                    for t in range(inn.kernel[a])
                ]
                for a, tap in ((0, row), (1, column))
            )
            kernel[:, :, np.array(rows)[:, None], np.array(columns)[None, :]] += product
    return kernel


def _channel_product(
    outer: AffineMap, inner: AffineMap, groups: int, row: int, column: int
) -> Array:
    """sum over m of outer[o, m, row, column] * inner[m, i, :, :], without making a diagonal
    dense.
    """
    if outer.geometry.is_diagonal:
        return outer.kernel[:, :, row, column, None, None] * inner.kernel
    tap = outer.kernel[:, :, row, column]
    if inner.geometry.is_diagonal:
        per_group = inner.kernel.reshape(
            outer.geometry.groups, 1, -1, *inner.kernel.shape[2:]
        )
        blocks = (
            tap.reshape(outer.geometry.groups, -1, tap.shape[1])[..., None, None]
            * per_group
        )
        return blocks.reshape(*tap.shape, *inner.kernel.shape[2:])
    left = (
        grouped(outer, groups)
        .kernel[:, :, row, column]
        .reshape(groups, outer.geometry.outputs // groups, -1)
    )
    right = grouped(inner, groups).kernel
    right = right.reshape(groups, left.shape[2], -1)
    return (left @ right).reshape(outer.geometry.outputs, -1, *inner.kernel.shape[2:])


def _pair(values: Iterable[int]) -> tuple[int, int]:
    first, second = values
    return first, second


def _times(one: tuple[int, int], two: tuple[int, int]) -> tuple[int, int]:
    return one[0] * two[0], one[1] * two[1]
