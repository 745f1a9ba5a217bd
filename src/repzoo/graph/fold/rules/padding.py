"""The attributes of a window: what a convolution or a pool pads its image with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from repzoo.graph.fold.geometry import Pads
from repzoo.graph.fold.tensors import sides_of

UNKNOWN_PADDING = (
    "its padding depends on the size of its input (auto_pad=SAME), which is open or dilated; "
    "export it with a fixed size"
)


def ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """The integers of an attribute; `default` if it is absent or empty."""
    return tuple(node.attributes.get_ints(name, default) or default)


def pads_of(
    node: ir.Node, source: ir.Value | None, kernel: Sequence[int]
) -> Pads | None:
    """The padding of a node with a window (height, width) on `source`.

    None if it depends on a size that is not known, or on what runtimes disagree about.
    """
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if auto_pad == "NOTSET":
        top, left, bottom, right = ints(node, "pads", (0, 0, 0, 0))
        return top, left, bottom, right
    if auto_pad == "VALID":
        return 0, 0, 0, 0  # whatever `pads` says
    strides = ints(node, "strides", (1, 1))
    # Runtimes disagree about SAME with dilations.
    is_dilated = ints(node, "dilations", (1, 1)) != (1, 1)
    if is_dilated or len(strides) != 2 or min(strides) < 1:
        return None
    before = []
    after = []
    sides = zip(sides_of(source), kernel, strides, strict=True)
    for side, size, stride in sides:
        total = _same_padding(side, size, stride)
        if total is None:
            return None
        less = total // 2
        more = total - less
        is_lower = auto_pad == "SAME_LOWER"
        before.append(more if is_lower else less)
        after.append(less if is_lower else more)
    return before[0], before[1], after[0], after[1]


def _same_padding(side: int | None, kernel: int, stride: int) -> int | None:
    """Pixels that `side` lacks for ceil(side / stride) windows; None if that is not known."""
    if stride == 1:
        return kernel - 1  # at every size
    if side is None:
        return None
    windows = math.ceil(side / stride)
    return max((windows - 1) * stride + kernel - side, 0)
