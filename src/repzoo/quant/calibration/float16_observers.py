"""What float16 does to a network, from one calibration pass: ranges of tensors, noise of sums.

The range of a tensor is that of all images, since one overflow spoils a prediction. Noise is
measured on the first NOISE_IMAGES: it hardly differs between images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from repzoo.graph.tools.half_precision import name_of
from repzoo.quant.calibration.float16_sums import (
    Reduction,
    noise_db,
    running_dot,
    to_float16,
)
from repzoo.quant.calibration.observers import (
    Observer,
    check_extremes,
    flatten_positions,
    image_extremes,
)
from repzoo.quant.network.im2col import im2col, sample_positions
from repzoo.quant.network.layers import Layer, find_layers

Float32 = npt.NDArray[np.float32]

NOISE_IMAGES = 8
# Output positions of each image on which the sums of a layer are computed.
POSITIONS = 4
ROWS = 32  # output channels of a layer, or rows of a reduction, that are computed
# Terms from which on a running sum in float16 can lose more than INT8 would.
MIN_TERMS = 32


class RangeObserver(Observer):
    """The range of a tensor, and the noise of its noisiest channel when it is rounded.

    largest   magnitude of all values
    noise_db  signal-to-noise ratio of the channel that loses most; 200 without noise
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, name)
        self.largest = 0.0
        self.noise_db = 200.0
        self._images = 0

    def add(self, values: Float32) -> None:
        """Observe one batch, [N, C, ...]."""
        flat = flatten_positions(values)
        lows, highs = image_extremes(flat)
        low, high = lows.min(axis=0), highs.max(axis=0)
        check_extremes(self.source, low, high)
        self.largest = max(self.largest, float(np.maximum(-low, high).max(initial=0)))
        room = NOISE_IMAGES - self._images
        if room <= 0:
            return
        self._images += len(flat)
        sample = flat[:room].astype(np.float64)
        # Not what overflows, which `largest` tells.
        rounded = np.clip(to_float16(sample), -65504, 65504).astype(np.float64)
        signal = (sample**2).sum((0, 2))
        noise = ((rounded - sample) ** 2).sum((0, 2))
        is_known = (signal > 0) & (noise > 0)
        if is_known.any():
            worst = float((signal[is_known] / noise[is_known]).min())
            self.noise_db = min(self.noise_db, 10 * float(np.log10(worst)))

    def close(self) -> None:
        """There is nothing to finish."""


class SumObserver(Observer):
    """The noise of the sums of one node in float16, on a few images.

    node      by its first output
    terms     the most that one of its sums has
    noise_db  signal-to-noise ratio of its result; -inf where a sum overflows
    """

    def __init__(self, source: str, node: str) -> None:
        super().__init__(source, f"sums of {node}")
        self.node = node
        self.terms = 0
        self.noise_db = 200.0
        self._samples: list[Float32] = []
        self._images = 0

    def add(self, values: Float32) -> None:
        """Keep a sample of the first images, [N, C, ...]."""
        room = NOISE_IMAGES - self._images
        if room > 0:
            self._images += len(values)
            self._samples.append(self.sample(values[:room]))

    def close(self) -> None:
        """Compute the sums."""
        if self._samples:
            axis = self._samples[0].ndim - 1
            self.noise_db = self.measure(np.concatenate(self._samples, axis))
        self._samples.clear()

    def sample(self, values: Float32) -> Float32:
        """What is kept of some images, to be joined along the last axis."""
        raise NotImplementedError

    def measure(self, samples: Float32) -> float:
        """The noise of the sums of all samples."""
        raise NotImplementedError


class LayerSumObserver(SumObserver):
    """The sums of a Conv or Gemm with constant weights, of its noisiest group."""

    def __init__(self, layer: Layer, rows: Float32) -> None:
        """`rows` are its weights, [G, O/G, K]."""
        super().__init__(layer.source, layer.name)
        self._layer = layer
        self._rows = rows
        self.terms = layer.fan_in

    def sample(self, values: Float32) -> Float32:
        """Some columns of each image, [G, K, n]."""
        positions = sample_positions(self._layer, values, POSITIONS, self._random)
        columns = im2col(self._layer, values, positions)
        groups = _spread(len(columns), ROWS)
        return np.asarray(columns[groups, :, : POSITIONS * len(values)])

    def measure(self, samples: Float32) -> float:
        """The noise of some output channels, over all sampled groups."""
        exact: list[npt.NDArray[Any]] = []
        rounded: list[npt.NDArray[Any]] = []
        groups = _spread(len(self._rows), ROWS)
        outputs = _spread(self._rows.shape[1], max(1, ROWS // len(groups)))
        for columns, rows in zip(samples, self._rows[groups], strict=True):
            chosen = rows[outputs]
            exact.append(chosen.astype(np.float64) @ columns.astype(np.float64))
            rounded.append(running_dot(chosen, columns))
        return noise_db(np.stack(exact), np.stack(rounded))


@dataclass(frozen=True)
class ReducedAxes:
    """A reduction and the axes over which a node computes it.

    axes    from the first or, where negative, the last; empty for all
    onward  whether all axes after the first of `axes` belong to it
    window  sides of the first window of a pooling, of the last axes
    """

    reduction: Reduction
    axes: tuple[int, ...] = ()
    onward: bool = False
    window: tuple[int, ...] = ()

    def rows(self, values: Float32) -> Float32:
        """The numbers that are reduced together, [rows, terms]."""
        if self.window:
            inside: list[Any] = [slice(side) for side in self.window]
            values = values[(..., *inside)]
        axes = tuple(axis % values.ndim for axis in self.axes)
        if self.onward:
            axes = tuple(range(axes[0], values.ndim))
        axes = axes or tuple(range(values.ndim))
        last = tuple(range(-len(axes), 0))
        terms = int(np.prod([values.shape[axis] for axis in axes]))
        return np.moveaxis(values, axes, last).reshape(-1, terms)


class ReductionObserver(SumObserver):
    """The sums of a pooling, a reduction, a softmax or a normalization."""

    def __init__(self, source: str, node: str, axes: ReducedAxes) -> None:
        super().__init__(source, node)
        self._axes = axes

    def sample(self, values: Float32) -> Float32:
        """Some rows of each image, [terms, rows]."""
        rows = self._axes.rows(values)
        self.terms = rows.shape[1]
        return np.asarray(rows[_spread(len(rows), ROWS * len(values))].T)

    def measure(self, samples: Float32) -> float:
        """The noise of the result."""
        reduction = self._axes.reduction
        return noise_db(reduction.exact(samples.T), reduction.in_float16(samples.T))


def sum_observers(model: onnx.ModelProto) -> list[SumObserver]:
    """An observer for each node of `model` that adds MIN_TERMS or more float32 numbers.

    A product of two activations, as in attention, is not among them.
    """
    constants = {item.name: item for item in model.graph.initializer}
    observers: list[SumObserver] = []
    for layer in find_layers(model).values():
        if layer.fan_in >= MIN_TERMS:
            values = numpy_helper.to_array(constants[layer.weight])
            observers.append(LayerSumObserver(layer, layer.to_rows(values)))
    for node in model.graph.node:
        axes = reduced_axes(node, constants)
        if axes is not None and node.input[0] not in constants:
            observers.append(ReductionObserver(node.input[0], name_of(node), axes))
    return observers


def reduced_axes(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]
) -> ReducedAxes | None:
    """What `node` reduces; None if it is no reduction, or its axes are computed.

    Source: ONNX operators, opset 13 and newer.
    """
    attributes = {
        item.name: helper.get_attribute_value(item) for item in node.attribute
    }
    epsilon = float(attributes.get("epsilon", 1e-5))
    if node.op_type == "GlobalAveragePool":
        return ReducedAxes(Reduction("mean"), (2,), onward=True)
    if node.op_type == "AveragePool":
        window = tuple(attributes["kernel_shape"])
        return ReducedAxes(Reduction("mean"), (2,), onward=True, window=window)
    if node.op_type in ("Softmax", "LogSoftmax"):
        return ReducedAxes(Reduction("softmax"), (attributes.get("axis", -1),))
    if node.op_type == "LayerNormalization":
        axis = attributes.get("axis", -1)
        return ReducedAxes(Reduction("normalize", epsilon), (axis,), onward=True)
    if node.op_type == "InstanceNormalization":
        return ReducedAxes(Reduction("normalize", epsilon), (2,), onward=True)
    if node.op_type in REDUCED:
        axes = _axes_of(node, attributes, constants)
        return None if axes is None else ReducedAxes(REDUCED[node.op_type], axes)
    return None


REDUCED = {
    "ReduceL2": Reduction("squares"),
    "ReduceMean": Reduction("mean"),
    "ReduceSum": Reduction("sum"),
    "ReduceSumSquare": Reduction("squares"),
}


def _axes_of(
    node: onnx.NodeProto,
    attributes: Mapping[str, Any],
    constants: Mapping[str, onnx.TensorProto],
) -> tuple[int, ...] | None:
    """The axes of a Reduce operator, an attribute or an input; None where they are computed."""
    if len(node.input) < 2 or not node.input[1]:
        return tuple(attributes.get("axes", ()))
    if node.input[1] not in constants:
        return None
    return tuple(numpy_helper.to_array(constants[node.input[1]]).tolist())


def _spread(total: int, count: int) -> list[int]:
    """At most `count` of `total` positions, evenly spread."""
    if total <= count:
        return list(range(total))
    return [index * total // count for index in range(count)]
