"""Where the kernel of a convolution or a pool lands on its image, from the ONNX specification."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.graph.certificate.attributes import integers, text

Array = npt.NDArray[np.float64]


class UnknownExpression(Exception):
    """The expression holds something that no fold replaces, so the proof cannot follow it."""


@dataclass(frozen=True)
class Window:
    """Kernel, strides and dilations as (height, width); pads as (top, left, bottom, right)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @classmethod
    def of(
        cls,
        node: onnx.NodeProto,
        kernel: tuple[int, ...],
        sides: tuple[int, ...] | None = None,
    ) -> Window:
        """The window of `node`. `auto_pad` SAME needs `sides`, the image's (height, width).

        Raises:
            UnknownExpression: the padding depends on the image size, and `sides` is None.
        """
        strides = integers(node, "strides", (1, 1))
        dilations = integers(node, "dilations", (1, 1))
        auto_pad = text(node, "auto_pad", "NOTSET")
        if not auto_pad.startswith("SAME"):
            explicit = auto_pad == "NOTSET"
            pads = integers(node, "pads", (0, 0, 0, 0)) if explicit else (0, 0, 0, 0)
            return cls(kernel, strides, dilations, pads)
        if sides is None:
            raise UnknownExpression(node.name)
        begins, ends = [], []
        for side, size, stride, dilation in zip(
            sides, kernel, strides, dilations, strict=True
        ):
            begin, end = _same_padding(side, (size - 1) * dilation + 1, stride)
            if auto_pad == "SAME_LOWER":
                begin, end = end, begin
            begins.append(begin)
            ends.append(end)
        return cls(kernel, strides, dilations, (*begins, *ends))

    @property
    def spans(self) -> tuple[int, ...]:
        """Pixels from the first to the last tap of the kernel, (height, width)."""
        pairs = zip(self.kernel, self.dilations, strict=True)
        return tuple((size - 1) * dilation + 1 for size, dilation in pairs)

    def taps(self, image: Array) -> Iterator[Array]:
        """The image [N, C, H, W] as each tap sees it [N, C, height, width], row by row."""
        top, left, bottom, right = self.pads
        padded = np.pad(image, ((0, 0), (0, 0), (top, bottom), (left, right)))
        counts = [
            (side - span) // stride + 1
            for side, span, stride in zip(
                padded.shape[2:], self.spans, self.strides, strict=True
            )
        ]
        for row in range(self.kernel[0]):
            rows = self._positions(0, row, counts[0])
            for column in range(self.kernel[1]):
                yield padded[:, :, rows, self._positions(1, column, counts[1])]

    def _positions(self, axis: int, tap: int, count: int) -> slice:
        """The pixels along `axis` on which `tap` lands."""
        start, stride = tap * self.dilations[axis], self.strides[axis]
        return slice(start, start + (count - 1) * stride + 1, stride)


def _same_padding(side: int, span: int, stride: int) -> tuple[int, int]:
    """(before, after) for SAME_UPPER: as much as makes ceil(side / stride) windows fit."""
    windows = -(-side // stride)
    total = max((windows - 1) * stride + span - side, 0)
    return total // 2, total - total // 2
