"""Observers: each watches one tensor during calibration and accumulates one kind of statistic.

Histograms and Gram matrices come from random positions of each image, so that their cost does not
grow with the image size. Observers keep a fixed amount of memory whatever the number of images. A
tensor's extremes are taken from all of its values.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from repzoo.errors import InputError
from repzoo.quant.calibration.histogram import Histogram
from repzoo.quant.calibration.statistics import Moments
from repzoo.quant.network.im2col import im2col, sample_positions
from repzoo.quant.network.layers import Layer

Float32 = npt.NDArray[np.float32]

SAMPLES = 2**13  # values of each channel behind a histogram, from all images together
MIN_POSITIONS = 32  # of each image, however many images there are
RAW_SAMPLES = 256  # raw values kept of each channel, from all images together
POSITION_STRIDE = 7919  # a prime: consecutive raw samples come from distant positions
# Of an activation: thousands of squares add up to less than float32's limit.
MAX_MAGNITUDE = 1e16

# Batches are collected until they reach these sizes, since counting has a cost for each call.
PENDING_VALUES = 512  # per channel of a histogram
MIN_PENDING_ROWS = 128  # of a Gram matrix; a wide one waits for more, up to the maximum
MAX_PENDING_ROWS = 256

ROWS_PER_COLUMN = 4  # output positions behind a Gram matrix, for each of its columns
MIN_ROWS = 4096  # output positions behind a Gram matrix

CALIBRATION_BYTES = 10**9  # memory of the whole process while it calibrates
OTHER_BYTES = 45 * 10**7  # of it for libraries and one batch
MIN_GRAM_BYTES = 2**26  # of all Gram matrices together
MAX_GRAM_BYTES = 2**28
MIN_GRAM_WIDTH = 64


class Observer:
    """Watches the tensor `source`. Its random positions depend on `name` alone.

    They do not depend on which other tensors are observed: adding one does not change the rest.
    """

    def __init__(self, source: str, name: str) -> None:
        self.source = source
        self._random = np.random.default_rng(zlib.crc32(name.encode()))

    def add(self, values: Float32) -> None:
        """Observe one batch, [N, C, ...].

        Raises:
            InputError: a value is not finite, or too large to be squared in float32.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Finish the statistics after the last batch."""
        raise NotImplementedError


class MagnitudeCheck(Observer):
    """Checks that the values of a tensor can be quantized, and keeps nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name, name)

    def add(self, values: Float32) -> None:
        """Check one batch, [N, C, ...]."""
        lows, highs = image_extremes(flatten_positions(values))
        check_extremes(self.source, lows.min(axis=0), highs.max(axis=0))

    def close(self) -> None:
        """There is nothing to finish."""


class HistogramObserver(Observer):
    """Accumulates the histogram of a tensor.

    Args:
        name: the tensor.
        positions: at most so many positions of each image are counted.
        images: expected number of images.
    """

    def __init__(
        self,
        name: str,
        positions: int,
        images: int,
    ) -> None:
        super().__init__(name, name)
        self.histogram = Histogram(0)
        self._positions = positions
        self._expected_images = max(images, 1)
        self._images = 0
        self._pending = _PendingColumns()
        self._samples: list[Float32] = []

    def add(self, values: Float32) -> None:
        """Observe one batch, [N, C, ...]. All of its images are sampled at the same positions."""
        flat = flatten_positions(values)
        lows, highs = image_extremes(flat)
        low, high = lows.min(axis=0), highs.max(axis=0)
        check_extremes(self.source, low, high)
        _, channels, positions = flat.shape
        if not len(self.histogram.low):
            # the number of channels is known with the first batch
            self.histogram = Histogram(channels)
        self.histogram.update_extremes(low, high)
        self.histogram.add_image_extremes(lows.min(axis=1), highs.max(axis=1))
        if positions > self._positions:
            drawn = self._random.choice(positions, self._positions, replace=False)
            flat = flat.take(drawn, axis=2)
        self._collect_samples(flat)
        by_channel = flat.transpose(1, 0, 2)
        self._pending.add(by_channel.reshape(channels, -1))
        if self._pending.count >= PENDING_VALUES:
            self.histogram.count_values(self._pending.take())

    def _collect_samples(self, flat: Float32) -> None:
        """Keep a few raw values of each image of `flat` [N, C, positions].

        Over all images they add up to RAW_SAMPLES, and no image gives more than its share.
        """
        first = self._images
        self._images += len(flat)
        # how many samples there must be before each image, and behind the last one
        images_before = np.arange(first, self._images + 1)
        due = images_before * RAW_SAMPLES // self._expected_images
        # the numbers of the samples to draw now, and the image and position of each
        end = min(due[-1], RAW_SAMPLES)
        numbers = np.arange(due[0], end)
        images = np.searchsorted(due, numbers, "right") - 1
        positions = numbers * POSITION_STRIDE % flat.shape[2]
        samples = flat[images, :, positions]
        self._samples.append(samples.T)

    def close(self) -> None:
        """Count what is pending, and store the counts compactly."""
        if self._pending.count:
            self.histogram.count_values(self._pending.take())
        self.histogram.compact()
        if self._samples:
            self.histogram.samples = np.concatenate(self._samples, axis=1)
            self._samples.clear()


class GramObserver(Observer):
    """Accumulates the mean and the Gram matrix of a layer's im2col columns.

    Args:
        layer: the layer whose input is observed.
        width: widest block of the Gram matrix (see `gram_width`); rounded to whole channels.
        images: expected number of images.
    """

    def __init__(
        self,
        layer: Layer,
        width: int,
        images: int,
    ) -> None:
        super().__init__(layer.source, f"columns of {layer.name}")
        self.layer = layer
        whole_channels = max(1, width // layer.taps)
        width = whole_channels * layer.taps
        self._blocks = _blocks(layer.fan_in, width)
        self._grams: list[Float32] = []
        for start, end in self._blocks:
            shape = (layer.groups, end - start, end - start)
            self._grams.append(np.zeros(shape, np.float32))
        self._sum = np.zeros((layer.groups, layer.fan_in))
        self._rows = 0
        wanted_rows = max(MIN_ROWS, ROWS_PER_COLUMN * layer.fan_in)
        self._positions = math.ceil(wanted_rows / max(images, 1))
        self._max_pending = min(max(width, MIN_PENDING_ROWS), MAX_PENDING_ROWS)
        self._pending = _PendingColumns()

    def add(self, values: Float32) -> None:
        """Observe one batch of the layer's input, [N, C, H, W] or [N, C]."""
        positions = sample_positions(self.layer, values, self._positions, self._random)
        self._pending.add(im2col(self.layer, values, positions))
        if self._pending.count >= self._max_pending:
            self._sum_columns(self._pending.take())

    def _sum_columns(self, columns: Float32) -> None:
        """Add `columns` [G, K, n] to the sums."""
        self._rows += columns.shape[2]
        self._sum += columns.sum(axis=2, dtype=np.float64)
        for gram, (start, end) in zip(self._grams, self._blocks, strict=True):
            block = columns[:, start:end]
            if len(gram) == 1:
                # for a 2-D product X X', NumPy calls BLAS syrk, which takes half the time
                gram[0] += block[0] @ block[0].T
            else:
                gram += block @ block.transpose(0, 2, 1)

    def close(self) -> None:
        """Sum what is pending, and divide by the number of columns."""
        if self._pending.count:
            self._sum_columns(self._pending.take())
        rows = max(self._rows, 1)
        for gram in self._grams:
            gram /= rows  # in place: Gram matrices take most of the memory

    @property
    def moments(self) -> Moments:
        """The moments, after `close`."""
        return Moments(
            mean=self._sum / self._rows,
            stored=tuple(self._grams),
            blocks=self._blocks,
            rows=self._rows,
        )


class _PendingColumns:
    """Arrays that wait to be processed together, joined along their last axis.

    Attributes:
        count: length of the joined array.
    """

    def __init__(self) -> None:
        self.count = 0
        self._arrays: list[Float32] = []

    def add(self, array: Float32) -> None:
        """Let `array` wait."""
        self._arrays.append(array)
        self.count += array.shape[-1]

    def take(self) -> Float32:
        """The joined array. Nothing waits after that."""
        arrays = self._arrays
        self._arrays = []
        self.count = 0
        # np.concatenate would copy even a single array
        if len(arrays) == 1:
            return arrays[0]
        return np.concatenate(arrays, axis=-1)


def _blocks(total: int, width: int) -> tuple[tuple[int, int], ...]:
    """(begin, end) of consecutive blocks of `width`, of which the last may be shorter."""
    edges = [*range(0, total, width), total]
    return tuple(itertools.pairwise(edges))


def gram_width(layers: Sequence[Layer], weight_bytes: int) -> int:
    """The widest Gram block for which the matrices of all `layers` fit in memory.

    A model with `weight_bytes` of weights leaves the rest of CALIBRATION_BYTES to them.
    """
    available = CALIBRATION_BYTES - OTHER_BYTES - weight_bytes
    budget = min(max(available, MIN_GRAM_BYTES), MAX_GRAM_BYTES)
    width = max((layer.fan_in for layer in layers), default=1)
    while width > MIN_GRAM_WIDTH and _gram_bytes(layers, width) > budget:
        width //= 2
    return width


def _gram_bytes(layers: Sequence[Layer], width: int) -> int:
    """Bytes of all layers' Gram matrices, float32, in blocks of at most `width`."""
    total = 0
    for layer in layers:
        block = min(width, layer.fan_in)
        total += 4 * layer.groups * layer.fan_in * block
    return total


def positions_per_image(images: int) -> int:
    """How many positions of each of `images` images a histogram counts."""
    return max(MIN_POSITIONS, SAMPLES // max(images, 1))


def image_extremes(flat: Float32) -> tuple[Float32, Float32]:
    """(low, high) of each channel of each image, [N, C] each, of [N, C, positions]."""
    return flat.min(axis=2), flat.max(axis=2)


def check_extremes(name: str, low: Float32, high: Float32) -> None:
    """Refuse extremes [C] of the tensor `name` that rule out quantization.

    Raises:
        InputError: they are not finite, or too large.
    """
    extremes = np.concatenate([low, high])
    if not np.isfinite(extremes).all():
        raise InputError(
            f"the tensor {name!r} is not finite on calibration images: "
            "the float model itself overflows there or has weights that are not finite; repair it "
            "before you quantize"
        )
    largest = float(np.maximum(-low, high).max(initial=0.0))
    if largest > MAX_MAGNITUDE:
        raise InputError(
            f"the tensor {name!r} reaches {largest:.2g} on calibration images; at most "
            f"{MAX_MAGNITUDE:g} can be quantized, since larger squares overflow float32; divide "
            "the weights that produce it by a factor, and multiply the next layer's by the same"
        )


def flatten_positions(values: Float32) -> Float32:
    """[N, C, ...] as [N, C, positions]. A tensor with fewer than two axes is one channel."""
    if values.ndim < 2:
        return values.reshape(1, 1, -1)
    images, channels = values.shape[:2]
    return values.reshape(images, channels, -1)
