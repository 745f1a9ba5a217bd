"""Where the kernel of a convolution or a pool lands on its image, from the ONNX specification."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.graph.certificate.attributes import integers, text

Array = npt.NDArray[np.float64]


class UnknownExpression(Exception):
    """The expression holds something that no fold replaces, so the proof cannot follow it."""


@dataclass(frozen=True)
class Window:
    """The window of a 2-D convolution or pool.

    kernel     (height, width)
    strides    (height, width)
    dilations  (height, width)
    pads       (top, left, bottom, right)
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] = (0, 0, 0, 0)

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
        window = cls(kernel, strides, dilations)
        auto_pad = text(node, "auto_pad", "NOTSET")
        if auto_pad == "NOTSET":
            pads = integers(node, "pads", (0, 0, 0, 0))
        elif not auto_pad.startswith("SAME"):
            pads = (0, 0, 0, 0)
        elif sides is None:
            raise UnknownExpression(node.name)
        else:
            pads = window._same_pads(sides, auto_pad)
        return replace(window, pads=pads)

    @property
    def spans(self) -> tuple[int, ...]:
        """Pixels from the first to the last tap of the kernel, (height, width)."""
        spans = []
        for size, dilation in zip(self.kernel, self.dilations, strict=True):
            spans.append((size - 1) * dilation + 1)
        return tuple(spans)

    def taps(self, image: Array) -> Iterator[Array]:
        """The image [N, C, H, W] as each tap sees it [N, C, height, width], row by row."""
        top, left, bottom, right = self.pads
        padded = np.pad(image, ((0, 0), (0, 0), (top, bottom), (left, right)))
        height, width = padded.shape[2:]
        for row in range(self.kernel[0]):
            rows = self._positions(0, row, height)
            for column in range(self.kernel[1]):
                columns = self._positions(1, column, width)
                yield padded[:, :, rows, columns]

    def _same_pads(self, sides: tuple[int, ...], auto_pad: str) -> tuple[int, ...]:
        """As many pads as make ceil(side / stride) windows fit along each axis."""
        begins = []
        ends = []
        for side, span, stride in zip(sides, self.spans, self.strides, strict=True):
            windows = -(-side // stride)
            total = max((windows - 1) * stride + span - side, 0)
            # Where the total is odd, SAME_UPPER puts the extra pixel at the end.
            begin = total // 2
            if auto_pad == "SAME_LOWER":
                begin = total - begin
            begins.append(begin)
            ends.append(total - begin)
        return (*begins, *ends)

    def _positions(self, axis: int, tap: int, side: int) -> slice:
        """The pixels on which `tap` lands, along an axis of `side` pixels with its padding."""
        stride = self.strides[axis]
        windows = (side - self.spans[axis]) // stride + 1
        start = tap * self.dilations[axis]
        last = start + (windows - 1) * stride
        return slice(start, last + 1, stride)
