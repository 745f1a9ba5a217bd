"""The window of a node: what a convolution or a pool reads at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from repzoo.graph.fold.geometry import Geometry, Pads
from repzoo.graph.fold.tensors import sides_of

UNKNOWN_PADDING = (
    "its padding depends on the size of its input (auto_pad=SAME), which is open or dilated; "
    "export it with a fixed size"
)


@dataclass(frozen=True)
class Window:
    """The attributes of a window, (height, width) each. See Geometry."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: Pads

    @property
    def is_dilated(self) -> bool:
        """Whether the taps have gaps between them."""
        return self.dilations != (1, 1)

    def geometry(self, outputs: int, inputs: int, groups: int) -> Geometry:
        """The geometry of a map with this window."""
        return Geometry(
            outputs,
            inputs,
            kernel=(self.kernel[0], self.kernel[1]),
            strides=(self.strides[0], self.strides[1]),
            pads=self.pads,
            dilations=(self.dilations[0], self.dilations[1]),
            groups=groups,
        )


def window_of(
    node: ir.Node, source: ir.Value | None, kernel: Sequence[int]
) -> Window | None:
    """The window of a node on `source`.

    None if its padding depends on a size that is not known, or on what runtimes disagree about.
    """
    pads = _pads(node, source, kernel)
    if pads is None:
        return None
    strides = _ints(node, "strides", (1, 1))
    dilations = _ints(node, "dilations", (1, 1))
    return Window(tuple(kernel), strides, dilations, pads)


def _ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """The integers of an attribute; `default` if it is absent or empty."""
    return tuple(node.attributes.get_ints(name, default) or default)


def _pads(node: ir.Node, source: ir.Value | None, kernel: Sequence[int]) -> Pads | None:
    """The padding of a node on `source`; None if it is not known."""
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if auto_pad == "NOTSET":
        top, left, bottom, right = _ints(node, "pads", (0, 0, 0, 0))
        return top, left, bottom, right
    if auto_pad == "VALID":
        return 0, 0, 0, 0  # whatever `pads` says
    strides = _ints(node, "strides", (1, 1))
    # Runtimes disagree about SAME with dilations.
    is_dilated = _ints(node, "dilations", (1, 1)) != (1, 1)
    if is_dilated or len(strides) != 2 or min(strides) < 1:
        return None
    totals = []
    for side, size, stride in zip(sides_of(source), kernel, strides, strict=True):
        total = _same_padding(side, size, stride)
        if total is None:
            return None
        totals.append(total)
    return _distribute(totals[0], totals[1], more_before=auto_pad == "SAME_LOWER")


def _same_padding(side: int | None, kernel: int, stride: int) -> int | None:
    """Pixels that `side` lacks for ceil(side / stride) windows; None if that is not known."""
    if stride == 1:
        return kernel - 1  # at every size
    if side is None:
        return None
    windows = math.ceil(side / stride)
    return max((windows - 1) * stride + kernel - side, 0)


def _distribute(height: int, width: int, more_before: bool) -> Pads:
    """Half of the padding on each side; an odd pixel before the image, or behind it."""
    odd = 1 if more_before else 0
    top = (height + odd) // 2
    left = (width + odd) // 2
    return top, left, height - top, width - left
