"""The shape of an affine map: its window, channels and groups, without its values.

The fold knows these for every expression at once, and decides from them what is exact and what it
costs. Values are computed only when a fold is written (algebra.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

Pair = tuple[int, int]  # along the height, along the width
Pads = tuple[int, int, int, int]  # top, left, bottom, right, as in ONNX


class Inexact(ValueError):
    """No single affine map equals the composition or sum of two maps. The text says why.

    This is an answer and not a failure.
    """


@dataclass(frozen=True)
class Geometry:
    """The shape of a map without its values. `kernel` is (height, width) in taps."""

    outputs: int
    inputs: int
    kernel: Pair = (1, 1)
    strides: Pair = (1, 1)
    pads: Pads = (0, 0, 0, 0)
    dilations: Pair = (1, 1)
    groups: int = 1

    @property
    def span(self) -> Pair:
        """Pixels covered by the kernel: (k - 1) * dilation + 1."""
        height, width = self.kernel
        row_step, column_step = self.dilations
        return (height - 1) * row_step + 1, (width - 1) * column_step + 1

    @property
    def excess(self) -> Pair:
        """Total padding minus (span - 1): out = floor((in + excess - 1) / stride) + 1."""
        top, left, bottom, right = self.pads
        height, width = self.span
        return top + bottom - height + 1, left + right - width + 1

    @property
    def taps(self) -> int:
        """Taps of the kernel in one channel."""
        height, width = self.kernel
        return height * width

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
        """Multiply-accumulates for each output pixel, which is also the number of weights."""
        inputs_per_group = self.inputs // self.groups
        return self.outputs * inputs_per_group * self.taps


def depthwise(channels: int, pads: Pads = (0, 0, 0, 0)) -> Geometry:
    """The geometry of one tap for each channel."""
    return Geometry(channels, channels, pads=pads, groups=channels)


# --- sums ---------------------------------------------------------------------------------------


def add_geometry(left: Geometry, right: Geometry) -> Geometry:
    """The geometry of left(x) + right(x).

    The kernel of the sum covers both kernels, each at the place where it meets the image.

    Raises:
        Inexact: the outputs do not line up.
    """
    _require_same_outputs(left, right)
    dilations = _common_dilations(left, right)
    kernel = []
    begins = []
    ends = []
    for axis in (0, 1):
        # Pixels that the kernel of the sum covers before a window's first image pixel, and from
        # that pixel on.
        before = max(left.pads[axis], right.pads[axis])
        left_after = left.span[axis] - left.pads[axis]
        right_after = right.span[axis] - right.pads[axis]
        after = max(left_after, right_after)
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


def _require_same_outputs(left: Geometry, right: Geometry) -> None:
    """Refuse maps whose outputs have different channels, strides or sizes."""
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


def _common_dilations(left: Geometry, right: Geometry) -> Pair:
    """Dilations at which one kernel can hold the taps of both."""
    if left.kernel == (1, 1):
        dilations = right.dilations
    elif right.kernel == (1, 1) or left.dilations == right.dilations:
        dilations = left.dilations
    else:
        return (1, 1)
    for axis in (0, 1):
        offset = left.pads[axis] - right.pads[axis]
        # The taps of one kernel lie between those of the other.
        if offset % dilations[axis]:
            return (1, 1)
    return dilations


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
        outer_reach = (outer.span[axis] - 1) * inner.strides[axis]
        span = outer_reach + inner.span[axis]
        kernel.append((span - 1) // dilations[axis] + 1)
    return Geometry(
        outputs=outer.outputs,
        inputs=inner.inputs,
        kernel=(kernel[0], kernel[1]),
        strides=_multiply(outer.strides, inner.strides),
        pads=_add_pads(outer.pads, inner.pads),
        dilations=dilations,
        groups=_common_groups(outer, inner),
    )


def _composed_dilations(outer: Geometry, inner: Geometry) -> Pair:
    """Dilations at which one kernel holds every tap of `outer` on every tap of `inner`."""
    if outer.kernel == (1, 1):
        return inner.dilations
    if inner.kernel == (1, 1):
        return _multiply(outer.dilations, inner.strides)
    return (1, 1)


def _common_groups(outer: Geometry, inner: Geometry) -> int:
    """The most groups into which both maps can be cut together."""
    if outer.is_diagonal:
        return inner.groups
    if inner.is_diagonal:
        return outer.groups
    return math.gcd(outer.groups, inner.groups)


def _add_pads(outer: Pads, inner: Pads) -> Pads:
    """The padding of both: only one of them pads, or `inner` has one tap and no stride."""
    outer_top, outer_left, outer_bottom, outer_right = outer
    top, left, bottom, right = inner
    return (
        outer_top + top,
        outer_left + left,
        outer_bottom + bottom,
        outer_right + right,
    )


def _multiply(first: Pair, second: Pair) -> Pair:
    first_height, first_width = first
    second_height, second_width = second
    return first_height * second_height, first_width * second_width
