"""Convolutions and pools of ONNX as torch functions, and the window attributes that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Ints = Sequence[int]


class Window(NamedTuple):
    """The attributes that Conv and the pools share; in `pads` all beginnings come first."""

    kernel_shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: bytes = b"NOTSET"

    @classmethod
    def pop_from(cls, attributes: dict[str, Any]) -> Window:
        """The window among the attributes of a node; they are removed there."""
        kernel = tuple(attributes.pop("kernel_shape", ()))
        strides = tuple(attributes.pop("strides", ()))
        pads = tuple(attributes.pop("pads", ()))
        auto_pad = attributes.pop("auto_pad", b"NOTSET")
        return cls(kernel, strides, pads, auto_pad)

    def with_kernel(self, kernel: Ints) -> Window:
        """This window for a `kernel` of that size, with ONNX's defaults."""
        axes = len(kernel)
        strides = self.strides or (1,) * axes
        pads = self.pads or (0,) * (2 * axes)
        return Window(tuple(kernel), strides, pads, self.auto_pad)

    @property
    def depends_on_size(self) -> bool:
        """Whether the padding follows from the input size: the output is ceil(input / stride)."""
        return self.auto_pad in (b"SAME_UPPER", b"SAME_LOWER")

    @property
    def symmetric_pads(self) -> tuple[int, ...] | None:
        """The padding of each axis as torch's own operators take it; None where they cannot."""
        axes = len(self.kernel_shape)
        before = self.pads[:axes]
        after = self.pads[axes:]
        if before != after or self.depends_on_size:
            return None
        return before

    def pad(self, x: Tensor, dilations: Ints, fill: float) -> Tensor:
        """`x` with the padding that the window asks for, of the value `fill`."""
        pads: Ints = self.pads
        if self.depends_on_size:
            pads = self._same_pads(x.shape[2:], dilations)
        if not any(pads):
            return x
        axes = len(self.kernel_shape)
        amounts: list[int] = []  # torch begins with the last axis
        for axis in reversed(range(axes)):
            amounts += [pads[axis], pads[axis + axes]]
        return functional.pad(x, amounts, value=fill)

    def _same_pads(self, lengths: Ints, dilations: Ints) -> Ints:
        """As many pads as make ceil(length / stride) windows fit along each axis."""
        smaller = []
        larger = []
        axes = zip(lengths, self.kernel_shape, self.strides, dilations, strict=True)
        for length, kernel, stride, dilation in axes:
            span = (kernel - 1) * dilation + 1
            windows = -(-length // stride)
            total = max(0, (windows - 1) * stride + span - length)
            half = total // 2
            smaller.append(half)
            larger.append(total - half)
        if self.auto_pad == b"SAME_UPPER":
            return [*smaller, *larger]
        return [*larger, *smaller]


def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    window: Window,
    dilations: Ints = (),
    group: int = 1,
) -> Tensor:
    """Conv in one, two or three dimensions."""
    axes = w.dim() - 2
    window = window.with_kernel(w.shape[2:])
    steps = tuple(dilations or [1] * axes)
    pads = window.symmetric_pads
    if pads is None:
        x = window.pad(x, steps, 0.0)
        pads = (0,) * axes
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[axes]
    return convolve(x, w, b, window.strides, pads, steps, group)


def max_pool(
    x: Tensor,
    *,
    window: Window,
    dilations: Ints = (),
    ceil_mode: int = 0,
    storage_order: int = 0,
) -> Tensor:
    """MaxPool in two dimensions."""
    kernel = window.kernel_shape
    window = window.with_kernel(kernel)
    steps = tuple(dilations or [1] * len(kernel))
    x = window.pad(x, steps, -torch.inf)
    return functional.max_pool2d(x, kernel, window.strides, 0, steps, bool(ceil_mode))


def average_pool(
    x: Tensor, *, window: Window, ceil_mode: int = 0, count_include_pad: int = 0
) -> Tensor:
    """AveragePool in two dimensions."""
    kernel = window.kernel_shape
    window = window.with_kernel(kernel)
    pads = window.symmetric_pads
    ceil, include = bool(ceil_mode), bool(count_include_pad)
    if pads is not None:
        return functional.avg_pool2d(x, kernel, window.strides, pads, ceil, include)
    steps = [1] * len(kernel)

    def mean(values: Tensor) -> Tensor:
        padded = window.pad(values, steps, 0.0)
        return functional.avg_pool2d(padded, kernel, window.strides, 0, ceil)

    if include:
        return mean(x)
    return mean(x) / mean(torch.ones_like(x[:1, :1]))
